"""Gradients, optimizers and learning rates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bench.tricks.arm import Arm
from bench.tricks.training import LR, MOMENTUM, N_UPDATES, WEIGHT_DECAY, fit, sgd
from fusedtricks import optim
from fusedtricks.lr_scheduler import (
    Constant,
    Cosine,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Piecewise,
    Schedule,
    WarmRestarts,
    WarmUpRestarts,
)

__all__ = ["ARMS"]


def _with(name: str, settings: str, **options: Any) -> Arm:
    """Return the arm whose SGD has other options."""
    return Arm(name, settings, partial(fit, optimizer=partial(sgd, **options)))


def _by(name: str, settings: str, optimizer: Callable[[nn.Module], Optimizer]) -> Arm:
    return Arm(name, settings, partial(fit, optimizer=optimizer))


def _under(name: str, settings: str, schedule: Schedule) -> Arm:
    return Arm(name, settings, partial(fit, schedule=schedule))


def _no_bias_decay(model: nn.Module) -> Optimizer:
    groups = optim.param_groups(model, WEIGHT_DECAY, verbose=False)
    return optim.SGD(groups, lr=LR, momentum=MOMENTUM)


# Of the update size that plain SGD with momentum has in the long run.
_PLAIN_LR = LR / (1 - MOMENTUM)
_QUARTER = N_UPDATES // 4

ARMS = [
    _with("clip_grad_norm", "clip_grad_norm=2", clip_grad_norm=2.0),
    _with("clip_grad_value", "clip_grad_value=0.1", clip_grad_value=0.1),
    _with("gradient_centralization", "centralize_grad=True", centralize_grad=True),
    _with("gradient_centralization_conv", 'centralize_grad="conv"', centralize_grad="conv"),
    _with("no_weight_decay", "weight_decay=0", weight_decay=0.0),
    _by(
        "decoupled_decay",
        f"SGDW, weight_decay={WEIGHT_DECAY / (1 - MOMENTUM):g}, the same in the long run",
        lambda model: optim.SGDW(
            model.parameters(),
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY / (1 - MOMENTUM),
        ),
    ),
    _by("no_bias_decay", "param_groups: norms and biases without decay", _no_bias_decay),
    _with("no_momentum", f"momentum=0, lr={_PLAIN_LR:g}", momentum=0.0, lr=_PLAIN_LR),
    _with("nesterov", "nesterov=True", nesterov=True),
    _with("lower_lr", "lr=0.02", lr=0.02),
    _with("higher_lr", "lr=0.2", lr=0.2),
    _by(
        "adagrad",
        "Adagrad, lr=0.02, no decay",
        lambda model: optim.Adagrad(model.parameters(), lr=0.02),
    ),
    _by(
        "rmsprop",
        "RMSprop, lr=1e-3, no decay",
        lambda model: optim.RMSprop(model.parameters(), lr=1e-3),
    ),
    _by("adam", "Adam, lr=2e-3, no decay", lambda model: optim.Adam(model.parameters(), lr=2e-3)),
    _by(
        "adamw",
        "AdamW, lr=2e-3, weight_decay=0.05",
        lambda model: optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05),
    ),
    _by(
        "radam",
        "torch's RAdam, lr=2e-3, no decay",
        lambda m: torch.optim.RAdam(m.parameters(), lr=2e-3),
    ),
    _under("constant_lr", "no decay", Constant()),
    _under("constant_lr_half", "half the rate, no decay", Constant(0.5)),
    _under(
        "step_lr",
        "a tenth after a half and three quarters",
        Piecewise((2 * _QUARTER, 3 * _QUARTER), (1, 0.1, 0.01)),
    ),
    _under("exponential_lr", "down to a hundredth", Exponential(0.01, N_UPDATES)),
    _under("linear_lr", "down to 0", Linear(N_UPDATES)),
    _under("inverse_sqrt_lr", "timescale=10 updates", InverseSqrt(10)),
    _under("warmup", "linear over a tenth", Cosine(N_UPDATES).with_warmup(30, "inside")),
    _under("warm_restarts", "cycles of 1/7, 2/7 and 4/7", WarmRestarts(N_UPDATES // 7 + 1, 2)),
    Arm(
        "warmup_restarts",
        "two cycles, each with 15 updates of warm-up from a hundredth",
        partial(
            fit,
            optimizer=partial(sgd, lr=LR / 100),
            schedule=WarmUpRestarts(N_UPDATES // 2, 1, eta_max=LR, T_up=15),
        ),
    ),
    _under("cyclic_lr", "two triangles up to 2 lr", Constant(2) * Cyclic(_QUARTER)),
    _under("one_cycle", "up to 2 lr after 30 %", Constant(2) * OneCycle(N_UPDATES)),
]
