"""What the kernel for batches of images reads and writes, and which way it takes for a layout."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtricks.data import prepare_op
from fusedtricks.data.plan import BatchPlan
from fusedtricks.data.prepare import prepare_batch
from tests import devices

pytestmark = pytest.mark.skipif(
    not devices.HAS_TRITON or devices.DEVICE.type != "cpu",
    reason="needs Triton's interpreter: pip install triton, and no FUSEDTRICKS_TEST_SHIM",
)
if devices.HAS_TRITON:
    import numpy as np
    import triton.language as tl
    from fusedtricks.kernels import batch, batch_kernel
    from triton.runtime import interpreter

formats = pytest.mark.parametrize(
    "memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"]
)


class Memory:
    """The addresses that a kernel touches.

    Attributes:
        is_real: Whether it loads and stores there.
        readable: What it may read, None for anything; other loads are left out.
        loads: Addresses and bytes of all loads, one array for each operation.
        stores: The same of all stores.
    """

    def __init__(self) -> None:
        self.is_real = True
        self.readable: list[Tensor] | None = None
        self.loads: list[Any] = []
        self.stores: list[Any] = []

    def clear(self) -> None:
        self.loads.clear()
        self.stores.clear()

    def within(self, tensor: Tensor, accesses: list[Any]) -> Any:
        """Return the offsets in bytes of all accesses to the memory of a tensor."""
        begin = tensor.untyped_storage().data_ptr()
        found = np.concatenate(accesses, axis=1)
        inside = (found[0] >= begin) & (found[0] < begin + tensor.untyped_storage().nbytes())
        return found[0][inside] - begin


def accesses_of(pointers: Any, mask: Any) -> Any:
    """Return addresses and numbers of bytes where the mask is true."""
    addresses = np.broadcast_to(pointers.data, mask.data.shape)[mask.data].astype(np.int64)
    n_bytes = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    return np.stack([addresses, np.full(len(addresses), n_bytes)])


def are_inside(accesses: Any, tensors: list[Tensor]) -> Any:
    """Return which accesses touch nothing but elements of these tensors or what is between."""
    inside = np.zeros(accesses.shape[1], dtype=bool)
    for tensor in tensors:
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        end = tensor.data_ptr() + (last + 1) * tensor.element_size()
        inside |= (accesses[0] >= tensor.data_ptr()) & (accesses.sum(axis=0) <= end)
    return inside


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    spy = Memory()
    load = interpreter.InterpreterBuilder.create_masked_load
    store = interpreter.InterpreterBuilder.create_masked_store

    def spy_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        spy.loads.append(accesses_of(pointers, mask))
        is_fine = spy.readable is None or are_inside(spy.loads[-1], spy.readable).all()
        if not (spy.is_real and is_fine):
            mask = interpreter.TensorHandle(np.zeros_like(mask.data), tl.int1)
        return load(self, pointers, mask, other, *rest)

    def spy_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        spy.stores.append(accesses_of(pointers, mask))
        return store(self, pointers, value, mask, *rest) if spy.is_real else None

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", spy_load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", spy_store)
    yield spy


def prepare(images: Tensor, plan: BatchPlan | None, **options: Any) -> Tensor:
    n_channels = images.shape[1]
    values = {"mean": [0.25] * n_channels, "std": [0.5] * n_channels}
    return prepare_batch(images, None, plan, **values, backend="triton", **options)[0]


def tensors_of(plan: BatchPlan) -> list[Tensor]:
    return [plan.partner, plan.own_share, plan.patch, plan.hole]


# Bounds. ------------------------------------------------------------------------------------------

# A group, a block or a program more or less than full, and rows shorter than a group.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1, 1),
    (3, 1, 3, 1),
    (2, 3, 5, 7),
    (2, 2, 2, 2),
    (3, 4, 2, 2),
    (2, 1, 1, 257),
    (1, 1, 64, 64),
    (1, 3, 37, 37),
    (2, 1, 1, 4097),
]


@formats
@pytest.mark.parametrize("is_channels_last", [False, True], ids=["from-first", "from-last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_outside_is_touched_and_everything_is_written_once(
    shape, is_channels_last, memory_format, memory
):
    images = torch.randint(256, shape, dtype=torch.uint8)
    if is_channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    n_images, height, width = shape[0], *shape[2:]
    far = torch.tensor([-(2**40), 2**40, -(2**40), 2**40])
    # Boxes far outside, and partners that are none, as a plan on a GPU may have them unseen.
    for partner in (-(2**40), 2**40):
        plan = BatchPlan(
            torch.full((n_images,), partner),
            torch.full((n_images,), 0.5),
            torch.stack([far] * n_images),
            torch.tensor([[0, height, 0, width]] * n_images),
        )
        memory.clear()
        memory.readable = [images, *tensors_of(plan)]
        got = prepare_op.run(
            images, plan, [0.25] * shape[1], [0.5] * shape[1], 0.0, torch.float16,
            memory_format == torch.channels_last,
        )  # fmt: skip
        assert are_inside(np.concatenate(memory.loads, axis=1), memory.readable).all()
        assert are_inside(np.concatenate(memory.stores, axis=1), [got]).all()
        written = memory.within(got, memory.stores)
        assert len(written) == got.numel() and len(np.unique(written)) == got.numel()
        assert (got == 0).all()


@formats
def test_each_byte_is_read_once_and_partners_only_where_they_show(memory_format, memory):
    # 12 rows of 96 or 288 elements: more than one block of 2,048 in channels_last.
    images = torch.randint(256, (3, 3, 24, 96), dtype=torch.uint8)
    images = images.contiguous(memory_format=memory_format)
    plan = BatchPlan.nothing(3)
    prepare(images, plan, memory_format=memory_format)
    assert sorted(memory.within(images, memory.loads)) == list(range(images.numel()))
    # The second image is blended, the third has a patch in its last row, the first an empty one.
    plan = BatchPlan(
        torch.tensor([1, 0, 0]), torch.tensor([1.0, 0.5, 1.0]), plan.patch.clone(), plan.hole
    )
    plan.patch[0], plan.patch[2] = torch.tensor([[0, 24, 5, 5], [23, 24, 0, 1]])
    memory.clear()
    prepare(images, plan, memory_format=memory_format)
    n = images[0].numel()
    counts = np.bincount(memory.within(images, memory.loads), minlength=3 * n)
    # The first image: for itself, as the partner of the second, and the last block of it, or of
    # its planes, as that of the third.
    segment = n if memory_format == torch.channels_last else n // 3
    last_block = np.arange(n) % segment >= segment // 2048 * 2048
    assert (counts[:n] == 2 + last_block).all() and (counts[n:] == 1).all()


def test_nothing_is_launched_for_an_empty_batch(monkeypatch):
    monkeypatch.setattr(batch, "batch_kernel", None)
    for shape in ((0, 3, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)):
        assert prepare(torch.zeros(shape, dtype=torch.uint8), None).shape == shape


def launch(memory: Memory, images: Tensor, out: Tensor, strides: tuple[int, ...], **more: Any):
    """Run the kernel on one-pixel parts of images that lie far apart, without their memory."""
    memory.is_real = False
    n_segments, numel = more.pop("n_segments"), more.pop("numel")
    plan = BatchPlan.nothing(n_segments)
    batch_kernel.batch_kernel[(n_segments, 1)](
        images, out, plan.partner, plan.own_share, plan.patch, plan.hole,
        (1.0,) * 3, (2.0,) * 3, 0.0, n_segments, *strides, 1, numel, numel,
        **{"SEGMENTS": 1, "CHANNELS": 1, "FLAT": True, "ALIGNED": False, "WHOLE_GROUPS": False}
        | {"GROUP": 4, "BLOCK": 256, "ITEM": 256} | more,
    )  # fmt: skip


def test_offsets_beyond_2_31(memory):
    images, out = torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.float16)
    # The first is a number of 32 bits, the second of 64.
    for step in (2**30 + 5, 2**33 + 5):
        memory.clear()
        launch(memory, images, out, (step, 1, 1), n_segments=20, numel=2**27)
        loads = np.concatenate(memory.loads, axis=1)[0] - images.data_ptr()
        assert {19 * step + k for k in range(256)} <= set(loads)
    stores, numel = np.concatenate(memory.stores, axis=1)[0], 2**27
    expected = {2 * (n * numel + k) for n in range(20) for k in range(256)}
    assert set(stores - out.data_ptr()) == expected


def test_planes_beyond_2_31(memory):
    images, out = torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.float16)
    for step in (2**30 + 3, 2**32 + 3):
        memory.clear()
        launch(memory, images, out, (7, step, 1), n_segments=3, numel=9, SEGMENTS=3)
        loads = np.concatenate(memory.loads, axis=1)[0] - images.data_ptr()
        assert {2 * step + k for k in range(9)} <= set(loads)


# Ways. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n_channels", "side"), [(3, 224), (3, 160), (3, 32), (1, 28), (4, 64)], ids=str
)
def test_usual_images_take_the_fast_way(n_channels, side, dtype):
    first = torch.empty(2, n_channels, side, side, dtype=torch.uint8)
    last = first.contiguous(memory_format=torch.channels_last)
    for images, is_last in ((first, False), (first, True), (last, False), (last, True)):
        found = batch.find_layout(images, dtype, is_last)
        assert found.is_aligned and batch._is_taken(images)
        assert found.is_flat == (n_channels == 1 or (images is last) == is_last)
        assert (found.segments, found.channels) == ((1, n_channels) if is_last else (n_channels, 1))
        assert found.has_whole_groups or side == 28
        assert found.block == min(2048, 2 ** (side**2 * found.channels - 1).bit_length())
    smallest = batch.find_layout(first[:, :1, :1, :1], dtype, True)
    assert (smallest.block, smallest.n_threads) == (256, 32)


def test_unaligned_images_are_found():
    def found(images: Tensor, is_last: bool) -> tuple[bool, bool]:
        layout = batch.find_layout(images, torch.float32, is_last)
        return layout.is_flat, layout.is_aligned

    images = torch.zeros(3, 3, 6, 8, dtype=torch.uint8)
    last = images.contiguous(memory_format=torch.channels_last)
    assert found(last[1:], True) == (True, True)
    # Begins three bytes behind a multiple of 4, which matters only where bytes are not gathered.
    moved = torch.zeros(3 + 360, dtype=torch.uint8)[3:].view(2, 3, 6, 10)
    assert found(moved, False) == (True, False) and found(moved, True) == (False, True)
    # Images and channels at distances of 5 and 81 bytes.
    spread = torch.zeros(400, dtype=torch.uint8)
    assert found(spread.as_strided((2, 1, 4, 4), (5, 1, 4, 1)), False) == (True, False)
    assert found(spread.as_strided((1, 2, 4, 4), (5, 81, 4, 1)), False) == (True, False)
    assert found(spread.as_strided((1, 1, 4, 4), (5, 81, 4, 1)), False) == (True, True)
    # 45 elements.
    assert found(images[:, :1, :5, :].reshape(-1)[:45].view(1, 1, 5, 9), True) == (True, False)


def test_rows_with_gaps_and_far_channels_are_copied():
    images = torch.zeros(2, 3, 6, 8, dtype=torch.uint8)
    assert (
        batch._is_taken(images) and batch._is_taken(images[:, 1:]) and batch._is_taken(images[1:])
    )
    assert not batch._is_taken(images[..., 1:]) and not batch._is_taken(images.mT)
    assert batch._is_taken(images[:, :, ::2, :1]) and batch._is_taken(images[:, :, 1:2, ::2])
    far = torch.empty(0, dtype=torch.uint8, device="meta")
    assert batch._is_taken(far.new_empty_strided((1, 2, 4, 4), (0, 2**31 - 16, 4, 1)))
    assert not batch._is_taken(far.new_empty_strided((1, 2, 4, 4), (0, 2**31 - 15, 4, 1)))
