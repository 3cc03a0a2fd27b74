"""The values of the schedules: tables computed by hand, restarts, what is held at the end."""

import itertools
import math

import pytest

from fusedtricks.lr_scheduler import (
    Constant,
    ConstantWarmup,
    Cosine,
    Cyclic,
    Exponential,
    Function,
    GradualWarmup,
    InverseSqrt,
    Linear,
    LinearWarmup,
    OneCycle,
    Piecewise,
    Polynomial,
    Step,
    WarmRestarts,
    WarmUpRestarts,
    WarmupStableDecay,
)
from tests.schedule_formulas import close, half_cosine

ROOT = math.sqrt(0.5)
HIGH, LOW = (1 + ROOT) / 2, (1 - ROOT) / 2


def table(schedule, *values, begin=0, **points):
    return pytest.param(schedule, dict(enumerate(values, begin)) | points, id=repr(schedule))


# The values at t = 0, 1, 2, ...
TABLES = [
    table(Constant(0.3), 0.3, 0.3, 0.3),
    table(Step(3, gamma=0.5), 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125),
    table(Step(1, gamma=0.2), 1, 0.2, 0.04, 0.008),
    table(Piecewise([2, 5], [0.9, 0.5, 0.7]), 0.9, 0.9, 0.5, 0.5, 0.5, 0.7, 0.7),
    table(Piecewise([1], [0.0, 1.0]), 0, 1, 1),
    table(Exponential(0.25, every=2), 1, 0.5, 0.25, 0.125, 0.0625),
    table(Exponential(0.9), 1, 0.9, 0.81, 0.729),
    table(Linear(4, start=0.2, end=0.6), 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6),
    table(Linear(2), 1, 0.5, 0, 0),
    table(Polynomial(4, power=2.0), 1, 9 / 16, 1 / 4, 1 / 16, 0, 0, 0),
    table(Polynomial(4, power=0.5, end=0.2), 1, 0.2 + 0.8 * math.sqrt(0.75), 0.2 + 0.8 * ROOT),
    table(Polynomial(4, power=0.5, end=0.2), 0.6, 0.2, 0.2, begin=3),
    table(InverseSqrt(3), 1, math.sqrt(0.75), math.sqrt(0.6), ROOT),
    table(InverseSqrt(3), 1 / 2, begin=9),
    table(InverseSqrt(3), 1 / 3, begin=24),
    table(Cosine(4), 1, HIGH, 0.5, LOW, 0, 0, 0),
    table(Cosine(3, end=0.1), 1, 0.775, 0.325, 0.1, 0.1),
    table(WarmRestarts(3, end=0.1), 1, 0.775, 0.325, 1, 0.775, 0.325, 1),
    table(WarmRestarts(2, 2, end=0.2, gamma=0.5), 1, 0.6, 0.5, 0.1 + 0.4 * HIGH, 0.3),
    table(WarmRestarts(2, 2, end=0.2, gamma=0.5), 0.1 + 0.4 * LOW, 0.25, begin=5),
    table(WarmRestarts(2, 2, end=0.2, gamma=0.5), 0.15, begin=10),
    table(WarmRestarts(2, 2, end=0.2, gamma=0.5), 0.125, begin=14),
    table(LinearWarmup(5), 0, 0.2, 0.4, 0.6, 0.8, 1, 1),
    table(LinearWarmup(4, start=0.2), 0.2, 0.4, 0.6, 0.8, 1, 1),
    table(LinearWarmup(4, offset=1), 0.25, 0.5, 0.75, 1, 1, 1),
    table(LinearWarmup(4, start=0.2, offset=1), 0.4, 0.6, 0.8, 1, 1, 1),
    table(ConstantWarmup(3, 0.1), 0.1, 0.1, 0.1, 1, 1),
    table(GradualWarmup(4, 5), 0.2, 0.4, 0.6, 0.8, 1, 1),
    table(Cyclic(2, 4), 0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0.5, 1, 0.75),
    table(Cyclic(2), 0, 0.5, 1, 0.5, 0, 0.5, 1),
    table(Cyclic(1, 2, "triangular2"), 0, 1, 0.5, 0, 0.5, 0.25, 0, 0.25, 0.125, 0, 0.125),
    table(Cyclic(2, 2, "exp_range", gamma=0.5), 0, 1 / 4, 1 / 4, 1 / 16, 0, 1 / 64, 1 / 64),
    table(Cyclic(4, 2, window="welch"), 0, 0.4375, 0.75, 0.9375, 1, 0.75, 0, 0.4375),
    table(Cyclic(4, 2, window="hann"), 0, LOW, 0.5, HIGH, 1, 0.5, 0, LOW),
    table(Cyclic(1, 1, "triangular2", window="hann"), 0, 1, 0, 0.5, 0, 0.25),
    table(
        OneCycle(10, pct_start=0.5, start=0.2, peak=1.0, end=0.1, anneal_strategy="linear"),
        *[0.2, 0.4, 0.6, 0.8, 1, 0.82, 0.64, 0.46, 0.28, 0.1, 0.1, 0.1],
    ),
    table(
        OneCycle(10, 0.4, 0.25, 1.0, 0.1, anneal_strategy="linear", three_phase=True),
        *[0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0.2, 0.15, 0.1, 0.1],
    ),
    table(
        OneCycle(10, pct_start=0.5, start=0.2, peak=0.7, end=0.1, anneal_strategy="cos"),
        *[0.2, 0.2 + 0.5 * LOW, 0.45, 0.2 + 0.5 * HIGH, 0.7],
    ),
    table(
        OneCycle(12, pct_start=0.75, start=0.2, peak=0.7, end=0.1, anneal_strategy="cos"),
        *[0.7, 0.55, 0.25, 0.1, 0.1],
        begin=8,
    ),
    table(WarmupStableDecay(8, 2, 4), 0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0),
    table(WarmupStableDecay(8, 0, 8, end=0.2), 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2),
    table(WarmupStableDecay(7, 1, 4, "cosine"), 0, 1, 1, 1, HIGH, 0.5, LOW, 0, 0),
    table(
        WarmupStableDecay(6, 1, 4, "sqrt", end=0.2),
        *[0, 1, 1, 0.6, 1 - 0.8 * ROOT, 1 - 0.8 * math.sqrt(0.75), 0.2, 0.2],
    ),
    table(Function(math.sqrt), 0, 1, math.sqrt(2), math.sqrt(3), 2),
]


@pytest.mark.parametrize("base", [1.0, 0.037, 2.5])
@pytest.mark.parametrize(("schedule", "values"), TABLES)
def test_tables(schedule, values, base):
    for t, value in values.items():
        assert schedule(t, base) == close(base * value, base), t
        assert schedule(float(t), base) == close(base * value, base), t


def test_the_base_is_one_unless_given():
    assert Cosine(4, end=0.3)(2) == close(0.65)


def test_between_whole_updates():
    assert Step(3, gamma=0.5)(2.999) == 1
    assert Piecewise([2, 5], [0.9, 0.5, 0.7])(1.999) == 0.9
    assert ConstantWarmup(3, 0.1)(2.999) == 0.1
    assert Linear(4, start=0.2, end=0.6)(2.5) == close(0.45)
    assert Cosine(1)(0.25) == close(HIGH)
    assert LinearWarmup(4, offset=1)(0.5) == close(0.375)
    assert Cyclic(1)(1.75) == close(0.25)
    assert WarmRestarts(1)(7.5) == close(0.5)


# base 0.1 and tops 1.1, 0.55, 0.275 in cycles from 0, 10 and 26.
WARM_UP_VALUES = {
    0: 0.1,
    1: 0.35,
    2: 0.6,
    3.5: 0.975,
    4: 1.1,
    6: 0.1 + 0.75 * 1.0,
    7: 0.6,
    8: 0.1 + 0.25 * 1.0,
    10: 0.1,
    12: 0.325,
    14: 0.55,
    18: 0.1 + 0.75 * 0.45,
    20: 0.325,
    26: 0.1,
    28: 0.1875,
    30: 0.275,
    42: 0.1875,
    54: 0.1,
    58: 0.1375,
}


@pytest.mark.parametrize(("t", "value"), WARM_UP_VALUES.items())
def test_table_of_warm_up_restarts(t, value):
    schedule = WarmUpRestarts(10, T_mult=2, eta_max=1.1, T_up=4, gamma=0.5)
    assert schedule(t, 0.1) == close(value)


def test_warm_up_restarts_without_a_warm_up_begin_at_the_top():
    schedule = WarmUpRestarts(4, T_mult=1, eta_max=0.9, T_up=0, gamma=0.5)
    values = [0.9, 0.1 + 0.8 * HIGH, 0.5, 0.1 + 0.8 * LOW, 0.45, 0.1 + 0.35 * HIGH]
    assert [schedule(t, 0.1) for t in range(6)] == [close(value) for value in values]


def starts(T_0, T_mult, T_up=0):
    """Begin of every cycle after the first, as exact integers that a float holds too."""
    start, length = 0, T_0
    while start + length < 2**50:
        start += length
        yield start
        length = (length - T_up) * T_mult + T_up


KNOWN_STARTS = [
    (10, 2, 0, [10, 30, 70, 150]),
    (10, 2, 4, [10, 26, 54, 106]),
    (5, 3, 0, [5, 20, 65, 200]),
    (10, 3, 0, [10, 40, 130, 400]),
    (3, 10, 0, [3, 33, 333, 3333]),
    (6, 10, 0, [6, 66, 666, 6666]),
    (9, 10, 0, [9, 99, 999, 9999]),
    (7, 1, 0, [7, 14, 21, 28]),
    (7, 1, 3, [7, 14, 21, 28]),
    (8, 5, 6, [8, 24, 80, 336]),
]


@pytest.mark.parametrize(("T_0", "T_mult", "T_up", "known"), KNOWN_STARTS)
def test_restarts_are_exact_integers(T_0, T_mult, T_up, known):
    """A logarithm in floats puts some of them one update too late."""
    assert list(itertools.islice(starts(T_0, T_mult, T_up), 4)) == known
    schedule = WarmUpRestarts(T_0, T_mult=T_mult, eta_max=0.9, T_up=T_up, gamma=1.0)
    plain = WarmRestarts(T_0, T_mult, end=0.1) if not T_up else None
    for start in itertools.islice(starts(T_0, T_mult, T_up), 60):
        for t in (start, float(start)):
            assert schedule(t + T_up, 0.1) == close(0.9), t
            assert plain is None or plain(t) == close(1), t
            if T_up:
                assert schedule(t, 0.1) == close(0.1), t
                assert schedule(t + 1, 0.1) == close(0.1 + 0.8 / T_up), t
            else:
                assert schedule(t - 1, 0.1) < 0.6, t
                assert plain(t - 1) < 0.6, t


@pytest.mark.parametrize("T_mult", range(1, 13))
@pytest.mark.parametrize("T_0", range(3, 15))
def test_many_restarts(T_0, T_mult):
    schedule = WarmRestarts(T_0, T_mult, end=0.1, gamma=0.5)
    for cycle, start in enumerate(itertools.islice(starts(T_0, T_mult), 50), 1):
        assert schedule(start) == close(0.5**cycle, 0.5**cycle), cycle
        assert schedule(start - 1) < 0.6 * 0.5 ** (cycle - 1), cycle
        assert schedule(start - 1) > 0.09 * 0.5 ** (cycle - 1), cycle


@pytest.mark.parametrize("cycles", [10**6, 10**9])
def test_restarts_of_equal_length_after_a_long_time(cycles):
    schedule = WarmRestarts(7, 1, end=0.1)
    assert schedule(7 * cycles) == close(1)
    assert schedule(7 * cycles - 1) == close(half_cosine(6, 0, 7, 1.0, 0.1))


@pytest.mark.parametrize(
    "schedule",
    [
        Step(3, gamma=0.5),
        Exponential(0.5),
        WarmRestarts(1, gamma=0.5),
        WarmRestarts(3, 2, gamma=0.5),
        Cyclic(1, mode="triangular2"),
        Cyclic(1, mode="exp_range", gamma=0.5),
    ],
    ids=repr,
)
def test_shrinking_schedules_shrink_to_zero(schedule):
    """After enough cycles the float is 0; a factor of its own must not overflow on the way."""
    for t in (2001, 10**5 + 1, 10**9 + 1):
        assert 0 <= schedule(t) <= 6 / t


HOLDING = [
    (Linear(5, start=0.9, end=0.23), 0.23),
    (Polynomial(5, power=3.0, end=0.23), 0.23),
    (Cosine(5, end=0.23), 0.23),
    (LinearWarmup(5, start=0.3), 1.0),
    (ConstantWarmup(5, 0.3), 1.0),
    (OneCycle(5, pct_start=0.41, end=0.23), 0.23),
    (OneCycle(5, pct_start=0.41, end=0.23, anneal_strategy="linear", three_phase=True), 0.23),
    (WarmupStableDecay(5, 1, 3, end=0.23), 0.23),
    (WarmupStableDecay(5, 1, 3, "cosine", end=0.23), 0.23),
    (WarmupStableDecay(5, 1, 3, "sqrt", end=0.23), 0.23),
    (Piecewise([2, 5], [1.0, 0.5, 0.23]), 0.23),
]


@pytest.mark.parametrize(("schedule", "last"), HOLDING, ids=lambda value: str(value)[:40])
def test_the_last_value_is_held(schedule, last):
    at_end = schedule(5)
    assert at_end == close(last)
    for t in (5.001, 5.5, 6, 7, 9, 10, 11, 15, 10**4, 10**9, 1e15):
        assert schedule(t) == at_end, t
