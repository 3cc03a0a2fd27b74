"""Schedulers made of schedulers, with torch's names and signatures."""

from collections.abc import Sequence
from functools import reduce
from operator import mul

from torch.optim import Optimizer
from typing_extensions import Unpack

from fusedtricks.lr_scheduler import composition
from fusedtricks.lr_scheduler.decays import Constant
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
        schedulers: fusedtricks schedulers or schedules (of the learning rate). Each starts at its
            beginning. Where some schedule another option as well, the others leave it as it was
            before all schedulers.
        milestones: Updates, or times, at which the second and following begin.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`. Times of schedulers stay what they are.

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
        owner = type(self).__name__
        advice = f"torch.optim.lr_scheduler.{owner} takes both kinds"
        parts = _parts(owner, optimizer, schedulers, advice)
        joined = {
            option: one_or_list(
                [composition.Sequence(of_group, milestones) for of_group in of_groups]
            )
            for option, of_groups in parts.items()
        }
        super().__init__(optimizer, joined.pop("lr"), last_epoch, **joined | options)


class ChainedScheduler(ScheduledLR):
    """The product of schedules: lr(t) = initial_lr * factor_1(t) * factor_2(t) * ...

    Args:
        schedulers: fusedtricks schedulers or schedules (of the learning rate). At most one may have
            learning rates of its own (be absolute).
        optimizer: The optimizer. Default: that of the first scheduler.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`. Times of schedulers stay what they are.

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
        owner = type(self).__name__
        if not schedulers:
            raise ValueError(f"{owner}: expected at least one scheduler, got none")
        optimizer = optimizer or getattr(schedulers[0], "optimizer", None)
        parts = _parts(owner, optimizer, schedulers, "make all of them those of fusedtricks")
        joined = {
            option: one_or_list([reduce(mul, of_group) for of_group in of_groups])
            for option, of_groups in parts.items()
        }
        super().__init__(optimizer, joined.pop("lr"), last_epoch, **joined | options)


def _parts(
    owner: str,
    optimizer: Optimizer | None,
    schedulers: Sequence[ScheduledLR | Schedule],
    advice: str,
) -> dict[str, list[list[Schedule]]]:
    """Return for every option and group the schedules that it has in the schedulers."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{owner}: expected an optimizer, got {optimizer!r}")
    options = ["lr"]
    for scheduler in schedulers:
        if not isinstance(scheduler, (ScheduledLR, Schedule)):
            raise TypeError(
                f"{owner}: expected schedules or schedulers of fusedtricks, got "
                f"{type(scheduler).__name__}; {advice}"
            )
        if getattr(scheduler, "optimizer", optimizer) is not optimizer:
            raise ValueError(f"{owner}: expected schedulers of the same optimizer")
        options += getattr(scheduler, "schedules", {})
    n_groups = len(optimizer.param_groups)
    found = {
        option: [_of_groups(owner, scheduler, option, n_groups) for scheduler in schedulers]
        for option in dict.fromkeys(options)
    }
    return {
        option: [list(of_group) for of_group in zip(*of_schedulers, strict=True)]
        for option, of_schedulers in found.items()
    }


def _of_groups(
    owner: str, scheduler: ScheduledLR | Schedule, option: str, n_groups: int
) -> list[Schedule]:
    if isinstance(scheduler, Schedule):
        return [scheduler if option == "lr" else Constant()] * n_groups
    found = scheduler.schedules.get(option, Constant())
    if not isinstance(found, list):
        return [found] * n_groups
    check_lengths(owner, option, found, n_groups)
    return found[:n_groups]
