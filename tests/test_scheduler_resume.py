"""Stopping and going on: made and loaded in any order, the values are the same."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusedtricks
from fusedtricks import lr_scheduler
from fusedtricks.lr_scheduler import (
    ConstantWarmup,
    Cosine,
    Exponential,
    Linear,
    LinearWarmup,
    ScheduledLR,
    Step,
)
from tests.schedule_strategies import SETTINGS

N = 9  # Updates of the short run.
LR = (0.4, 0.03)

MAKERS: dict[str, Callable[..., Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.8**t),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.2, 3),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.6),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.3),
    "PiecewiseLR": lambda o: lr_scheduler.PiecewiseLR(o, [2, 5], [0.3, 1, 0.7]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.85),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 0.9, 6),
    "WarmupLR": lambda o: lr_scheduler.WarmupLR(o, 6, 0.1, 1),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, N, 1.7),
    "InverseSqrtLR": lambda o: lr_scheduler.InverseSqrtLR(o, 3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, N, [0.02, 0.001]),
    "WarmupStableDecayLR": lambda o: lr_scheduler.WarmupStableDecayLR(o, N, 2, 3, "sqrt", 0.05),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2, 0.003),
    "WarmUpRestarts": lambda o: lr_scheduler.CosineAnnealingWarmUpRestarts(o, 4, 2, 0.9, 2, 0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, [0.2, 0.5], 2, 3, "triangular2"),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.9, 0.2], N + 1, pct_start=0.4),
    "NormalizedWarmRestarts": lambda o: lr_scheduler.NormalizedWarmRestarts(o, 3, 2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [LinearWarmup(3), lr_scheduler.OneCycleLR(o, 0.9, 5), Cosine(4)], [3, 6]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [ConstantWarmup(3, 0.2), Step(2, 0.6), lr_scheduler.CosineAnnealingLR(o, N, 0.01)], o
    ),
    "three options": lambda o: ScheduledLR(
        o,
        [Cosine(N), Linear(N, 0.5)],
        momentum=Linear(N, 0.5, 1.0),
        beta2=Exponential(0.9),
        weight_decay=Step(2, 0.5),
    ),
}


def make_optimizer(kind: str = "ours", lrs: tuple[float, ...] = LR) -> torch.optim.Optimizer:
    cls = fusedtricks.optim.AdamW if kind == "ours" else torch.optim.AdamW
    groups = [
        {"params": [torch.nn.Parameter(torch.linspace(-1, 1, 5))], "lr": lr, "weight_decay": decay}
        for lr, decay in zip(lrs, (0.03, 0.07), strict=True)
    ]
    if kind == "tensor lr":
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    return cls(groups, betas=(0.7, 0.8))


def update(optimizer: torch.optim.Optimizer, t: int) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.sin(torch.arange(5.0) + t)
    optimizer.step()


def options_of(optimizer: torch.optim.Optimizer) -> list[tuple[float, ...]]:
    return [
        (float(g["lr"]), float(g["betas"][0]), float(g["betas"][1]), g["weight_decay"])
        for g in optimizer.param_groups
    ]


def uninterrupted(kind: str, make: Callable[..., Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Return options and parameters after every update, and the checkpoints there."""
    optimizer = make_optimizer(kind)
    scheduler = make(optimizer)
    options, params, checkpoints = [options_of(optimizer)], [], []
    for t in range(N):
        checkpoints.append(checkpoint(optimizer, scheduler))
        update(optimizer, t)
        scheduler.step()
        options.append(options_of(optimizer))
        params.append([p.detach().clone() for g in optimizer.param_groups for p in g["params"]])
    return options, params, checkpoints


def checkpoint(optimizer: torch.optim.Optimizer, scheduler: Any) -> bytes:
    file = io.BytesIO()
    weights = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    torch.save([optimizer.state_dict(), scheduler.state_dict(), weights], file)
    return file.getvalue()


# Every order in which optimizer (O), scheduler (S) can be made and loaded after the optimizer was
# made: S made, S loaded, O loaded.
ORDERS = [
    order
    for order in itertools.permutations(["make S", "load S", "load O"])
    if order.index("make S") < order.index("load S")
]


def resume(
    kind: str, make: Callable[..., Any], saved: bytes, order: tuple[str, ...]
) -> tuple[torch.optim.Optimizer, Any]:
    of_optimizer, of_scheduler, weights = torch.load(io.BytesIO(saved), weights_only=True)
    optimizer = make_optimizer(kind)
    scheduler = None
    for what in order:
        if what == "make S":
            scheduler = make(optimizer)
        elif what == "load S":
            scheduler.load_state_dict(of_scheduler)
        else:
            optimizer.load_state_dict(of_optimizer)
    params = [p for g in optimizer.param_groups for p in g["params"]]
    with torch.no_grad():
        for param, weight in zip(params, weights, strict=True):
            param.copy_(weight)
    return optimizer, scheduler


@pytest.mark.parametrize("kind", ["ours", "torch", "tensor lr"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_order_at_every_step(make: Callable[..., Any], kind: str) -> None:
    options, params, checkpoints = uninterrupted(kind, make)
    assert len({of_groups[0][0] for of_groups in options}) > 1
    for start, order in itertools.product(range(N), ORDERS):
        optimizer, scheduler = resume(kind, make, checkpoints[start], order)
        assert options_of(optimizer) == options[start], (start, order)
        for t in range(start, N):
            update(optimizer, t)
            scheduler.step()
            assert options_of(optimizer) == options[t + 1], (start, order)
        after = [p for g in optimizer.param_groups for p in g["params"]]
        for param, expected in zip(after, params[-1], strict=True):
            assert torch.equal(param, expected), (start, order)


@given(
    make=st.sampled_from(list(MAKERS.values())),
    stops=st.lists(st.integers(0, N - 1), min_size=1, max_size=4, unique=True),
    order=st.sampled_from(ORDERS),
)
@SETTINGS
def test_any_number_of_stops(
    make: Callable[..., Any], stops: list[int], order: tuple[str, ...]
) -> None:
    options, params, _ = uninterrupted("ours", make)
    optimizer = make_optimizer("ours")
    scheduler = make(optimizer)
    for t in range(N):
        if t in stops:
            optimizer, scheduler = resume("ours", make, checkpoint(optimizer, scheduler), order)
        assert options_of(optimizer) == options[t]
        update(optimizer, t)
        scheduler.step()
    after = [p for g in optimizer.param_groups for p in g["params"]]
    for param, expected in zip(after, params[-1], strict=True):
        assert torch.equal(param, expected)


@pytest.mark.parametrize("order", [("S", "O"), ("O", "S")], ids="".join)
def test_inside_torch_sequential(order: tuple[str, ...]) -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        parts = [
            lr_scheduler.WarmupLR(optimizer, 3, 0.1),
            lr_scheduler.CosineAnnealingLR(optimizer, 4, 0.001),
            lr_scheduler.StepLR(optimizer, 1, 0.5),
        ]
        return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [3, 6])

    options, _, checkpoints = uninterrupted("ours", make)
    whole = LinearWarmup(3, 0.1).then(Cosine(4).between(0.001), 3).then(Step(1, 0.5), 6)
    for t, of_groups in enumerate(options):
        for values, lr in zip(of_groups, LR, strict=True):
            assert values[0] == pytest.approx(whole(t, lr), rel=1e-12)
    for start, saved in enumerate(checkpoints):
        loads = ("make S", *(f"load {what}" for what in order))
        optimizer, scheduler = resume("ours", make, saved, loads)
        for t in range(start, N):
            assert options_of(optimizer) == options[t], start
            update(optimizer, t)
            scheduler.step()


# A changed configuration. ------------------------------------------------------------------------


def saved_state(schedule: Any, lrs: tuple[float, ...] = LR) -> dict[str, Any]:
    scheduler = ScheduledLR(make_optimizer("ours", lrs), schedule)
    for _ in range(4):
        scheduler.step()
    return scheduler.state_dict()


def lrs_of(scheduler: ScheduledLR) -> list[float]:
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def test_a_changed_schedule_is_refused_by_default() -> None:
    scheduler = ScheduledLR(make_optimizer(), Cosine(20))
    before = options_of(scheduler.optimizer)
    with pytest.raises(ValueError, match=r"another configuration:\n.*total=10.*total=20") as error:
        scheduler.load_state_dict(saved_state(Cosine(10)))
    assert "config='keep'" in str(error.value)
    assert "config='restore'" in str(error.value)
    assert scheduler.last_epoch == 0
    assert options_of(scheduler.optimizer) == before


def test_a_changed_schedule_is_kept() -> None:
    scheduler = ScheduledLR(make_optimizer(), Cosine(20))
    scheduler.load_state_dict(saved_state(Cosine(10)), config="keep")
    assert scheduler.schedules == {"lr": Cosine(20)}
    assert lrs_of(scheduler) == [Cosine(20)(4, lr) for lr in LR]


def test_a_changed_schedule_is_restored() -> None:
    scheduler = ScheduledLR(make_optimizer(), Cosine(20))
    scheduler.load_state_dict(saved_state([Cosine(10), Step(3, 0.3)]), config="restore")
    assert scheduler.schedules == {"lr": [Cosine(10), Step(3, 0.3)]}
    assert lrs_of(scheduler) == [Cosine(10)(4, LR[0]), Step(3, 0.3)(4, LR[1])]


def test_a_changed_learning_rate_is_a_changed_configuration() -> None:
    state = saved_state(Cosine(10), lrs=(0.7, 0.2))
    with pytest.raises(ValueError, match=r"lr initial values: \[0.7, 0.2\] in the checkpoint"):
        ScheduledLR(make_optimizer(), Cosine(10)).load_state_dict(state)
    kept = ScheduledLR(make_optimizer(), Cosine(10))
    kept.load_state_dict(state, config="keep")
    assert lrs_of(kept) == [Cosine(10)(4, lr) for lr in LR]
    restored = ScheduledLR(make_optimizer("tensor lr"), Cosine(10))
    tensors = lrs_of(restored)
    restored.load_state_dict(state, config="restore")
    assert [float(lr) for lr in lrs_of(restored)] == [Cosine(10)(4, lr) for lr in (0.7, 0.2)]
    assert all(a is b for a, b in zip(lrs_of(restored), tensors, strict=True))


def test_keep_also_holds_when_the_optimizer_is_loaded_last() -> None:
    first = make_optimizer()
    old = ScheduledLR(first, Cosine(10))
    for _ in range(4):
        old.step()
    second = make_optimizer()
    new = ScheduledLR(second, Cosine(20))
    new.load_state_dict(old.state_dict(), config="keep")
    second.load_state_dict(first.state_dict())
    assert lrs_of(new) == [Cosine(20)(4, lr) for lr in LR]


def test_functions_cannot_be_restored_but_are_compared_by_name() -> None:
    state = saved_state(lambda t: 0.5**t)
    scheduler = ScheduledLR(make_optimizer(), Cosine(10))
    with pytest.raises(ValueError, match=r"cannot restore the schedule Function\(.*use config='ke"):
        scheduler.load_state_dict(state, config="restore")
    assert scheduler.schedules == {"lr": Cosine(10)}
    assert scheduler.last_epoch == 0


def test_the_checkpoint_of_a_run_without_a_scheduler() -> None:
    """Such a checkpoint has no initial_lr: its learning rates are where the schedule starts."""
    plain = make_optimizer(lrs=(0.9, 0.6))
    first = make_optimizer()
    early = ScheduledLR(first, Cosine(10))
    early.step()
    first.load_state_dict(plain.state_dict())
    second = make_optimizer()
    second.load_state_dict(plain.state_dict())
    late = ScheduledLR(second, Cosine(10))
    late.step()
    assert lrs_of(early) == lrs_of(late) == [Cosine(10)(1, lr) for lr in (0.9, 0.6)]
    assert [group["initial_lr"] for group in first.param_groups] == [0.9, 0.6]


def test_states_that_are_none() -> None:
    scheduler = ScheduledLR(make_optimizer(), Cosine(10))
    theirs = torch.optim.lr_scheduler.StepLR(make_optimizer(), 3).state_dict()
    with pytest.raises(ValueError, match=r"expected the state of a fusedtricks scheduler, got"):
        scheduler.load_state_dict(theirs)
    with pytest.raises(ValueError, match="expected config 'error', 'keep' or 'restore', got 'x'"):
        scheduler.load_state_dict(scheduler.state_dict(), config="x")
    other = ScheduledLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3), Cosine(10))
    with pytest.raises(ValueError, match=r"expected a checkpoint of 2 param groups, got .* of 1"):
        scheduler.load_state_dict(other.state_dict(), config="restore")


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_by_themselves(copies: Callable[..., Any]) -> None:
    optimizer = make_optimizer()
    scheduler = ScheduledLR(optimizer, Cosine(10), momentum=Linear(10, 0.5, 1.0))
    scheduler.step()
    optimizer_2, scheduler_2 = copies((optimizer, scheduler))
    assert scheduler_2.optimizer is optimizer_2
    scheduler_2.step()
    assert scheduler.last_epoch == 1
    assert lrs_of(scheduler_2) == [Cosine(10)(2, lr) for lr in LR]
    state = optimizer_2.state_dict()
    state["param_groups"][0]["lr"] = 77.0
    optimizer_2.load_state_dict(state)
    assert lrs_of(scheduler_2) == [Cosine(10)(2, lr) for lr in LR]


def test_last_epoch_as_in_torch() -> None:
    optimizer = make_optimizer()
    with pytest.raises(KeyError, match="param 'initial_lr' is not specified in param_groups"):
        ScheduledLR(optimizer, Cosine(10), last_epoch=3)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    theirs = make_optimizer()
    for group in theirs.param_groups:
        group["initial_lr"] = group["lr"]
    ours = lr_scheduler.StepLR(optimizer, 2, 0.5, last_epoch=3)
    its = torch.optim.lr_scheduler.StepLR(theirs, 2, 0.5, last_epoch=3)
    assert ours.last_epoch == its.last_epoch == 4
    # torch multiplies what the optimizer has; ours is the value of the step.
    assert ours.get_last_lr() == [lr * 0.5**2 for lr in LR]
