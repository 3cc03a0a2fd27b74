"""Growing batches as a schedule: text, copies, schedulers, betas, errors."""

import copy
import math
import pickle

import pytest
import torch

from fusedtricks.lr_scheduler import (
    Constant,
    Cosine,
    Function,
    LinearWarmup,
    ScheduledLR,
    Step,
    parse,
)
from fusedtricks.lr_scheduler.batch_size import BatchSizeSchedule
from fusedtricks.lr_scheduler.batch_size_beta import BatchSizeBeta
from fusedtricks.optim import SGD, AdamW
from tests.test_batch_size import close, ramp_of_steps

# Micro-batches and betas. -------------------------------------------------------------------------


def test_accumulation():
    ramp = ramp_of_steps(multiple=64)
    updates = [0, 390, 23_460, 23_538, 28_840]
    # 128, 80, 640, 80 and 16000 samples.
    assert [ramp.accumulation(update, 64) for update in updates] == [2, 2, 10, 2, 250]
    assert [ramp.accumulation(update, 128) for update in updates] == [1, 1, 5, 1, 125]


@pytest.mark.parametrize(
    ("micro_batch", "message"),
    [
        (
            48,
            "to divide the batch size 128 of update 7, got 48; make the schedule with multiple=48",
        ),
        (0, "expected micro_batch of at least 1, got 0"),
        (-4, "expected micro_batch of at least 1, got -4"),
    ],
)
def test_micro_batches_that_do_not_fit(micro_batch, message):
    with pytest.raises(ValueError, match=message):
        ramp_of_steps().accumulation(7, micro_batch)


def test_betas_keep_their_memory_in_samples():
    ramp = ramp_of_steps()
    schedule = ramp.beta_schedule(0.999)
    # 0.999 to the power of 1, 1, 5, 5, 1, 25 and 16.
    updates = [0, 390, 23_460, 23_461.5, 23_538, 28_200, 28_215]
    expected = [0.999, 0.999, 0.995009990004999, 0.995009990004999, 0.999, 0.975298, 0.984119]
    assert [schedule(t, 0.5) for t in updates] == pytest.approx(expected, abs=1e-6)
    assert schedule.length == 29_000
    assert parse(repr(schedule)) == schedule


# As a schedule. -----------------------------------------------------------------------------------

RAMPS = [
    ramp_of_steps(),
    BatchSizeSchedule(
        LinearWarmup("2ep") * Cosine("9ep", end=0.1),
        batch_size=8,
        dataset_size=100,
        epochs=9,
        max_batch_size=48,
        multiple=4,
        lr_scale=1.5,
        momentum=(0.9, 0.95),
        drop_last=True,
    ),
]


@pytest.mark.parametrize("ramp", RAMPS)
def test_text_copies_and_pickles(ramp):
    values = ramp.preview(50)
    for other in (parse(repr(ramp)), copy.deepcopy(ramp), pickle.loads(pickle.dumps(ramp))):
        assert other == ramp
        assert hash(other) == hash(ramp)
        assert other.preview(50) == values
        assert other.stages == ramp.stages
    # The plan is no part of it.
    assert len(pickle.dumps(ramp)) < 1000


def test_numbers_of_numpy_and_tensors_become_plain_ones():
    given_ = [torch.tensor(8), 100.0, torch.tensor(3.0)]
    ramp = BatchSizeSchedule(Constant(0.5), *given_, momentum=[torch.tensor(0.5), 0])
    assert ramp == BatchSizeSchedule(Constant(0.5), 8, 100, 3, momentum=(0.5, 0))
    assert parse(repr(ramp)) == ramp


def test_in_a_scheduler():
    params = [torch.zeros(3, requires_grad=True)]
    optimizer = SGD(params, lr=0.3, momentum=0.9)
    ramp = BatchSizeSchedule(Step("1ep", 0.5), 4, 16, 3)
    # 4, 2 and 1 updates per epoch; the scheduler's own epochs do not matter.
    scheduler = ScheduledLR(optimizer, ramp, steps_per_epoch=1000, total_steps=77)
    lrs = []
    for _ in range(7):
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert lrs == close([0.3] * 7)
    assert ramp.n_updates == ramp.ends_at == ramp.length == 7
    with pytest.warns(UserWarning, match="the schedule ended after 7 updates"):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == close(0.3 * 0.125 * 4)


def test_checkpoints_hold_the_configuration_and_no_plan():
    def make(ramp):
        optimizer = AdamW([torch.zeros(3, requires_grad=True)], lr=0.3, betas=(0.8, 0.95))
        return ScheduledLR(optimizer, ramp, beta2=ramp.beta_schedule(0.95))

    ramp, other = ramp_of_steps(), ramp_of_steps(max_batch_size=640)
    scheduler = make(ramp)
    scheduler.step(23_500)
    assert scheduler.optimizer.param_groups[0]["betas"] == (0.8, close(0.95**5))
    state = scheduler.state_dict()
    assert len(pickle.dumps(state)) < 2000
    with pytest.raises(ValueError, match="another configuration"):
        make(other).load_state_dict(state)
    restored = make(other)
    restored.load_state_dict(state, config="restore")
    assert restored.schedules == {"lr": ramp, "beta2": ramp.beta_schedule(0.95)}
    assert restored.last_epoch == 23_500


def test_composed_with_another_schedule():
    ramp = BatchSizeSchedule(Step(4, 0.5), 4, 16, 2, max_batch_size=4)
    product = LinearWarmup("0.25dur") * ramp
    assert product.resolve(total_steps=8).preview(6) == close([0, 0.5, 1, 1, 0.5, 0.5])


# Errors. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": Constant(0.5).between(0.1, 1)}, "expected a relative schedule, got Between"),
        ({"schedule": Step("0.01ep", 0.5)}, "step_size above 0, got 0"),
        ({"batch_size": 0}, "batch_size to be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size to be a whole number of at least 1, got 2.5"),
        ({"batch_size": 101}, "batch_size of at most dataset_size=100, got 101"),
        ({"dataset_size": -1}, "dataset_size to be a whole number of at least 1, got -1"),
        ({"epochs": 0}, "epochs to be a whole number of at least 1, got 0"),
        ({"max_batch_size": 0}, "max_batch_size to be a whole number of at least 1, got 0"),
        ({"multiple": 0}, "multiple to be a whole number of at least 1, got 0"),
        ({"max_batch_size": 30, "multiple": 31}, "max_batch_size=30 and dataset_size=100, got 31"),
        ({"multiple": 101}, "multiple of at most max_batch_size=None and dataset_size=100, got 1"),
        ({"lr_scale": 0}, "lr_scale above 0, got 0"),
        ({"momentum": (0.9,)}, r"momentum to be a pair .* of numbers in \[0, 1\), got \(0.9,\)"),
        ({"momentum": (0.9, 1.0)}, r"in \[0, 1\), got \(0.9, 1.0\)"),
        ({"momentum": (-0.1, 0.9)}, r"in \[0, 1\), got \(-0.1, 0.9\)"),
    ],
)
def test_errors_name_the_argument(changes, message):
    arguments = {"schedule": Constant(0.5), "batch_size": 8, "dataset_size": 100, "epochs": 3}
    with pytest.raises(ValueError, match=message):
        BatchSizeSchedule(**arguments | changes)


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_factors_that_are_no_factors(bad):
    ramp = BatchSizeSchedule(Function(lambda t: bad if t == 9 else 1.0), 8, 100, 3)
    with pytest.raises(ValueError, match=f"factors of at least 0, got {bad} after 9 updates"):
        ramp(0)


def test_other_errors():
    with pytest.raises(TypeError, match=r"expected schedule to be a Schedule, got 0.5"):
        BatchSizeSchedule(0.5, 8, 100, 3)
    with pytest.raises(TypeError, match=r"momentum to be a pair .* or None, got 0.9"):
        BatchSizeSchedule(Constant(0.5), 8, 100, 3, momentum=0.9)
    ramp = BatchSizeSchedule(Constant(0.5), 8, 100, 3)
    with pytest.raises(ValueError, match="unit='epoch' cannot count its time"):
        ramp.resolve(unit="epoch", steps_per_epoch=13)
    for update in (-1, 2.5):
        with pytest.raises(ValueError, match=f"update to be a whole number .* got {update}"):
            ramp.batch_size_at(update)
    for epoch in (-1, 3):
        with pytest.raises(ValueError, match=f"epoch from 0 to 2, got {epoch}"):
            ramp.updates_in_epoch(epoch)
    with pytest.raises(ValueError, match=r"beta in \[0, 1\), got 1.0"):
        ramp.beta_schedule(1.0)
    with pytest.raises(ValueError, match=r"beta of at least 0, got -0.1"):
        ramp.beta_schedule(-0.1)
    with pytest.raises(TypeError, match="expected ramp to be a BatchSizeSchedule, got Constant"):
        BatchSizeBeta(Constant(0.5), 0.9)
