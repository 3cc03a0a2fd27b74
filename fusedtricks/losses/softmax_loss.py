"""Softmax cross-entropy for labels, soft labels and mixtures of labels."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_whole
from fusedtricks.losses._arguments import (
    check_reduction,
    checked_logits,
    checked_targets,
    reduced,
)
from fusedtricks.targets import Targets, check_smoothing

__all__ = ["CrossEntropyLoss", "cross_entropies", "cross_entropy", "smallest_cross_entropy"]


def cross_entropy(
    logits: Tensor,
    targets: Tensor | Targets,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross-entropy between target distributions and softmax(logits).

    With p = softmax(logits), and weights w of the classes c that the target of a sample consists
    of, its loss is

    loss = -(1 - label_smoothing) * sum_m w[m] * log(p[c[m]])
           - label_smoothing / K * sum_k log(p[k])

    and, for weights that sum to 1, d loss / d logits = p - q with the smoothed target
    q[k] = (1 - label_smoothing) * sum_m w[m] * [c[m] == k] + label_smoothing / K. So the true class
    of a label gets 1 - label_smoothing + label_smoothing / K, as in the source, TensorFlow, torch
    and timm. "Bag of Tricks for Image Classification" (He et al. 2019, section 5.2) divides by
    K - 1 among the other classes instead: its eps is label_smoothing * (K - 1) / K here.

    A mixture of labels, as mixup makes it, is smoothed once, and needs no tensor of shape (N, K).
    Values and gradients are those of torch.nn.functional.cross_entropy. Unlike there, 16-bit logits
    are computed with in float32 and give a float32 loss, as under autocast; there is no class that
    is ignored; smoothing that was, or may have been, applied before raises; and a class of weight 0
    whose logit is -inf counts nothing, as 0 * log(0), where torch's loss of probabilities is NaN.
    With label_smoothing its weight is above 0, and the loss infinite.

    Args:
        logits: Shape (N, K), floating point.
        targets: Labels, shape (N,), of an integer dtype, 0 to K - 1; or probabilities, shape
            (N, K), floating point, rows sum to 1; or `Targets`.
        label_smoothing: Share of the probability given to all classes alike, in [0, 1]. Default 0.
        reduction: "none" for shape (N,), "mean" or "sum" for a scalar. Default "mean", which is NaN
            for an empty batch.

    Returns:
        The loss, in float32, or float64 for logits in float64.

    Raises:
        ValueError: If shapes do not fit; an option is out of range; a label is out of range, on the
            CPU (a GPU traps); probabilities are outside [0, 1] or do not sum to 1, on the CPU; or
            `targets` are smoothed already and label_smoothing is above 0. A plain tensor of
            probabilities does not say, so it raises too: `Targets(probabilities)` says that they
            are not smoothed.
        TypeError: If a dtype does not fit.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> cross_entropy(logits, torch.tensor([0, 1]), label_smoothing=0.1)
        tensor(0.3729)

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision",
        section 7.
    """
    check_reduction("cross_entropy", reduction)
    logits = checked_logits("cross_entropy", logits)
    targets = checked_targets("cross_entropy", logits, targets, label_smoothing, sum_to_one=True)
    return reduced(cross_entropies(logits, targets, label_smoothing), reduction)


def cross_entropies(logits: Tensor, targets: Targets, label_smoothing: float) -> Tensor:
    """Return the losses of `cross_entropy`, shape (N,), for arguments that were checked."""
    log_p = functional.log_softmax(logits, dim=1)
    of_classes = log_p if targets.classes is None else log_p.gather(1, targets.classes)
    weights = targets.weights.to(log_p.dtype)
    # 0 * log(0) is 0, and so are its gradients. A single class has weight 1.
    if weights.shape[1] > 1:
        of_classes = of_classes.masked_fill((weights == 0) & (of_classes == -torch.inf), 0)
    losses = -(weights * of_classes).sum(dim=1)
    if label_smoothing > 0:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_p.mean(dim=1)
    return losses


class CrossEntropyLoss(nn.Module):
    """The module of `cross_entropy`, which has the formula; called as loss(logits, targets).

    Args:
        label_smoothing: Share of the probability given to all classes alike, in [0, 1]. Default 0.
        reduction: "none", "mean" or "sum". Default "mean".

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(2, 8), torch.tensor([3, 1]))
        tensor(2.0794)

    Source: As of `cross_entropy`.
    """

    def __init__(self, *, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        check_smoothing("CrossEntropyLoss", label_smoothing)
        check_reduction("CrossEntropyLoss", reduction)
        super().__init__()
        self.label_smoothing = float(label_smoothing)
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor | Targets) -> Tensor:
        """Return the loss of logits, shape (N, K), for labels, probabilities or `Targets`."""
        return cross_entropy(
            logits, targets, label_smoothing=self.label_smoothing, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        """Return the options."""
        return f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


def smallest_cross_entropy(label_smoothing: float, n_classes: int) -> float:
    """Return the loss below which `cross_entropy` cannot fall: the entropy of a smoothed label.

    t * log(1 / t) + (K - 1) * r * log(1 / r),  r = label_smoothing / K,  t = 1 - (K - 1) * r.

    Mixtures of labels have at least this entropy, because entropy is concave.

    Args:
        label_smoothing: In [0, 1].
        n_classes: K, at least 1.

    Returns:
        The bound in nats, 0 without smoothing.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one is no number, or n_classes is not whole.

    Example:
        >>> round(smallest_cross_entropy(0.1, 1000), 4)
        1.0148

    Source: The entropy of the targets q' of Szegedy et al. 2016, as of `cross_entropy`.
    """
    check_smoothing("smallest_cross_entropy", label_smoothing)
    check_whole("smallest_cross_entropy", "n_classes", n_classes, 1)
    label_smoothing, n_classes = float(label_smoothing), int(n_classes)
    rest = label_smoothing / n_classes
    top = 1 - (n_classes - 1) * rest
    if rest == 0:
        return 0.0
    return top * math.log(1 / top) + (n_classes - 1) * rest * math.log(1 / rest)
