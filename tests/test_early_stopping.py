"""Early stopping: its decisions, checkpoints, several processes."""

import copy
import io
import math
import pickle
import random

import pytest
import torch
from torch import nn

from fusedtricks.train.early_stopping import EarlyStopping
from tests.processes import in_two_processes

# Decisions. ---------------------------------------------------------------------------------------

# By hand: values -> n_bad after each, with patience 3 and min_delta 0.25.
#          reference: 4      4      3.5    3.5    3.5    2.75   2.75   2.75   2.75
VALUES = [4.0, 3.75, 3.5, 3.25, 3.5, 2.75, 2.5, math.nan, 2.75]
N_BAD = [0, 1, 0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("sign", [1, -1])
def test_decisions_by_hand(sign):
    stopper = EarlyStopping(3, mode="min" if sign == 1 else "max", min_delta=0.25)
    stops = []
    for value, n_bad in zip(VALUES, N_BAD, strict=True):
        stops.append(stopper.step(sign * value))
        assert stopper.n_bad == n_bad
        assert stopper.should_stop == stops[-1]
    assert stops == [False] * 8 + [True]
    # The best value is not the reference, 2.75.
    assert (stopper.best, stopper.best_step) == (sign * 2.5, 6)


def up(errors: list[float], s: int, t: int) -> bool:
    """UP_s of Prechelt with strips of one epoch: does it stop after epoch t, counted from 0?"""
    if t == 0:
        return False
    if s == 1:
        return errors[t] > errors[t - 1]
    return up(errors, s - 1, t - 1) and errors[t] > errors[t - 1]


def first_stop(decisions) -> float:
    return next((t for t, stops in enumerate(decisions) if stops), math.inf)


def test_it_stops_with_prechelts_criterion_or_before():
    numbers = random.Random(3)
    n_equal = n_earlier = 0
    for _ in range(300):
        errors = [numbers.random() for _ in range(12)]
        for s in (1, 2, 3):
            stopper = EarlyStopping(s)
            patience = first_stop(stopper.step(error) for error in errors)
            prechelt = first_stop(up(errors, s, t) for t in range(len(errors)))
            assert patience <= prechelt
            assert s > 1 or patience == prechelt
            n_equal += patience == prechelt
            n_earlier += patience < prechelt
    assert n_equal > 300 and n_earlier > 100


def test_an_equal_value_is_no_improvement():
    stopper = EarlyStopping(2)
    assert [stopper.step(0.5) for _ in range(3)] == [False, False, True]
    assert stopper.best_step == 0


def test_small_improvements_add_up():
    stopper = EarlyStopping(2, min_delta=1.5)
    assert not any(stopper.step(-float(i)) for i in range(40))
    stopper = EarlyStopping(2, min_delta=2.0)
    assert [stopper.step(-float(i)) for i in range(3)] == [False, False, True]
    assert stopper.best == -2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_improves(bad):
    for mode in ("min", "max"):
        stopper = EarlyStopping(2, mode=mode)
        assert [stopper.step(bad), stopper.step(bad)] == [False, True]
        assert stopper.best is None and not stopper.is_best
        assert not stopper.step(7.0) and stopper.is_best
        assert [stopper.step(bad), stopper.step(bad)] == [False, True]
        assert stopper.best == 7.0 and not stopper.is_best


def test_values_of_torch_and_numpy():
    numpy = pytest.importorskip("numpy")
    stopper = EarlyStopping(5, mode="max")
    for value in (1, torch.tensor(2.0), torch.tensor([[3.0]]), numpy.float32(4), torch.tensor(5)):
        stopper.step(value)
        assert stopper.is_best
        assert type(stopper.best) is float
    assert stopper.best == 5.0


# Checkpoints. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, len(VALUES)))
def test_a_resumed_run_decides_the_same(cut):
    model = nn.Linear(3, 2)
    stopper = EarlyStopping(3, min_delta=0.25)
    for value in VALUES[:cut]:
        nn.init.constant_(model.weight, value)
        stopper.step(value, model)
    file = io.BytesIO()
    torch.save(stopper.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = EarlyStopping(3, min_delta=0.25)
    resumed.load_state_dict(state)
    assert resumed.is_best == stopper.is_best
    for value, n_bad in zip(VALUES[cut:], N_BAD[cut:], strict=True):
        nn.init.constant_(model.weight, value)
        resumed.step(value, model)
        assert resumed.n_bad == n_bad
    assert (resumed.best, resumed.best_step, resumed.should_stop) == (2.5, 6, True)
    resumed.restore(model)
    assert (model.weight == 2.5).all()


def test_a_resumed_run_may_have_more_patience():
    stopper = EarlyStopping(2)
    for value in (1.0, 2.0, 3.0):
        stopper.step(value)
    patient = EarlyStopping(4)
    patient.load_state_dict(stopper.state_dict())
    assert stopper.should_stop and not patient.should_stop
    assert [patient.step(1.5), patient.step(1.5)] == [False, True]


def test_states_that_do_not_fit_change_nothing():
    stopper = EarlyStopping(3)
    stopper.step(5.0)
    before = stopper.state_dict()
    other = EarlyStopping(3, mode="max").state_dict()
    with pytest.raises(ValueError, match=r"expected a state with mode='min'.* got mode='max'"):
        stopper.load_state_dict(other)
    del other["reference"]
    with pytest.raises(ValueError, match="got no 'reference'"):
        stopper.load_state_dict(other)
    assert stopper.state_dict() == before


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": 3}, TypeError, "model to be a dict of tensors, or None, got int"),
        ({"n_bad": None}, TypeError, "n_bad to be a whole number, got None"),
        ({"n_bad": -1}, ValueError, "n_bad of at least 0, got -1"),
        ({"n_steps": 1.5}, TypeError, "n_steps to be a whole number, got 1.5"),
        ({"best": math.nan}, ValueError, "best to be a finite number, got nan"),
        ({"best": "5"}, TypeError, "best to be a number, got '5'"),
        ({"best": None}, ValueError, "all of them or none to be None, got best=None, best_step=0"),
        ({"reference": math.inf}, ValueError, "reference to be a finite number, got inf"),
        ({"best_step": 2}, ValueError, "best_step from 0 to 1, got 2"),
    ],
)
def test_states_with_odd_values_change_nothing(change, error, text):
    stopper, other = EarlyStopping(3), EarlyStopping(3)
    for value in (5.0, 6.0):
        other.step(value)
    before = stopper.state_dict()
    with pytest.raises(error, match="load_state_dict: expected " + text):
        stopper.load_state_dict(other.state_dict() | change)
    assert stopper.state_dict() == before
    stopper.load_state_dict(before)


def test_copies_and_pickles():
    stopper = EarlyStopping(3, mode="max", min_delta=0.5)
    model = nn.Linear(2, 3)
    stopper.step(1.0, model)
    stopper.step(0.5, model)
    for twin in (copy.deepcopy(stopper), pickle.loads(pickle.dumps(stopper))):
        assert [twin.step(0.75), twin.step(1.0)] == [False, True]
        twin.restore(nn.Linear(2, 3))
    assert stopper.n_bad == 1


# Errors. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"patience": 0}, ValueError, "expected patience of at least 1, got 0"),
        ({"patience": 2.0}, TypeError, "expected patience to be a whole number, got 2.0"),
        ({"patience": True}, TypeError, "expected patience to be a whole number, got True"),
        ({"patience": 2, "mode": "best"}, ValueError, "expected mode 'min' or 'max', got 'best'"),
        ({"patience": 2, "min_delta": -0.1}, ValueError, "finite number of at least 0, got -0.1"),
        (
            {"patience": 2, "min_delta": math.nan},
            ValueError,
            "finite number of at least 0, got nan",
        ),
        (
            {"patience": 2, "min_delta": math.inf},
            ValueError,
            "finite number of at least 0, got inf",
        ),
        ({"patience": 2, "min_delta": "1"}, TypeError, "min_delta to be a number, got '1'"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match="EarlyStopping: " + ".*" + text):
        EarlyStopping(**arguments)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (torch.ones(2, 3), ValueError, r"one element, got a tensor of shape \[2, 3\]; average"),
        ("1", TypeError, "expected value to be a number, got '1'"),
        (None, TypeError, "expected value to be a number, got None"),
        (torch.tensor(True), TypeError, "expected value to be a number"),
    ],
)
def test_bad_values_change_nothing(value, error, text):
    stopper = EarlyStopping(2)
    stopper.step(3.0)
    before = stopper.state_dict()
    with pytest.raises(error, match="step: .*" + text):
        stopper.step(value)
    with pytest.raises(TypeError, match="step: expected model to be a Module, got dict"):
        stopper.step(1.0, {})
    assert stopper.state_dict() == before


# Several processes. -------------------------------------------------------------------------------

# Rank 1 alone would stop after the second value, and find the last one best.
PER_RANK = [[3.0, 2.0, 2.5, 1.0, 1.5, 1.25], [1.0, 9.0, 9.0, None, math.nan, 0.0]]


def stop_one_rank(rank):
    model = nn.Linear(1, 1, bias=False)
    stopper = EarlyStopping(2)
    stops = []
    for epoch, value in enumerate(PER_RANK[rank]):
        nn.init.constant_(model.weight, epoch)
        stops.append(stopper.step(value, model))
    stopper.restore(model)
    return [stops, stopper.best, stopper.best_step, model.weight.item()]


def test_all_processes_decide_as_rank_0_does(tmp_path):
    for found in in_two_processes(stop_one_rank, tmp_path):
        assert found == [[False] * 5 + [True], 1.0, 3, 3.0]
