"""The configuration of a scheduler in plain types, for checkpoints."""

from typing import TYPE_CHECKING, Any

from fusedtricks.lr_scheduler.group_schedules import check_options
from fusedtricks.lr_scheduler.parsing import parse

if TYPE_CHECKING:
    from fusedtricks.lr_scheduler.scheduler import ScheduledLR

__all__ = ["describe", "differences", "restore"]


def describe(scheduler: "ScheduledLR") -> dict[str, Any]:
    """Return schedules as text, and the values that they start from."""
    return {
        "schedules": {
            option: [repr(s) for s in schedules] if isinstance(schedules, list) else repr(schedules)
            for option, schedules in scheduler.schedules.items()
        },
        "initial": {option: scheduler.initial_values(option) for option in scheduler.schedules},
    }


def differences(present: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Return what differs, in words, one line each."""
    lines = []
    for part, what in (("schedules", "schedule"), ("initial", "initial values")):
        for option in sorted(present[part].keys() | saved[part].keys()):
            now, before = present[part].get(option), saved[part].get(option)
            if now != before:
                lines.append(f"  {option} {what}: {before} in the checkpoint, {now} here")
    return lines


def restore(scheduler: "ScheduledLR", saved: dict[str, Any]) -> None:
    """Give a scheduler the saved configuration.

    Raises:
        ValueError: If a schedule is a function, which a checkpoint cannot hold, or the number of
            groups differs. Nothing has changed then.
    """
    groups = scheduler.optimizer.param_groups
    for option, values in saved["initial"].items():
        if len(values) != len(groups):
            raise ValueError(
                f"{type(scheduler).__name__}: expected a checkpoint of {len(groups)} param groups, "
                f"got initial {option} values of {len(values)}"
            )
    schedules = {option: _read(text) for option, text in saved["schedules"].items()}
    check_options(type(scheduler).__name__, scheduler.optimizer, schedules)
    scheduler.schedules = schedules
    for option, values in saved["initial"].items():
        for group, value in zip(groups, values, strict=True):
            group[f"initial_{option}"] = value


def _read(text: Any) -> Any:
    if isinstance(text, (list, tuple)):
        return [_read(each) for each in text]
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(
            f"cannot restore the schedule {text} ({error}); make the scheduler with it, and use "
            "config='keep'"
        ) from error
