"""Optimizers of one parameter, for tests of what drives optimizers."""

from typing import Any

import torch

import fusedtricks


def make_param(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values or (0.5, -0.25)))


def sgd(lr: Any = 0.4, **options: Any) -> fusedtricks.optim.SGD:
    return fusedtricks.optim.SGD([make_param()], lr=lr, momentum=0.7, **options)


def update(optimizer: torch.optim.Optimizer, value: float = 1.0) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, value)
    optimizer.step()
