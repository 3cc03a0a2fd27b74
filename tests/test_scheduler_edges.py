"""Schedulers given odd numbers, odd optimizers, later groups; what torch's allow."""

import gc
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fusedtricks
from fusedtricks import lr_scheduler
from fusedtricks.lr_scheduler import (
    ConstantWarmup,
    Cosine,
    Exponential,
    Linear,
    LinearWarmup,
    ScheduledLR,
    WarmupStableDecay,
)
from tests.small_optimizers import make_param, sgd

# Plain numbers. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "position", [np.int64(3), np.float64(2.5), torch.tensor(3), torch.tensor(1.5), 4.0]
)
def test_positions_are_plain_numbers(position: Any) -> None:
    scheduler = ScheduledLR(sgd(), Cosine(10), unit="epoch", steps_per_epoch=np.int64(2))
    scheduler.step(position)
    assert type(scheduler.last_epoch) in (int, float)
    assert scheduler.last_epoch == 2 * float(position)
    file = io.BytesIO()
    torch.save([scheduler.state_dict(), scheduler.optimizer.state_dict()], file)
    file.seek(0)
    torch.load(file, weights_only=True)


@pytest.mark.parametrize("factor", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5)])
def test_values_are_plain_numbers(factor: Any) -> None:
    scheduler = lr_scheduler.LambdaLR(sgd(), lambda t: factor)
    assert type(scheduler.optimizer.param_groups[0]["lr"]) is float
    assert scheduler.get_last_lr() == [0.2]


def test_positions_in_epochs_are_exact() -> None:
    """4.35 * 100 is 434.99999999999994 in floating point."""
    scheduler = lr_scheduler.PiecewiseLR(
        sgd(), ["4.35ep"], [1, 0.1], unit="epoch", steps_per_epoch=100
    )
    scheduler.step(4.35)
    assert scheduler.last_epoch == 435
    assert scheduler.get_last_lr() == pytest.approx([0.04], rel=1e-14)


def test_shares_of_a_whole_may_both_be_rounded_up() -> None:
    for total in range(2, 40):
        shares = WarmupStableDecay("1dur", "0.5dur", "0.5dur").resolve(total_steps=total)
        assert shares.total == total
        assert shares.warmup + shares.decay == total
    with pytest.raises(ValueError, match="expected warmup \\+ decay of at most total=10"):
        WarmupStableDecay("1dur", "0.6dur", "0.6dur").resolve(total_steps=10)


def test_values_that_overflow() -> None:
    scheduler = ScheduledLR(sgd(), Exponential(10.0))
    with pytest.raises(ValueError, match=r"expected finite values of lr, got \[inf\] at step 1000"):
        scheduler.step(1000)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (0, [0.4])


# What torch's schedulers allow. -------------------------------------------------------------------


def test_base_lrs_can_be_set() -> None:
    scheduler = ScheduledLR(sgd(), Cosine(10))
    scheduler.base_lrs = [0.8]
    scheduler.step()
    assert scheduler.get_last_lr() == [Cosine(10)(1, 0.8)]


def test_a_subclass_may_compute_its_own() -> None:
    class Halved(lr_scheduler.CosineAnnealingLR):
        def get_lr(self) -> list[float]:
            return [lr / 2 + self.last_epoch for lr in super().get_lr()]

    scheduler = Halved(sgd(), 10)
    for t in range(4):
        assert scheduler.get_last_lr() == [Cosine(10)(t, 0.4) / 2 + t]
        scheduler.step()


def test_wrapped_optimizers() -> None:
    """Wrappers such as Accelerate's do not call Optimizer.__init__."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)

    inner = sgd()
    scheduler = ScheduledLR(Wrapper(inner), Cosine(10))
    scheduler.step()
    state = inner.state_dict()
    state["param_groups"][0]["lr"] = 7.0
    # In control until then: the values are set again.
    inner.load_state_dict(state)
    assert inner.param_groups[0]["lr"] == Cosine(10)(1, 0.4)


def test_schedulers_leave_nothing_behind() -> None:
    optimizer = torch.optim.SGD([make_param()], lr=0.4, momentum=0.7)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(5):
        ScheduledLR(optimizer, Cosine(10), scaler=scaler)
    gc.collect()
    assert not optimizer._optimizer_load_state_dict_post_hooks
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_appended_schedules_have_the_units_of_the_scheduler() -> None:
    optimizer = sgd()
    scheduler = ScheduledLR(optimizer, [Cosine(9)], unit="epoch", steps_per_epoch=10)
    optimizer.add_param_group({"params": [make_param()], "lr": 0.03})
    scheduler.append_schedule(Linear(3))
    assert scheduler.schedules == {"lr": [Cosine(90), Linear(30)]}
    with pytest.raises(ValueError, match="expected momentum to have one schedule per group, but"):
        scheduler.append_schedule(Linear(3), "momentum")
    with pytest.raises(TypeError, match="to be a Schedule or a function, got <class"):
        ScheduledLR(optimizer, Cosine)


def test_a_later_group_has_its_own_normalized_decay() -> None:
    optimizer = fusedtricks.optim.AdamW([make_param()], lr=1e-3, weight_decay=0.025)
    scheduler = lr_scheduler.NormalizedWarmRestarts(optimizer, 100)
    optimizer.add_param_group({"params": [make_param()], "lr": 1e-4})
    with pytest.raises(ValueError, match=r"append_schedule\(schedule, 'weight_decay'\)"):
        scheduler.step()
    scheduler.append_schedule(lr_scheduler.NormalizedDecay(100, lr=1e-4), "weight_decay")
    scheduler.step()
    decays = [g["weight_decay"] * g["initial_lr"] for g in optimizer.param_groups]
    assert decays == pytest.approx([0.0025, 0.0025], rel=1e-12)


def test_warmups_in_front_of_absolute_schedules() -> None:
    with pytest.raises(ValueError, match="call with_warmup before between"):
        Cosine(10).between(0.1, 0.2).with_warmup(2, "inside")
    schedule = Cosine(10).with_warmup(2).between(0.1, 0.2)
    assert schedule.preview(4, 5.0)[:3] == pytest.approx([0.1, 0.15, 0.2], rel=1e-14)
    product = LinearWarmup(2) * Cosine(10).between(0.1, 0.2) * ConstantWarmup(1, 0.5)
    assert product(1, 5.0) == pytest.approx(Cosine(10).between(0.1, 0.2)(1) / 2, rel=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda o: lr_scheduler.CosineAnnealingLR(o, 9, "x"),
            "CosineAnnealingLR: .* eta_min .* 'x'",
        ),
        (lambda o: lr_scheduler.CyclicLR(o, 0.1, [None]), "CyclicLR: .* max_lr .* None"),
        (lambda o: lr_scheduler.OneCycleLR(o, "x", 9), "OneCycleLR: .* max_lr .* 'x'"),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 0.4, 9, max_momentum="x"),
            "OneCycleLR: .* max_momentum .* 'x'",
        ),
        (lambda o: lr_scheduler.LambdaLR(o, 0.5), "Function: .* callable, got 0.5"),
    ],
)
def test_errors_name_the_argument_of_the_caller(make: Callable[..., Any], message: str) -> None:
    optimizer = sgd()
    with pytest.raises(TypeError, match=message):
        make(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.4
