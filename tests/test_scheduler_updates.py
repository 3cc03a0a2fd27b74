"""Schedulers and updates: tensor values, compiled steps, skipped updates, accumulation."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch

import fusedtricks
from fusedtricks import lr_scheduler
from fusedtricks.lr_scheduler import Cosine, Exponential, Linear, ScheduledLR, Step
from tests.devices import NATIVE
from tests.small_optimizers import make_param, sgd, update

# Tensors. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_lr_is_filled_in_place(shape: tuple[int, ...]) -> None:
    lr = torch.full(shape, 0.4, dtype=torch.float64)
    optimizer = sgd(lr)
    scheduler = ScheduledLR(optimizer, Cosine(9))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == Cosine(9)(1, 0.4)
    last = scheduler.get_last_lr()[0]
    assert last.shape == shape
    scheduler.step()
    assert last.item() == Cosine(9)(1, 0.4)
    assert optimizer.param_groups[0]["initial_lr"] == 0.4


def test_a_float32_lr_does_not_drift() -> None:
    """torch multiplies the rounded tensor again and again."""
    lr = torch.tensor(0.4)
    scheduler = lr_scheduler.ExponentialLR(sgd(lr), 0.9999)
    for _ in range(20_000):
        scheduler.step()
    assert lr.item() == pytest.approx(0.4 * 0.9999**20_000, rel=1e-7)


def test_tensor_betas_are_filled_in_place() -> None:
    betas = (torch.tensor(0.7), torch.tensor(0.8))
    optimizer = fusedtricks.optim.AdamW([make_param()], lr=0.4, betas=betas)
    kept = optimizer.param_groups[0]["betas"]
    ScheduledLR(optimizer, Cosine(9), momentum=Linear(4, 0.5, 1.0), beta2=Exponential(0.9)).step()
    assert optimizer.param_groups[0]["betas"] is kept
    assert kept[0].item() == pytest.approx(Linear(4, 0.5, 1.0)(1, 0.7), rel=1e-6)
    assert kept[1].item() == pytest.approx(0.72, rel=1e-6)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_steps_see_the_schedule(fullgraph: bool) -> None:
    """With torch's schedulers attached, fullgraph fails: they wrap optimizer.step."""
    torch._dynamo.reset()
    param, twin = make_param(), make_param()
    optimizer = fusedtricks.optim.SGD([param], lr=torch.tensor(0.4), momentum=0.7)
    plain = torch.optim.SGD([twin], lr=0.4, momentum=0.7)
    scheduler = ScheduledLR(optimizer, Cosine(9))
    n_compiled = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal n_compiled
        n_compiled += 1
        return graph.forward

    @torch.compile(backend=counting, fullgraph=fullgraph)
    def step() -> None:
        optimizer.step()

    after_two = 0
    for t in range(6):
        plain.param_groups[0]["lr"] = Cosine(9)(t, 0.4)
        param.grad = torch.tensor([0.3, -0.2]) * (t + 1)
        twin.grad = param.grad.clone()
        step()
        plain.step()
        scheduler.step()
        after_two = n_compiled if t == 1 else after_two
        torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-6)
    assert n_compiled == after_two


# Skipped updates and accumulation. ----------------------------------------------------------------


def overflowing(scaler: Any, optimizer: torch.optim.Optimizer, overflow: bool) -> None:
    optimizer.zero_grad()
    param = optimizer.param_groups[0]["params"][0]
    scaler.scale((param * (math.inf if overflow else 1.0)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()


PATTERN = [True, True, False, False, True, False, True, True, False]
POSITIONS = list(itertools.accumulate(0 if overflow else 1 for overflow in PATTERN))


@pytest.mark.parametrize("cls", [fusedtricks.amp.GradScaler, torch.amp.GradScaler])
def test_updates_skipped_by_a_scaler_do_not_count(cls: Any) -> None:
    optimizer = sgd()
    scheduler = ScheduledLR(optimizer, Cosine(9))
    scaler = cls(NATIVE, init_scale=8.0)
    for overflow, position in zip(PATTERN, POSITIONS, strict=True):
        overflowing(scaler, optimizer, overflow)
        scheduler.step()
        assert scheduler.last_epoch == position
        assert optimizer.param_groups[0]["lr"] == Cosine(9)(position, 0.4)


@pytest.mark.parametrize("fused", [False, True])
def test_updates_of_torch_skipped_by_a_scaler_do_not_count(fused: bool) -> None:
    optimizer = torch.optim.SGD([make_param()], lr=0.4, momentum=0.7, fused=fused)
    scaler = torch.amp.GradScaler(NATIVE, init_scale=8.0, growth_interval=2)
    scheduler = ScheduledLR(optimizer, Cosine(9), scaler=scaler)
    for overflow, position in zip(PATTERN, POSITIONS, strict=True):
        overflowing(scaler, optimizer, overflow)
        scheduler.step()
        assert scheduler.last_epoch == position


def test_nonfinite_updates_that_the_optimizer_skips_do_not_count() -> None:
    optimizer = sgd(skip_nonfinite=True)
    scheduler = ScheduledLR(optimizer, Cosine(9))
    for overflow, position in zip(PATTERN, POSITIONS, strict=True):
        update(optimizer, math.nan if overflow else 1.0)
        scheduler.step()
        assert scheduler.last_epoch == position


def test_one_skipped_update_in_an_epoch_does_not_hold_the_epoch_up() -> None:
    optimizer = sgd(skip_nonfinite=True)
    scheduler = ScheduledLR(optimizer, Step(2, 0.5))
    for epoch in range(4):
        for value in (1.0, math.inf, math.nan, 1.0, math.inf):
            update(optimizer, value)
        scheduler.step()
        assert scheduler.last_epoch == epoch + 1
    for _ in range(3):
        update(optimizer, math.nan)
    scheduler.step()
    assert scheduler.last_epoch == 4


def test_the_device_is_not_asked_where_nothing_can_be_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = sgd()
    scheduler = ScheduledLR(optimizer, Cosine(9))
    update(optimizer)
    scheduler.step()
    asked = property(lambda self: pytest.fail("waited for the device"))
    monkeypatch.setattr(fusedtricks.optim.FusedOptimizer, "skipped_steps", asked)
    update(optimizer)
    scheduler.step()
    assert scheduler.last_epoch == 2


def test_skips_from_before_the_scheduler_do_not_count() -> None:
    optimizer = sgd(skip_nonfinite=True)
    update(optimizer, math.nan)
    scheduler = ScheduledLR(optimizer, Cosine(9))
    update(optimizer)
    scheduler.step()
    assert scheduler.last_epoch == 1


def test_without_updates_every_call_counts() -> None:
    """As in torch: a loop that only looks at the values."""
    scheduler = ScheduledLR(sgd(), Cosine(9))
    values = []
    for _ in range(9):
        values.append(scheduler.get_last_lr()[0])
        scheduler.step()
    assert values == Cosine(9).preview(9, 0.4) == [lr for (lr,) in scheduler.preview(9)["lr"]]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_accumulated_gradients_count_once_per_update(accumulate: int) -> None:
    optimizer = sgd()
    scheduler = ScheduledLR(optimizer, Cosine("2ep"), steps_per_epoch=12 // accumulate)
    param = optimizer.param_groups[0]["params"][0]
    for batch in range(24):
        (param.sum() / accumulate).backward()
        if (batch + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    assert scheduler.last_epoch == 24 // accumulate
    assert scheduler.get_last_lr() == [0.0]


def test_the_number_of_processes_does_not_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 8)
    scheduler = ScheduledLR(sgd(), Cosine("2ep"), steps_per_epoch=6)
    for t in range(12):
        assert scheduler.get_last_lr() == [Cosine(12)(t, 0.4)]
        scheduler.step()


# Skips that are easily missed or invented. --------------------------------------------------------


def test_the_first_update_after_a_checkpoint_may_be_a_skipped_one() -> None:
    for order in (("O", "S"), ("S", "O")):
        first = sgd(skip_nonfinite=True)
        scheduler = ScheduledLR(first, Cosine(9))
        for _ in range(3):
            update(first)
            scheduler.step()
        second = sgd(skip_nonfinite=True)
        resumed = ScheduledLR(second, Cosine(9))
        for what in order:
            if what == "O":
                second.load_state_dict(first.state_dict())
            else:
                resumed.load_state_dict(scheduler.state_dict())
        update(second, math.nan)
        resumed.step()
        assert resumed.last_epoch == 3
        update(second)
        resumed.step()
        assert resumed.last_epoch == 4


def test_a_loaded_scaler_is_no_skipped_update() -> None:
    optimizer = torch.optim.SGD([make_param()], lr=0.4, momentum=0.7)
    scaler = torch.amp.GradScaler(NATIVE, init_scale=2.0**16)
    scheduler = ScheduledLR(optimizer, Cosine(9), scaler=scaler)
    scaler.load_state_dict(torch.amp.GradScaler(NATIVE, init_scale=8.0).state_dict())
    for position, overflow in ((1, False), (1, True), (2, False)):
        overflowing(scaler, optimizer, overflow)
        scheduler.step()
        assert scheduler.last_epoch == position


def test_two_optimizers_of_torch_and_one_scaler() -> None:
    scaler = torch.amp.GradScaler(NATIVE, init_scale=8.0)
    both = [torch.optim.SGD([make_param()], lr=0.4, momentum=0.7) for _ in range(2)]
    schedulers = [ScheduledLR(optimizer, Cosine(9), scaler=scaler) for optimizer in both]
    for optimizer, factor in zip(both, (math.inf, 1.0), strict=True):
        scaler.scale((optimizer.param_groups[0]["params"][0] * factor).sum()).backward()
        scaler.step(optimizer)
    scaler.update(1024.0)
    for scheduler in schedulers:
        scheduler.step()
    assert [scheduler.last_epoch for scheduler in schedulers] == [0, 1]


@pytest.mark.parametrize("fused", [False, True])
def test_an_epoch_of_torch_with_a_skipped_update(fused: bool) -> None:
    optimizer = torch.optim.SGD([make_param()], lr=0.4, momentum=0.7, fused=fused)
    scaler = torch.amp.GradScaler(NATIVE, init_scale=8.0)
    scheduler = ScheduledLR(optimizer, Step(2, 0.5), scaler=scaler)
    for epoch, overflows in enumerate([(False, True), (True, False), (False, False)]):
        for overflow in overflows:
            overflowing(scaler, optimizer, overflow)
        scheduler.step()
        assert scheduler.last_epoch == epoch + 1
    for _ in range(2):
        overflowing(scaler, optimizer, True)
    scheduler.step()
    assert scheduler.last_epoch == 3


def test_a_scaler_that_is_off() -> None:
    optimizer = torch.optim.SGD([make_param()], lr=0.4, momentum=0.7)
    scaler = torch.amp.GradScaler(NATIVE, enabled=False)
    scheduler = ScheduledLR(optimizer, Cosine(9), scaler=scaler)
    for t in range(3):
        overflowing(scaler, optimizer, False)
        scheduler.step()
        assert scheduler.last_epoch == t + 1
    scheduler.step()
    assert scheduler.last_epoch == 4


def test_a_count_that_was_set_to_0() -> None:
    optimizer = sgd(skip_nonfinite=True)
    scheduler = ScheduledLR(optimizer, Cosine(9))
    for _ in range(3):
        update(optimizer, math.nan)
        scheduler.step()
    optimizer.skipped_steps = 0
    update(optimizer, math.nan)
    scheduler.step()
    assert scheduler.last_epoch == 0


def test_a_skip_after_a_jump() -> None:
    optimizer = sgd(skip_nonfinite=True)
    scheduler = ScheduledLR(optimizer, Cosine(9))
    update(optimizer)
    scheduler.step(5)
    update(optimizer, math.nan)
    scheduler.step()
    assert scheduler.last_epoch == 5


def test_a_skip_after_a_milestone_of_torch() -> None:
    optimizer = sgd(skip_nonfinite=True)
    parts = [lr_scheduler.WarmupLR(optimizer, 2, 0.1), lr_scheduler.CosineAnnealingLR(optimizer, 9)]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [2])
    for value in (1.0, 1.0, math.nan):
        update(optimizer, value)
        scheduler.step()
    assert parts[1].last_epoch == 0


def test_copies_notice_skips_themselves() -> None:
    optimizer = torch.optim.SGD([make_param()], lr=0.4, momentum=0.7)
    scaler = torch.amp.GradScaler(NATIVE, init_scale=8.0)
    originals = optimizer, scaler, ScheduledLR(optimizer, Cosine(9), scaler=scaler)
    optimizer, scaler, scheduler = copy.deepcopy(originals)
    for position, overflow in ((1, False), (1, True), (2, False)):
        overflowing(scaler, optimizer, overflow)
        scheduler.step()
        assert scheduler.last_epoch == position
    assert originals[2].last_epoch == 0


def test_what_was_before_a_checkpoint_does_not_count() -> None:
    optimizer = torch.optim.SGD([make_param()], lr=0.4, momentum=0.7)
    scaler = torch.amp.GradScaler(NATIVE, init_scale=8.0)
    scheduler = ScheduledLR(optimizer, Cosine(9), scaler=scaler)
    state = scheduler.state_dict()
    overflowing(scaler, optimizer, False)
    scheduler.load_state_dict(state)
    overflowing(scaler, optimizer, True)
    scheduler.step()
    assert scheduler.last_epoch == 0
