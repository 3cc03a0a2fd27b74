"""The options of a parameter group that a schedule can set, and how they are read and written."""

from typing import Any

from torch import Tensor

__all__ = ["OPTIONS", "has_option", "initial_value", "note_of", "read_option", "write_option"]

OPTIONS = ("lr", "momentum", "beta2", "weight_decay")
# Where a group notes what an option was before any schedule; "initial_lr" is torch's.
_NOTES = {option: f"initial_{option}" for option in OPTIONS}
# Where an option is in groups that have betas instead.
_BETA_INDEX = {"momentum": 0, "beta2": 1}


def has_option(group: dict[str, Any], option: str) -> bool:
    """Return whether a group has "lr", "weight_decay", "momentum" (or betas) or "beta2"."""
    return option in group or (option in _BETA_INDEX and "betas" in group)


def read_option(group: dict[str, Any], option: str) -> float | Tensor:
    """Return the value of an option, betas[0] for the momentum of an Adam."""
    if option in group:
        return group[option]
    return group["betas"][_BETA_INDEX[option]]


def write_option(group: dict[str, Any], option: str, value: float) -> None:
    """Set an option; a tensor is filled in place, so that graphs and compiled steps see it."""
    old = read_option(group, option)
    if isinstance(old, Tensor):
        old.fill_(value)
    elif option in group:
        group[option] = value
    else:
        betas = list(group["betas"])
        betas[_BETA_INDEX[option]] = value
        group["betas"] = tuple(betas)


def note_of(option: str) -> str:
    """Return the key under which a group notes what the option was before any schedule."""
    return _NOTES[option]


def initial_value(group: dict[str, Any], option: str) -> float:
    """Return what the option was before any schedule, noted in the group.

    The note is torch's "initial_lr", "initial_momentum" and so on. If it is missing, as in a group
    that was just added or loaded from a run without a scheduler, the option is what it was. It is
    never changed.
    """
    key = _NOTES[option]
    if key not in group:
        # A plain number, so that no step waits for a device to read it.
        group[key] = float(read_option(group, option))
    return float(group[key])
