"""Schedules that go from one value to another, once."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import Time, as_numbers, as_time, check_increasing, time_value

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "Piecewise",
    "Polynomial",
    "Step",
    "half_cosine",
]


@dataclass(frozen=True)
class Constant(Schedule):
    """Always the same: value(t) = base * factor.

    Args:
        factor: At least 0. Default 1.

    Source: what an optimizer does without a scheduler.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers("factor", at_least=0)

    def _factor(self, t: float) -> float:
        return self.factor


@dataclass(frozen=True)
class Step(Schedule):
    """A drop at regular times: value(t) = base * gamma^floor(t / step_size).

    Args:
        step_size: Time between drops, above 0.
        gamma: Factor of each, at least 0. Default 0.1.

    Source: the usual practice, for example He et al. 2016, "Deep Residual Learning", section 4.1.
    """

    times = ("step_size",)

    step_size: Time
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._check_times("step_size")
        self._check_numbers("gamma", at_least=0)

    def _factor(self, t: float) -> float:
        return self.gamma ** (t // self._time("step_size"))


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Given factors between given times: value(t) = base * factors[i], i milestones being <= t.

    Args:
        milestones: Times that increase.
        factors: At least 0; one more than milestones.

    Example:
        Fifty epochs at the first rate, ten at each of two smaller ones:

        >>> Piecewise(["50ep", "60ep"], [1, 0.1, 0.01]).preview(70, steps_per_epoch=1)[49:51]
        [1, 0.1]

    Source: He et al. 2016, "Deep Residual Learning", section 4.2, drops at 32k and 48k updates.
    """

    times = ("milestones",)

    milestones: Sequence[Time]
    factors: Sequence[float]

    def __post_init__(self) -> None:
        if isinstance(self.milestones, str) or not hasattr(self.milestones, "__iter__"):
            raise TypeError(f"Piecewise: expected milestones to be a list, got {self.milestones!r}")
        milestones = tuple(as_time("Piecewise", "milestones", m) for m in self.milestones)
        factors = as_numbers("Piecewise", "factors", self.factors)
        if len(factors) != len(milestones) + 1:
            raise ValueError(
                f"Piecewise: expected one of the factors more than milestones, got {len(factors)} "
                f"factors and {len(milestones)} milestones"
            )
        if min(factors) < 0:
            raise ValueError(f"Piecewise: expected factors of at least 0, got {list(factors)}")
        check_increasing("Piecewise", milestones)
        self._set("milestones", milestones)
        self._set("factors", factors)

    def _factor(self, t: float) -> float:
        return self.factors[bisect.bisect_right(self._milestones, t)]

    @cached_property
    def _milestones(self) -> list[float]:
        return [time_value("Piecewise", "milestones", m) for m in self.milestones]


@dataclass(frozen=True)
class Exponential(Schedule):
    """The same factor again and again: value(t) = base * gamma^(t / every).

    Args:
        gamma: Factor, above 0.
        every: Time that it takes, above 0. Default 1 update.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 8, 0.94 every two
        epochs.
    """

    times = ("every",)

    gamma: float = 0.9
    every: Time = 1

    def __post_init__(self) -> None:
        self._check_numbers("gamma", above=0)
        self._check_times("every")

    def _factor(self, t: float) -> float:
        return self.gamma ** (t / self._time("every"))


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line: value(t) = base * (start + (end - start) * min(t / total, 1)).

    Args:
        total: Time that it takes, above 0.
        start: First factor, at least 0. Default 1.
        end: Last factor, at least 0. Default 0.

    Source: Devlin et al. 2019, "BERT", appendix A.2, after a warm-up.
    """

    times = ("total",)

    total: Time
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check_times("total")
        self._check_numbers("start", "end", at_least=0)

    def _factor(self, t: float) -> float:
        share = min(t / self._time("total"), 1.0)
        return self.start * (1.0 - share) + self.end * share

    @property
    def ends_at(self) -> float | None:
        """Its length if it falls; a line that rises is a warm-up, after which training goes on."""
        return self.length if self.end < self.start else None


@dataclass(frozen=True)
class Polynomial(Schedule):
    """A power of what is left: value(t) = base * (end + (1 - end) * (1 - t / total)^power).

    Args:
        total: Time after which the factor is `end`, above 0.
        power: Exponent, above 0. Default 1.
        end: Last factor, at least 0. Default 0.

    Source: Liu et al. 2015, "ParseNet", section 3.4; power 2 in MLPerf's ResNet-50.
    """

    times = ("total",)

    total: Time
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check_times("total")
        self._check_numbers("power", above=0)
        self._check_numbers("end", at_least=0)

    def _factor(self, t: float) -> float:
        left = 1.0 - min(t / self._time("total"), 1.0)
        return self.end + (1.0 - self.end) * left**self.power

    @property
    def ends_at(self) -> float | None:
        """Its length."""
        return self.length


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """The inverse root of time: value(t) = base / sqrt(1 + t / timescale).

    After a warm-up of W updates, `LinearWarmup(W).then(InverseSqrt(W))` is sqrt(W / t), the
    Transformer's schedule. With timescale 1 it is base / sqrt(n) for update n = t + 1.

    Args:
        timescale: Time after which the value is 1 / sqrt(2) of the first, above 0. Default 1.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 3.
    """

    times = ("timescale",)

    timescale: Time = 1

    def __post_init__(self) -> None:
        self._check_times("timescale")

    def _factor(self, t: float) -> float:
        return 1.0 / math.sqrt(1.0 + t / self._time("timescale"))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine: value(t) = base * (end + (1 - end) * (1 + cos(pi * t / total)) / 2).

    Args:
        total: Time after which the factor is `end` and stays, above 0.
        end: Last factor, at least 0. Default 0.

    Source: Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts.
    """

    times = ("total",)

    total: Time
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check_times("total")
        self._check_numbers("end", at_least=0)

    def _factor(self, t: float) -> float:
        return self.end + (1.0 - self.end) * half_cosine(t / self._time("total"))

    @property
    def ends_at(self) -> float | None:
        """Its length."""
        return self.length


def half_cosine(share: float) -> float:
    """Return (1 + cos(pi * share)) / 2 for a share from 0 to 1, exactly 0 from 1 on."""
    return 0.5 * (1.0 + math.cos(math.pi * share)) if share < 1.0 else 0.0
