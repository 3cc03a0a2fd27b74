"""Optimizers that plan their steps in Python, as they do without the compiled extension."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import optim
from fusedtricks.optim import FusedOptimizer, native, plan
from tests.devices import NATIVE
from tests.pairs import make_params

__all__ = ["adamw", "first", "give_grads", "planned", "python_plan", "swap"]


@pytest.fixture
def python_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the plan in Python."""
    monkeypatch.setattr(native, "_planner", plan)


def give_grads(optimizer: FusedOptimizer) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def planned(optimizer: FusedOptimizer, n_steps: int = 2) -> plan.Plan:
    """Take steps, of which all but the first are planned before; return the plan."""
    for _ in range(n_steps):
        give_grads(optimizer)
        optimizer.step()
    assert isinstance(optimizer._plan, plan.Plan)
    return optimizer._plan


def adamw(shapes: tuple[Any, ...] = ((5,), (4, 3), ()), **kwargs: Any) -> FusedOptimizer:
    """Return AdamW of two groups, the first of which has all parameters but the last."""
    params = make_params(torch.float32, shapes)
    groups = [{"params": params[:-1]}, {"params": params[-1:]}]
    return optim.AdamW(groups, lr=0.03, weight_decay=0.13, backend=NATIVE, **kwargs)


def first(optimizer: FusedOptimizer) -> Tensor:
    return optimizer.param_groups[0]["params"][0]


def swap(param: Tensor) -> None:
    """Exchange a parameter with one of the same version."""
    other = nn.Parameter(torch.full_like(param, 3.0))
    other.grad = torch.ones_like(param)
    while other._version < param._version:
        torch.autograd.graph.increment_version(other)
    torch.utils.swap_tensors(param, other)
