"""Schedulers that jump at given times, and that of any function."""

from collections.abc import Callable, Iterable, Sequence

from torch.optim import Optimizer
from typing_extensions import Unpack

from fusedtricks.lr_scheduler.decays import (
    Constant,
    Piecewise,
    Step,
)
from fusedtricks.lr_scheduler.functions import Function
from fusedtricks.lr_scheduler.group_schedules import SchedulerOptions
from fusedtricks.lr_scheduler.per_group import per_group
from fusedtricks.lr_scheduler.scheduler import ScheduledLR
from fusedtricks.lr_scheduler.times import Time
from fusedtricks.lr_scheduler.warmups import ConstantWarmup

__all__ = ["ConstantLR", "LambdaLR", "MultiStepLR", "PiecewiseLR", "StepLR"]


class LambdaLR(ScheduledLR):
    """lr(t) = initial_lr * lr_lambda(t), as `torch.optim.lr_scheduler.LambdaLR`.

    A checkpoint holds the function's name only: keep the function.

    Args:
        optimizer: The optimizer.
        lr_lambda: Function of the number of updates done, or a list with one for each group.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: `torch.optim.lr_scheduler.LambdaLR`.
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

    Source: see `ConstantWarmup`.
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

    Source: see `Step`.
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

    Source: see `Piecewise`.
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

    Source: see `Piecewise`.
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
