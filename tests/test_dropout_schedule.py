"""Probabilities of dropout layers that follow a schedule."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from fusedtricks.lr_scheduler import Constant, Exponential, Linear, Piecewise
from fusedtricks.nn.dropout import DropoutSchedule, ScheduledDropout
from fusedtricks.nn.ensemble import Ensemble


class StochasticDepth(nn.Module):
    """The attributes of torchvision's."""

    def __init__(self, p, mode):
        super().__init__()
        self.p, self.mode = p, mode


class DropPath(nn.Module):
    """The attributes of timm's."""

    def __init__(self, drop_prob=None, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep


def all_kinds():
    return nn.ModuleDict(
        {
            "plain": nn.Dropout(0.4),
            "channels": nn.Dropout2d(0.2),
            "alpha": nn.AlphaDropout(0.6),
            "depth": StochasticDepth(0.8, "row"),
            "path": DropPath(0.1),
            "zero": DropPath(),
            "attention": nn.MultiheadAttention(4, 2, dropout=0.3),
            "lstm": nn.LSTM(3, 4, num_layers=2, dropout=0.7),
            "tensor": ScheduledDropout(0.5),
            "other": nn.Linear(3, 4),
        }
    )


def probabilities(model):
    return {
        "plain": model["plain"].p,
        "channels": model["channels"].p,
        "alpha": model["alpha"].p,
        "depth": model["depth"].p,
        "path": model["path"].drop_prob,
        "zero": model["zero"].drop_prob or 0.0,
        "attention": model["attention"].dropout,
        "lstm": model["lstm"].dropout,
        "tensor": model["tensor"].p.item(),
    }


# The schedule. ------------------------------------------------------------------------------------


def test_all_layers_follow_a_relative_schedule_from_their_own_start():
    model = all_kinds()
    start = probabilities(model)
    schedule = DropoutSchedule(model, Linear(4, 1, 0.5))
    for factor in (1, 0.875, 0.75, 0.625, 0.5, 0.5):
        expected = {name: factor * p for name, p in start.items()}
        assert probabilities(model) == pytest.approx(expected, rel=1e-6)
        assert schedule.values() == pytest.approx(expected, rel=1e-6)
        schedule.step()


def test_an_absolute_schedule_sets_all_alike():
    model = all_kinds()
    schedule = DropoutSchedule(model, Linear(4).between(0.25, 0.75))
    schedule.step()
    assert set(probabilities(model).values()) == {0.625}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Early, late and curriculum dropout.
        (Linear("2ep"), [0.4, 0.3, 0.2, 0.1, 0, 0]),
        (Piecewise(["2ep"], [0, 1]), [0, 0, 0, 0, 0.4, 0.4]),
        (
            Exponential(math.exp(-0.3)).between(None, 0),
            [0.4 * (1 - math.exp(-0.3 * n)) for n in range(6)],
        ),
        (lambda n: 1 / (1 + n), [0.4, 0.2, 0.4 / 3, 0.1, 0.08, 0.4 / 6]),
    ],
    ids=["early", "late", "curriculum", "function"],
)
def test_schedules_of_the_papers(schedule, expected):
    model = nn.Sequential(nn.Dropout(0.4))
    schedule = DropoutSchedule(model, schedule, steps_per_epoch=2)
    found = []
    for _ in range(6):
        found.append(model[0].p)
        schedule.step()
    assert found == pytest.approx(expected)


def test_units_and_jumps():
    model = nn.Dropout(0.4)
    schedule = DropoutSchedule(model, Linear(2), unit="epoch", steps_per_epoch=10)
    schedule.step(0.5)
    assert (schedule.last_epoch, model.p) == (5, pytest.approx(0.3))
    schedule = DropoutSchedule(model, Linear("0.5dur"), total_steps=80)
    schedule.step(30)
    assert model.p == pytest.approx(0.1)


def test_a_tensor_is_filled_in_place():
    # A graph that reads it, on any device, must see the new value.
    layer = ScheduledDropout(0.5)
    tensor = layer.p
    DropoutSchedule(layer, Linear(4)).step()
    assert layer.p is tensor
    assert tensor.item() == 0.375


def test_only_chosen_kinds_follow():
    model = all_kinds()
    before = probabilities(model)
    DropoutSchedule(model, Constant(0.5), kinds=[nn.Dropout, StochasticDepth])
    changed = {name for name, p in probabilities(model).items() if p != before[name]}
    assert changed == {"plain", "depth"}
    DropoutSchedule(model, Constant(0.5), kinds=ScheduledDropout)
    changed = {name for name, p in probabilities(model).items() if p != before[name]}
    assert changed == {"plain", "depth", "tensor"}


def test_a_second_schedule_begins_where_the_first_did():
    model = nn.Sequential(nn.Dropout(0.4))
    for _ in range(2):
        schedule = DropoutSchedule(nn.DataParallel(torch.compile(model)), Linear(4))
        assert model[0].p == 0.4
        assert schedule.values() == {"0": 0.4}
        schedule.step()
        assert model[0].p == pytest.approx(0.3)
        model = pickle.loads(pickle.dumps(model))


def test_goes_on_from_a_saved_state():
    model = all_kinds()
    schedule = DropoutSchedule(model, Linear(7))
    for _ in range(3):
        schedule.step()
    state = pickle.loads(pickle.dumps(schedule.state_dict()))
    assert state == {"last_epoch": 3}
    fresh = all_kinds()
    resumed = DropoutSchedule(fresh, Linear(7))
    resumed.load_state_dict(state)
    assert probabilities(fresh) == probabilities(model)
    resumed.step()
    schedule.step()
    assert probabilities(fresh) == probabilities(model)
    model, schedule = copy.deepcopy((model, schedule))
    schedule.step()
    assert model["plain"].p == pytest.approx(0.4 * 2 / 7)
    assert fresh["plain"].p == pytest.approx(0.4 * 3 / 7)


def test_probabilities_outside_their_range_change_nothing():
    model = all_kinds()
    before = probabilities(model)
    with pytest.raises(ValueError, match=r"p in \[0, 1\], got 1\.2 for 'alpha' after 0 updates of"):
        DropoutSchedule(model, Constant(2.0))
    assert probabilities(model) == before
    model["plain"].p = 0.45
    schedule = DropoutSchedule(model, lambda n: -1 if n == 2 else float("nan") if n == 3 else 0.5)
    assert model["plain"].p == 0.225
    before = probabilities(model)
    schedule.step()
    for position, text in ((2, "got -0.45 for 'plain' after 2"), (3, "got nan for 'plain'")):
        with pytest.raises(ValueError, match=text):
            schedule.step(position)
    with pytest.raises(ValueError, match=r"got -0\.45 for 'plain'"):
        schedule.step()
    with pytest.raises(ValueError, match=r"got -0\.45 for 'plain'"):
        schedule.load_state_dict({"last_epoch": 2})
    assert schedule.last_epoch == 1
    assert probabilities(model) == before


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="expected a model with a dropout layer, got Linear"):
        DropoutSchedule(nn.Linear(3, 4), Linear(5))
    with pytest.raises(ValueError, match=r"dropout layer of .*LSTM.*, got Dropout"):
        DropoutSchedule(nn.Dropout(0.3), Linear(5), kinds=[nn.LSTM])
    with pytest.raises(ValueError, match=r"dropout layer of .*LSTM.*, got Dropout"):
        DropoutSchedule(nn.Dropout(0.3), Linear(5), kinds=nn.LSTM)
    with pytest.raises(ValueError, match=r"expected a model with a dropout layer of .*, got Dropo"):
        DropoutSchedule(nn.Dropout(0.3), Linear(5), kinds=[])
    stacked = Ensemble([ScheduledDropout(0.3), ScheduledDropout(0.3)], stacked=True)
    with pytest.raises(ValueError, match=r"'models' has one for .* use .*stacked=False"):
        DropoutSchedule(stacked, Linear(5))
    with pytest.raises(TypeError, match="expected the p schedule to be a Schedule or a function"):
        DropoutSchedule(nn.Dropout(0.3), 0.5)
    with pytest.raises(ValueError, match="'5ep' needs steps_per_epoch, got None"):
        DropoutSchedule(nn.Dropout(0.3), Linear("5ep"))
    schedule = DropoutSchedule(nn.Dropout(0.3), Linear(5))
    with pytest.raises(ValueError, match=r"expected a state with last_epoch, got \['lr'\]"):
        schedule.load_state_dict({"lr": 3})
    with pytest.raises(ValueError, match="expected epoch of at least 0, got -1"):
        schedule.load_state_dict({"last_epoch": -1})
