"""How batches of bytes are prepared: the op, its plan on the way to a GPU, compiling, errors."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fusedtricks import _triton
from fusedtricks.data import prepare_op
from fusedtricks.data.plan import BatchPlan
from fusedtricks.data.prepare import prepare_batch
from tests import devices

BACKENDS = ["reference", *(["triton"] if devices.HAS_TRITON else [])]
backends = pytest.mark.parametrize("backend", BACKENDS)
needs_triton = pytest.mark.skipif(not devices.HAS_TRITON, reason="needs Triton: pip install triton")
NORMALISATION = {"mean": (0.3, 0.4, 0.6), "std": (0.2, 0.5, 0.7)}


def example(shape: tuple[int, ...] = (3, 3, 4, 5)) -> tuple[Tensor, Tensor, BatchPlan]:
    """Return images, labels and a plan that does something to each image."""
    n_images, _, height, width = shape
    boxes = torch.tensor([[0, height - 1, 1, width], [1, 2, 0, 1]])
    plan = BatchPlan(
        torch.arange(n_images).flip(0), torch.rand(n_images), *boxes[:, None].repeat(1, n_images, 1)
    )
    return torch.randint(256, shape, dtype=torch.uint8), torch.arange(n_images), plan


class Calls(TorchDispatchMode):
    """Keeps the names of the ops that are called, and where copies go."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.copies: list[tuple[torch.device, bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.names.append(func.overloadpacket.__name__)
        if func is torch.ops.aten._to_copy.default:
            self.copies.append((kwargs["device"], kwargs.get("non_blocking", False)))
        return func(*args, **kwargs)


# The plan on its way. -----------------------------------------------------------------------------


@needs_triton
def test_a_plan_on_the_device_is_one_op():
    images, _, plan = example()
    with Calls() as calls:
        prepare_batch(images, None, plan, **NORMALISATION, backend="triton")
    own = [
        name for name in calls.names if name not in ("aminmax", "lt", "ge", "_local_scalar_dense")
    ]
    assert [name for name in own if name not in ("is_nonzero", "item")] == ["prepare_batch"]


def test_a_plan_goes_to_a_gpu_in_one_copy_without_waiting(monkeypatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    with FakeTensorMode(), Calls() as calls:
        plan = dataclasses.replace(BatchPlan.nothing(5, "cpu"), is_mixed=True)
        moved = prepare_op.on_device(plan, torch.device("cuda", 0))
    assert calls.copies == [(torch.device("cuda", 0), True)] and len(pinned) == 1
    assert moved.partner.device.type == "cuda" and moved.hole.shape == (5, 4)
    assert moved.own_share.dtype == torch.float32 and moved.is_mixed


@pytest.mark.parametrize("n_images", [0, 1, 4])
def test_what_is_packed_is_unpacked(n_images):
    plan = example((n_images, 3, 4, 5))[2]
    packed = prepare_op.pack(plan)
    assert packed.dtype == torch.uint8 and packed.shape == (76 * n_images,)
    got = prepare_op.unpack(packed, plan)
    for name in ("partner", "own_share", "patch", "hole"):
        before, after = getattr(plan, name), getattr(got, name)
        assert torch.equal(before, after) and after.dtype == before.dtype
        assert after.data_ptr() % after.element_size() == 0
    # Columns of a larger tensor.
    strided = dataclasses.replace(plan, patch=torch.cat([plan.patch, plan.hole], 1)[:, ::2])
    got = prepare_op.unpack(prepare_op.pack(strided), strided)
    assert torch.equal(got.patch, strided.patch) and got.is_mixed == plan.is_mixed


@needs_triton
def test_strided_plans():
    images, _, plan = example()
    options = NORMALISATION | {"backend": "triton"}
    expected = prepare_batch(images, None, plan, **options)[0]
    wide = dataclasses.replace(
        plan,
        partner=torch.stack([plan.partner, -plan.partner], 1)[:, 0],
        own_share=torch.stack([plan.own_share, -plan.own_share], 1)[:, 0],
        patch=torch.cat([plan.patch, plan.hole], 1)[:, :4],
        hole=plan.hole.T.contiguous().T,
    )
    assert torch.equal(prepare_batch(images, None, wide, **options)[0], expected)


def test_a_plan_without_a_mix_hands_over_no_partners(monkeypatch):
    seen = []

    def op(*arguments: Any) -> Tensor:
        seen.append(arguments[1:5])
        return arguments[0]

    monkeypatch.setattr(torch.ops.fusedtricks_triton, "prepare_batch", op)
    images, _, plan = example()
    for of_call in (None, dataclasses.replace(plan, is_mixed=False), plan):
        prepare_op.run(images, of_call, (1.0,) * 3, (1.0,) * 3, 0.0, torch.float32, True)
    given = [[tensor is not None for tensor in arguments] for arguments in seen]
    assert given == [[False] * 4, [False, False, False, True], [True] * 4]


# The op. ------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize("is_channels_last", [True, False])
def test_opcheck(is_channels_last):
    images, _, plan = example()
    tensors = (plan.partner, plan.own_share, plan.patch, plan.hole)
    for arguments in (tensors, (None, None, None, plan.hole), (None,) * 4):
        torch.library.opcheck(
            torch.ops.fusedtricks_triton.prepare_batch.default,
            (images, *arguments, [0.1] * 3, [0.2] * 3, 0.5, torch.float16, is_channels_last),
        )


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_in_one_graph(dtype, backend):
    images, labels, plan = example()

    def both(images: Tensor, labels: Tensor, plan: BatchPlan) -> tuple[Tensor, Tensor]:
        options = NORMALISATION | {"fill": 0.25, "dtype": dtype, "backend": backend}
        images, targets = prepare_batch(images, labels, plan, **options)
        return images, targets.probabilities(3)

    expected = both(images, labels, plan)
    got = torch.compile(both, fullgraph=True, backend="aot_eager")(images, labels, plan)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert got[0].is_contiguous(memory_format=torch.channels_last) and got[0].dtype == dtype


@backends
def test_autocast_changes_nothing(backend):
    images, _, plan = example()
    expected = prepare_batch(images, None, plan, **NORMALISATION, backend=backend)[0]
    with torch.autocast(devices.DEVICE.type, torch.bfloat16):
        got = prepare_batch(images, None, plan, **NORMALISATION, backend=backend)[0]
    assert torch.equal(got, expected) and got.dtype == torch.float32


# Which backend. -----------------------------------------------------------------------------------


def test_auto_takes_the_kernel_on_gpus_only(monkeypatch):
    monkeypatch.setattr(_triton, "missing_reason", "")
    monkeypatch.setattr(_triton, "device_obstacle", lambda device: "")

    def takes(shape: tuple[int, ...] = (2, 3, 4, 4), device: str = "cuda", **more: Any) -> bool:
        with FakeTensorMode():
            images = torch.empty(shape, dtype=torch.uint8, device=device)
        return prepare_op.takes(more.get("backend", "auto"), images, more.get("dtype", torch.half))

    assert takes() and takes(backend="triton") and takes(device="cpu", backend="triton")
    assert not takes(device="cpu") and not takes(backend="reference")
    assert not takes(dtype=torch.float64) and not takes(shape=(1, 17, 2, 2))
    assert takes(shape=(1, 16, 2**11, 2**12)) and not takes(shape=(1, 16, 2**11, 2**12 + 1))
    with pytest.raises(RuntimeError, match=r"computes in float32, and dtype is torch.float64; use"):
        takes(backend="triton", dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"up to 16 channels and 134,217,728 .* \[17, 2, 2\]"):
        takes(backend="triton", shape=(1, 17, 2, 2))
    monkeypatch.setattr(_triton, "missing_reason", "no Triton here")
    assert not takes()
    with pytest.raises(RuntimeError, match='backend="triton" cannot run here: no Triton here; use'):
        takes(backend="triton")


# Errors. ------------------------------------------------------------------------------------------

IMAGES, LABELS, PLAN = example()
ERRORS = [
    (
        {"images": IMAGES.float()},
        TypeError,
        "uint8, from 0 to 255, got torch.float32",
    ),
    ({"images": [1]}, TypeError, "expected images to be a tensor, got list"),
    (
        {"images": IMAGES[0]},
        ValueError,
        r"of shape \(N, C, H, W\), got \[3, 4, 5\]",
    ),
    ({"mean": (0.5,), "std": (0.5,)}, ValueError, "a mean and a std for each of 3 channels, got 1"),
    ({"mean": (0.5,)}, ValueError, "as many values of mean as of std, got 1 and 3"),
    ({"mean": 0.5}, TypeError, "expected mean to be a sequence of numbers, got 0.5"),
    ({"mean": (0.5, "x", 1)}, TypeError, "expected mean to be a number, got 'x'"),
    ({"mean": (0.5, float("nan"), 1)}, ValueError, "mean .*got nan"),
    ({"std": (0.5, 0.0, 0.5)}, ValueError, r"expected std .* above 0, got 0.0"),
    ({"std": (0.5, -0.5, 0.5)}, ValueError, r"expected std .* above 0, got"),
    (
        {"dtype": torch.int32},
        ValueError,
        "dtype to be one of torch.float32, .* torch.int32",
    ),
    ({"memory_format": torch.preserve_format}, ValueError, "expected memory_format to be one of"),
    ({"backend": "cuda"}, ValueError, "expected backend to be one of auto, triton, reference, got"),
    ({"fill": float("inf")}, ValueError, "fill .*got inf"),
    ({"targets": LABELS[:2]}, ValueError, "expected 3 targets, got 2"),
    ({"plan": None, "targets": LABELS[:2]}, ValueError, "expected 3 targets, got 2"),
    ({"plan": 5}, TypeError, "expected a BatchPlan, got int"),
    ({"plan": BatchPlan.nothing(2)}, ValueError, "expected a plan of 3 images, got one of 2"),
    (
        {"plan": dataclasses.replace(PLAN, own_share=PLAN.own_share.double())},
        ValueError,
        r"expected own_share of the plan to be torch.float32 of shape \[3\], got torch.float64 of",
    ),
    (
        {"plan": dataclasses.replace(PLAN, hole=PLAN.hole[:, :3])},
        ValueError,
        r"hole of the plan to be torch.int64 of shape \[3, 4\], got torch.int64 of \[3, 3\]",
    ),
    (
        {"plan": dataclasses.replace(PLAN, partner=torch.tensor([0, 3, 1], device="cpu"))},
        ValueError,
        "expected partners from 0 to 2, got 3",
    ),
    (
        {"plan": dataclasses.replace(PLAN, partner=torch.tensor([0, -1, 1], device="cpu"))},
        ValueError,
        "expected partners from 0 to 2, got -1",
    ),
]


@backends
@pytest.mark.parametrize(("wrong", "error", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(wrong, error, text, backend):
    arguments = {"images": IMAGES, "targets": LABELS, "plan": PLAN, "backend": backend}
    with pytest.raises(error, match=text):
        prepare_batch(**(arguments | NORMALISATION | wrong))
