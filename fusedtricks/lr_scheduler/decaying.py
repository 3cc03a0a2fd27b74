"""Schedulers with torch's names and signatures that go from one value to another."""

from collections.abc import Callable, Iterable, Sequence

from torch.optim import Optimizer
from typing_extensions import Unpack

from fusedtricks.lr_scheduler.composition import Function
from fusedtricks.lr_scheduler.decays import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    Piecewise,
    Polynomial,
    Step,
)
from fusedtricks.lr_scheduler.group_schedules import SchedulerOptions
from fusedtricks.lr_scheduler.per_group import per_group
from fusedtricks.lr_scheduler.scheduler import ScheduledLR
from fusedtricks.lr_scheduler.times import Time
from fusedtricks.lr_scheduler.warmups import ConstantWarmup, LinearWarmup, WarmupStableDecay

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "InverseSqrtLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "PiecewiseLR",
    "PolynomialLR",
    "StepLR",
    "WarmupLR",
    "WarmupStableDecayLR",
]


class LambdaLR(ScheduledLR):
    """lr(t) = initial_lr * lr_lambda(t), as `torch.optim.lr_scheduler.LambdaLR`.

    A checkpoint holds the function's name only: keep the function.

    Args:
        optimizer: The optimizer.
        lr_lambda: Function of the number of updates done, or a list with one for each group.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[float], float] | list[Callable[[float], float]],
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        schedule = per_group(type(self).__name__, optimizer, Function, function=lr_lambda)
        super().__init__(optimizer, schedule, last_epoch, **options)


class ConstantLR(ScheduledLR):
    """lr(t) = initial_lr * factor for t < total_iters, then initial_lr, as torch's.

    Args:
        optimizer: The optimizer.
        factor: In [0, 1]. Default 1/3.
        total_iters: Updates, or a time. Default 5.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: Time = 5,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        schedule = ConstantWarmup(total_iters, factor) if total_iters != 0 else Constant()
        super().__init__(optimizer, schedule, last_epoch, **options)


class StepLR(ScheduledLR):
    """lr(t) = initial_lr * gamma^floor(t / step_size), as torch's.

    Args:
        optimizer: The optimizer.
        step_size: Updates between drops, or a time.
        gamma: Factor of each. Default 0.1.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        step_size: Time,
        gamma: float = 0.1,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        super().__init__(optimizer, Step(step_size, gamma), last_epoch, **options)


class MultiStepLR(ScheduledLR):
    """lr(t) = initial_lr * gamma^(number of milestones <= t), as torch's.

    Args:
        optimizer: The optimizer.
        milestones: Updates, or times; one that is given twice counts twice.
        gamma: Factor at each. Default 0.1.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[Time],
        gamma: float = 0.1,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        milestones = list(milestones)
        if not any(isinstance(m, str) for m in milestones):
            milestones = sorted(milestones)
        kept = list(dict.fromkeys(milestones))
        factors = [1.0]
        for milestone in kept:
            factors.append(factors[-1] * gamma ** milestones.count(milestone))
        super().__init__(optimizer, Piecewise(kept, factors), last_epoch, **options)


class PiecewiseLR(ScheduledLR):
    """lr(t) = initial_lr * factors[number of milestones <= t].

    Args:
        optimizer: The optimizer.
        milestones: Updates, or times, that increase.
        factors: One more than milestones.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Example:
        The first rate for 50 epochs, then two smaller ones for 10 each:

        >>> PiecewiseLR(optimizer, ["50ep", "60ep"], [1, 0.1, 0.01], steps_per_epoch=100)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[Time],
        factors: Sequence[float],
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        super().__init__(optimizer, Piecewise(milestones, factors), last_epoch, **options)


class ExponentialLR(ScheduledLR):
    """lr(t) = initial_lr * gamma^t, as torch's, without its rounding from step to step.

    Args:
        optimizer: The optimizer.
        gamma: Factor per update, or per epoch with unit="epoch".
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.
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
