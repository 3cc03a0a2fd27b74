"""Normalized weight decay, and AdamWR and SGDWR beside the algorithms of the paper."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedtricks
from fusedtricks.lr_scheduler import (
    NormalizedDecay,
    NormalizedWarmRestarts,
    normalized_weight_decay,
)

LR, W_NORM, BETAS, EPS = 0.03, 0.4, (0.7, 0.85), 1e-3
T_0, T_MULT = 3, 2
STEPS = 14  # Three cycles: 3, 6, and a part of 12.
CYCLE_OF_STEP = [3] * 3 + [6] * 6 + [12] * 5
TIME_OF_STEP = [*range(3), *range(6), *range(5)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # 128 / (50,000 * 100) = 2.56e-5; its root is 5.0596442563e-3.
        ((0.025, 128, 50_000, 100), 1.2649110641e-4),
        ((0.05, 256, 1_281_167, 90), 0.05 / math.sqrt(1_281_167 * 90 / 256)),
        ((1.0, 1, 4, 1), 0.5),
        ((0.0, 8, 64, 2), 0.0),
    ],
)
def test_the_formula(arguments: tuple[float, ...], expected: float) -> None:
    assert normalized_weight_decay(*arguments) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 8, 64, 2), "expected w_norm of at least 0, got -0.1"),
        ((0.1, 0, 64, 2), "expected batch_size above 0, got 0"),
        ((0.1, 8, -64, 2), "expected dataset_size above 0, got -64"),
        ((0.1, 8, 64, 0.0), "expected epochs above 0, got 0.0"),
        ((0.1, 8, 64, math.nan), "expected epochs to be finite, got nan"),
    ],
)
def test_bad_arguments(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalized_weight_decay(*arguments)


def test_the_schedule_is_the_formula_of_each_cycle() -> None:
    """With 50 updates of 8 in an epoch of 400, cycles of 2, 6, 18 epochs."""
    schedule = NormalizedDecay("2ep", 3, lr=0.5).resolve(steps_per_epoch=50)
    for epochs, first, last in ((2, 0, 99), (6, 100, 399), (18, 400, 1299)):
        expected = normalized_weight_decay(W_NORM, 8, 400, epochs) / 0.5
        assert schedule(first, W_NORM) == pytest.approx(expected, rel=1e-12)
        assert schedule(last, W_NORM) == pytest.approx(expected, rel=1e-12)
    assert schedule(50, 0.0) == 0.0


def gradient(step: int) -> Tensor:
    return torch.sin(torch.arange(1.0, 5.0, dtype=torch.float64) * (step + 1))


def start() -> Tensor:
    return torch.linspace(-2, 3, 4, dtype=torch.float64)


def schedule_multiplier(step: int) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * TIME_OF_STEP[step] / CYCLE_OF_STEP[step])


def adamwr_of_the_paper() -> Tensor:
    """Algorithm 2 with its schedule multiplier and normalized decay."""
    x, m, v = start(), torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for step in range(STEPS):
        g, eta = gradient(step), schedule_multiplier(step)
        w = W_NORM * math.sqrt(1 / CYCLE_OF_STEP[step])
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g**2
        m_hat, v_hat = m / (1 - BETAS[0] ** (step + 1)), v / (1 - BETAS[1] ** (step + 1))
        x = x - eta * (LR * m_hat / (v_hat.sqrt() + EPS) + w * x)
    return x


def sgdwr_of_the_paper(momentum: float) -> Tensor:
    """Algorithm 1, with the learning rate outside the buffer, as torch has it."""
    x, m = start(), torch.zeros(4, dtype=torch.float64)
    for step in range(STEPS):
        eta = schedule_multiplier(step)
        w = W_NORM * math.sqrt(1 / CYCLE_OF_STEP[step])
        m = momentum * m + gradient(step)
        x = x - eta * LR * m - eta * w * x
    return x


def train(optimizer: torch.optim.Optimizer) -> Tensor:
    scheduler = NormalizedWarmRestarts(optimizer, T_0, T_MULT)
    param = optimizer.param_groups[0]["params"][0]
    for step in range(STEPS):
        param.grad = gradient(step)
        optimizer.step()
        scheduler.step()
    return param.detach()


def make(cls: Any, **options: Any) -> torch.optim.Optimizer:
    return cls([torch.nn.Parameter(start())], lr=LR, weight_decay=W_NORM, **options)


ADAM = {"betas": BETAS, "eps": EPS}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (fusedtricks.optim.AdamW, ADAM | {"decouple_lr": True}),
        (fusedtricks.optim.AdamW, ADAM | {"decouple_lr": False}),
        (fusedtricks.optim.Adam, ADAM | {"decoupled_weight_decay": True}),
        (torch.optim.AdamW, ADAM),
    ],
    ids=["paper's reading", "torch's reading", "Adam", "torch.optim"],
)
def test_adamwr(cls: Any, options: dict[str, Any]) -> None:
    torch.testing.assert_close(
        train(make(cls, **options)), adamwr_of_the_paper(), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("decouple_lr", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_sgdwr(momentum: float, decouple_lr: bool) -> None:
    optimizer = make(fusedtricks.optim.SGDW, momentum=momentum, decouple_lr=decouple_lr)
    torch.testing.assert_close(
        train(optimizer), sgdwr_of_the_paper(momentum), rtol=1e-12, atol=1e-13
    )


def test_groups_without_decay_stay_without() -> None:
    groups = [
        {"params": [torch.nn.Parameter(start())], "weight_decay": 0.0},
        {"params": [torch.nn.Parameter(start())], "lr": 0.5, "decouple_lr": True},
        {"params": [torch.nn.Parameter(start())], "lr": 0.25},
    ]
    optimizer = fusedtricks.optim.AdamW(groups, lr=LR, weight_decay=W_NORM, **ADAM)
    scheduler = NormalizedWarmRestarts(optimizer, 4, 2)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, W_NORM / 2, W_NORM / 2 / 0.25]
    for _ in range(4):
        scheduler.step()
    expected = [0, W_NORM / math.sqrt(8), W_NORM / math.sqrt(8) / 0.25]
    assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx(expected, rel=1e-14)


def test_coupled_decay_is_refused() -> None:
    for cls in (fusedtricks.optim.Adam, fusedtricks.optim.SGD, torch.optim.SGD, torch.optim.Adam):
        optimizer = make(cls)
        with pytest.raises(ValueError, match=rf"expected decoupled decay, {cls.__name__} adds its"):
            NormalizedWarmRestarts(optimizer, 4, 2)
        assert optimizer.param_groups[0]["weight_decay"] == W_NORM
    with pytest.raises(ValueError, match="expected an lr above 0 in param group 0, got 0"):
        NormalizedWarmRestarts(fusedtricks.optim.SGDW([torch.nn.Parameter(start())], lr=0), 4, 2)
