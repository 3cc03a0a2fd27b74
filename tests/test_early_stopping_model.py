"""Early stopping: the copy of the best model."""

import copy
import math

import pytest
import torch
from torch import nn

from fusedtricks import optim
from fusedtricks.train.early_stopping import EarlyStopping


class Model(nn.Module):
    """A model with all that a state dict can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(5)
        self.short = nn.Parameter(torch.randn(7).to(torch.bfloat16))
        self.words = ["a"]

    def forward(self, images):
        return self.norm(self.conv(images)).mean() + self.short.float().sum()

    def get_extra_state(self):
        return self.words

    def set_extra_state(self, state):
        self.words = list(state)


def train_a_little(model):
    optimizer = optim.SGD(model.parameters(), lr=0.3, momentum=0.8)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5)).backward()
        optimizer.step()
    model.words.append("b")


def equal_states(first, second) -> bool:
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    return all(
        torch.equal(first[name], second[name])
        if isinstance(first[name], torch.Tensor)
        else first[name] == second[name]
        for name in first
    )


def test_the_best_model_comes_back_exactly():
    model = Model()
    stopper = EarlyStopping(9, min_delta=0.5)
    snapshots = []
    # The best is the third, though it improves on the first by less than min_delta.
    for value in (1.0, 1.2, 0.9, 0.95, math.nan):
        train_a_little(model)
        snapshots.append(copy.deepcopy(model))
        stopper.step(value, model)
    assert stopper.best_step == 2
    parameters = dict(model.named_parameters())
    stopper.restore(model)
    assert equal_states(model, snapshots[2])
    assert not equal_states(model, snapshots[4])
    assert all(parameters[name] is param for name, param in model.named_parameters())
    # Training on from there does not reach the copy.
    train_a_little(model)
    stopper.restore(model)
    assert equal_states(model, snapshots[2])


def test_a_best_value_without_model_leaves_no_copy_of_an_older_one():
    model = Model()
    stopper = EarlyStopping(4)
    stopper.step(2.0, model)
    stopper.step(1.0)
    with pytest.raises(RuntimeError, match=r"restore: there is no copy .* step\(\) got no model"):
        stopper.restore(model)


def test_nothing_to_restore():
    stopper = EarlyStopping(4)
    with pytest.raises(RuntimeError, match="because no value was finite"):
        stopper.restore(Model())
    stopper.step(3.0, Model())


@pytest.mark.parametrize(
    ("other", "text"),
    [
        # Its first parameter fits, and would be loaded.
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), r"'1.weight' has shape \[5, 3\], got .*"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5, bias=False)), "only the copy has '1.bias'"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5), nn.PReLU()), "only the model has '2.wei"),
    ],
)
def test_another_model_is_not_restored_in_part(other, text):
    stopper = EarlyStopping(4)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    stopper.step(3.0, model)
    before = copy.deepcopy(other)
    with pytest.raises(RuntimeError, match="restore: expected the model that step.*" + text):
        stopper.restore(other)
    assert equal_states(other, before)
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 5))
    stopper.restore(lazy)
    assert equal_states(lazy, model)


class Stuck:
    """What cannot be copied."""

    def __deepcopy__(self, memo):
        raise MemoryError("full")


def test_a_copy_that_fails_changes_nothing():
    model = Model()
    stopper = EarlyStopping(4)
    stopper.step(3.0, model)
    best, before = copy.deepcopy(model), stopper.state_dict()
    train_a_little(model)
    model.words = Stuck()
    with pytest.raises(MemoryError, match="full"):
        stopper.step(2.0, model)
    after = stopper.state_dict()
    assert after["model"] is before["model"] and after["best"] == 3.0 and after["n_steps"] == 1
    model.words = []
    stopper.restore(model)
    assert equal_states(model, best)
