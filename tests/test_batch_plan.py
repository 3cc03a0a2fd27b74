"""What a plan does to images and targets."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from fusedtricks.data.applying import apply_plan
from fusedtricks.data.batch_tricks import Chain, OneOf
from fusedtricks.data.holes import Cutout
from fusedtricks.data.mixing import CutMix, MixUp
from fusedtricks.data.plan import BatchPlan
from tests.batches_of_images import N_CLASSES, make_batch, pixel_by_pixel, seeded
from tests.devices import DEVICE


def _plan_by_hand(boxes: list[list[int]], holes: list[list[int]]) -> BatchPlan:
    return BatchPlan(
        partner=torch.tensor([2, 0, 1]),
        own_share=torch.tensor([0.25, 1.0, 0.625]),
        patch=torch.tensor(boxes),
        hole=torch.tensor(holes),
    )


BOXES = [[1, 3, 0, 4], [2, 2, 1, 3], [-2, 2, 3, 9]]


HOLES = [[0, 2, 3, 5], [0, 5, 0, 4], [4, 1, 0, 4]]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-15),
        (torch.float32, 1e-6),
        (torch.bfloat16, 2**-8),
        (torch.float16, 2**-11),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, None])
def test_a_plan_does_to_pixels_what_it_says(layout, dtype, tolerance):
    images = torch.randn(3, 2, 5, 14).to(dtype)[:, :, :, ::2]
    if layout is not None:
        images = images.contiguous(memory_format=layout)
    before = images.clone()
    plan = _plan_by_hand(BOXES, HOLES)
    result, _ = apply_plan(images, torch.tensor([1, 2, 3]), plan, fill=0.375)
    expected = pixel_by_pixel(images, plan, 0.375)
    assert result.dtype == dtype
    # Half precision is rounded once.
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance / 8)
    assert images.equal(before)
    is_channels_last = result.is_contiguous(memory_format=torch.channels_last)
    assert is_channels_last == (layout == torch.channels_last)
    assert is_channels_last or result.is_contiguous()


def test_targets_are_blended_by_the_pixels_that_are_left():
    plan = _plan_by_hand(BOXES, HOLES)
    images = torch.zeros(3, 1, 5, 7)
    _, targets = apply_plan(images, torch.tensor([1, 2, 3]), plan)
    # Patches of 8, 0 and, of what is inside the image, 2 * 4 of 35 pixels.
    own = [0.25 * 27 / 35, 1.0, 0.625 * 27 / 35]
    expected = torch.zeros(3, N_CLASSES)
    for i, (label, other) in enumerate([(1, 3), (2, 1), (3, 2)]):
        expected[i, label] += own[i]
        expected[i, other] += 1 - own[i]
    torch.testing.assert_close(targets.probabilities(N_CLASSES), expected)
    assert targets.is_mixed


def test_a_plan_of_nothing_changes_nothing():
    images, labels = make_batch()
    result, targets = apply_plan(images, labels, BatchPlan.nothing(len(images)))
    assert result.equal(images)
    assert result.data_ptr() != images.data_ptr()
    assert targets.labels.equal(labels)
    assert not targets.is_mixed


FLAGS = ("is_mixed", "has_patches", "has_holes")
TRICKS = [
    (MixUp(0.7), (True, False, False)),
    (MixUp(0), (False, False, False)),
    (CutMix(0.8), (True, True, False)),
    (CutMix(0), (False, False, False)),
    (Cutout(3), (False, False, True)),
    (Chain(MixUp(0.4), Cutout(3)), (True, False, True)),
    (Chain(CutMix(0.4), Cutout(3)), (True, True, True)),
    (OneOf([MixUp(0.3), CutMix(0.9)]), (True, True, False)),
    (OneOf([MixUp(0), Cutout(2)]), (False, False, True)),
]


@pytest.mark.parametrize(("trick", "flags"), TRICKS, ids=lambda value: str(value)[:40])
def test_flags_say_what_may_be_there_and_save_work_only(trick, flags):
    images, labels = make_batch(6, 7, 9)
    plan = trick.plan(6, 7, 9, generator=seeded())
    assert tuple(getattr(plan, name) for name in FLAGS) == flags
    every = dataclasses.replace(plan, **dict.fromkeys(FLAGS, True))
    for fill in (0.0, 0.75):
        found, targets = apply_plan(images, labels, plan, fill=fill)
        expected, blended = apply_plan(images, labels, every, fill=fill)
        assert found.equal(expected)
        torch.testing.assert_close(
            targets.probabilities(N_CLASSES), blended.probabilities(N_CLASSES)
        )


def test_a_plan_moves_as_a_whole():
    for plan in (BatchPlan.nothing(3), MixUp(0.7).plan(3, 5, 7, generator=seeded())):
        moved = plan.to(DEVICE)
        assert len(moved) == 3
        assert all(getattr(moved, name) == getattr(plan, name) for name in FLAGS)
        for name in ("partner", "own_share", "patch", "hole"):
            tensor = getattr(moved, name)
            assert tensor.device.type == DEVICE.type
            assert tensor.cpu().equal(getattr(plan, name))


def test_soft_labels_stay_soft():
    images = torch.randn(2, 1, 4, 4)
    soft = torch.tensor([[0.1, 0.9], [0.5, 0.5]])
    plan = BatchPlan.nothing(2)
    plan = BatchPlan(torch.tensor([1, 0]), torch.tensor([0.25, 0.5]), plan.patch, plan.hole)
    _, targets = apply_plan(images, soft, plan.to(DEVICE))
    torch.testing.assert_close(targets.probabilities(2), torch.tensor([[0.4, 0.6], [0.3, 0.7]]))


def test_agreement_with_torchvision():
    v2 = pytest.importorskip("torchvision.transforms.v2")
    images, labels = make_batch(6, 8, 11)
    one_hot = functional.one_hot(labels, N_CLASSES).float()
    share, (top, bottom, left, right) = 0.3, (2, 7, 4, 11)
    area = (bottom - top) * (right - left) / 88
    nothing = BatchPlan.nothing(6, DEVICE)
    rolled = torch.arange(6).roll(1)
    box = torch.tensor([[top, bottom, left, right]]).expand(6, 4)
    for theirs, parameters, plan in (
        (
            v2.MixUp(alpha=0.7),
            {"lam": share},
            BatchPlan(rolled, torch.full((6,), share), nothing.patch, nothing.hole),
        ),
        (
            v2.CutMix(alpha=0.7),
            {"box": (left, top, right, bottom), "lam_adjusted": 1 - area},
            BatchPlan(rolled, torch.ones(6), box, nothing.hole),
        ),
    ):
        parameters |= {"labels": one_hot, "batch_size": 6}
        mixed, targets = apply_plan(images, labels, plan)
        torch.testing.assert_close(mixed, theirs.transform(images, parameters))
        torch.testing.assert_close(
            targets.probabilities(N_CLASSES), theirs.transform(one_hot, parameters)
        )


def test_a_plan_compiles_without_a_break():
    images, labels = make_batch()

    def step(images, labels, plan):
        mixed, targets = apply_plan(images, labels, plan, fill=0.75)
        return mixed, targets.probabilities(N_CLASSES)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        plan = Chain(CutMix(0.7), Cutout(4)).plan(7, 9, 11, generator=seeded(seed))
        expected = step(images, labels, plan)
        for result, wanted in zip(compiled(images, labels, plan), expected, strict=True):
            torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: apply_plan(
                torch.zeros(2, 3, 8, 8), torch.tensor([0, 1, 2]), BatchPlan.nothing(3)
            ),
            ValueError,
            "expected a plan of 2 images, got one of 3",
        ),
        (
            lambda: apply_plan(
                torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), BatchPlan.nothing(2), fill=math.inf
            ),
            ValueError,
            "apply_plan: expected fill to be a finite number, got inf",
        ),
        *(
            (
                lambda change=change: apply_plan(
                    torch.zeros(2, 3, 8, 8),
                    torch.tensor([0, 1]),
                    dataclasses.replace(BatchPlan.nothing(2), **change),
                ),
                ValueError,
                message,
            )
            for change, message in (
                ({"partner": torch.tensor([-1, 0], device="cpu")}, "partners from 0 to 1, got -1"),
                ({"partner": torch.tensor([0, 2], device="cpu")}, "partners from 0 to 1, got 2"),
                ({"hole": torch.zeros(1, 4).long()}, r"hole of the plan .* got .* of \[1, 4\]"),
                ({"own_share": torch.ones(1)}, r"own_share .* of shape \[2\], got .* of \[1\]"),
                ({"patch": torch.zeros(2, 4)}, r"patch .* torch.int64 .*, got torch.float32"),
            )
        ),
        (
            lambda: apply_plan(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), None),
            TypeError,
            "apply_plan: expected a BatchPlan, got NoneType",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
