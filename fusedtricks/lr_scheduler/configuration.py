"""The configuration of a scheduler in plain types, for checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from fusedtricks.lr_scheduler.group_schedules import Schedules, as_schedules, check_options
from fusedtricks.lr_scheduler.parsing import parse
from fusedtricks.lr_scheduler.times import Units, as_number, as_numbers

__all__ = ["describe", "differences", "explain", "read_state", "restored"]

Configuration = dict[str, Any]


def describe(schedules: Schedules, initial: dict[str, list[float]]) -> Configuration:
    """Return schedules as text, and the values that they start from."""
    texts = {
        option: [repr(s) for s in found] if isinstance(found, list) else repr(found)
        for option, found in schedules.items()
    }
    return {"schedules": texts, "initial": initial}


def read_state(owner: str, state: Any) -> tuple[float, Configuration]:
    """Return position and configuration of a saved state.

    Raises:
        ValueError: If it is not the state of such a scheduler.
    """
    if not isinstance(state, Mapping) or not {"last_epoch", "config"} <= state.keys():
        found = sorted(state) if isinstance(state, Mapping) else repr(state)
        raise ValueError(
            f"{owner}: expected the state of a fusedtricks scheduler, got one with {found}; for "
            "the state of a torch scheduler make this one with last_epoch=state['last_epoch'] - 1"
        )
    config = state["config"]
    if not isinstance(config, Mapping) or not all(
        isinstance(config.get(part), Mapping) for part in ("schedules", "initial")
    ):
        raise ValueError(f"{owner}: expected a configuration in the state, got {config!r}")
    try:
        position = as_number(owner, "last_epoch", state["last_epoch"])
    except TypeError as error:
        raise ValueError(str(error)) from error
    if position < 0 and position != -1:
        raise ValueError(f"{owner}: expected last_epoch of at least 0 in the state, got {position}")
    return position, config


def differences(present: Configuration, saved: Configuration, n_groups: int) -> list[str]:
    """Return what differs, in words, one line each."""
    lines = []
    for part, what, are_same in (
        ("schedules", "schedule", _are_same_schedules),
        ("initial", "initial values", _are_same_values),
    ):
        for option in sorted(present[part].keys() | saved[part].keys()):
            now, before = present[part].get(option), saved[part].get(option)
            if now != before and not are_same(now, before, n_groups):
                lines.append(f"  {option} {what}: {before} in the checkpoint, {now} here")
    return lines


def explain(owner: str, lines: list[str]) -> str:
    """Return the error for differences."""
    return (
        f"{owner}: the checkpoint was made with another configuration:\n"
        + "\n".join(lines)
        + "\nload_state_dict(state, config='keep') goes on with the present one, config='restore' "
        "with that of the checkpoint"
    )


def _are_same_schedules(now: Any, before: Any, n_groups: int) -> bool:
    if now is None or before is None:
        return False
    try:
        one, other = (
            [parse(text) for text in (found if isinstance(found, (list, tuple)) else [found])]
            for found in (now, before)
        )
    except ValueError:
        return False
    if len(one) != len(other):
        # One for all groups may be a list of equal ones.
        one, other = (each * n_groups if len(each) == 1 else each for each in (one, other))
    return one == other


def _are_same_values(now: Any, before: Any, n_groups: int) -> bool:
    if not isinstance(now, (list, tuple)) or not isinstance(before, (list, tuple)):
        return False
    # A float32 tensor rounds them.
    return len(now) == len(before) and all(
        isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=1e-7)
        for a, b in zip(now, before, strict=True)
    )


def restored(
    owner: str, saved: Configuration, optimizer: Optimizer
) -> tuple[Schedules, dict[str, list[float]]]:
    """Return schedules and initial values of a saved configuration.

    Raises:
        ValueError: If a schedule is a function, which a checkpoint cannot hold, something else
            cannot be read, or the number of groups differs.
    """
    n_groups = len(optimizer.param_groups)
    initial = {}
    for option, values in saved["initial"].items():
        if len(values) != n_groups:
            raise ValueError(
                f"{owner}: expected a checkpoint of {n_groups} param groups, got initial {option} "
                f"values of {len(values)}"
            )
        try:
            initial[option] = list(as_numbers(owner, f"initial {option}", values))
        except TypeError as error:
            raise ValueError(str(error)) from error
    schedules = {
        option: as_schedules(owner, option, _read(text), n_groups, Units())
        for option, text in saved["schedules"].items()
    }
    check_options(owner, optimizer, schedules)
    return schedules, initial


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
