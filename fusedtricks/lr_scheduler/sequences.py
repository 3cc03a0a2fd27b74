"""Schedulers made of schedulers, with torch's names and signatures."""

from collections.abc import Sequence
from functools import reduce
from operator import mul

from torch.optim import Optimizer
from typing_extensions import Unpack

from fusedtricks.lr_scheduler import composition
from fusedtricks.lr_scheduler.group_schedules import SchedulerOptions, check_lengths
from fusedtricks.lr_scheduler.per_group import one_or_list
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.scheduler import ScheduledLR
from fusedtricks.lr_scheduler.times import Time

__all__ = ["ChainedScheduler", "SequentialLR"]


class SequentialLR(ScheduledLR):
    """One schedule after the other, as torch's, without touching `initial_lr`.

    Args:
        optimizer: The optimizer.
        schedulers: fusedtricks schedulers or schedules; of schedulers only the learning-rate
            schedule is taken. Each starts at its beginning.
        milestones: Updates, or times, at which the second and following begin.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Raises:
        TypeError: For a scheduler of torch, whose value is no function of the time alone; use
            torch's SequentialLR for those, which also takes ours.
        ValueError: If the numbers of schedulers and milestones do not fit.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[ScheduledLR | Schedule],
        milestones: Sequence[Time],
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        parts = _schedules_of_groups(type(self).__name__, optimizer, schedulers)
        schedule = [composition.Sequence(of_group, milestones) for of_group in parts]
        super().__init__(optimizer, one_or_list(schedule), last_epoch, **options)


class ChainedScheduler(ScheduledLR):
    """The product of schedules: lr(t) = initial_lr * factor_1(t) * factor_2(t) * ...

    Args:
        schedulers: fusedtricks schedulers or schedules; of schedulers only the learning-rate
            schedule is taken. At most one may have learning rates of its own (be absolute).
        optimizer: The optimizer. Default: that of the first scheduler.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Raises:
        TypeError: For a scheduler of torch, or if there is no optimizer.
        ValueError: If there is no scheduler, or several are absolute.
    """

    def __init__(
        self,
        schedulers: Sequence[ScheduledLR | Schedule],
        optimizer: Optimizer | None = None,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        if not schedulers:
            raise ValueError(f"{type(self).__name__}: expected at least one scheduler, got none")
        optimizer = optimizer or getattr(schedulers[0], "optimizer", None)
        parts = _schedules_of_groups(type(self).__name__, optimizer, schedulers)
        schedule = [reduce(mul, of_group) for of_group in parts]
        super().__init__(optimizer, one_or_list(schedule), last_epoch, **options)


def _schedules_of_groups(
    owner: str, optimizer: Optimizer | None, schedulers: Sequence[ScheduledLR | Schedule]
) -> list[list[Schedule]]:
    """Return for every group the schedules that it has in the schedulers."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{owner}: expected an optimizer, got {optimizer!r}")
    for scheduler in schedulers:
        if not isinstance(scheduler, (ScheduledLR, Schedule)):
            raise TypeError(
                f"{owner}: expected schedules or schedulers of fusedtricks, got "
                f"{type(scheduler).__name__}; torch.optim.lr_scheduler.{owner} takes both kinds"
            )
        if getattr(scheduler, "optimizer", optimizer) is not optimizer:
            raise ValueError(f"{owner}: expected schedulers of the same optimizer")
    n_groups = len(optimizer.param_groups)
    of_schedulers = [_of_groups(owner, scheduler, n_groups) for scheduler in schedulers]
    return [list(of_group) for of_group in zip(*of_schedulers, strict=True)]


def _of_groups(owner: str, scheduler: ScheduledLR | Schedule, n_groups: int) -> list[Schedule]:
    if isinstance(scheduler, Schedule):
        return [scheduler] * n_groups
    if "lr" not in scheduler.schedules:
        raise ValueError(f"{owner}: expected schedulers of the learning rate, got one without")
    found = scheduler.schedules["lr"]
    if not isinstance(found, list):
        return [found] * n_groups
    check_lengths(owner, "lr", found, n_groups)
    return found[:n_groups]
