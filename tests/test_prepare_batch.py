"""Batches of bytes made ready: by the kernel, by torch, and by the formula in float64."""

import dataclasses

import pytest
import torch
from torch import Tensor

from fusedtricks.data.plan import BatchPlan
from fusedtricks.data.prepare import prepare_batch
from fusedtricks.targets import Targets
from tests import devices
from tests.batches_of_images import pixel_by_pixel

BACKENDS = ["reference", *(["triton"] if devices.HAS_TRITON else [])]
backends = pytest.mark.parametrize("backend", BACKENDS)
formats = pytest.mark.parametrize(
    "memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"]
)
# No two alike, and one of the means is the value of a byte.
MEAN = (0.485, 0.2, 0.406, 0.31, 0.11)
STD = (0.229, 0.31, 0.225, 0.17, 0.27)
FILL = -0.7


def normalised(images: Tensor) -> Tensor:
    """Return what the formula makes of a batch, float64."""
    n_channels = images.shape[1]
    mean, std = (torch.tensor(v[:n_channels], dtype=torch.float64) for v in (MEAN, STD))
    return (images.double() / 255 - mean[:, None, None]) / std[:, None, None]


def formula(images: Tensor, plan: BatchPlan) -> Tensor:
    """Return what the formulas make of a batch, pixel by pixel in float64."""
    return pixel_by_pixel(normalised(images).cpu(), plan.to("cpu"), FILL)


# How many roundings to float32, of the largest normalised value, each backend may be off.
N_ROUNDINGS = {"triton": 8, "reference": 10}
N_ROUNDINGS_WITHOUT_A_BLEND = {"triton": 4, "reference": 6}


def assert_close(got: Tensor, expected: Tensor, n_roundings: int) -> None:
    """Compare with float64: some roundings to float32, then one to the dtype."""
    n_channels = expected.shape[1]
    largest = torch.tensor([max(m, 1 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    bound = n_roundings * 2**-24 * largest[:n_channels, None, None].double()
    tiny = torch.finfo(got.dtype).smallest_normal
    half = torch.finfo(got.dtype).eps / 2 * expected.cpu().abs().clamp(min=tiny)
    error = (got.cpu().double() - expected.cpu()).abs()
    assert (error <= bound.cpu() + half).all(), error.max()


def random_batch(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def random_plan(n_images: int, height: int, width: int) -> BatchPlan:
    """Return shares, partners, and boxes that stick out, lie inside or are empty."""
    lengths = torch.tensor([height, height, width, width])
    patch, hole = (torch.randint(-2, 1000, (n_images, 4)) % (lengths + 5) - 2 for _ in range(2))
    return BatchPlan(torch.randperm(n_images), torch.rand(n_images), patch, hole)


def prepare(images: Tensor, plan: BatchPlan | None, backend: str, **options: object) -> Tensor:
    """Return the images alone."""
    n_channels = images.shape[1]
    return prepare_batch(
        images,
        None,
        plan,
        mean=MEAN[:n_channels],
        std=STD[:n_channels],
        fill=FILL,
        backend=backend,
        **options,
    )[0]


# Values. ------------------------------------------------------------------------------------------

SHAPES = [
    (3, 3, 5, 7),
    (1, 1, 1, 1),
    (2, 4, 6, 4),
    (3, 1, 8, 8),
    (4, 3, 8, 8),
    (2, 2, 1, 9),
    (2, 3, 9, 1),
    (2, 5, 2, 3),
    # More than one block of 2,048 elements, and more than one program.
    (2, 3, 16, 50),
    (1, 1, 63, 67),
]


@backends
@formats
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_formula(shape, memory_format, backend):
    images = random_batch(shape)
    plan = random_plan(shape[0], *shape[2:])
    got = prepare(images, plan, backend, memory_format=memory_format)
    assert got.dtype == torch.float32 and got.shape == shape and got.device == images.device
    assert got.is_contiguous(memory_format=memory_format)
    assert_close(got, formula(images, plan), N_ROUNDINGS[backend])


@backends
@formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (3, 4, 3, 7), (2, 1, 4, 4)], ids=str)
def test_16_bit_results_are_rounded_once(shape, dtype, memory_format, backend):
    images = random_batch(shape)
    plan = random_plan(shape[0], *shape[2:])
    got = prepare(images, plan, backend, dtype=dtype, memory_format=memory_format)
    assert got.dtype == dtype and got.is_contiguous(memory_format=memory_format)
    assert_close(got, formula(images, plan), N_ROUNDINGS[backend])


def test_float64_by_torch_is_exact():
    images, plan = random_batch((3, 3, 5, 7)), random_plan(3, 5, 7)
    got = prepare(images, plan, "reference", dtype=torch.float64)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.cpu(), formula(images, plan), rtol=1e-14, atol=1e-14)


LAYOUTS = {
    "channels_last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "transposed": lambda images: images.mT.contiguous().mT,
    "every_other": lambda images: torch.stack([images, 255 - images], 1).flatten(0, 1)[::2],
    "cropped": lambda images: torch.cat([images[..., :1], images], 3)[..., 1:],
    "one_byte_on": lambda images: torch.cat([images.new_zeros(1), images.flatten()])[1:].view(
        images.shape
    ),
    "other_channels": lambda images: torch.cat([images, images], 1)[:, 1 : 1 + images.shape[1]],
    # At distances of as many bytes as there are channels.
    "wide_pixels": lambda images: torch.stack([images, images, images], 4)[..., 0],
    "one_column": lambda images: images[..., 2:3],
    "one_row": lambda images: images[:, :, 1:2, ::2],
    "channels_outermost": lambda images: images.transpose(0, 1).contiguous().transpose(0, 1),
    "all_alike": lambda images: images[:1].expand(images.shape),
}


@backends
@formats
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, memory_format, backend):
    images = LAYOUTS[layout](random_batch((3, 3, 4, 8)))
    before, plan = images.clone(), random_plan(3, 4, 8)
    got = prepare(images, plan, backend, memory_format=memory_format)
    assert got.is_contiguous(memory_format=memory_format)
    assert_close(got, formula(images, plan), N_ROUNDINGS[backend])
    assert torch.equal(images, before)


@backends
@formats
def test_every_byte_without_a_plan(memory_format, backend):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    got = prepare(images, None, backend, memory_format=memory_format)
    assert_close(got, normalised(images), N_ROUNDINGS_WITHOUT_A_BLEND[backend])
    # The mean of the second channel is that of byte 51.
    assert got[0, 1].flatten()[51].abs() < 2e-8


@backends
def test_a_batch_computed_by_hand(backend):
    images = torch.tensor([[[[51, 102]], [[0, 255]]], [[[204, 153]], [[255, 51]]]])
    plan = BatchPlan(
        torch.tensor([1, 0]),
        torch.tensor([0.25, 1.0]),
        torch.tensor([[0, 0, 0, 0], [0, 1, 1, 2]]),
        torch.tensor([[0, 1, 1, 2], [0, 1, 0, 0]]),
    )
    got, targets = prepare_batch(
        images.to(torch.uint8),
        torch.tensor([2, 0]),
        plan,
        mean=(0.2, 0.4),
        std=(0.5, 0.2),
        fill=3.0,
        backend=backend,
    )
    # Normalised: [0, 0.4], [-2, 3] and [1.2, 0.8], [3, -1].
    expected = [[[[0.9, 3.0]], [[1.75, 3.0]]], [[[1.2, 0.4]], [[3.0, 3.0]]]]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=1e-6)
    # Half of the second image is the first one's.
    expected = torch.tensor([[0.75, 0.0, 0.25], [0.5, 0.0, 0.5]])
    torch.testing.assert_close(targets.probabilities(3), expected)


@backends
@formats
@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0), (2, 0, 5, 7)], ids=str)
def test_empty_batches(shape, memory_format, backend):
    plan = BatchPlan.nothing(shape[0], devices.DEVICE)
    got = prepare(random_batch(shape), plan, backend, memory_format=memory_format)
    assert got.shape == shape and got.dtype == torch.float32


@backends
@pytest.mark.parametrize(
    ("share", "patch", "image"),
    [
        (1.0, [0, 0, 0, 4], 0),
        (0.0, [1, 1, 0, 4], 1),
        (1.0, [0, 5, 0, 4], 1),
        (1.0, [9, -9, 0, 4], 0),
    ],
)
def test_what_is_not_blended_is_exact(share, patch, image, backend):
    """Own or other bytes, as if there were no plan, bit by bit."""
    images, empty = random_batch((2, 3, 5, 4)), torch.zeros(2, 4, dtype=torch.int64)
    shares, patches = torch.full((2,), share), torch.tensor([patch] * 2)
    plan = BatchPlan(torch.tensor([1, 1]), shares, patches, empty)
    got = prepare(images, plan, backend)
    assert torch.equal(got[0], prepare(images, None, backend)[image])
    assert torch.equal(got[1], prepare(images, None, backend)[1])


FAR = 2**32


@backends
@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-FAR + 1, 3, 1, 3], [0, 3, 1, 3]),
        ([1, FAR + 2, 1, 3], [1, 5, 1, 3]),
        ([1, 3, -FAR + 1, 3], [1, 3, 0, 3]),
        ([1, 3, 1, FAR + 2], [1, 3, 1, 4]),
        ([FAR + 1, FAR + 3, 1, 3], [0, 0, 0, 0]),
        ([-FAR + 1, -FAR + 3, 1, 3], [0, 0, 0, 0]),
        ([1, 3, FAR + 1, FAR + 3], [0, 0, 0, 0]),
        ([1, 3, -FAR + 1, -FAR + 3], [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_boxes_far_outside(box, expected, backend):
    images, plan = random_batch((2, 3, 5, 4)), BatchPlan.nothing(2, devices.DEVICE)
    plan.hole[:], plan.patch[:] = torch.tensor(box), torch.tensor(box)
    plan = BatchPlan(plan.partner.flip(0), plan.own_share, plan.patch, plan.hole)
    got = prepare(images, plan, backend)
    plan.hole[:], plan.patch[:] = torch.tensor(expected), torch.tensor(expected)
    assert_close(got, formula(images, plan), N_ROUNDINGS[backend])
    assert (got == FILL).any() == (expected[1] > 0)


@backends
def test_holes_have_the_fill_value_rounded_once(backend):
    hole = torch.tensor([[0, 0, 0, 0], [0, 5, 0, 4]])
    plan = dataclasses.replace(BatchPlan.nothing(2, devices.DEVICE), hole=hole, has_holes=True)
    images = random_batch((2, 3, 5, 4))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = prepare(images, plan, backend, dtype=dtype)
        assert (got[1] == torch.tensor(FILL, dtype=dtype)).all()
        assert torch.equal(got[0], prepare(images, None, backend, dtype=dtype)[0])


# Targets. -----------------------------------------------------------------------------------------


@backends
def test_targets_of_every_form(backend):
    images, options = random_batch((2, 1, 3, 5)), {"mean": MEAN[:1], "std": STD[:1]}
    labels = torch.tensor([1, 0])
    plan = BatchPlan.nothing(2, devices.DEVICE)
    for targets in (labels, torch.eye(2)[labels], Targets(torch.eye(2)[labels])):
        got = prepare_batch(images, targets, **options, backend=backend)[1]
        assert isinstance(got, Targets) and not got.is_mixed
        assert torch.equal(got.probabilities(2), torch.eye(2)[labels])
        assert not prepare_batch(images, targets, plan, **options, backend=backend)[1].is_mixed
    assert prepare_batch(images, None, plan, **options, backend=backend)[1] is None
    plan = BatchPlan(torch.tensor([1, 0]), torch.tensor([0.125, 1.0]), plan.patch, plan.hole)
    got = prepare_batch(images, labels, plan, **options, backend=backend)[1]
    expected = torch.tensor([[0.875, 0.125], [1.0, 0.0]])
    assert got.is_mixed and torch.equal(got.probabilities(2), expected)
