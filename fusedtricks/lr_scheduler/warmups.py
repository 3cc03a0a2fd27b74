"""Schedules that begin small, and one that has a beginning, a middle and an end."""

import math
from dataclasses import dataclass

from fusedtricks.lr_scheduler.decays import half_cosine
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import Time, Units, as_number

__all__ = ["ConstantWarmup", "GradualWarmup", "LinearWarmup", "WarmupStableDecay"]


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """A rising line: value(t) = base * (start + (1 - start) * min((t + offset) / total, 1)).

    In front of another schedule: `schedule.with_warmup(LinearWarmup(...))`, or multiplied with it,
    which lets the other's clock run.

    Args:
        total: Time that it takes, above 0.
        start: Factor at t + offset = 0, in [0, 1]. Default 0: with offset 0 the first update
            changes nothing.
        offset: 0: the first update uses `start` itself, the full value comes after `total`
            updates. 1: it is one step ahead, 1 / total for start 0, and update number `total` has
            the full value. Default 0.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2.
    """

    times = ("total",)

    total: Time
    start: float = 0.0
    offset: int = 0

    def __post_init__(self) -> None:
        self._check_times("total")
        self._check_numbers("start", at_least=0)
        if self.start > 1:
            raise ValueError(f"LinearWarmup: expected start in [0, 1], got {self.start}")
        if self.offset not in (0, 1):
            raise ValueError(f"LinearWarmup: expected offset 0 or 1, got {self.offset!r}")
        self._set("offset", int(self.offset))

    def _factor(self, t: float) -> float:
        share = min((t + self.offset) / self._time("total"), 1.0)
        return self.start * (1.0 - share) + share


def GradualWarmup(total: Time, k: float) -> LinearWarmup:
    """Return the warm-up from 1 / k to 1 for a batch that is k times larger.

    value(t) = base * (1 / k + (1 - 1 / k) * min(t / total, 1))

    Args:
        total: Time that it takes; 5 epochs in the source.
        k: How many times larger batch and learning rate are, at least 1.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2, "gradual warmup".
    """
    if not as_number("GradualWarmup", "k", k) >= 1:
        raise ValueError(f"GradualWarmup: expected k of at least 1, got {k}")
    return LinearWarmup(total, start=1 / k)


@dataclass(frozen=True)
class ConstantWarmup(Schedule):
    """A small value for a while: value(t) = base * factor for t < total, then base.

    Args:
        total: Time that it takes, above 0.
        factor: At least 0.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2, "constant warmup".
    """

    times = ("total",)

    total: Time
    factor: float = 0.1

    def __post_init__(self) -> None:
        self._check_times("total")
        self._check_numbers("factor", at_least=0)

    def _factor(self, t: float) -> float:
        return self.factor if t < self._time("total") else 1.0


_DECAYS = {
    "linear": lambda share: 1.0 - share,
    "cosine": half_cosine,
    "sqrt": lambda share: 1.0 - math.sqrt(share),
}


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Up, along, down: a linear warm-up from 0, the full value, and a decay at the end.

    value(t) = base * t / warmup for t < warmup; base * (end + (1 - end) * shape(x)) in the last
    `decay` updates, x = (t - total + decay) / decay from 0 to 1; base in between.

    Args:
        total: Time of everything, above 0.
        warmup: Time of the warm-up, at least 0.
        decay: Time of the decay, above 0; no longer than what the warm-up leaves.
        shape: "linear": 1 - x; "cosine": (1 + cos(pi * x)) / 2; "sqrt": 1 - sqrt(x). Default
            "linear".
        end: Last factor, at least 0. Default 0.

    Source: Hu et al. 2024, "MiniCPM", section 4; Haegele et al. 2024, "Scaling Laws and
        Compute-Optimal Training Beyond Fixed Training Durations", section 3, for the shapes.
    """

    times = ("total", "warmup", "decay")

    total: Time
    warmup: Time
    decay: Time
    shape: str = "linear"
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check_times("total", "decay")
        self._check_times("warmup", above=None)
        self._check_choice("shape", _DECAYS)
        self._check_numbers("end", at_least=0)
        times = (self.total, self.warmup, self.decay)
        if not any(isinstance(time, str) for time in times) and self._decay_start() < self.warmup:
            raise ValueError(
                f"WarmupStableDecay: expected warmup + decay of at most total={self.total}, got "
                f"warmup={self.warmup} and decay={self.decay}"
            )

    def _resolve(self, units: Units) -> Schedule:
        if "_is_resolved" in vars(self):
            return self
        times = {name: self._to_updates(name, getattr(self, name), units) for name in self.times}
        # Both rounded up, shares that make up the whole can be one update more.
        if times["warmup"] + times["decay"] == times["total"] + 1 and times["decay"] > 1:
            times["decay"] -= 1
        return self._resolved(times)

    def _decay_start(self) -> float:
        return self._time("total") - self._time("decay")

    def _factor(self, t: float) -> float:
        if t < self._time("warmup"):
            return t / self._time("warmup")
        share = (t - self._decay_start()) / self._time("decay")
        return self.end + (1.0 - self.end) * _DECAYS[self.shape](min(max(share, 0.0), 1.0))

    @property
    def ends_at(self) -> float | None:
        """Its length."""
        return self.length
