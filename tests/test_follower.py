"""Averages that follow an optimizer: what the step does of it, and what it leaves to the hook."""

import copy
import functools
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fusedtricks import optim
from fusedtricks.nn import ModelEMA, OrthogonalDecay
from tests.devices import NATIVE, SKIPS_ON_DEVICE
from tests.followed import SMALL, Followed, counts, holder, make
from tests.followed import moved as moved
from tests.pairs import give_grads
from tests.python_plans import python_plan as python_plan


def with_buffers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def test_buffers_and_frozen_parameters(moved) -> None:
    model = with_buffers()
    model[0].weight.requires_grad_(False)
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    ema, by_hand = (ModelEMA(model, decay=0.83) for _ in range(2))
    ema.follow(optimizer, model)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(7, 3)).square().sum().backward()
        optimizer.step()
        by_hand.update_parameters(model)
    assert counts(moved) == [0, 5, 5, 5]
    for mine, other in zip(ema.state_dict().values(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-6, atol=2e-6)
    assert torch.equal(ema.module[1].running_mean, by_hand.module[1].running_mean)


def test_gradients_come_and_go(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03, momentum=0.7)
    followed = Followed(model, optimizer)
    for without in ((2, 3), (2, 3), (), (5,), (0, 1, 2, 3, 4, 5), (2,), ()):
        followed.step(without)
        followed.check()
    assert counts(moved) == [0, 4, 6, 5, 0, 5, 6]


def test_shared_parameters_move_once(moved) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    optimizer = optim.SGD(model.parameters(), lr=0.03, momentum=0.7)
    Followed(model, optimizer).run(3).check()
    assert counts(moved) == [0, 1, 1]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_the_average_of_a_parameter_that_is_listed_twice_moves_once(moved) -> None:
    model = make(shapes=[(5, 3), (7,)])
    twice, once = model.parameters()
    optimizer = optim.SGD([twice, once, twice], lr=0.03, momentum=0.7)
    Followed(model, optimizer).run(3).check()
    assert counts(moved) == [0, 1, 1]


def test_two_averages_of_one_model(moved) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03)
    first, second = Followed(model, optimizer), Followed(model, optimizer, decay=0.4)
    for _ in range(4):
        first.step()
        second.note()
    first.check()
    second.check()
    # The first hook's by the step, the second's by the hook.
    assert counts(moved) == [0, 0, 6, 0, 6, 0, 6, 0]
    first.handle.remove()
    for _ in range(3):
        second.step()
    second.check()
    assert counts(moved)[8:] == [6, 6, 6]
    assert first.ema.n_averaged == 4


def test_an_earlier_hook_may_change_the_weights(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.3, momentum=0.7)

    @torch.no_grad()
    def limit(*_: Any) -> None:
        for param in model.parameters():
            param.clamp_(-0.2, 0.2)

    handle = optimizer.register_step_post_hook(limit)
    followed = Followed(model, optimizer).run(4)
    followed.check()
    assert not any(moved)
    handle.remove()
    followed.run(2).check()
    assert counts(moved)[4:] == [6, 6]


def limit(optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.clamp_(-0.2, 0.2)


def limited(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def limited_step(self: Any, *args: Any) -> None:
        step(self, *args)
        limit(self)

    return limited_step


class Limited(optim.SGD):
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        limit(self)
        return loss


class Decorated(optim.SGD):
    step = limited(optim.FusedOptimizer.step)


@pytest.mark.parametrize("cls", [Limited, Decorated])
def test_a_subclass_may_change_the_weights(cls, moved) -> None:
    # From now on torch's hooks are around SGD.step too.
    assert optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1).step.hooked
    model = make()
    Followed(model, cls(model.parameters(), lr=0.3, momentum=0.7)).run(4).check()
    assert len(moved) == 4 and not any(moved)


def test_a_decorator_around_the_hooks_changes_the_weights_after_them(moved) -> None:
    class Own(optim.SGD):
        pass

    model = make()
    followed = Followed(model, Own(model.parameters(), lr=0.3, momentum=0.7)).run(2)
    Own.step = limited(Own.step)
    give_grads(followed.params, 2)
    with_hook = followed.optimizer.register_step_post_hook(lambda *_: followed.note())
    followed.optimizer.step()
    with_hook.remove()
    followed.check()
    assert counts(moved) == [0, 6, 0]


class EverySecond(ModelEMA):
    n = 0

    def update_parameters(self, model: nn.Module) -> None:
        self.n += 1
        if self.n % 2:
            super().update_parameters(model)


def test_an_update_of_a_subclass_is_called(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.3)
    ema, by_hand = (EverySecond(model, decay=0.8) for _ in range(2))
    ema.follow(optimizer, model)
    for number in range(5):
        give_grads(list(model.parameters()), number)
        optimizer.step()
        by_hand.update_parameters(model)
    assert ema.n_averaged == 3 and not moved
    for mine, other in zip(ema.module, by_hand.module, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("is_first", [True, False], ids=["decay first", "average first"])
def test_orthogonal_decay_is_part_of_the_step(is_first, moved) -> None:
    model = nn.Linear(3, 5)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    if is_first:
        OrthogonalDecay(optimizer, model, strength=0.5)
    followed = Followed(model, optimizer).run(2)
    if not is_first:
        OrthogonalDecay(optimizer, model, strength=0.5)
    followed.run(3).check()
    assert not any(moved[2:])


def test_removal_ends_it(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    followed.handle.remove()
    before = copy.deepcopy(followed.ema.state_dict())
    give_grads(followed.params, 9)
    optimizer.step()
    for now, then in zip(followed.ema.state_dict().values(), before.values(), strict=True):
        assert torch.equal(now, then)
    assert len(moved) == 3
    gone = weakref.ref(followed.ema)
    params = followed.params
    del followed, now, then, moved[:]
    gc.collect()
    assert gone() is None and optimizer._plan is not None and len(params) == len(SMALL)


def test_an_average_that_refers_to_the_optimizer_can_be_collected() -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    followed.ema.module[3].owner = optimizer
    gone = [weakref.ref(thing) for thing in (model, followed.ema, optimizer)]
    del model, optimizer, followed
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


@pytest.mark.parametrize("how", ["reference", "overlapping"])
def test_what_the_fused_backends_do_not_take(how, moved) -> None:
    memory = torch.randn(12)
    shapes = [memory[:8], memory[4:]] if how == "overlapping" else [memory[:8], memory[8:]]
    model = holder([])
    for view in shapes:
        model.append(nn.Parameter(view))
    backend = "reference" if how == "reference" else "auto"
    optimizer = optim.SGD(model.parameters(), lr=0.03, backend=backend)
    Followed(model, optimizer).run(4).check()
    assert not any(moved)


# Checkpoints, errors, skipped steps. --------------------------------------------------------------


def test_checkpoints_and_copies_of_the_optimizer_know_nothing_of_it() -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    assert optimizer.state_dict()["state"][2].keys() == {"step", "exp_avg", "exp_avg_sq"}
    copied = copy.deepcopy(optimizer)
    before = copy.deepcopy(followed.ema.state_dict())
    give_grads([p for group in copied.param_groups for p in group["params"]], 9)
    copied.step()
    for now, then in zip(followed.ema.state_dict().values(), before.values(), strict=True):
        assert torch.equal(now, then)
    followed.run(2).check()


@pytest.mark.parametrize("backend", [NATIVE, "reference"])
@pytest.mark.parametrize(
    ("decay", "error"),
    [(math.nan, ValueError), (1.0, ValueError), (-0.1, ValueError), ("0.9", TypeError)],
)
def test_a_decay_that_was_set_wrongly_changes_nothing(decay, error, backend) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03, backend=backend)
    followed = Followed(model, optimizer).run(3)
    good, followed.ema.decay = followed.ema.decay, decay
    give_grads(followed.params, 9)
    before = [tensor.detach().clone() for tensor in (*model, *followed.ema.module)]
    with pytest.raises(error, match="ModelEMA: expected decay"):
        optimizer.step()
    now = [*model, *followed.ema.module]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    followed.ema.decay = good
    followed.run(2).check()


def test_a_failed_step_moves_no_average(moved) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    before = copy.deepcopy(followed.ema.state_dict())
    give_grads(followed.params, 9)
    good, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], torch.ones(2)
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    for now, then in zip(followed.ema.state_dict().values(), before.values(), strict=True):
        assert torch.equal(now, then)
    optimizer.param_groups[0]["lr"] = good
    followed.run(2).check()
    assert counts(moved) == [0, 6, 6, 6, 6]


def test_a_step_that_is_skipped_leaves_the_averages_near_the_weights(moved) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03, skip_nonfinite=True)
    followed = Followed(model, optimizer).run(3)
    before = [average.detach().clone() for average in followed.ema.module.parameters()]
    give_grads(followed.params, 9)
    followed.params[3].grad[0, 0] = torch.inf
    optimizer.step()
    assert optimizer.skipped_steps == 1
    if SKIPS_ON_DEVICE:
        followed.n += 1
        for now, then in zip(followed.ema.module.parameters(), before, strict=True):
            assert torch.equal(now, then)
    else:
        followed.note()
    followed.check()
    followed.run(2).check()
    assert counts(moved)[-2:] == [6, 6]


@pytest.mark.skipif(NATIVE != "cpu", reason="needs a device that Python reads without waiting")
def test_a_first_step_that_is_skipped_copies_the_weights() -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03, skip_nonfinite=True)
    followed = Followed(model, optimizer)
    with torch.no_grad():
        for param in followed.params:
            param.mul_(0.5)
    for param in followed.params:
        param.grad = torch.full_like(param, torch.nan)
    optimizer.step()
    followed.note()
    followed.check()
    followed.run(3).check()
