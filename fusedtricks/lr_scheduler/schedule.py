"""What all schedules share: they are pure functions of the number of updates, and compose."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from fusedtricks.lr_scheduler.times import Time, Units, as_number, as_time, time_value

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A pure function of the number of updates done, times the optimizer's own value.

    `schedule(t, base)` is the value for update number t + 1. It depends on nothing but t, base and
    the fields. After its end a schedule keeps its last value. Times in fields are numbers of
    updates, or "5ep" (epochs), "500ba" (updates), "0.1dur" (share of the run), which `resolve`
    turns into updates.

    Relative schedules multiply `base`; absolute ones (`is_absolute`) have values of their own.

    Compose with `a * b`, `a.then(b)`, `a.with_warmup(b)` and `a.between(low, high)`; each gives a
    schedule again. `repr` is the call that makes the schedule, and `parse` reads it.
    """

    is_absolute: ClassVar[bool] = False
    # Fields that hold a time, a tuple of times, or None.
    times: ClassVar[tuple[str, ...]] = ()

    def __call__(self, t: float, base: float = 1.0) -> float:
        """Return the value after `t` updates, t >= 0, for the optimizer's own value `base`."""
        if not 0 <= t < math.inf:
            raise ValueError(f"{type(self).__name__}: expected a finite t of at least 0, got {t}")
        return self._value(t, base)

    def _value(self, t: float, base: float) -> float:
        return base * self._factor(t)

    def _factor(self, t: float) -> float:
        """Return what a relative schedule multiplies the optimizer's own value with."""
        raise NotImplementedError

    @property
    def length(self) -> float | None:
        """Updates after which another schedule may follow, None if it has no end."""
        return self._time("total") if hasattr(self, "total") else None

    @property
    def ends_at(self) -> float | None:
        """Updates after which training is meant to be over, None if it may go on."""
        return None

    # Checks of fields, which leave them in a plain type. -----------------------------------------

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_numbers(
        self, *names: str, at_least: float | None = None, above: float | None = None
    ) -> None:
        owner = type(self).__name__
        for name in names:
            number = as_number(owner, name, getattr(self, name))
            if at_least is not None and number < at_least:
                raise ValueError(f"{owner}: expected {name} of at least {at_least}, got {number}")
            if above is not None and number <= above:
                raise ValueError(f"{owner}: expected {name} above {above}, got {number}")
            self._set(name, number)

    def _check_times(self, *names: str, above: float | None = 0) -> None:
        for name in names:
            value = as_time(type(self).__name__, name, getattr(self, name), above=above)
            self._set(name, value)

    def _check_choice(self, name: str, choices: Collection[str]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(
                f"{type(self).__name__}: expected {name} to be one of {sorted(choices)}, got "
                f"{getattr(self, name)!r}"
            )

    # Times. --------------------------------------------------------------------------------------

    def resolve(
        self,
        *,
        steps_per_epoch: float | None = None,
        total_steps: float | None = None,
        unit: str = "update",
    ) -> "Schedule":
        """Return the same schedule with all times in updates.

        Args:
            steps_per_epoch: Optimizer updates in an epoch, for "5ep".
            total_steps: Optimizer updates of the run, for "0.1dur".
            unit: What plain numbers count, "update" or "epoch". Default "update".

        Raises:
            ValueError: If something is needed and missing, or a time is too short to be one update.
        """
        return self._resolve(Units(steps_per_epoch, total_steps, unit))

    def _resolve(self, units: Units) -> "Schedule":
        # Twice is as once, although the plain numbers of the first time may have been epochs.
        if "_is_resolved" in vars(self):
            return self
        changed = {}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.name in self.times:
                changed[spec.name] = self._to_updates(spec.name, value, units)
            elif isinstance(value, Schedule):
                changed[spec.name] = value._resolve(units)
            elif isinstance(value, tuple) and value and isinstance(value[0], Schedule):
                changed[spec.name] = tuple(each._resolve(units) for each in value)
        return self._resolved(changed) if changed else self

    def _resolved(self, changed: dict[str, Any]) -> "Schedule":
        """Return a copy with fields changed to updates."""
        try:
            resolved = dataclasses.replace(self, **changed)
        except ValueError as error:
            raise ValueError(f"{error}, from {self!r} in updates") from error
        resolved._set("_is_resolved", True)
        return resolved

    def _to_updates(self, name: str, value: Any, units: Units) -> Any:
        if value is None:
            return None
        if isinstance(value, tuple):
            return tuple(self._to_updates(name, each, units) for each in value)
        return units.to_updates(type(self).__name__, name, value)

    def _time(self, name: str) -> float:
        value = getattr(self, name)
        return time_value(type(self).__name__, name, value) if isinstance(value, str) else value

    def shortened(self, n: float) -> "Schedule":
        """Return the schedule squeezed into `n` updates less.

        Raises:
            TypeError: If it has no length that could shrink.
            ValueError: If nothing would be left.
        """
        if not hasattr(self, "total"):
            raise TypeError(
                f"{type(self).__name__} has no total from which a warm-up could take its time; use "
                "budget='before', or multiply: LinearWarmup(...) * schedule"
            )
        return dataclasses.replace(self, total=self._time("total") - n)

    # Composition. --------------------------------------------------------------------------------

    def __mul__(self, other: "Schedule") -> "Schedule":
        """Return the product of the two; at most one of them may be absolute."""
        from fusedtricks.lr_scheduler.composition import Product

        return Product(self, other) if isinstance(other, Schedule) else NotImplemented

    def then(self, other: "Schedule", after: Time | None = None) -> "Schedule":
        """Return this schedule, followed by `other`, whose time begins at 0 there.

        Args:
            other: What follows.
            after: Updates (or a time) after which it does. Default: the length of this schedule.
        """
        from fusedtricks.lr_scheduler.composition import Sequence

        if after is not None:
            after = as_time("then", "after", after)
        return Sequence((self, other), (after,))

    def with_warmup(self, warmup: "Schedule | Time", budget: str = "before") -> "Schedule":
        """Return the schedule with a warm-up in front.

        Args:
            warmup: A warm-up, or the time of a linear one from 0.
            budget: "before": the schedule follows unchanged, so that the whole is longer by the
                warm-up. "inside": the schedule is squeezed into the time that the warm-up leaves,
                so that the whole ends when the schedule alone would have. Default "before".

        Raises:
            ValueError: For another budget.
        """
        from fusedtricks.lr_scheduler.composition import Inside
        from fusedtricks.lr_scheduler.warmups import LinearWarmup

        if not isinstance(warmup, Schedule):
            warmup = LinearWarmup(warmup)
        if budget not in ("before", "inside"):
            raise ValueError(
                f"with_warmup: expected budget 'before' or 'inside', got {budget!r}; if the clock "
                "is to run during the warm-up, multiply: LinearWarmup(...) * schedule"
            )
        if self.is_absolute:
            raise ValueError(
                f"with_warmup: expected a relative schedule, got {self!r}, whose height a warm-up "
                "does not know; call with_warmup before between"
            )
        return Inside(warmup, self) if budget == "inside" else warmup.then(self)

    def between(self, low: float | None = None, high: float | None = None) -> "Schedule":
        """Return the schedule stretched: `low` where it is 0, `high` where it is 1.

        Args:
            low: A number, or None for the optimizer's own value.
            high: A number, or None for the optimizer's own value; `low` is then at most that, so
                that no value is raised.
        """
        from fusedtricks.lr_scheduler.composition import Between

        return Between(self, low, high)

    # Looking at it. ------------------------------------------------------------------------------

    def preview(
        self,
        n: int,
        base: float = 1.0,
        *,
        steps_per_epoch: float | None = None,
        total_steps: float | None = None,
        unit: str = "update",
    ) -> list[float]:
        """Return the values of the first `n` updates.

        Args:
            n: Number of updates; the length of the run for "0.1dur", unless total_steps is given.
            base: The optimizer's own value. Default 1.
            steps_per_epoch: Optimizer updates in an epoch, for "5ep".
            total_steps: Optimizer updates of the run. Default `n`.
            unit: What plain numbers count. Default "update".
        """
        if n < 0:
            raise ValueError(f"preview: expected n of at least 0, got {n}")
        schedule = self._resolve(Units(steps_per_epoch, total_steps or n or None, unit))
        return [schedule(t, base) for t in range(n)]

    def plot(
        self, n: int, file: str | Path | IO[bytes] | None = None, base: float = 1.0, **units: Any
    ) -> Any:
        """Draw the values of the first `n` updates with matplotlib.

        Args:
            n: Number of updates.
            file: Where a PNG goes. Default: nowhere.
            base: The optimizer's own value. Default 1.
            **units: steps_per_epoch, total_steps and unit, as for `preview`.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        from fusedtricks.report.schedules import draw_schedules

        return draw_schedules({repr(self): self.preview(n, base, **units)}, file)
