"""Schedulers: positions, groups, tensor values, skipped updates, and life beside torch's own."""

import math
import warnings
from typing import Any

import pytest
import torch

import fusedtricks
from fusedtricks import lr_scheduler
from fusedtricks.lr_scheduler import (
    Cosine,
    Exponential,
    Linear,
    LinearWarmup,
    ScheduledLR,
    Step,
)
from tests.small_optimizers import make_param, sgd, update

# Position. ----------------------------------------------------------------------------------------


def test_it_is_a_scheduler_of_torch() -> None:
    optimizer = sgd()
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 7, 0.01)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert (scheduler.last_epoch, scheduler.base_lrs) == (0, [0.4])
    assert scheduler.get_last_lr() == scheduler.get_lr() == [0.4]
    update(optimizer)
    scheduler.step()
    expected = [0.01 + (0.4 - 0.01) * (1 + math.cos(math.pi / 7)) / 2]
    assert scheduler.get_last_lr() == pytest.approx(expected, rel=1e-14)
    assert scheduler.last_epoch == 1
    assert optimizer.param_groups[0]["initial_lr"] == 0.4


def test_the_optimizers_step_is_not_wrapped() -> None:
    optimizer = sgd()
    ScheduledLR(optimizer, Cosine(7))
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("position", [0, 3, 2.5, 17])
def test_step_to_a_position(position: float) -> None:
    scheduler = ScheduledLR(sgd(), Cosine(9))
    scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scheduler.step(position)
    assert scheduler.last_epoch == position
    assert scheduler.get_last_lr() == [Cosine(9)(position, 0.4)]
    scheduler.step(1)
    scheduler.step()
    assert scheduler.get_last_lr() == [Cosine(9)(2, 0.4)]


def test_step_to_a_position_in_epochs() -> None:
    scheduler = ScheduledLR(sgd(), Cosine(3), unit="epoch", steps_per_epoch=8)
    scheduler.step(1.5)
    assert scheduler.last_epoch == 12
    assert scheduler.get_last_lr() == pytest.approx([0.2], rel=1e-14)
    scheduler.step()
    assert scheduler.last_epoch == 13


def test_bad_positions_change_nothing() -> None:
    scheduler = ScheduledLR(sgd(), Cosine(9))
    scheduler.step()
    with pytest.raises(ValueError, match="expected epoch of at least 0, got -2"):
        scheduler.step(-2)
    assert scheduler.last_epoch == 1
    assert scheduler.get_last_lr() == [Cosine(9)(1, 0.4)]


def test_after_the_end_the_value_holds_and_warns_once() -> None:
    scheduler = ScheduledLR(sgd(), Cosine(3, end=0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            scheduler.step()
        assert caught == []
        for _ in range(20):
            scheduler.step()
            assert scheduler.get_last_lr() == pytest.approx([0.04], rel=1e-14)
    assert [str(w.message)[:48] for w in caught] == [
        "ScheduledLR: the schedule ended after 3 updates "
    ]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("schedule", [LinearWarmup(2), Step(2, 0.5), Linear(2, 0.5, 1.0)])
def test_what_has_no_end_does_not_warn(schedule: Any) -> None:
    scheduler = ScheduledLR(sgd(), schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            scheduler.step()


# Groups and options. ------------------------------------------------------------------------------


def test_one_schedule_for_each_group() -> None:
    groups = [{"params": [make_param()], "lr": lr} for lr in (0.4, 0.03)]
    optimizer = fusedtricks.optim.SGD(groups, lr=1.0, momentum=0.7)
    scheduler = ScheduledLR(
        optimizer, [Cosine(9), Step(2, 0.3)], momentum=[Linear(4, 0.5, 1.0), Exponential(0.9)]
    )
    for t in range(5):
        assert [g["lr"] for g in optimizer.param_groups] == [
            Cosine(9)(t, 0.4),
            Step(2, 0.3)(t, 0.03),
        ]
        assert [g["momentum"] for g in optimizer.param_groups] == [
            Linear(4, 0.5, 1.0)(t, 0.7),
            Exponential(0.9)(t, 0.7),
        ]
        scheduler.step()


def test_a_group_added_later_follows_the_schedule() -> None:
    optimizer = sgd()
    scheduler = ScheduledLR(optimizer, Cosine(9), momentum=Linear(9, 0.5, 1.0))
    scheduler.step()
    optimizer.add_param_group({"params": [make_param()], "lr": 0.03, "momentum": 0.6})
    scheduler.step()
    assert scheduler.get_last_lr() == [Cosine(9)(2, 0.4), Cosine(9)(2, 0.03)]
    assert optimizer.param_groups[1]["momentum"] == Linear(9, 0.5, 1.0)(2, 0.6)
    assert optimizer.param_groups[1]["initial_lr"] == 0.03
    assert scheduler.base_lrs == [0.4, 0.03]


def test_a_group_added_later_to_schedules_per_group() -> None:
    optimizer = sgd()
    scheduler = ScheduledLR(optimizer, [Cosine(9)])
    optimizer.add_param_group({"params": [make_param()], "lr": 0.03})
    with pytest.raises(ValueError, match=r"group 1 was added .*append_schedule\(schedule, 'lr'\)"):
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.4, 0.03]
    assert scheduler.last_epoch == 0
    scheduler.append_schedule(Step(1, 0.5))
    scheduler.step()
    assert scheduler.get_last_lr() == [Cosine(9)(1, 0.4), 0.03 * 0.5]


def test_no_smaller_learning_rate_is_raised() -> None:
    groups = [{"params": [make_param()], "lr": lr} for lr in (0.4, 0.001)]
    optimizer = fusedtricks.optim.SGD(groups, lr=1.0)
    for scheduler in (
        lr_scheduler.CosineAnnealingLR(optimizer, 5, 0.01),
        lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5, 2, 0.01),
    ):
        of_steps = scheduler.preview(6)["lr"]
        assert [small for _, small in of_steps] == [0.001] * 6
        assert min(large for large, _ in of_steps) >= 0.01


def test_betas_are_scheduled_too() -> None:
    optimizer = fusedtricks.optim.AdamW([make_param()], lr=0.4, betas=(0.7, 0.8))
    scheduler = ScheduledLR(
        optimizer, None, momentum=Linear(4, 1.0, 0.5), beta2=Exponential(0.9), weight_decay=Step(1)
    )
    for _ in range(2):
        scheduler.step()
    group = optimizer.param_groups[0]
    assert group["betas"] == (Linear(4, 1.0, 0.5)(2, 0.7), Exponential(0.9)(2, 0.8))
    assert group["weight_decay"] == Step(1, 0.1)(2, 0.01)
    assert group["lr"] == 0.4
    assert scheduler.get_lr() == scheduler.get_last_lr() == scheduler.base_lrs == [0.4]


def test_options_an_optimizer_lacks() -> None:
    optimizer = fusedtricks.optim.Adagrad([make_param()], lr=0.4)
    with pytest.raises(ValueError, match="expected momentum in all param groups, but group 0 "):
        ScheduledLR(optimizer, Cosine(9), momentum=Cosine(9))
    with pytest.raises(ValueError, match="expected an optimizer with momentum or betas for "):
        lr_scheduler.OneCycleLR(optimizer, 0.4, 9, cycle_momentum=True)
    lr_scheduler.OneCycleLR(optimizer, 0.4, 9)
    lr_scheduler.CyclicLR(optimizer, 0.1, 0.4)


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (None, ValueError, "ScheduledLR: expected a schedule, got None for all options"),
        (3, TypeError, "expected the lr schedule to be a Schedule or a function, got 3"),
        ([Cosine(9)] * 2, ValueError, "expected one lr schedule or 1, one per param group, got 2"),
        (Cosine("9ep"), ValueError, "total='9ep' needs steps_per_epoch, got None"),
        (lambda t: math.nan, ValueError, r"expected finite values of lr, got \[nan\] at step 0"),
    ],
)
def test_bad_schedules(schedule: Any, error: type[Exception], message: str) -> None:
    optimizer = sgd()
    with pytest.raises(error, match=message):
        ScheduledLR(optimizer, schedule)
    assert optimizer.param_groups[0]["lr"] == 0.4


def test_bad_optimizers_and_units() -> None:
    with pytest.raises(TypeError, match="Linear is not an Optimizer"):
        ScheduledLR(torch.nn.Linear(2, 2), Cosine(9))
    with pytest.raises(ValueError, match="unit='epoch' needs steps_per_epoch"):
        ScheduledLR(sgd(), Cosine(9), unit="epoch")
    with pytest.raises(ValueError, match="expected steps_per_epoch above 0, got 0"):
        ScheduledLR(sgd(), Cosine(9), steps_per_epoch=0)


def test_a_schedule_that_fails_changes_nothing() -> None:
    groups = [{"params": [make_param()], "lr": lr} for lr in (0.4, 0.03)]
    optimizer = fusedtricks.optim.SGD(groups, lr=1.0)
    scheduler = lr_scheduler.LambdaLR(optimizer, [lambda t: 0.5**t, lambda t: 1 / (2 - t)])
    scheduler.step()
    with pytest.raises(ZeroDivisionError):
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.03]
    assert scheduler.last_epoch == 1
