"""Growing batches: plans counted by hand, and the definition by brute force."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedtricks.lr_scheduler import (
    Constant,
    Cosine,
    Function,
    Linear,
    LinearWarmup,
    Piecewise,
    Step,
)
from fusedtricks.lr_scheduler.batch_size import BatchSizeSchedule
from tests.schedule_strategies import SETTINGS, relative_schedules

# 391 updates per epoch with batches of 128, 79 of 640, 16 of 3200, 10 of 5120, 4 of 16000.
STEPS = Piecewise(["60ep", "120ep", "160ep"], [1, 0.2, 0.04, 0.008])


def ramp_of_steps(**options):
    return BatchSizeSchedule(STEPS, 128, 50_000, 200, **options)


def close(value, rel=1e-12):
    return pytest.approx(value, rel=rel, abs=1e-300)


# The variants of the source, counted by hand. -----------------------------------------------------


def factors_at(ramp, updates):
    return [ramp(update) for update in updates]


def test_decaying_the_learning_rate_is_the_schedule_itself():
    ramp = ramp_of_steps(max_batch_size=128)
    reference = STEPS.resolve(steps_per_epoch=391)
    assert ramp.stages == [(0, 128)]
    assert ramp.n_updates == ramp.n_reference_updates == 78_200
    for update in [*range(23_450, 23_470), *range(46_910, 46_930), *range(78_190, 78_210)]:
        assert ramp(update) == reference(update)
    assert [ramp.batch_size_at(update) for update in (389, 390, 391)] == [128, 80, 128]


def test_increasing_the_batch_size():
    ramp = ramp_of_steps(max_batch_size=None)
    # 60 * 391, then 60 * 79, 40 * 16 and 40 * 4 more.
    assert ramp.stages == [(0, 128), (23_460, 640), (28_200, 3200), (28_840, 16_000)]
    assert ramp.n_updates == 29_000
    first_of_epochs = [0, 391, 23_459, 23_460, 23_539, 28_200, 28_840, 28_996]
    assert factors_at(ramp, first_of_epochs) == close([1.0] * 8)
    # The last batches of epochs: 80, 2000 and 2000 samples for 1, 16 and 16 reference updates.
    last_of_epochs = [390, 23_538, 28_215, 28_843]
    assert [ramp.batch_size_at(update) for update in last_of_epochs] == [80, 80, 2000, 2000]
    assert [ramp.reference_updates(update) for update in last_of_epochs] == close([1, 1, 16, 16])
    assert factors_at(ramp, last_of_epochs) == close([1, 0.2, 0.64, 0.128])


def test_increasing_the_batch_size_first_and_decaying_the_learning_rate_then():
    ramp = ramp_of_steps(max_batch_size=640)
    # 140 * 79 after the first stage.
    assert ramp.stages == [(0, 128), (23_460, 640)]
    assert ramp.n_updates == 34_520
    # The third and fourth stages begin after 60 and 100 epochs of 79.
    assert factors_at(ramp, [23_460, 28_199, 28_200, 31_359, 31_360]) == close(
        [1, 0.2, 0.2, 0.04, 0.04]
    )


def test_a_larger_initial_learning_rate():
    ramp = ramp_of_steps(lr_scale=5, max_batch_size=5120)
    # 60 * 79, 60 * 16 and 80 * 10; 80 batches of 5120 are 40 reference updates each.
    assert ramp.stages == [(0, 640), (4740, 3200), (5700, 5120)]
    assert ramp.n_updates == 6500
    assert factors_at(ramp, [0, 4740, 5700, 6100]) == close([5, 5, 40 * 0.04, 40 * 0.008])


def test_a_larger_momentum():
    ramp = ramp_of_steps(momentum=(0.9, 0.98), max_batch_size=3200)
    assert ramp.stages == [(0, 640), (4740, 3200)]
    assert ramp.n_updates == 4740 + 140 * 16
    assert factors_at(ramp, [0, 4740, 5700, 6340]) == close([1, 1, 0.2, 0.04])


def test_a_larger_learning_rate_and_momentum():
    ramp = ramp_of_steps(lr_scale=5, momentum=(0.9, 0.98), max_batch_size=5120)
    assert ramp.stages == [(0, 3200), (960, 5120)]
    assert ramp.n_updates == 60 * 16 + 140 * 10
    # 40 reference updates of a fifth, for five times the momentum's memory.
    assert factors_at(ramp, [0, 960, 1560, 1960]) == close([5, 1.6, 0.32, 0.064])


# Small runs, every update by hand. ----------------------------------------------------------------


def table(ramp):
    updates = range(ramp.n_updates)
    return [(*ramp.position(u), ramp.batch_size_at(u), pytest.approx(ramp(u))) for u in updates]


def test_a_line_that_falls():
    # f = 1 - t / 8 at t = 0, 1, 2, 3.5, 4, 6; B is 2, 2.29, 2.67, 3.56, 4, 8 before rounding.
    ramp = BatchSizeSchedule(Linear("2ep"), 2, 8, 2, multiple=1)
    assert table(ramp) == [
        (0, 0, 2, 1.0),
        (0, 2, 2, 0.875),
        (0, 4, 3, 0.75 * 1.5),
        (0, 7, 1, 0.5625 * 0.5),  # half a reference update is left
        (1, 0, 4, 0.5 * 2),
        (1, 4, 4, 0.25 * 2),
    ]
    # Any later update would be a full one of 8, with the factor 0 that the line ends at.
    assert [(ramp(t), ramp.batch_size_at(6)) for t in (6, 6.5, 100)] == [(0, 8)] * 3


def test_a_last_batch_left_out():
    ramp = BatchSizeSchedule(Linear("2ep"), 2, 8, 2, drop_last=True)
    assert table(ramp) == [(0, 0, 2, 1.0), (0, 2, 2, 0.875), (0, 4, 3, 1.125), (1, 0, 4, 1.0)]


def test_the_reference_run_leaves_its_last_batch_out_too():
    # 3 and 4 updates per epoch, so that the milestone is after one epoch or before its end.
    schedule = Piecewise([3], [1, 0.25])
    dropping = BatchSizeSchedule(schedule, 3, 11, 2, max_batch_size=3, drop_last=True)
    assert dropping.n_reference_updates == dropping.n_updates == 6
    assert table(dropping) == [
        (0, 0, 3, 1),
        (0, 3, 3, 1),
        (0, 6, 3, 1),
        (1, 0, 3, 0.25),
        (1, 3, 3, 0.25),
        (1, 6, 3, 0.25),
    ]
    keeping = BatchSizeSchedule(schedule, 3, 11, 1, max_batch_size=3, drop_last=False)
    assert table(keeping) == [(0, 0, 3, 1), (0, 3, 3, 1), (0, 6, 3, 1), (0, 9, 2, 0.25)]


def test_samples_that_only_the_new_run_uses():
    # The reference run has one update per epoch, with 8 of the 15 samples; here, 7 with 2.
    ramp = BatchSizeSchedule(Linear(4), 8, 15, 2, lr_scale=0.25, max_batch_size=2, drop_last=True)
    factors = [1, 0.9375, 0.875, 0.8125, 0.75, 0.75, 0.75]
    assert factors_at(ramp, range(7)) == close([f / 4 for f in factors])
    assert ramp.position(7) == (1, 0)
    assert ramp(7) == close(0.75 / 4)


def test_last_batches_of_batches_smaller_than_those_of_the_reference_run():
    # Of 13 samples, the last is a batch of its own in both runs.
    ramp = BatchSizeSchedule(Constant(1), 4, 13, 1, lr_scale=0.5)
    assert [ramp.batch_size_at(update) for update in range(ramp.n_updates)] == [2] * 6 + [1]
    assert factors_at(ramp, range(7)) == close([0.5] * 7)


def test_batches_do_not_shrink_for_a_peak_between_two_reference_updates():
    peak = Function(lambda t: 1.0 if 5 < t < 6 else 4 / 7 if t < 6 else 4 / 14)
    # Batches of 7 begin at t = 0, 1.75, 3.5 and 5.25, then batches of 14 at 7 and 10.5.
    ramp = BatchSizeSchedule(peak, 4, 56, 1)
    assert ramp.stages == [(0, 7), (4, 14)]
    assert factors_at(ramp, range(6)) == close([1, 1, 1, 1.75, 1, 1])


def test_batches_do_not_grow_where_the_learning_rate_is_to_rise_again():
    # Half, full, a quarter, half: the last two are for 2 / 0.5 samples.
    ramp = BatchSizeSchedule(Piecewise([2, 4, 6], [0.5, 1, 0.25, 0.5]), 2, 8, 2)
    assert table(ramp) == [
        (0, 0, 2, 0.5),
        (0, 2, 2, 0.5),
        (0, 4, 2, 1.0),
        (0, 6, 2, 1.0),
        (1, 0, 4, 0.5),
        (1, 4, 4, 1.0),
    ]


def test_a_warm_up_from_zero_leaves_the_batches_as_they_are():
    ramp = BatchSizeSchedule(LinearWarmup(4).then(Step(4, 0.5)), 2, 16, 2, lr_scale=2)
    # Batches of 4 take two reference updates each: t = 0, 2, 4, 6. The one at 8 takes four, and
    # the one at 12, for 16 samples of which 8 are left, too.
    assert ramp.stages == [(0, 4), (4, 8), (5, 16)]
    assert factors_at(ramp, range(ramp.n_updates)) == close([0, 1, 2, 2, 2, 1])


def test_a_schedule_of_zeros_has_the_largest_batches():
    ramp = BatchSizeSchedule(Constant(0), 2, 10, 1, max_batch_size=7)
    assert (ramp.stages, ramp.n_updates, ramp(0)) == ([(0, 7)], 2, 0)
    # So has one of numbers too small to divide by.
    assert BatchSizeSchedule(Constant(1e-320), 2, 10, 1, max_batch_size=7).stages == [(0, 7)]


@pytest.mark.parametrize(
    ("factor", "options", "size", "lr"),
    [
        (0.8, {}, 13, 1.04),  # 12.5, half up
        (0.3, {"multiple": 8}, 32, 0.96),  # 33.3
        (0.3, {"multiple": 25}, 25, 0.75),
        (0.3, {"multiple": 40}, 40, 1.2),
        (0.3, {"multiple": 80}, 80, 2.4),  # at least one multiple
        (0.3, {"multiple": 8, "max_batch_size": 30}, 24, 0.72),
        (0.03, {"multiple": 8}, 96, 0.288),  # at most the data, 100
        (0.3, {"lr_scale": 0.1}, 3, 0.09),
        (2.0, {"lr_scale": 3}, 15, 3.0),
    ],
)
def test_rounding_and_limits(factor, options, size, lr):
    ramp = BatchSizeSchedule(Constant(factor), 10, 100, 3, **options)
    assert ramp.stages == [(0, size)]
    assert ramp(0) == close(lr)


def test_fractions_of_updates_lie_on_the_reference_schedule():
    ramp = BatchSizeSchedule(Linear(8), 2, 8, 2, max_batch_size=2)
    assert [ramp(t) for t in (0.5, 3.25, 7.75)] == close([0.9375, 0.59375, 0.03125])
    # Batches of 4 for two reference updates each.
    ramp = BatchSizeSchedule(Linear(8), 2, 8, 2, max_batch_size=4, multiple=4)
    assert [ramp(t) for t in (0.5, 1.75)] == close([2 * 0.875, 2 * 0.5625])


# The definition. ----------------------------------------------------------------------------------


def brute_force(schedule, batch, n, epochs, cap, multiple, growth):
    """Return epoch, first sample, size and factor of every update; n is divisible by batch."""
    per_epoch = n // batch
    f = schedule.resolve(steps_per_epoch=per_epoch, total_steps=epochs * per_epoch)
    rows, size = [], 0
    for epoch in range(epochs):
        sample = 0
        while sample < n:
            t = epoch * per_epoch + sample / batch
            largest = max([f(t), *(f(u) for u in range(epochs * per_epoch) if u > t)])
            exact = batch * growth / largest if largest else math.inf
            wanted = multiple * max(1, math.floor(min(exact, 2 * n) / multiple + 0.5))
            size = max(size, min(wanted, cap // multiple * multiple))
            taken = min(size, n - sample)
            rows.append((epoch, sample, taken, f(t)))
            sample += taken
    return rows


@given(
    relative_schedules | st.just(Cosine("0.5dur")) | st.just(Linear("2ep").with_warmup("1ep")),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(0.2, 1.0),
    st.sampled_from([1.0, 0.5, 5.0]),
    st.sampled_from([None, (0.5, 0.75)]),  # a factor of 2, exactly
)
@settings(SETTINGS, max_examples=200)
def test_the_definition(schedule, batch, per_epoch, epochs, multiple, share, lr_scale, momentum):
    n = max(batch * per_epoch, batch * multiple)
    cap = max(round(share * n), multiple)
    growth = lr_scale * (2.0 if momentum else 1.0)
    ramp = BatchSizeSchedule(
        schedule,
        batch,
        n,
        epochs,
        max_batch_size=cap,
        multiple=multiple,
        lr_scale=lr_scale,
        momentum=momentum,
    )
    rows = brute_force(schedule, batch, n, epochs, cap, multiple, growth)
    assert ramp.n_updates == len(rows)
    for update, (epoch, sample, size, f) in enumerate(rows):
        assert ramp.position(update) == (epoch, sample)
        assert ramp.batch_size_at(update) == size
        # The noise scale of the reference run there, 0.5 being the momentum if there is one.
        noise = 0.1 * f * n / batch / (0.5 if momentum else 1.0)
        assert ramp.noise_scale(update, 0.1) == pytest.approx(noise, rel=1e-9, abs=1e-300)


def test_runs_of_more_updates_than_are_looked_up_have_exact_stages():
    # 5005 updates of 256, 501 of 2560 in an epoch of ImageNet; 450,450 in all.
    ramp = BatchSizeSchedule(Piecewise([100_100, 200_203], [1, 0.1, 0.01]), 256, 1_281_167, 90)
    first, second, third = ramp.stages
    assert (first, second) == ((0, 256), (100_100, 2560))
    # 40 epochs and 3 updates of 256 later: 20 epochs of 501 and the first of the next.
    assert third == (100_100 + 20 * 501 + 1, 25_600)


def test_the_plan_of_a_long_run_is_small_and_made_of_few_evaluations():
    calls = []
    cosine = Cosine(450_450)

    def counted(t):
        calls.append(t)
        return cosine(t)

    ramp = BatchSizeSchedule(Function(counted), 256, 1_281_167, 90, multiple=256)
    assert 200_000 < ramp.n_updates < 300_000
    assert len(calls) < 70_000
    assert len(ramp.stages) < 400


def test_every_epoch_takes_the_place_of_one_of_the_reference_run():
    ramp = BatchSizeSchedule(Cosine("7ep"), 6, 101, 7)
    assert ramp.stages[-1][1] == 101
    # The last epoch is one batch, of the data.
    replaced = [17] * 6 + [101 / 6]
    for epoch in range(7):
        updates = ramp.updates_in_epoch(epoch)
        assert sum(ramp.batch_size_at(update) for update in updates) == 101
        assert sum(ramp.reference_updates(update) for update in updates) == close(replaced[epoch])
        assert ramp.epoch_at(updates.start) == epoch
        assert ramp.epoch_at(updates.start + 1) == epoch + ramp.batch_size_at(updates.start) / 101
    assert ramp.epoch_at(ramp.n_updates) == 7
