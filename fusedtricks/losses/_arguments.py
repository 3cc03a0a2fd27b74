"""What the losses share: checks of arguments, the dtype to compute in, and reductions."""

import math

import torch
from torch import Tensor

from fusedtricks.targets import Targets, as_targets, check_labels, check_smoothing

__all__ = [
    "check_number",
    "check_reduction",
    "checked_logits",
    "checked_targets",
    "reduced",
]

_REDUCTIONS = ("none", "mean", "sum")


def check_reduction(what: str, reduction: str) -> None:
    """Refuse a reduction that does not exist.

    Raises:
        ValueError: If it does not exist.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"{what}: expected reduction to be one of {_REDUCTIONS}, got {reduction!r}"
        )


def check_number(
    what: str, name: str, value: float, *, at_least: float = -math.inf, above: float = -math.inf
) -> None:
    """Refuse a number that is not finite, below `at_least`, or not above `above`.

    Raises:
        ValueError: If it is refused.
        TypeError: If it is no number.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"{what}: expected {name} to be a number, got {value!r}")
    if math.isfinite(value) and value >= at_least and value > above:
        return
    bound = f" above {above}" if above > -math.inf else f" of at least {at_least}"
    raise ValueError(f"{what}: expected {name} to be a finite number{bound}, got {value}")


def checked_logits(what: str, logits: Tensor) -> Tensor:
    """Return logits as they are, or in float32 if they have 16 bits.

    Raises:
        ValueError: If the shape is not (N, K).
        TypeError: If they are not floating point.
    """
    if logits.ndim != 2:
        raise ValueError(f"{what}: expected logits of shape (N, K), got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"{what}: expected logits of a floating point dtype, got {logits.dtype}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def checked_targets(
    what: str, logits: Tensor, targets: Tensor | Targets, label_smoothing: float
) -> Targets:
    """Return targets of any form as `Targets` that fit the logits and may be smoothed so much.

    Raises:
        ValueError: If they do not fit, a label is out of range, or the smoothing is out of range
            or would be, or might be, the second one.
        TypeError: If `targets` is something else.
    """
    check_smoothing(what, label_smoothing)
    is_plain = isinstance(targets, Tensor)
    targets = as_targets(targets)
    if is_plain and targets.classes is None and label_smoothing > 0:
        raise ValueError(
            f"{what}: a plain tensor of probabilities does not say whether it is smoothed already, "
            f"as that of timm's Mixup is, so label_smoothing={label_smoothing} could be the second "
            "one; pass Targets(probabilities) if it is not smoothed, label_smoothing=0 if it is"
        )
    targets.refuse_second_smoothing(what, label_smoothing)
    n_samples, n_classes = logits.shape
    if targets.weights.shape[0] != n_samples:
        raise ValueError(
            f"{what}: expected targets for the {n_samples} samples of logits, got "
            f"{targets.weights.shape[0]}"
        )
    if targets.classes is not None:
        check_labels(what, targets.classes, n_classes)
    elif targets.weights.shape[1] != n_classes:
        raise ValueError(
            f"{what}: expected probabilities of the {n_classes} classes of logits, got shape "
            f"{list(targets.weights.shape)}"
        )
    return targets


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Return losses as they are, their mean or their sum."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
