"""A plan carried out by torch's own operators: the reference of the fused kernel."""

import torch
from torch import Tensor

from fusedtricks._checks import check_number
from fusedtricks.data.checks import check_images
from fusedtricks.data.layout import same_layout
from fusedtricks.data.plan import BatchPlan, check_plan, inside_boxes
from fusedtricks.targets import Targets, as_targets

__all__ = ["apply_plan", "planned_images"]


def apply_plan(
    images: Tensor, targets: Tensor | Targets, plan: BatchPlan, *, fill: float = 0.0
) -> tuple[Tensor, Targets]:
    """Blend, patch and fill images and targets as a plan says.

    Args:
        images: Shape (N, C, H, W), floating point and finite; not modified.
        targets: Labels, shape (N,); class probabilities, shape (N, K); or `Targets`.
        plan: What happens to the N images, on any device.
        fill: Value inside the holes. Default 0, the mean of images that are normalised.

    Returns:
        New images of the same shape, dtype and memory format, and their targets. Half precision
        is computed in float32 and rounded once.

    Raises:
        ValueError: If shapes or the number of images differ, or the plan does not fit them.
        TypeError: If images, targets or plan are of another kind.

    Example:
        >>> from fusedtricks.data import MixUp
        >>> images, labels = torch.rand(5, 3, 8, 8), torch.arange(5)
        >>> plan = MixUp(0.2).plan(5, 8, 8)
        >>> images, targets = apply_plan(images, labels, plan)
        >>> images.shape, targets.is_mixed
        (torch.Size([5, 3, 8, 8]), True)
    """
    check_images("apply_plan", images)
    check_plan("apply_plan", plan, len(images))
    targets = plan.mix_targets(as_targets(targets), *images.shape[2:])
    return planned_images(images, plan, fill=fill), targets


def planned_images(images: Tensor, plan: BatchPlan, *, fill: float) -> Tensor:
    """Return the images alone of what `apply_plan` does.

    Args:
        images: Shape (N, C, H, W), floating point and finite; not modified.
        plan: What happens to the N images, on any device, and fits them.
        fill: Value inside the holes.

    Raises:
        ValueError: If fill is infinite or NaN.
        TypeError: If fill is no number.
    """
    check_number("apply_plan", "fill", fill, low=-float("inf"))
    plan = plan.to(images.device)
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    # Weights of 0 and 1 instead of choices, and in place: half of the time on the CPU, and exact
    # for finite pixels.
    own = torch.ones((), dtype=precise.dtype, device=precise.device)
    if plan.is_mixed:
        own = plan.own_share.to(precise.dtype)[:, None, None, None]
    if plan.has_patches:
        own = own * (1 - _mask(plan.patch, precise))
    other = 1 - own
    if plan.has_holes:
        hole = _mask(plan.hole, precise)
        own, other = own * (1 - hole), other * (1 - hole)
    if plan.is_mixed:
        result = precise[plan.partner].mul_(other).addcmul_(own, precise)
    else:
        result = precise * own
    if plan.has_holes and fill != 0:
        result.add_(fill * hole)
    return same_layout(result.to(images.dtype), images)


def _mask(boxes: Tensor, images: Tensor) -> Tensor:
    """Return 1 inside the boxes and 0 outside, shape (N, 1, H, W), in the images' dtype."""
    rows, columns = inside_boxes(boxes, *images.shape[2:])
    return rows[:, None, :, None].to(images.dtype) * columns[:, None, None, :]
