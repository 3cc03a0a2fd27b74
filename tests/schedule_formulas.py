"""What the learning-rate schedules have to compute: the papers' formulas, walked step by step.

Every function takes the number of updates done, whole or not, and returns the value for a base of
1, unless it says otherwise. Nothing here is fast, and nothing is shared with the package.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest

Phase = tuple[float, float, float]


def close(value: float, scale: float = 1.0) -> Any:
    """Allow what rounding costs: relative, and at zeros of the formula a few ulp of the scale."""
    return pytest.approx(value, rel=1e-12, abs=2e-15 * scale)


def step_decay(t: float, step_size: int, gamma: float) -> float:
    """Multiply by gamma each time another ``step_size`` updates are done."""
    value = 1.0
    while t >= step_size:
        value *= gamma
        t -= step_size
    return value


def piecewise(t: float, milestones: Sequence[int], factors: Sequence[float]) -> float:
    """Take the next factor at each milestone."""
    value = factors[0]
    for milestone, factor in zip(milestones, factors[1:], strict=True):
        if t >= milestone:
            value = factor
    return value


def exponential(t: float, gamma: float, every: int) -> float:
    """Decay at a constant rate, by gamma in ``every`` updates."""
    return math.exp(math.log(gamma) / every * t)


def line(t: float, begin: float, end: float, start: float, stop: float) -> float:
    """Go straight from ``start`` at ``begin`` to ``stop`` at ``end``, and stay outside."""
    if t <= begin:
        return start
    if t >= end:
        return stop
    done = (t - begin) / (end - begin)
    return (1 - done) * start + done * stop


def half_cosine(t: float, begin: float, end: float, start: float, stop: float) -> float:
    """Go like ``line``, but along half a period of a cosine (SGDR, equation 5)."""
    angle = line(t, begin, end, 0.0, math.pi)
    return stop + 0.5 * (start - stop) * (1 + math.cos(angle))


def polynomial(t: float, total: int, power: float, end: float) -> float:
    """Decay with the share of the run that is left, to a power."""
    return end + (1 - end) * line(t, 0, total, 1.0, 0.0) ** power


def inverse_sqrt(t: float, timescale: int) -> float:
    """Decay with the square root of the time, counted in time scales and from 1."""
    return math.sqrt(timescale / (timescale + t))


def transformer(t: float, warmup: int) -> float:
    """Give the rate of "Attention Is All You Need", section 5.3, as a share of its peak."""
    if t == 0:
        return 0.0
    peak = min(warmup**-0.5, warmup * warmup**-1.5)
    return min(t**-0.5, t * warmup**-1.5) / peak


def warm_restarts(t: float, T_0: int, T_mult: int, end: float, gamma: float) -> float:
    """SGDR, section 3: count T_cur up to T_i, start again, T_i grows by T_mult."""
    cycle, T_i, T_cur = 0, T_0, 0
    whole = math.floor(t)
    for _ in range(whole):
        T_cur += 1
        if T_cur >= T_i:
            T_cur = 0
            T_i *= T_mult
            cycle += 1
    return gamma**cycle * half_cosine(T_cur + t - whole, 0, T_i, 1.0, end)


def warm_up_restarts(
    t: float, base: float, T_0: int, T_mult: int, eta_max: float, T_up: int, gamma: float
) -> float:
    """Restarts with a warm-up in each cycle, counted as in the class that made them known.

    ``base`` is the lowest rate; the value is a rate, not a factor.
    """
    cycle, T_i, T_cur = 0, T_0, 0
    whole = math.floor(t)
    for _ in range(whole):
        T_cur += 1
        if T_cur >= T_i:
            cycle += 1
            T_cur -= T_i
            T_i = (T_i - T_up) * T_mult + T_up
    top = eta_max * gamma**cycle
    now = T_cur + t - whole
    if now < T_up:
        return line(now, 0, T_up, base, top)
    return half_cosine(now, T_up, T_i, top, base)


def cyclic(
    t: float, up: int, down: int, mode: str, gamma: float = 1.0, window: str = "triangular"
) -> float:
    """Go up and down again and again, as a share of the way from the base to the maximum."""
    cycle, inside = 0, t
    while inside >= up + down:
        inside -= up + down
        cycle += 1
    distance = (up - inside) / up if inside <= up else (inside - up) / down
    height = {
        "triangular": 1 - distance,
        "welch": 1 - distance**2,
        "hann": half_cosine(distance, 0, 1, 1.0, 0.0),
    }[window]
    return height * {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**t}[mode]


def clr(t: float, stepsize: int, base: float, maximum: float) -> float:
    """Smith 2017, "Cyclical Learning Rates", the code of section 3.1; the value is a rate."""
    cycle = math.floor(1 + t / (2 * stepsize))
    x = abs(t / stepsize - 2 * cycle + 1)
    return base + (maximum - base) * max(0, 1 - x)


def along(t: float, phases: Sequence[Phase], cosine: bool) -> float:
    """Follow phases (start, stop, last update), the first one from update 0."""
    begin = 0.0
    for start, stop, end in phases:
        if t <= end:
            return (half_cosine if cosine else line)(t, begin, end, start, stop)
        begin = end
    return phases[-1][1]


def one_cycle(
    t: float,
    total: int,
    pct_start: float,
    start: float,
    peak: float,
    end: float,
    anneal_strategy: str,
    three_phase: bool,
) -> float:
    """1cycle: up and down in equal times and then far below, or the last two in one.

    Smith 2018, "A disciplined approach", section 4.1. The updates at which the phases end are
    those of torch: the update before the share of the run is full.
    """
    top = pct_start * total - 1
    phases = [(start, peak, top), (peak, end, total - 1)]
    if three_phase:
        phases = [(start, peak, top), (peak, start, 2 * top), (start, end, total - 1)]
    return along(t, phases, anneal_strategy == "cos")


def warmup_stable_decay(
    t: float, total: int, warmup: int, decay: int, shape: str, end: float
) -> float:
    """Warm up, stay, decay: MiniCPM (Hu et al. 2024); "sqrt" is Haegele et al. 2024, 1-sqrt."""
    if t < warmup:
        return t / warmup
    share = line(t, total - decay, total, 0.0, 1.0)
    return {
        "linear": line(share, 0, 1, 1.0, end),
        "cosine": half_cosine(share, 0, 1, 1.0, end),
        "sqrt": end + (1 - end) * (1 - share**0.5),
    }[shape]
