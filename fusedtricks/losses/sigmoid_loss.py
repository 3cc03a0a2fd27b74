"""Binary cross-entropy of every class, for targets that a softmax loss would take too."""

from torch import Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_bool, check_number
from fusedtricks.losses._arguments import (
    check_reduction,
    checked_logits,
    checked_targets,
    reduced,
)
from fusedtricks.targets import Targets, as_targets, check_smoothing

__all__ = ["BinaryCrossEntropyLoss", "binary_cross_entropy"]


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor | Targets,
    *,
    label_smoothing: float = 0.0,
    threshold: float | None = None,
    sum_classes: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return the binary cross-entropy of each class, which treats a mixed image as showing both.

    With p = sigmoid(logits), and the target q[k] = (1 - label_smoothing) * target[k] +
    label_smoothing / K, or q[k] = [target[k] > threshold] if there is a threshold, the loss of
    class k of a sample is

    loss[k] = -q[k] * log(p[k]) - (1 - q[k]) * log(1 - p[k])

    and d loss[k] / d logits[k] = p[k] - q[k]. Smoothing is the one of `cross_entropy`, as in timm,
    and unlike smoothing each binary target towards 1/2.

    The mean over classes makes the loss, and so the step of SGD, K times smaller than the sum over
    classes does. Steps of LAMB and Adam hardly depend on the scale of the loss.

    Args:
        logits: Shape (N, K), floating point; 16 bits are computed with in float32.
        targets: Labels, shape (N,), of an integer dtype, 0 to K - 1; or probabilities, shape
            (N, K), floating point, of any sum; or `Targets`.
        label_smoothing: Share of the probability given to all classes alike, in [0, 1]. Default 0.
        threshold: Targets above it become 1 and the others 0, in [0, 1), such as 0.2.
            Default None, targets stay as they are.
        sum_classes: Whether a sample's loss is the sum over its classes. Default False.
        reduction: "none" for shape (N, K), or (N,) with `sum_classes`; "mean" of those; or "sum".
            Default "mean".

    Returns:
        The loss, in float32, or float64 for logits in float64.

    Raises:
        ValueError: If shapes do not fit; an option is out of range; a label is out of range, on the
            CPU (a GPU traps); probabilities are outside [0, 1], on the CPU; `targets` are, or may
            be, smoothed already and label_smoothing is above 0; or smoothing, here or in
            `targets`, meets a threshold, which would undo it. A plain tensor of probabilities, as
            of timm's Mixup, does not say whether it is smoothed, so it raises too, with either:
            `Targets(probabilities)` says that it is not.
        TypeError: If a dtype does not fit.

    Example:
        >>> import torch
        >>> mixed = Targets(torch.tensor([[0.75, 0.25]]), torch.tensor([[1, 2]]), is_mixed=True)
        >>> logits = torch.tensor([[-4.0, 4.0, 4.0]])
        >>> binary_cross_entropy(logits, mixed, threshold=0.2)
        tensor(0.0181)

    Source: Wightman et al. 2021, "ResNet strikes back: An improved training procedure in timm".
    """
    _check_options("binary_cross_entropy", label_smoothing, threshold, sum_classes, reduction)
    logits = checked_logits("binary_cross_entropy", logits)
    if threshold is not None:
        _refuse_smoothed("binary_cross_entropy", threshold, targets)
    targets = checked_targets(
        "binary_cross_entropy", logits, targets, label_smoothing, sum_to_one=False
    )
    if label_smoothing > 0:
        targets = targets.smooth(label_smoothing, logits.shape[1])
    q = targets.probabilities(logits.shape[1]).to(logits.dtype)
    if threshold is not None:
        q = (q > threshold).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, q, reduction="none")
    return reduced(losses.sum(dim=1) if sum_classes else losses, reduction)


class BinaryCrossEntropyLoss(nn.Module):
    """The module of `binary_cross_entropy`, which has the formula; called as loss(logits, targets).

    Args:
        label_smoothing: Share of the probability given to all classes alike, in [0, 1]. Default 0.
        threshold: Targets above it become 1 and the others 0, in [0, 1). Default None.
        sum_classes: Whether a sample's loss is the sum over its classes. Default False.
        reduction: "none", "mean" or "sum". Default "mean".

    Raises:
        ValueError: If an option is out of range, or there is smoothing and a threshold.
        TypeError: If one is of another type.

    Example:
        >>> import torch
        >>> BinaryCrossEntropyLoss(sum_classes=True)(torch.zeros(2, 8), torch.tensor([3, 1]))
        tensor(5.5452)

    Source: As of `binary_cross_entropy`.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        threshold: float | None = None,
        sum_classes: bool = False,
        reduction: str = "mean",
    ) -> None:
        _check_options("BinaryCrossEntropyLoss", label_smoothing, threshold, sum_classes, reduction)
        super().__init__()
        self.label_smoothing = float(label_smoothing)
        self.threshold = None if threshold is None else float(threshold)
        self.sum_classes = sum_classes
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor | Targets) -> Tensor:
        """Return the loss of logits, shape (N, K), for labels, probabilities or `Targets`."""
        return binary_cross_entropy(
            logits,
            targets,
            label_smoothing=self.label_smoothing,
            threshold=self.threshold,
            sum_classes=self.sum_classes,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options."""
        return (
            f"label_smoothing={self.label_smoothing}, threshold={self.threshold}, "
            f"sum_classes={self.sum_classes}, reduction={self.reduction!r}"
        )


def _check_options(
    what: str,
    label_smoothing: float,
    threshold: float | None,
    sum_classes: bool,
    reduction: str,
) -> None:
    check_smoothing(what, label_smoothing)
    check_bool(what, "sum_classes", sum_classes)
    check_reduction(what, reduction)
    if threshold is None:
        return
    check_number(what, "threshold", threshold)
    if not 0 <= threshold < 1:
        raise ValueError(f"{what}: expected threshold in [0, 1), got {threshold}")
    _refuse_threshold(what, threshold, label_smoothing)


def _refuse_smoothed(what: str, threshold: float, targets: Tensor | Targets) -> None:
    if isinstance(targets, Tensor) and targets.is_floating_point():
        raise ValueError(
            f"{what}: a plain tensor of probabilities does not say whether it is smoothed already, "
            f"as that of timm's Mixup may be, and threshold={threshold} would undo it; pass "
            "Targets(probabilities) if it is not smoothed"
        )
    _refuse_threshold(what, threshold, as_targets(targets).smoothing)


def _refuse_threshold(what: str, threshold: float, smoothing: float) -> None:
    if smoothing > 0:
        raise ValueError(
            f"{what}: threshold={threshold} makes all targets 0 or 1, which undoes the label "
            f"smoothing of {smoothing}; use one of the two"
        )
