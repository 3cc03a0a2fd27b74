"""Schedules that rise and fall, once or again and again."""

import itertools
from dataclasses import dataclass
from functools import cached_property

from fusedtricks.lr_scheduler.decays import half_cosine
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import Time

__all__ = [
    "Cyclic",
    "OneCycle",
    "RestartingSchedule",
    "WarmRestarts",
    "WarmUpRestarts",
    "find_cycle",
]


def find_cycle(t: float, first: float, growth: int, fixed: float = 0) -> tuple[int, float, float]:
    """Return in which cycle a time is: its number from 0, the time in it, and its length.

    Cycle i is fixed + (first - fixed) * growth^i long. Found by adding lengths up, not by a
    logarithm, whose rounding misses the beginning of cycles.

    Args:
        t: Time, at least 0.
        first: Length of cycle 0.
        growth: Integer, at least 1.
        fixed: What does not grow of every cycle. Default 0.
    """
    if growth == 1:
        return int(t // first), t % first, first
    cycle, length = 0, first
    while t >= length:
        t -= length
        length = (length - fixed) * growth + fixed
        cycle += 1
    return cycle, t, length


class RestartingSchedule(Schedule):
    """Checks what schedules with restarts have in common."""

    def _check_restarts(self) -> None:
        owner = type(self).__name__
        self._check_times("T_0")
        self._check_numbers("T_mult")
        if self.T_mult < 1 or self.T_mult != int(self.T_mult):
            raise ValueError(
                f"{owner}: expected T_mult to be an integer of at least 1, got {self.T_mult}"
            )
        self._set("T_mult", int(self.T_mult))


@dataclass(frozen=True)
class WarmRestarts(RestartingSchedule):
    """Cosines that start anew, each T_mult times as long as the one before (SGDR).

    value(t) = base * gamma^i * (end + (1 - end) * (1 + cos(pi * T_cur / T_i)) / 2), in cycle i,
    which is T_i = T_0 * T_mult^i long, T_cur after its beginning.

    Args:
        T_0: Length of the first cycle, above 0.
        T_mult: Growth of the cycles, an integer of at least 1. Default 1.
        end: Factor that a cycle approaches, at least 0. Default 0.
        gamma: Factor of each cycle to the one before, at least 0. Default 1.

    Source: Loshchilov & Hutter 2017, "SGDR", eq. 5 and section 3.
    """

    times = ("T_0",)

    T_0: Time
    T_mult: int = 1
    end: float = 0.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        self._check_restarts()
        self._check_numbers("end", "gamma", at_least=0)

    def _factor(self, t: float) -> float:
        cycle, time, length = find_cycle(t, self._time("T_0"), self.T_mult)
        return self.gamma**cycle * (self.end + (1.0 - self.end) * half_cosine(time / length))


@dataclass(frozen=True)
class WarmUpRestarts(RestartingSchedule):
    """Cosines with warm restarts, each with a linear warm-up; the base is the minimum.

    In cycle i, T_cur after its beginning, with eta_i = eta_max * gamma^i::

        T_cur < T_up:  value(t) = base + (eta_i - base) * T_cur / T_up
        else:          value(t) = base + (eta_i - base) * (1 + cos(pi * x)) / 2,
                       x = (T_cur - T_up) / (T_i - T_up)

    and T_{i+1} = (T_i - T_up) * T_mult + T_up: only the cosine grows.

    Args:
        T_0: Length of the first cycle, its warm-up included; above T_up.
        T_mult: Growth of the cosines, an integer of at least 1. Default 1.
        eta_max: Largest value of the first cycle, at least 0. Default 0.1.
        T_up: Length of each warm-up, at least 0. Default 0.
        gamma: Factor of each cycle's eta_max to the one before, at least 0. Default 1.

    Source: Loshchilov & Hutter 2017, "SGDR", section 3; the warm-up and gamma are those of the
        `CosineAnnealingWarmUpRestarts` that many projects carry.
    """

    times = ("T_0", "T_up")

    T_0: Time
    T_mult: int = 1
    eta_max: float = 0.1
    T_up: Time = 0
    gamma: float = 1.0

    is_absolute = True

    def __post_init__(self) -> None:
        self._check_restarts()
        self._check_numbers("eta_max", "gamma", at_least=0)
        self._check_times("T_up", above=None)
        is_known = not (isinstance(self.T_0, str) or isinstance(self.T_up, str))
        if is_known and self.T_up >= self.T_0:
            raise ValueError(f"WarmUpRestarts: expected T_up below T_0={self.T_0}, got {self.T_up}")

    def _value(self, t: float, base: float) -> float:
        t_up = self._time("T_up")
        cycle, time, length = find_cycle(t, self._time("T_0"), self.T_mult, t_up)
        eta = self.eta_max * self.gamma**cycle
        share = time / t_up if time < t_up else half_cosine((time - t_up) / (length - t_up))
        return base + (eta - base) * share


_WINDOWS = {
    "triangular": lambda x: 1.0 - x,
    "welch": lambda x: 1.0 - x * x,
    "hann": half_cosine,
}


@dataclass(frozen=True)
class Cyclic(Schedule):
    """Up and down again and again: value(t) = base * window(x) * scale, x from the peak, 0 to 1.

    x falls from 1 to 0 within `step_size_up` and rises within `step_size_down`. The scale is 1
    ("triangular"), 1 / 2^cycle, cycles counted from 0 ("triangular2"), or gamma^t ("exp_range").
    For a cycle between two learning rates: `Cyclic(2000).between(0.001, 0.006)`.

    Args:
        step_size_up: Time from the bottom to the peak, above 0.
        step_size_down: Time from the peak to the bottom. Default None, `step_size_up`.
        mode: "triangular", "triangular2" or "exp_range". Default "triangular".
        gamma: Factor per update for "exp_range", above 0. Default 1.
        window: Shape between bottom and peak: "triangular": 1 - x; "welch": 1 - x^2; "hann":
            (1 + cos(pi * x)) / 2. Default "triangular".

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.1.
    """

    times = ("step_size_up", "step_size_down")

    step_size_up: Time
    step_size_down: Time | None = None
    mode: str = "triangular"
    gamma: float = 1.0
    window: str = "triangular"

    def __post_init__(self) -> None:
        self._check_times("step_size_up")
        if self.step_size_down is not None:
            self._check_times("step_size_down")
        self._check_choice("mode", ("triangular", "triangular2", "exp_range"))
        self._check_choice("window", _WINDOWS)
        self._check_numbers("gamma", above=0)

    def _factor(self, t: float) -> float:
        up = self._time("step_size_up")
        down = up if self.step_size_down is None else self._time("step_size_down")
        cycle, time, _ = find_cycle(t, up + down, 1)
        distance = 1.0 - time / up if time < up else (time - up) / down
        height = _WINDOWS[self.window](distance)
        if self.mode == "triangular2":
            return height * 0.5**cycle
        return height * self.gamma**t if self.mode == "exp_range" else height


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One rise to the peak and one long fall, below where it began.

    The factor goes from `start` to `peak` until update pct_start * total - 1, then to `end` at
    update total - 1, where it stays. Three phases: back to `start` until 2 * pct_start * total - 2,
    then to `end`. A momentum that mirrors it has its low and high exchanged, for example
    `OneCycle(100, 0.3, start=0.95, peak=0.85, end=0.95)`.

    Args:
        total: Time of everything, above 0.
        pct_start: Share of the rise, in [0, 1]; at most 0.5 for three phases. Default 0.3.
        start: First factor, at least 0. Default 1/25.
        peak: Largest factor, at least 0. Default 1.
        end: Last factor, at least 0. Default start / 1e4, 4e-6.
        anneal_strategy: "cos" or "linear", the way between two factors. Default "cos".
        three_phase: Whether the fall has two parts. Default False.

    Source: Smith & Topin 2018, "Super-Convergence", section 3; the phases are those of
        `torch.optim.lr_scheduler.OneCycleLR`.
    """

    times = ("total",)

    total: Time
    pct_start: float = 0.3
    start: float = 1 / 25
    peak: float = 1.0
    end: float = 1 / 25e4
    anneal_strategy: str = "cos"
    three_phase: bool = False

    def __post_init__(self) -> None:
        self._check_times("total")
        self._check_numbers("pct_start", "start", "peak", "end", at_least=0)
        largest = 0.5 if self.three_phase else 1
        if self.pct_start > largest:
            raise ValueError(
                f"OneCycle: expected pct_start in [0, {largest}], got {self.pct_start}"
            )
        self._check_choice("anneal_strategy", ("cos", "linear"))

    def _factor(self, t: float) -> float:
        for (t_0, value_0), (t_1, value_1) in self._phases:
            if t <= t_1:
                share = (t - t_0) / (t_1 - t_0)
                left = half_cosine(share) if self.anneal_strategy == "cos" else 1.0 - share
                return value_1 + (value_0 - value_1) * left
        return self.end

    @cached_property
    def _phases(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Pairs of (time, factor) where a phase begins and where it ends."""
        total = self._time("total")
        knots = [(0.0, self.start), (self.pct_start * total - 1, self.peak)]
        if self.three_phase:
            knots.append((2 * self.pct_start * total - 2, self.start))
        knots.append((total - 1, self.end))
        # A phase without length is left out; one that ends before 0 has begun the next there.
        return [(a, b) for a, b in itertools.pairwise(knots) if a[0] < b[0]]

    @property
    def ends_at(self) -> float | None:
        """Its length."""
        return self.length
