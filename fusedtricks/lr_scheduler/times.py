"""Times: numbers of updates, or strings such as "5ep" that become one."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

__all__ = [
    "Time",
    "Units",
    "UnresolvedTimeError",
    "as_number",
    "as_numbers",
    "as_time",
    "check_increasing",
    "time_value",
]

# A number of updates, or "5ep" (epochs), "500ba" (updates), "0.1dur" (share of the whole run).
Time = float | str

_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ep|ba|dur)\s*")


class UnresolvedTimeError(ValueError):
    """A time is still a string."""


def as_number(owner: str, name: str, value: Any) -> float:
    """Return `value` as a finite int or float.

    Args:
        owner: Class that the error is to name.
        name: Argument that the error is to name.
        value: A number, also one of NumPy or a one-element tensor.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is inf or NaN.
    """
    if isinstance(value, bool) or not (isinstance(value, Real) or hasattr(value, "item")):
        raise TypeError(f"{owner}: expected {name} to be a number, got {value!r}")
    try:
        number = value.item() if hasattr(value, "item") else value  # of NumPy or torch
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(f"{owner}: expected {name} to be a number, got {value!r}")
        number = int(number) if isinstance(number, Integral) else float(number)
        is_finite = math.isfinite(number)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise ValueError(f"{owner}: expected {name} to be a number, got {value!r}") from error
    if not is_finite:
        raise ValueError(f"{owner}: expected {name} to be finite, got {number}")
    return number


def as_numbers(owner: str, name: str, values: Any) -> tuple[float, ...]:
    """Return a list of numbers as a tuple.

    Raises:
        TypeError: If it is no list of numbers.
        ValueError: If one of them is inf or NaN.
    """
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{owner}: expected {name} to be a list of numbers, got {values!r}")
    return tuple(as_number(owner, name, value) for value in values)


def as_time(
    owner: str, name: str, value: Any, *, at_least: float = 0, above: float | None = None
) -> Time:
    """Return `value` as a checked time; whole floats become ints.

    Args:
        owner: Class that the error is to name.
        name: Argument that the error is to name.
        value: A number of updates or a string "5ep", "500ba", "0.1dur".
        at_least: Smallest number allowed.
        above: Number that it must exceed, instead of `at_least`.

    Raises:
        TypeError: If it is neither number nor string.
        ValueError: If the string has another form, or the number is too small.
    """
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        if match is None:
            raise ValueError(
                f"{owner}: expected {name} to be a number or a time such as '5ep' (epochs), "
                f"'500ba' (updates) or '0.1dur' (share of the run), got {value!r}"
            )
        number = float(match[1])
    else:
        number = as_number(owner, name, value)
    is_too_small = number <= above if above is not None else number < at_least
    if is_too_small:
        bound = f"above {above}" if above is not None else f"of at least {at_least}"
        raise ValueError(f"{owner}: expected {name} {bound}, got {value!r}")
    if isinstance(value, str):
        return value.strip()
    return int(number) if number == int(number) else number


def time_value(owner: str, name: str, value: Time) -> float:
    """Return a time that is a number.

    Raises:
        UnresolvedTimeError: If it is a string that still has to be resolved.
    """
    if not isinstance(value, str):
        return value
    if value.endswith("ba"):
        return Units().to_updates(owner, name, value)
    what = "steps_per_epoch" if value.endswith("ep") else "total_steps"
    raise UnresolvedTimeError(
        f"{owner}: {name}={value!r} is no number of updates yet; call resolve({what}=...), or give "
        f"{what} to the scheduler"
    )


@dataclass(frozen=True)
class Units:
    """What strings and plain numbers stand for.

    Args:
        steps_per_epoch: Optimizer updates (not batches, when gradients accumulate) in an epoch.
        total_steps: Optimizer updates of the whole run.
        unit: What plain numbers count: "update" or "epoch". Default "update".

    Raises:
        ValueError: If a number is not positive, the unit is unknown, or epochs are to be counted
            without `steps_per_epoch`.
    """

    steps_per_epoch: float | None = None
    total_steps: float | None = None
    unit: str = "update"

    def __post_init__(self) -> None:
        for name in ("steps_per_epoch", "total_steps"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_number("Units", name, value))
                if getattr(self, name) <= 0:
                    raise ValueError(f"expected {name} above 0, got {value}")
        if self.unit not in ("update", "epoch"):
            raise ValueError(f"expected unit 'update' or 'epoch', got {self.unit!r}")
        if self.unit == "epoch" and self.steps_per_epoch is None:
            raise ValueError(
                "unit='epoch' needs steps_per_epoch, the optimizer updates in an epoch; a "
                "scheduler stepped once per epoch needs neither"
            )

    def position(self, epoch: Any) -> float:
        """Return the number of updates done after a number of updates, or epochs by `unit`.

        Raises:
            TypeError: If it is no number.
            ValueError: If it is negative, inf or NaN.
        """
        number = as_number("step", "epoch", epoch)
        if number < 0:
            raise ValueError(f"step: expected epoch of at least 0, got {epoch}")
        updates = Fraction(str(number))
        if self.unit == "epoch":
            updates *= Fraction(str(self.steps_per_epoch))
        return int(updates) if updates.denominator == 1 else float(updates)

    def to_updates(self, owner: str, name: str, value: Time) -> float:
        """Return a time in updates: strings and epochs rounded half up to whole ones.

        Raises:
            ValueError: If the number of updates in an epoch, or in the run, is not known.
        """
        if not isinstance(value, str):
            return value if self.unit == "update" else _round(str(value), self.steps_per_epoch)
        match = _PATTERN.fullmatch(value)
        number, unit = match[1], match[2]
        if unit == "ba":
            return _round(number, 1)
        name_of_factor = "steps_per_epoch" if unit == "ep" else "total_steps"
        factor = getattr(self, name_of_factor)
        if factor is None:
            raise ValueError(f"{owner}: {name}={value!r} needs {name_of_factor}, got None")
        return _round(number, factor)


def _round(number: str, factor: float) -> int:
    # Exact, because 0.29 * 50 is below 14.5 in floating point.
    return math.floor(Fraction(number) * Fraction(str(factor)) + Fraction(1, 2))


def check_increasing(owner: str, milestones: Sequence[Time]) -> None:
    """Raise ValueError unless milestones increase; strings only count once they are resolved."""
    numbers = [
        Units().to_updates(owner, "milestones", m)
        for m in milestones
        if not isinstance(m, str) or m.endswith("ba")
    ]
    if any(b <= a for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"{owner}: expected milestones that increase, got {list(milestones)}")
