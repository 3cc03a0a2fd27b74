"""Schedules made of schedules, and what is true of all of them."""

import copy
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedtricks.lr_scheduler import (
    Constant,
    ConstantWarmup,
    Cosine,
    Exponential,
    GradualWarmup,
    InverseSqrt,
    Linear,
    LinearWarmup,
    Piecewise,
    Polynomial,
    Sequence,
    Step,
    WarmRestarts,
    WarmUpRestarts,
    WarmupStableDecay,
    parse,
)
from tests.schedule_formulas import close, half_cosine
from tests.schedule_strategies import (
    SETTINGS,
    absolute_schedules,
    counts,
    finite_schedules,
    fitted,
    relative_schedules,
    schedules,
    shares,
    times,
)

BASES = (1.0, 0.037, 2.5)
UPDATES = range(60)


@SETTINGS
@given(schedules, st.lists(times, min_size=2, max_size=12), st.randoms())
def test_a_schedule_is_a_pure_function_of_the_time(schedule, instants, random):
    values = {t: schedule(t, 0.3) for t in instants}
    random.shuffle(instants)
    for t in instants + instants[::-1]:
        assert schedule(t, 0.3) == values[t]
    assert all(isinstance(value, float) for value in values.values())


@SETTINGS
@given(finite_schedules, st.lists(times, min_size=1, max_size=12))
def test_a_finite_schedule_holds_its_last_value(schedule, later):
    last = schedule(schedule.length, 0.3)
    for t in (*later, 1e6, 1e12):
        assert schedule(schedule.length + t, 0.3) == last


@SETTINGS
@given(relative_schedules, times)
def test_relative_schedules_scale_with_the_base(schedule, t):
    for base in BASES:
        assert schedule(t, base) == close(base * schedule(t), base)


@SETTINGS
@given(schedules)
def test_resolving_what_has_no_time_strings_changes_nothing(schedule):
    once = schedule.resolve(steps_per_epoch=7, total_steps=50)
    assert once == once.resolve(steps_per_epoch=7, total_steps=50) == once.resolve()
    for t in UPDATES:
        assert schedule(t, 0.3) == once(t, 0.3)
    assert once.length == schedule.length


@SETTINGS
@given(schedules)
def test_the_representation_is_read_back(schedule):
    again = parse(repr(schedule))
    assert again == schedule
    assert type(again) is type(schedule)
    assert [again(t, 0.3) for t in UPDATES] == [schedule(t, 0.3) for t in UPDATES]


@SETTINGS
@given(schedules)
def test_copies_are_equal(schedule):
    for twin in (
        copy.deepcopy(schedule),
        copy.copy(schedule),
        pickle.loads(pickle.dumps(schedule)),
    ):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert [twin(t, 0.3) for t in UPDATES] == [schedule(t, 0.3) for t in UPDATES]


@SETTINGS
@given(schedules, st.integers(0, 40))
def test_the_preview_is_the_list_of_values(schedule, n):
    assert schedule.preview(n) == [schedule(t) for t in range(n)]
    assert schedule.preview(n, base=0.3) == [schedule(t, 0.3) for t in range(n)]


@SETTINGS
@given(relative_schedules, schedules, relative_schedules, times)
def test_products(a, b, c, t):
    for base in BASES:
        product = (a * b)(t, base)
        scale = abs(product) + 1
        assert product == close(a(t, 1.0) * b(t, base), scale)
        assert (b * a)(t, base) == close(product, scale)
        left, right = ((a * b) * c)(t, base), (a * (b * c))(t, base)
        assert left == close(right, scale)
        assert left == close(a(t, 1.0) * b(t, base) * c(t, 1.0), scale)


@SETTINGS
@given(absolute_schedules, absolute_schedules)
def test_two_absolute_schedules_have_no_product(a, b):
    with pytest.raises((TypeError, ValueError), match="absolute"):
        a * b


@SETTINGS
@given(finite_schedules, finite_schedules, schedules)
def test_then_is_associative(a, b, c):
    left, right = (a.then(b)).then(c), a.then(b.then(c))
    for t in range(160):
        assert left(t / 2, 0.3) == right(t / 2, 0.3)


@SETTINGS
@given(finite_schedules, schedules)
def test_then_begins_where_the_first_one_ends(a, b):
    both = a.then(b)
    for t in range(160):
        now = t / 2
        value = a(now, 0.3) if now < a.length else b(now - a.length, 0.3)
        assert both(now, 0.3) == value
    assert both.length == (None if b.length is None else a.length + b.length)


@SETTINGS
@given(schedules, schedules, schedules, counts, counts)
def test_sequences(a, b, c, first, more):
    second = first + more
    joined = Sequence([a, b, c], [first, second])
    nested = a.then(b.then(c, after=more), after=first)
    for t in (t / 2 for t in range(120)):
        if t < first:
            value = a(t, 0.3)
        elif t < second:
            value = b(t - first, 0.3)
        else:
            value = c(t - second, 0.3)
        assert joined(t, 0.3) == value
        assert nested(t, 0.3) == value


@SETTINGS
@given(schedules)
def test_a_sequence_of_one_is_the_schedule(schedule):
    assert [Sequence([schedule], [])(t, 0.3) for t in UPDATES] == [
        schedule(t, 0.3) for t in UPDATES
    ]


@SETTINGS
@given(relative_schedules, shares, shares, shares, times)
def test_between(schedule, low, high, base, t):
    share = schedule(t, 1.0)
    assert schedule.between(low=low, high=high)(t, base) == close(low + (high - low) * share)
    assert schedule.between(high=high)(t, base) == close(base + (high - base) * share)
    # The base is the top: what is below it stays so.
    bottom = min(low, base)
    assert schedule.between(low=low)(t, base) == close(bottom + (base - bottom) * share)


@SETTINGS
@given(schedules, counts, times)
def test_warmup_before(schedule, warmup, t):
    if schedule.is_absolute:
        # It would rise to the optimizer's own value, however far from the schedule's.
        with pytest.raises(ValueError, match="with_warmup: expected a relative schedule"):
            schedule.with_warmup(warmup, budget="before")
        return
    whole = schedule.with_warmup(warmup, budget="before")
    expected = 0.3 * t / warmup if t < warmup else schedule(t - warmup, 0.3)
    assert whole(t, 0.3) == close(expected)
    assert whole.length == (None if schedule.length is None else warmup + schedule.length)


@SETTINGS
@given(fitted, st.integers(1, 9), times)
def test_warmup_inside(schedule, warmup, t):
    whole = schedule.with_warmup(warmup, budget="inside")
    squeezed = replace(schedule, total=schedule.total - warmup)
    assert whole(t) == close(t / warmup if t < warmup else squeezed(t - warmup))
    assert whole.length == schedule.length == schedule.total


def test_a_warmup_inside_by_hand():
    schedule = Cosine(6, end=0.2).with_warmup(LinearWarmup(2, offset=1), budget="inside")
    root = 0.5**0.5
    values = [0.5, 1, 1, 0.2 + 0.4 * (1 + root), 0.6, 0.2 + 0.4 * (1 - root), 0.2, 0.2]
    assert schedule.preview(8) == [close(value) for value in values]


def test_warmups_before_by_hand():
    decay = Polynomial(4, power=2.0)
    tail = [1, 9 / 16, 1 / 4, 1 / 16, 0, 0]
    for warmup, head in (
        (4, [0, 0.25, 0.5, 0.75]),
        (LinearWarmup(4, start=0.2), [0.2, 0.4, 0.6, 0.8]),
        (GradualWarmup(3, 4), [0.25, 0.5, 0.75]),
        (ConstantWarmup(2, 0.3), [0.3, 0.3]),
    ):
        values = decay.with_warmup(warmup, budget="before").preview(len(head + tail), base=0.4)
        assert values == [close(0.4 * value) for value in head + tail]


def test_a_product_is_a_warmup_that_takes_no_time_from_the_decay():
    schedule = LinearWarmup(2) * Linear(4)
    assert schedule.preview(6) == [close(value) for value in [0, 0.375, 0.5, 0.25, 0, 0]]
    assert schedule.length == 4
    assert (LinearWarmup(6) * Linear(4)).length == 6
    assert (LinearWarmup(6) * Step(4)).length is None


def test_three_levels_by_hand():
    inner = LinearWarmup(2).then(Linear(4, end=0.5))
    middle = Sequence([inner, Constant(0.4)], [5]) * Step(3, gamma=0.5)
    outer = middle.then(Exponential(0.5), after=8).between(low=0.1, high=1.1)
    shares_by_hand = [0, 0.5, 1, 0.4375, 0.375, 0.2, 0.1, 0.1, 1, 0.5, 0.25]
    assert outer.preview(11, base=7.0) == [close(0.1 + value) for value in shares_by_hand]


def test_a_product_with_restarts_in_rates():
    schedule = Step(4, gamma=0.5) * WarmUpRestarts(4, eta_max=0.9, T_up=2)
    values = [0.1, 0.5, 0.9, 0.5, 0.05, 0.25, 0.45, 0.25, 0.025]
    assert schedule.preview(9, base=0.1) == [close(value) for value in values]


LENGTHS = [
    (Linear(7), 7),
    (Cosine(9, end=0.3), 9),
    (Polynomial(8, power=2.0), 8),
    (LinearWarmup(6), 6),
    (ConstantWarmup(6, 0.2), 6),
    (GradualWarmup(6, 4), 6),
    (WarmupStableDecay(20, 3, 5), 20),
    (Piecewise([4, 11], [1.0, 0.5, 0.2]), None),
    (Constant(0.4), None),
    (Step(5), None),
    (Exponential(0.9), None),
    (InverseSqrt(5), None),
    (WarmRestarts(5), None),
    (WarmUpRestarts(5), None),
    (Linear(7).then(Cosine(9)), 16),
    (Linear(7).then(Cosine(9), after=3), 12),
    (Sequence([Step(5), Cosine(9), Linear(2)], [4, 10]), 12),
    (Step(5).then(Step(3), after=4), None),
    (Linear(7).between(low=0.1, high=0.2), 7),
    (Linear(7) * Cosine(9), 9),
]


@pytest.mark.parametrize(("schedule", "length"), LENGTHS, ids=lambda value: str(value)[:60])
def test_lengths(schedule, length):
    assert schedule.length == length


def test_what_never_ends_needs_to_be_told_when_the_next_begins():
    with pytest.raises((TypeError, ValueError), match="after"):
        Step(5).then(Cosine(4))(0)


def test_the_cosine_of_a_chain_is_the_cosine():
    chain = Constant(0.0).then(LinearWarmup(2), after=1).then(Cosine(10, end=0.2))
    for t in range(3, 20):
        assert chain(t) == close(half_cosine(t - 3, 0, 10, 1.0, 0.2))
