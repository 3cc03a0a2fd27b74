"""Which schedule each option of each parameter group follows."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

from torch.optim import Optimizer

from fusedtricks.lr_scheduler.functions import Function
from fusedtricks.lr_scheduler.group_options import has_option
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import Units

__all__ = [
    "AnySchedule",
    "SchedulerOptions",
    "Schedules",
    "as_schedules",
    "check_lengths",
    "check_options",
    "last_end",
]

AnySchedule = Schedule | Callable[[float], float] | Sequence[Schedule | Callable[[float], float]]
# Name of an option -> one schedule for all groups, or one for each.
Schedules = dict[str, Schedule | list[Schedule]]


class SchedulerOptions(TypedDict, total=False):
    """The keyword-only options of every scheduler.

    Attributes:
        momentum: Schedule of `momentum`, or of `betas[0]`; one for all groups, or a list.
        beta2: Schedule of `betas[1]`.
        weight_decay: Schedule of `weight_decay`.
        unit: What plain numbers in schedules count: "update" or "epoch". `step()` is one optimizer
            update in both cases. Default "update".
        steps_per_epoch: Optimizer updates in an epoch, for "5ep" and unit="epoch". Updates, not
            batches, when gradients accumulate; those of one process, however many there are.
        total_steps: Optimizer updates of the whole run, for "0.1dur".
        scaler: The GradScaler of a torch.optim optimizer: updates that it skips do not advance the
            schedule. fusedtricks optimizers report their skipped updates themselves.
    """

    momentum: AnySchedule | None
    beta2: AnySchedule | None
    weight_decay: AnySchedule | None
    unit: str
    steps_per_epoch: float | None
    total_steps: float | None
    scaler: Any


def as_schedules(
    owner: str, option: str, given: AnySchedule, n_groups: int, units: Units
) -> Schedule | list[Schedule]:
    """Return what a caller gave for an option, in updates.

    Raises:
        TypeError: If something is neither schedule nor function.
        ValueError: If a list does not have one for each group, or times cannot be resolved.
    """
    if not isinstance(given, (list, tuple)):
        return _as_schedule(owner, option, given, units)
    if len(given) != n_groups:
        raise ValueError(
            f"{owner}: expected one {option} schedule or {n_groups}, one per param group, got "
            f"{len(given)}"
        )
    return [_as_schedule(owner, option, each, units) for each in given]


def _as_schedule(owner: str, option: str, given: Any, units: Units) -> Schedule:
    if not isinstance(given, Schedule):
        if not callable(given) or isinstance(given, type):
            raise TypeError(
                f"{owner}: expected the {option} schedule to be a Schedule or a function, got "
                f"{given!r}"
            )
        given = Function(given)
    return given._resolve(units)


def check_options(owner: str, optimizer: Optimizer, options: Iterable[str]) -> None:
    """Raise ValueError unless all groups of an optimizer have all options."""
    for index, group in enumerate(optimizer.param_groups):
        for option in options:
            if not has_option(group, option):
                raise ValueError(
                    f"{owner}: expected {option} in all param groups, but group {index} of "
                    f"{type(optimizer).__name__} has none to schedule"
                )


def check_lengths(owner: str, option: str, schedules: list[Schedule], n_groups: int) -> None:
    """Raise ValueError if there are groups that came after schedules were given for each."""
    if len(schedules) < n_groups:
        raise ValueError(
            f"{owner}: param group {len(schedules)} was added to an optimizer whose scheduler has "
            f"one {option} schedule per group; append its own: "
            f"scheduler.append_schedule(schedule, {option!r})"
        )


def last_end(schedules: Schedules) -> float | None:
    """Return the update after which the last of the schedules that end has ended."""
    given = [s for each in schedules.values() for s in (each if isinstance(each, list) else [each])]
    return max((s.ends_at for s in given if s.ends_at is not None), default=None)
