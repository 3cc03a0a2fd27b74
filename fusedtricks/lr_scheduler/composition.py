"""Schedules made of schedules."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import (
    Time,
    UnresolvedTimeError,
    as_number,
    as_time,
    check_increasing,
    time_value,
)

__all__ = ["Between", "Inside", "Product", "Sequence"]


def _check_schedules(owner: str, **schedules: Any) -> None:
    for name, value in schedules.items():
        if not isinstance(value, Schedule):
            raise TypeError(f"{owner}: expected {name} to be a Schedule, got {value!r}")


class _Composed(Schedule):
    """A schedule of others; absolute if one of them is."""

    def _parts(self) -> tuple[Schedule, ...]:
        raise NotImplementedError

    @property
    def is_absolute(self) -> bool:
        return any(part.is_absolute for part in self._parts())


@dataclass(frozen=True)
class Product(_Composed):
    """The product of two schedules, `first * second`.

    value(t) = first(t, base) * second(t, 1), where `second` is the relative one if only one is.

    Args:
        first: A schedule.
        second: Another; only one of the two may be absolute.

    Raises:
        TypeError: If one is no schedule.
        ValueError: If both are absolute, since the product of two learning rates means nothing.
    """

    first: Schedule
    second: Schedule

    def __post_init__(self) -> None:
        _check_schedules("Product", first=self.first, second=self.second)
        if self.first.is_absolute and self.second.is_absolute:
            raise ValueError(
                f"Product: expected at most one absolute schedule, got {self.first!r} and "
                f"{self.second!r}; make one relative, for example without between(...)"
            )

    def _value(self, t: float, base: float) -> float:
        if self.second.is_absolute:
            return self.second(t, base) * self.first(t, 1.0)
        return self.first(t, base) * self.second(t, 1.0)

    def _parts(self) -> tuple[Schedule, ...]:
        return self.first, self.second

    @property
    def length(self) -> float | None:
        """Updates until both factors stay the same."""
        lengths = [part.length for part in self._parts()]
        return None if None in lengths else max(lengths)

    @property
    def ends_at(self) -> float | None:
        """The earlier end of the two."""
        return min(
            (part.ends_at for part in self._parts() if part.ends_at is not None), default=None
        )


@dataclass(frozen=True)
class Sequence(_Composed):
    """Schedules one after the other; `first.then(second, after)` makes one of two.

    value(t) = schedule i (t - milestone i), for the last milestone that is <= t; the first
    schedule begins at 0.

    Args:
        schedules: At least one.
        milestones: Times, counted from the start of the first, at which the others begin; one less
            than schedules. None for the end of the schedule before.

    Raises:
        TypeError: If something is no schedule.
        ValueError: If the numbers do not fit, milestones do not increase, or one is None though
            the schedule before never ends.

    Example:
        >>> Sequence([Constant(0.1), Constant(0.5), Cosine(90)], [5, 10]).preview(11)[::5]
        [0.1, 0.5, 1.0]
    """

    times = ("milestones",)

    schedules: Iterable[Schedule]
    milestones: Iterable[Time | None]

    def __post_init__(self) -> None:
        schedules, milestones = tuple(self.schedules), tuple(self.milestones)
        if not schedules or len(milestones) != len(schedules) - 1:
            raise ValueError(
                f"Sequence: expected one of the milestones less than schedules, got "
                f"{len(milestones)} milestones and {len(schedules)} schedules"
            )
        for schedule in schedules:
            _check_schedules("Sequence", schedules=schedule)
        self._set("schedules", schedules)
        self._set(
            "milestones",
            tuple(None if m is None else as_time("Sequence", "milestones", m) for m in milestones),
        )
        with suppress(UnresolvedTimeError):
            check_increasing("Sequence", self._starts[1:])

    def _value(self, t: float, base: float) -> float:
        starts = self._starts
        index = sum(start <= t for start in starts[1:])
        return self.schedules[index](t - starts[index], base)

    @cached_property
    def _starts(self) -> list[float]:
        starts = [0]
        for schedule, milestone in zip(self.schedules, self.milestones, strict=False):
            if milestone is not None:
                starts.append(time_value("Sequence", "milestones", milestone))
            elif schedule.length is not None:
                starts.append(starts[-1] + schedule.length)
            else:
                raise ValueError(
                    f"Sequence: {schedule!r} has no end; say when the next schedule begins: "
                    "first.then(second, after=100)"
                )
        return starts

    def _parts(self) -> tuple[Schedule, ...]:
        return self.schedules

    @property
    def length(self) -> float | None:
        """Start and length of the last schedule, together."""
        rest = self.schedules[-1].length
        return None if rest is None else self._starts[-1] + rest

    @property
    def ends_at(self) -> float | None:
        """End of the last schedule."""
        rest = self.schedules[-1].ends_at
        return None if rest is None else self._starts[-1] + rest

    def shortened(self, n: float) -> "Sequence":
        """Return the sequence with its last schedule squeezed."""
        *others, last = self.schedules
        return Sequence([*others, last.shortened(n)], self.milestones)


@dataclass(frozen=True)
class Inside(_Composed):
    """A warm-up that takes its time from the schedule, `schedule.with_warmup(w, "inside")`.

    value(t) = warmup(t) for t < W, else the schedule squeezed into its length minus W, at t - W,
    where W is the length of the warm-up.

    Args:
        warmup: A schedule with a length.
        body: A schedule with a `total`, longer than the warm-up.

    Raises:
        TypeError: If one is no schedule, or `body` has no total.

    Source: He et al. 2019, "Bag of Tricks for Image Classification", section 5.1, whose cosine
        decays over what the warm-up leaves.
    """

    warmup: Schedule
    body: Schedule

    def __post_init__(self) -> None:
        _check_schedules("Inside", warmup=self.warmup, body=self.body)
        with suppress(UnresolvedTimeError):
            _ = self._sequence  # What does not fit fails here.

    def _value(self, t: float, base: float) -> float:
        return self._sequence(t, base)

    @cached_property
    def _sequence(self) -> Sequence:
        length = self.warmup.length
        if length is None:
            raise ValueError(f"Inside: expected a warm-up that ends, got {self.warmup!r}")
        try:
            return Sequence([self.warmup, self.body.shortened(length)], [length])
        except UnresolvedTimeError:
            raise
        except ValueError as error:
            raise ValueError(
                f"Inside: the warm-up of {length} updates leaves nothing of {self.body!r} ({error})"
            ) from error

    def _parts(self) -> tuple[Schedule, ...]:
        return self.warmup, self.body

    @property
    def length(self) -> float | None:
        """Length of the schedule, as it is without the warm-up."""
        return self._sequence.length

    @property
    def ends_at(self) -> float | None:
        """End of the schedule, as it is without the warm-up."""
        return self._sequence.ends_at


@dataclass(frozen=True)
class Between(Schedule):
    """A relative schedule stretched between two values, `schedule.between(low, high)`.

    value(t) = low + (high - low) * schedule(t, 1).

    Args:
        schedule: A relative schedule.
        low: Value where it is 0; None for the optimizer's own. Default None.
        high: Value where it is 1; None for the optimizer's own, and `low` is at most that, so that
            no smaller learning rate is raised. Default None.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the schedule is absolute, or both values are None.
    """

    schedule: Schedule
    low: float | None = None
    high: float | None = None

    is_absolute = True

    def __post_init__(self) -> None:
        _check_schedules("Between", schedule=self.schedule)
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_number("Between", name, value))
        if self.low is None and self.high is None:
            raise ValueError("Between: expected low or high, got None for both")
        if self.schedule.is_absolute:
            raise ValueError(f"Between: expected a relative schedule, got {self.schedule!r}")

    def _value(self, t: float, base: float) -> float:
        high = base if self.high is None else self.high
        low = base if self.low is None else self.low
        if self.high is None:
            low = min(low, high)
        share = self.schedule(t, 1.0)
        # Both ends are exact.
        return low * (1.0 - share) + high * share

    @property
    def length(self) -> float | None:
        """Length of the schedule inside."""
        return self.schedule.length

    @property
    def ends_at(self) -> float | None:
        """End of the schedule inside."""
        return self.schedule.ends_at

    def shortened(self, n: float) -> "Between":
        """Return it with the schedule inside squeezed."""
        return Between(self.schedule.shortened(n), self.low, self.high)
