"""How learning rate and betas follow the batch size, and how much noise the gradients bring."""

import math
from typing import Any

from fusedtricks.lr_scheduler.times import Time, Units, as_number, as_time

__all__ = [
    "beta_from_half_life",
    "beta_from_time_constant",
    "half_life",
    "noise_scale",
    "scale_beta",
    "scale_lr",
    "time_constant",
]

_RULES = {"linear": lambda ratio: ratio, "sqrt": math.sqrt, "none": lambda ratio: 1.0}


def scale_lr(base_lr: float, batch: float, base_batch: float = 256, rule: str = "linear") -> float:
    """Return the learning rate for another batch size.

    base_lr * batch / base_batch ("linear"), base_lr * sqrt(batch / base_batch) ("sqrt"), or base_lr
    ("none").

    Args:
        base_lr: Learning rate for `base_batch`, at least 0.
        batch: Samples in an optimizer update, of all processes and accumulated micro-batches
            together.
        base_batch: Samples in an update that `base_lr` is for. Default 256.
        rule: "linear": the mean step per sample stays. "sqrt": the variance of the step per sample
            stays. Default "linear".

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> scale_lr(0.1, 8192), scale_lr(0.1, 1024, rule="sqrt")
        (3.2, 0.2)

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1, for the linear rule;
        Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", section
        5, for the root.
    """
    base_lr = _number("scale_lr", "base_lr", base_lr, at_least=0)
    ratio = _ratio("scale_lr", batch, base_batch)
    if rule not in _RULES:
        raise ValueError(f"scale_lr: expected rule to be one of {sorted(_RULES)}, got {rule!r}")
    return base_lr * _RULES[rule](ratio)


def noise_scale(
    lr: float, batch: float, dataset_size: float, momentum: float = 0.0, *, exact: bool = True
) -> float:
    """Return the scale of the noise that drawing batches brings into SGD.

    g = lr / (1 - momentum) * (dataset_size / batch - 1), and with exact=False what that is for a
    batch much smaller than the data, lr * dataset_size / (batch * (1 - momentum)). Runs with the
    same g at every epoch have about the same learning curves, whatever lr and batch size are.

    Args:
        lr: Learning rate, at least 0.
        batch: Samples in an optimizer update, above 0; at most `dataset_size` if exact.
        dataset_size: Samples in an epoch.
        momentum: In [0, 1), of a buffer without dampening: buf = momentum * buf + grad. Default 0.
        exact: Which of the two formulas. Default True.

    Returns:
        g, in units of the learning rate; exactly 0 for a batch of all data, if exact.

    Raises:
        ValueError: If an argument is out of range.

    Source: Smith & Le 2018, "A Bayesian Perspective on Generalization and Stochastic Gradient
        Descent", for (dataset_size / batch - 1); Smith et al. 2018, "Don't Decay the Learning Rate,
        Increase the Batch Size", for the momentum.
    """
    lr = _number("noise_scale", "lr", lr, at_least=0)
    batch = _number("noise_scale", "batch", batch, above=0)
    size = _number("noise_scale", "dataset_size", dataset_size, above=0)
    momentum = _beta("noise_scale", momentum, "momentum")
    if exact and batch > size:
        raise ValueError(
            f"noise_scale: expected batch of at most dataset_size={size}, got {batch}; the exact "
            "formula is for batches drawn without replacement"
        )
    return lr / (1.0 - momentum) * (size / batch - (1.0 if exact else 0.0))


def time_constant(beta: float) -> float:
    """Return after how many updates a gradient's weight in an average has fallen to 1 / e.

    T = -1 / ln(beta), for avg = beta * avg + (1 - beta) * grad; 0 for beta 0. It lies between
    1 / (1 - beta) - 1 and 1 / (1 - beta).

    Args:
        beta: In [0, 1).

    Raises:
        ValueError: If beta is out of range.

    Example:
        >>> [round(time_constant(beta), 2) for beta in (0.5, 0.9, 0.999)]
        [1.44, 9.49, 999.5]
    """
    beta = _beta("time_constant", beta)
    return -1.0 / math.log(beta) if beta > 0 else 0.0


def beta_from_time_constant(time: float) -> float:
    """Return exp(-1 / time), the beta whose `time_constant` that is; 0 for 0.

    Args:
        time: Updates, at least 0.

    Raises:
        ValueError: If it is negative.
    """
    time = _number("beta_from_time_constant", "time", time, at_least=0)
    return math.exp(-1.0 / time) if time > 0 else 0.0


def half_life(beta: float) -> float:
    """Return after how many updates a gradient's weight in an average has halved.

    ln(1 / 2) / ln(beta), which is ln(2) times the `time_constant`; 0 for beta 0.

    Args:
        beta: In [0, 1).

    Raises:
        ValueError: If beta is out of range.
    """
    return math.log(2.0) * time_constant(_beta("half_life", beta))


def beta_from_half_life(
    time: Time, *, steps_per_epoch: float | None = None, total_steps: float | None = None
) -> float:
    """Return 0.5^(1 / time), the beta whose `half_life` that is; 0 for 0.

    Args:
        time: Updates, at least 0, fractions included; or "0.5ep", "500ba", "0.1dur", which are
            rounded to whole updates.
        steps_per_epoch: Optimizer updates in an epoch, for "0.5ep".
        total_steps: Optimizer updates of the run, for "0.1dur".

    Raises:
        ValueError: If the time is negative, needs a number that is missing, or is a string for less
            than half an update.

    Example:
        >>> round(beta_from_half_life("0.5ep", steps_per_epoch=100), 6)
        0.986233
    """
    owner = "beta_from_half_life"
    updates = Units(steps_per_epoch, total_steps).to_updates(
        owner, "time", as_time(owner, "time", time)
    )
    if updates == 0 and isinstance(time, str):
        raise ValueError(f"{owner}: time={time!r} is less than half an update; make it longer")
    return 0.5 ** (1.0 / updates) if updates > 0 else 0.0


def scale_beta(beta: float, batch: float, base_batch: float) -> float:
    """Return the beta with the same memory in samples for another batch size.

    beta^(batch / base_batch): an average over k times larger batches forgets as much in one update
    as it did in k.

    Args:
        beta: In [0, 1), for `base_batch`.
        batch: Samples in an update.
        base_batch: Samples in an update that `beta` is for.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> scale_beta(0.9, 512, 256) == 0.9**2
        True
    """
    return _beta("scale_beta", beta) ** _ratio("scale_beta", batch, base_batch)


def _number(
    owner: str,
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
) -> float:
    number = as_number(owner, name, value)
    if at_least is not None and number < at_least:
        raise ValueError(f"{owner}: expected {name} of at least {at_least}, got {number}")
    if above is not None and number <= above:
        raise ValueError(f"{owner}: expected {name} above {above}, got {number}")
    return number


def _beta(owner: str, value: Any, name: str = "beta") -> float:
    beta = as_number(owner, name, value)
    if not 0 <= beta < 1:
        raise ValueError(f"{owner}: expected {name} in [0, 1), got {beta}")
    return beta


def _ratio(owner: str, batch: Any, base_batch: Any) -> float:
    batch = _number(owner, "batch", batch, above=0)
    return batch / _number(owner, "base_batch", base_batch, above=0)
