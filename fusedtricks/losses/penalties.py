"""Terms that are added to a loss to keep outputs from becoming extreme."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_number
from fusedtricks.losses._arguments import (
    check_reduction,
    checked_logits,
    reduced,
)
from fusedtricks.losses.sigmoid_loss import BinaryCrossEntropyLoss, binary_cross_entropy
from fusedtricks.targets import Targets

__all__ = [
    "ConfidencePenalty",
    "confidence_penalty",
    "darc1_penalty",
    "reduction_of_softmax_loss",
    "unwrapped",
]

_SIGMOID_LOSSES = (
    BinaryCrossEntropyLoss,
    nn.BCEWithLogitsLoss,
    nn.BCELoss,
    nn.MultiLabelSoftMarginLoss,
)
_SIGMOID_FUNCTIONS = (
    binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.binary_cross_entropy,
    functional.multilabel_soft_margin_loss,
)


def confidence_penalty(
    logits: Tensor, *, threshold: float | None = None, reduction: str = "mean"
) -> Tensor:
    """Return the negative entropy of softmax(logits), or how far the entropy is below a threshold.

    With p = softmax(logits) and H = -sum_k p[k] * log(p[k]), the penalty of a sample is -H, or
    max(0, threshold - H). It is to be added to a loss, times a positive weight. A class whose logit
    is -inf counts nothing: 0 * log(0) is 0.

    The source's section 3 prints the hinge as L - beta * max(0, threshold - H), which would reward
    confidence; the sign here is that of its text, and of its L - beta * H.

    Args:
        logits: Shape (N, K), floating point; 16 bits are computed with in float32.
        threshold: Entropy in nats from which on a sample is not penalized, above 0; log(K) is the
            largest entropy. Default None, all entropy counts.
        reduction: "none" for shape (N,), "mean" or "sum" for a scalar. Default "mean".

    Returns:
        The penalty, in float32, or float64 for logits in float64.

    Raises:
        ValueError: If a shape or an option is out of range.
        TypeError: If the logits are not floating point.

    Example:
        >>> import torch
        >>> confidence_penalty(torch.tensor([[0.0, 0.0], [8.0, 0.0]]), reduction="none")
        tensor([-0.6931, -0.0030])

    Source: Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output
        Distributions", section 3.
    """
    check_reduction("confidence_penalty", reduction)
    _check_threshold("confidence_penalty", threshold)
    log_p = functional.log_softmax(checked_logits("confidence_penalty", logits), dim=1)
    # 0 * log(0) is 0, and so are its gradients.
    penalties = (log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(dim=1)
    if threshold is not None:
        penalties = functional.relu(threshold + penalties)
    return reduced(penalties, reduction)


class ConfidencePenalty(nn.Module):
    """A softmax loss with a penalty on confident outputs; called as loss(logits, targets).

    loss(logits, targets) + beta * confidence_penalty(logits), which is L - beta * H(p). The
    penalty is reduced as the loss is: as `loss.reduction` says, or the reduction of a
    functools.partial, or else to its mean.

    Label smoothing pulls the outputs towards the uniform distribution too: with both, search both.

    Args:
        loss: Called as loss(logits, targets); a softmax loss, such as `CrossEntropyLoss`.
        beta: Weight of the penalty, at least 0.
        threshold: Entropy in nats from which on a sample is not penalized. Default None.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If `loss` is a binary cross-entropy. Its outputs are K probabilities, not one
            distribution over K classes, and have no entropy of that kind. If it is a class; or if
            an option is no number.

    Example:
        >>> from fusedtricks.losses import CrossEntropyLoss
        >>> ConfidencePenalty(CrossEntropyLoss(), beta=0.1)
        ConfidencePenalty(
          beta=0.1, threshold=None
          (loss): CrossEntropyLoss(label_smoothing=0.0, reduction='mean')
        )

    Source: As of `confidence_penalty`, which has the formula.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor | Targets], Tensor],
        beta: float,
        *,
        threshold: float | None = None,
    ) -> None:
        reduction = reduction_of_softmax_loss("ConfidencePenalty", loss)
        check_number("ConfidencePenalty", "beta", beta, low=0)
        _check_threshold("ConfidencePenalty", threshold)
        super().__init__()
        self.loss = loss
        self.beta = float(beta)
        self.threshold = None if threshold is None else float(threshold)
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor | Targets) -> Tensor:
        """Return the loss of logits, shape (N, K), for the targets that `loss` takes."""
        penalty = confidence_penalty(logits, threshold=self.threshold, reduction=self.reduction)
        return self.loss(logits, targets) + self.beta * penalty

    def extra_repr(self) -> str:
        """Return the options."""
        return f"beta={self.beta}, threshold={self.threshold}"


def darc1_penalty(logits: Tensor) -> Tensor:
    """Return the largest class-wise mean of absolute logits, max_k sum_i |logits[i, k]| / N.

    It is to be added to a loss, times a positive weight. Where several classes are largest, they
    share the gradient. The maximum is that of the batch: with several processes, the mean of their
    penalties is at least the penalty of all samples together.

    Args:
        logits: Shape (N, K), floating point; 16 bits are computed with in float32.

    Returns:
        The penalty, a scalar in float32, or float64 for logits in float64; NaN for an empty batch.

    Raises:
        ValueError: If the shape is not (N, K).
        TypeError: If the logits are not floating point.

    Example:
        >>> import torch
        >>> darc1_penalty(torch.tensor([[1.0, -4.0], [3.0, 2.0]]))
        tensor(3.)

    Source: Kawaguchi et al. 2017, "Generalization in Deep Learning", DARC1.
    """
    return checked_logits("darc1_penalty", logits).abs().mean(dim=0).amax()


def reduction_of_softmax_loss(what: str, loss: Callable[..., Tensor]) -> str:
    """Return how a loss is reduced, and refuse those whose logits do not belong to one softmax.

    Raises:
        ValueError: If the reduction does not exist.
        TypeError: If `loss` is one of them, a class, or no function.
    """
    if not callable(loss):
        raise TypeError(f"{what}: expected loss to be a function or module, got {loss!r}")
    is_partial = isinstance(loss, functools.partial)
    options, called = (loss.keywords, loss.func) if is_partial else ({}, loss)
    inner = unwrapped(loss)
    if isinstance(inner, type):
        raise TypeError(
            f"{what}: expected loss to be a function or module, got the class {inner.__name__}; "
            f"call it: {inner.__name__}()"
        )
    if isinstance(inner, _SIGMOID_LOSSES) or any(inner is each for each in _SIGMOID_FUNCTIONS):
        name = getattr(inner, "__name__", type(inner).__name__)
        raise TypeError(
            f"{what}: expected a softmax loss, got {name}, which makes independent "
            "probabilities of the logits and not one distribution; use CrossEntropyLoss"
        )
    reduction = options.get("reduction", getattr(called, "reduction", "mean"))
    check_reduction(what, reduction)
    return reduction


def unwrapped(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the loss inside functools.partial and torch.compile."""
    called = loss.func if isinstance(loss, functools.partial) else loss
    # torch.compile wraps a module in the one way and a function in the other.
    return getattr(called, "_orig_mod", getattr(called, "__wrapped__", called))


def _check_threshold(what: str, threshold: float | None) -> None:
    if threshold is not None:
        check_number(what, "threshold", threshold, above=0)
