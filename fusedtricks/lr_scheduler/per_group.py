"""Arguments that are one value for all groups or a list with one for each."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import as_number

__all__ = ["one_or_list", "per_group"]


def per_group(
    owner: str, optimizer: Optimizer, make: Callable[..., Schedule], **values: Any
) -> Schedule | list[Schedule]:
    """Return one schedule, or a list if one of the values is a list.

    Args:
        owner: Class that errors are to name.
        optimizer: Its groups say how long lists must be.
        make: Called with one value of each name.
        **values: A value for all groups, or a list with one for each.

    Raises:
        TypeError: If a value is neither a number nor a function.
        ValueError: If a list has another length than the groups.
    """
    n_groups = len(getattr(optimizer, "param_groups", ()))
    lists = {name: value for name, value in values.items() if isinstance(value, (list, tuple))}
    for name, value in lists.items():
        if len(value) != n_groups:
            raise ValueError(
                f"{owner}: expected {name} to be one value or {n_groups}, one per param group, got "
                f"{len(value)}"
            )
    for name, value in values.items():
        for each in lists.get(name, [value]):
            if not callable(each):
                as_number(owner, name, each)  # Named as the caller knows it.
    if not lists:
        return make(**values)
    return [
        make(**values | {name: value[index] for name, value in lists.items()})
        for index in range(n_groups)
    ]


def one_or_list(schedules: list[Schedule]) -> Schedule | list[Schedule]:
    """Return the schedule of all groups if they have the same one, which later groups get too."""
    return schedules[0] if all(s == schedules[0] for s in schedules) else schedules
