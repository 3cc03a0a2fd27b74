"""Schedulers that go smoothly from one value to another, most with torch's signatures."""

from torch.optim import Optimizer
from typing_extensions import Unpack

from fusedtricks.lr_scheduler.decays import (
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    Polynomial,
)
from fusedtricks.lr_scheduler.group_schedules import SchedulerOptions
from fusedtricks.lr_scheduler.per_group import per_group
from fusedtricks.lr_scheduler.scheduler import ScheduledLR
from fusedtricks.lr_scheduler.times import Time
from fusedtricks.lr_scheduler.warmups import LinearWarmup, WarmupStableDecay

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "InverseSqrtLR",
    "LinearLR",
    "PolynomialLR",
    "WarmupLR",
    "WarmupStableDecayLR",
]


class ExponentialLR(ScheduledLR):
    """lr(t) = initial_lr * gamma^t, as torch's, without its rounding from step to step.

    Args:
        optimizer: The optimizer.
        gamma: Factor per update, or per epoch with unit="epoch".
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `Exponential`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        super().__init__(optimizer, Exponential(gamma), last_epoch, **options)


class LinearLR(ScheduledLR):
    """lr(t) = initial_lr * a line from start_factor to end_factor within total_iters, as torch's.

    Unlike torch's, it may start at 0.

    Args:
        optimizer: The optimizer.
        start_factor: First factor, at least 0. Default 1/3.
        end_factor: Last factor, at least 0. Default 1.
        total_iters: Updates, or a time. Default 5.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `Linear`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: Time = 5,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        schedule = Linear(total_iters, start_factor, end_factor)
        super().__init__(optimizer, schedule, last_epoch, **options)


class WarmupLR(ScheduledLR):
    """lr(t) = initial_lr * (start + (1 - start) * min((t + offset) / total_iters, 1)).

    Args:
        optimizer: The optimizer.
        total_iters: Updates, or a time.
        start: First factor, in [0, 1]. Default 0.
        offset: 1 to be one update ahead, so that the first does something. Default 0.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `LinearWarmup`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: Time,
        start: float = 0.0,
        offset: int = 0,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        super().__init__(optimizer, LinearWarmup(total_iters, start, offset), last_epoch, **options)


class PolynomialLR(ScheduledLR):
    """lr(t) = initial_lr * (1 - t / total_iters)^power, as torch's.

    Args:
        optimizer: The optimizer.
        total_iters: Updates until it is 0, or a time. Default 5.
        power: Exponent. Default 1.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `Polynomial`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: Time = 5,
        power: float = 1.0,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        super().__init__(optimizer, Polynomial(total_iters, power), last_epoch, **options)


class InverseSqrtLR(ScheduledLR):
    """lr(t) = initial_lr / sqrt(1 + t / timescale).

    Args:
        optimizer: The optimizer.
        timescale: Updates, or a time. Default 1.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `InverseSqrt`, which also says how it follows a warm-up.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        timescale: Time = 1,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        super().__init__(optimizer, InverseSqrt(timescale), last_epoch, **options)


class CosineAnnealingLR(ScheduledLR):
    """lr(t) = eta_min + (initial_lr - eta_min) * (1 + cos(pi * t / T_max)) / 2, then eta_min.

    As torch's, which rises again after T_max. A group whose lr is below eta_min keeps it.

    Args:
        optimizer: The optimizer.
        T_max: Updates, or a time.
        eta_min: Last learning rate, or a list with one for each group. Default 0.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: Loshchilov & Hutter 2017, "SGDR", eq. 5.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: Time,
        eta_min: float | list[float] = 0.0,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        schedule = per_group(
            type(self).__name__,
            optimizer,
            lambda eta_min: Cosine(T_max).between(low=eta_min),
            eta_min=eta_min,
        )
        super().__init__(optimizer, schedule, last_epoch, **options)


class WarmupStableDecayLR(ScheduledLR):
    """A linear warm-up, the full learning rate, and a decay at the end.

    lr(t) = initial_lr * t / warmup; initial_lr; initial_lr * (end + (1 - end) * shape(x)), x from 0
    to 1 in the last `decay` updates.

    Args:
        optimizer: The optimizer.
        total_iters: Updates of everything, or a time.
        warmup: Updates of the warm-up, or a time.
        decay: Updates of the decay, or a time.
        shape: "linear", "cosine" or "sqrt". Default "linear".
        end: Last factor. Default 0.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `WarmupStableDecay`, which has the formula.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: Time,
        warmup: Time,
        decay: Time,
        shape: str = "linear",
        end: float = 0.0,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        schedule = WarmupStableDecay(total_iters, warmup, decay, shape, end)
        super().__init__(optimizer, schedule, last_epoch, **options)
