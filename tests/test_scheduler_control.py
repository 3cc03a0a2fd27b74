"""Checkpoints where a scheduler is not alone, where the learning rate changed, or damaged ones."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fusedtricks
from fusedtricks import lr_scheduler
from fusedtricks.lr_scheduler import (
    Cosine,
    LinearWarmup,
    ScheduledLR,
    Step,
)
from tests.small_optimizers import make_param, sgd, update

theirs = torch.optim.lr_scheduler
LOADS = list(itertools.permutations(["make S", "load S", "load O"]))
LOADS = [order for order in LOADS if order.index("make S") < order.index("load S")]


def ours_then_torch(optimizer: Any) -> list[Any]:
    parts = [lr_scheduler.WarmupLR(optimizer, 4, 0.1), theirs.CosineAnnealingLR(optimizer, 6)]
    return [theirs.SequentialLR(optimizer, parts, [4])]


def torch_then_ours(optimizer: Any) -> list[Any]:
    parts = [theirs.LinearLR(optimizer, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(optimizer, 6)]
    return [theirs.SequentialLR(optimizer, parts, [4])]


def second_made_first(optimizer: Any) -> list[Any]:
    last = lr_scheduler.CosineAnnealingLR(optimizer, 6)
    return [theirs.SequentialLR(optimizer, [lr_scheduler.WarmupLR(optimizer, 4, 0.1), last], [4])]


def before_a_plateau(optimizer: Any) -> list[Any]:
    return [
        lr_scheduler.WarmupLR(optimizer, 4, 0.1),
        theirs.ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
    ]


def one_after_the_other(optimizer: Any) -> list[Any]:
    return [lr_scheduler.WarmupLR(optimizer, 4, 0.1), lr_scheduler.StepLR(optimizer, 2, 0.3)]


def advance(schedulers: list[Any], t: int) -> None:
    if len(schedulers) == 1 or t < 4:
        schedulers[0].step()
    elif isinstance(schedulers[1], theirs.ReduceLROnPlateau):
        schedulers[1].step(1.0)
    else:
        schedulers[1].step()


@pytest.mark.parametrize("order", LOADS, ids="-".join)
@pytest.mark.parametrize(
    "make",
    [ours_then_torch, torch_then_ours, second_made_first, before_a_plateau, one_after_the_other],
)
def test_beside_other_schedulers(make: Callable[..., Any], order: tuple[str, ...]) -> None:
    optimizer = sgd()
    schedulers = make(optimizer)
    expected, saved = [], []
    for t in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        states = [optimizer.state_dict(), [s.state_dict() for s in schedulers]]
        saved.append(copy.deepcopy(states))
        update(optimizer)
        advance(schedulers, t)
    assert len(set(expected)) > 4
    for start, (of_optimizer, of_schedulers) in enumerate(saved):
        if make is torch_then_ours and order[0] == "load O" and start < 4:
            continue  # torch's LinearLR writes over what was loaded, and never mends it.
        optimizer = sgd()
        for what in order:
            if what == "make S":
                schedulers = make(optimizer)
            elif what == "load O":
                optimizer.load_state_dict(of_optimizer)
            else:
                for scheduler, state in zip(schedulers, of_schedulers, strict=True):
                    scheduler.load_state_dict(state)
        found = []
        for t in range(start, 9):
            # Schedulers of torch set nothing when they are loaded: not before the next step.
            found.append(optimizer.param_groups[0]["lr"])
            update(optimizer)
            advance(schedulers, t)
        assert found == pytest.approx(expected[start:], rel=1e-12), start


def test_who_has_handed_over_does_not_come_back() -> None:
    optimizer = sgd()
    schedulers = one_after_the_other(optimizer)
    for t in range(6):
        update(optimizer)
        advance(schedulers, t)
    lr = optimizer.param_groups[0]["lr"]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == lr == 0.4 * 0.3


def test_a_loaded_value_that_looks_like_a_beginning() -> None:
    """The plateau has brought the rate down to where the warm-up once began."""
    optimizer = sgd()
    warmup = lr_scheduler.WarmupLR(optimizer, 4, 0.25)
    plateau = theirs.ReduceLROnPlateau(optimizer, factor=0.25, patience=0)
    for _ in range(4):
        warmup.step()
    for _ in range(2):
        plateau.step(1.0)
    states = optimizer.state_dict(), warmup.state_dict()
    assert optimizer.param_groups[0]["lr"] == 0.1
    fresh = sgd()
    again = lr_scheduler.WarmupLR(fresh, 4, 0.25)
    assert fresh.param_groups[0]["lr"] == 0.1
    fresh.load_state_dict(states[0])
    again.load_state_dict(states[1])
    assert fresh.param_groups[0]["lr"] == 0.1


def test_a_float32_lr_is_under_control_although_it_is_rounded() -> None:
    scheduler = ScheduledLR(sgd(torch.tensor(0.4)), Cosine(9))
    for _ in range(3):
        scheduler.step()
    fresh = ScheduledLR(sgd(torch.tensor(0.4)), Cosine(9))
    fresh.load_state_dict(scheduler.state_dict())
    assert fresh.get_last_lr() == scheduler.get_last_lr()


def test_what_a_moved_scheduler_found_is_forgotten() -> None:
    optimizer = sgd()
    scheduler = lr_scheduler.WarmupLR(optimizer, 4, 0.25)
    scheduler.step()
    scheduler.load_state_dict(scheduler.state_dict() | {"in_control": False})
    assert optimizer.param_groups[0]["lr"] == LinearWarmup(4, 0.25)(1, 0.4)


def test_a_group_that_was_added_before_loading() -> None:
    def make() -> ScheduledLR:
        scheduler = ScheduledLR(sgd(), Cosine(9))
        scheduler.optimizer.add_param_group({"params": [make_param()], "lr": 0.03})
        return scheduler

    first, second = make(), make()
    for _ in range(3):
        first.step()
    second.load_state_dict(first.state_dict())
    assert [g["lr"] for g in second.optimizer.param_groups] == first.get_last_lr()


def test_the_end_is_that_of_the_restored_schedule() -> None:
    _, _, state = trained(0.1, Cosine(30))
    scheduler = ScheduledLR(sgd(0.1), Cosine(10))
    scheduler.load_state_dict(state, config="restore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            scheduler.step()


# A learning rate that changed. --------------------------------------------------------------------


def trained(lr: float, schedule: Any = None) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    optimizer = sgd(lr)
    scheduler = ScheduledLR(optimizer, schedule or Cosine(10))
    for _ in range(4):
        update(optimizer)
        scheduler.step()
    return scheduler, optimizer.state_dict(), scheduler.state_dict()


@pytest.mark.parametrize("order", [("load O", "load S"), ("load S", "load O")], ids="-".join)
@pytest.mark.parametrize(("config", "base"), [("error", None), ("keep", 0.2), ("restore", 0.1)])
def test_a_changed_learning_rate(config: str, base: float | None, order: tuple[str, str]) -> None:
    _, of_optimizer, of_scheduler = trained(0.1)
    optimizer = sgd(0.2)
    scheduler = ScheduledLR(optimizer, Cosine(10))
    for what in order:
        if what == "load O":
            optimizer.load_state_dict(of_optimizer)
        elif base is None:
            with pytest.raises(ValueError, match=r"lr initial values: \[0.1\] in the checkpoint, "):
                scheduler.load_state_dict(of_scheduler, config)
            return
        else:
            scheduler.load_state_dict(of_scheduler, config)
    assert optimizer.param_groups[0]["lr"] == Cosine(10)(4, base)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == Cosine(10)(5, base)
    assert scheduler.base_lrs == [base]


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (Step(3, 1), Step(3, 1.0)),
        ([Cosine(10)], Cosine(10)),
        (Cosine("2ep"), Cosine(10)),
    ],
    ids=repr,
)
def test_the_same_in_other_words_is_no_change(now: Any, before: Any) -> None:
    _, _, state = trained(0.1, before)
    ScheduledLR(sgd(0.1), now, steps_per_epoch=5).load_state_dict(state)
    ScheduledLR(sgd(torch.tensor(0.1)), now, steps_per_epoch=5).load_state_dict(state)


def test_a_list_of_equal_schedules_is_one_for_all() -> None:
    def make(schedule: Any) -> ScheduledLR:
        groups = [{"params": [make_param()]}, {"params": [make_param()]}]
        return ScheduledLR(fusedtricks.optim.SGD(groups, lr=0.4), schedule)

    state = make(Cosine(9)).state_dict()
    make([Cosine(9), Cosine(9)]).load_state_dict(state)
    with pytest.raises(ValueError, match="another configuration"):
        make([Cosine(9), Cosine(8)]).load_state_dict(state)


# Damaged states. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        {"last_epoch": math.nan},
        {"last_epoch": -5},
        {"last_epoch": math.inf},
        {"last_epoch": "3"},
        {"config": {}},
        {"config": "3"},
        {"config": {"schedules": {"lr": "Cosine(9)"}, "initial": {"lr": [math.nan]}}},
        {"config": {"schedules": {"lr": "Cosine(9)"}, "initial": {"lr": ["abc"]}}},
        {"config": {"schedules": {"lr": "Cosine('5ep')"}, "initial": {"lr": [0.1]}}},
        {"config": {"schedules": {"lr": ["Cosine(5)"] * 2}, "initial": {"lr": [0.1]}}},
        {"config": {"schedules": {"lr": "Exponential(1e9)"}, "initial": {"lr": [0.1]}}},
        {"config": {"schedules": {"lr": "__import__('os')"}, "initial": {"lr": [0.1]}}},
    ],
    ids=str,
)
def test_damaged_states_change_nothing(damage: dict[str, Any]) -> None:
    _, _, state = trained(0.1)
    if damage.get("config", {}) and "Exponential" in str(damage):
        state["last_epoch"] = 10**6
    scheduler = ScheduledLR(sgd(0.1), Cosine(10))
    scheduler.step()
    before = copy.deepcopy(scheduler.optimizer.param_groups[0])
    with pytest.raises(ValueError):
        scheduler.load_state_dict(state | damage, config="restore")
    after = scheduler.optimizer.param_groups[0]
    assert {k: v for k, v in after.items() if k != "params"} == {
        k: v for k, v in before.items() if k != "params"
    }
    assert (scheduler.schedules, scheduler.last_epoch) == ({"lr": Cosine(10)}, 1)
    scheduler.step()
    assert after["lr"] == Cosine(10)(2, 0.1)


def test_what_is_no_state() -> None:
    with pytest.raises(ValueError, match="expected the state of a fusedtricks scheduler, got one"):
        ScheduledLR(sgd(), Cosine(10)).load_state_dict(None)
