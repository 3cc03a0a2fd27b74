"""What the losses share: checks of arguments, the dtype to compute in, and reductions."""

import torch
from torch import Tensor

from fusedtricks._checks import check_tensor
from fusedtricks._host import extremes
from fusedtricks.targets import Targets, as_targets, check_labels, check_smoothing

__all__ = [
    "check_reduction",
    "checked_logits",
    "checked_targets",
    "reduced",
]

_REDUCTIONS = ("none", "mean", "sum")
# Of a probability, and of a sum of them: what rounding to 16 bits does not reach.
_PROBABILITY_TOLERANCE = 1e-3
_SUM_TOLERANCE = 1e-2


def check_reduction(what: str, reduction: str) -> None:
    """Refuse a reduction that does not exist.

    Raises:
        ValueError: If it does not exist.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"{what}: expected reduction to be one of {_REDUCTIONS}, got {reduction!r}"
        )


def checked_logits(what: str, logits: Tensor, name: str = "logits") -> Tensor:
    """Return logits as they are, or in float32 if they have 16 bits.

    Raises:
        ValueError: If the shape is not (N, K).
        TypeError: If they are no tensor, or not floating point.
    """
    check_tensor(what, name, logits)
    if logits.ndim != 2:
        raise ValueError(f"{what}: expected {name} of shape (N, K), got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"{what}: expected {name} of a floating point dtype, got {logits.dtype}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def checked_targets(
    what: str,
    logits: Tensor,
    targets: Tensor | Targets,
    label_smoothing: float,
    *,
    sum_to_one: bool,
) -> Targets:
    """Return targets of any form as `Targets` that fit the logits and may be smoothed so much.

    Raises:
        ValueError: If they do not fit; a label is out of range; the smoothing is out of range, or
            would be, or might be, the second one; or, on the CPU, probabilities are none, or do not
            sum to 1 though `sum_to_one`.
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
    # The weights of plain labels are ones.
    if not is_plain or targets.classes is None:
        _check_probabilities(what, targets.weights.detach(), sum_to_one)
    return targets


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Return losses as they are, their mean or their sum."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _check_probabilities(what: str, weights: Tensor, sum_to_one: bool) -> None:
    found = extremes(weights)
    if found is None:
        return
    for value in found:
        if not -_PROBABILITY_TOLERANCE <= value <= 1 + _PROBABILITY_TOLERANCE:
            raise ValueError(
                f"{what}: expected targets to be probabilities in [0, 1], got {value}; logits need "
                "a softmax first, and labels an integer dtype"
            )
    if not sum_to_one:
        return
    wide = torch.promote_types(weights.dtype, torch.float32)
    for total in extremes(weights.sum(dim=1, dtype=wide)) or ():
        if abs(total - 1) > _SUM_TOLERANCE:
            raise ValueError(
                f"{what}: expected the probabilities of each sample to sum to 1, got {total}; "
                "divide them by their sum, or use BinaryCrossEntropyLoss for several labels per "
                "sample"
            )
