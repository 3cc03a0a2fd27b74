"""Snapshots of layouts and addresses: both implementations tell apart what a launch depends on."""

from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fusedtricks import ops
from fusedtricks.snapshot import _python_snapshot, snapshot

Snapshot = Callable[[Any], tuple[Any, bytes]]
IMPLEMENTATIONS: dict[str, Snapshot] = {"python": _python_snapshot}
if ops.native is not None:
    IMPLEMENTATIONS["native"] = ops.native.snapshot

pytestmark = pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors):UserWarning")
implementation = pytest.mark.parametrize(
    "take", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys()
)

BASE = torch.zeros(2000)
PAIRS = {
    "dtype": (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
    "device": (torch.zeros(4), torch.zeros(4, device="meta")),
    "shape": (BASE[:4], BASE[:5]),
    "ndim": (BASE[:4], BASE[:4].view(4, 1)),
    "transposed": (BASE[:9].view(3, 3), BASE[:9].view(3, 3).t()),
    "channels_last": (
        torch.zeros(2, 3, 4, 5),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ),
    "expanded": (BASE[:3], BASE[:1].expand(3)),
    "strides of size 1": (BASE[:4].view(1, 4), BASE.as_strided((1, 4), (7, 1))),
    "empty": (torch.zeros(0, 3), torch.zeros(3, 0)),
    "0-dim": (torch.zeros(()), torch.zeros(1)),
    "sparse": (torch.zeros(3, 3), torch.zeros(3, 3).to_sparse()),
    "sparse shapes": (torch.zeros(3, 4).to_sparse(), torch.zeros(4, 3).to_sparse()),
    "negated": (
        torch.zeros(3, dtype=torch.complex64).imag,
        torch.zeros(3, dtype=torch.complex64).conj().imag,
    ),
    "conjugated": (
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.complex64).conj(),
    ),
}
UNUSUAL = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2), torch.ones(3)], layout=torch.jagged
    ),
    "meta": lambda: torch.zeros(3, device="meta"),
    "fake": lambda: FakeTensorMode().from_tensor(torch.zeros(3)),
    "negated": lambda: torch.zeros(3, dtype=torch.complex64).conj().imag,
    "conjugated": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "empty": lambda: torch.zeros(5)[5:],
}
if torch.backends.mkldnn.is_available():
    UNUSUAL["mkldnn"] = lambda: torch.eye(3).to_mkldnn()


def addresses(taken: tuple[Any, bytes]) -> list[int]:
    return array("q", taken[1]).tolist()


def some_tensors() -> list[Tensor]:
    shapes = [(), (0,), (5,), (3, 4), (2, 3, 4, 5), (1, 1, 1, 1, 1, 1, 2)]
    tensors = [torch.zeros(shape) for shape in shapes]
    return [*tensors, nn.Parameter(torch.zeros(7, dtype=torch.bfloat16)), torch.zeros(9)[2:7:2]]


@implementation
@pytest.mark.parametrize("kind", [list, tuple])
def test_tensors_that_agree(take: Snapshot, kind: type) -> None:
    tensors, others = some_tensors(), some_tensors()
    taken = take(kind(tensors))
    assert taken == take(list(tensors))
    assert addresses(taken) == [tensor.data_ptr() for tensor in tensors]
    layouts, other_layouts = taken[0], take(others)[0]
    assert layouts == other_layouts and hash(layouts) == hash(other_layouts)
    assert addresses(taken) != addresses(take(others))


@implementation
@pytest.mark.parametrize("one,other", PAIRS.values(), ids=PAIRS.keys())
def test_tensors_that_differ(take: Snapshot, one: Tensor, other: Tensor) -> None:
    around = some_tensors()
    assert take([*around, one, *around])[0] != take([*around, other, *around])[0]
    assert take([one])[0] != take([other])[0]
    assert take([one])[0] == take([one])[0] and take([other])[0] == take([other])[0]


@implementation
def test_the_place_in_memory_is_no_layout(take: Snapshot) -> None:
    one, other = take([BASE[2:6]]), take([BASE[3:7]])
    assert one[0] == other[0]
    assert addresses(one) == [BASE.data_ptr() + 8] and addresses(other) == [BASE.data_ptr() + 12]


@implementation
def test_lists_of_other_lengths(take: Snapshot) -> None:
    shapes = [
        [],
        [()],
        [(), ()],
        [(2, 3)],
        [(2,), (3,)],
        [(3,), (2,)],
        [(2, 3), ()],
        [(), (2, 3)],
        [(0,), (2,)],
        [(1, 1)],
        [(1,), (1,)],
    ]
    layouts = [take([torch.zeros(shape) for shape in row])[0] for row in shapes]
    assert len(set(layouts)) == len(shapes)


@implementation
@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_tensors_without_plain_memory(take: Snapshot, make: Callable[[], Tensor]) -> None:
    plain = torch.zeros(4)
    taken = take([plain, make(), plain])
    assert addresses(taken) == [plain.data_ptr(), 0, plain.data_ptr()]
    assert taken[0] == take((plain, make(), plain))[0]
    assert len({taken[0], take([plain, plain, plain])[0], take([plain, make()])[0]}) == 3


@implementation
def test_kinds_of_memory_are_told_apart(take: Snapshot) -> None:
    layouts = {take([make()])[0] for make in UNUSUAL.values()}
    assert len(layouts) == len(UNUSUAL)


@implementation
def test_what_is_no_tensor_is_named(take: Snapshot) -> None:
    with pytest.raises(TypeError, match="element 2 is of type int"):
        take([torch.zeros(1), torch.zeros(2), 3, torch.zeros(2)])
    with pytest.raises(TypeError):
        take(3)


@implementation
def test_under_a_default_device(take: Snapshot) -> None:
    tensors = some_tensors()
    expected = take(tensors)
    with torch.device("meta"):
        assert take(tensors) == expected


def test_memory_that_is_copied_on_write_is_copied() -> None:
    tensor = torch.zeros(5)
    lazy = torch._lazy_clone(tensor)
    (address,) = addresses(snapshot([lazy]))
    assert address != tensor.data_ptr() and address == lazy.data_ptr()


@pytest.mark.parametrize("native", [None, ops.native])
def test_the_fastest_is_taken(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "native", native)
    layouts, _ = snapshot(some_tensors())
    assert isinstance(layouts, bytes) == (native is not None)
