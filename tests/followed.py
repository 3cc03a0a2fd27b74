"""A model, an optimizer that averages it, and the averages as their formula has them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import optim
from fusedtricks.nn import ModelEMA
from fusedtricks.nn.following import Follower
from tests.devices import BACKENDS
from tests.pairs import give_grads

fused = pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
SMALL = [(0,), (), (101,), (5, 3), (2, 0), (4, 3, 3, 3)]
# A few roundings in each of a few steps.
BOUND = {torch.float32: 2e-6, torch.float64: 1e-13}


def holder(params: list[Tensor]) -> nn.Module:
    """Return a model of parameters alone."""
    return nn.ParameterList([nn.Parameter(param) for param in params])


def make(dtype: torch.dtype = torch.float32, shapes: Any = SMALL) -> nn.Module:
    return holder([torch.randn(shape).to(dtype) for shape in shapes])


class Followed:
    """A model, an optimizer that averages it, and the averages as their formula has them."""

    def __init__(
        self, model: nn.Module, optimizer: optim.FusedOptimizer, *, decay: float = 0.83, **ema: Any
    ) -> None:
        self.model, self.optimizer, self.decay = model, optimizer, decay
        self.ema = ModelEMA(model, decay=decay, **ema)
        self.handle = self.ema.follow(optimizer, model)
        self.params = list(model.parameters())
        self.expected: list[Tensor] = []
        self.n = 0

    def value(self, param: Tensor) -> Tensor:
        master = self.optimizer.master_of(param) if param in self.optimizer.state else None
        return (param if master is None else master).detach().double().clone()

    def step(self, without: tuple[int, ...] = ()) -> None:
        give_grads(self.params, self.n)
        for index in without:
            self.params[index].grad = None
        self.optimizer.step()
        self.note()

    def note(self) -> None:
        """Move the expected averages to the present values."""
        values = [self.value(param) for param in self.params]
        if self.n == 0:
            self.expected = values
        else:
            self.expected = [
                torch.lerp(old, new, 1 - self.decay_now())
                for old, new in zip(self.expected, values, strict=True)
            ]
        self.n += 1

    def decay_now(self) -> float:
        return min(self.decay, (1 + self.n) / (10 + self.n)) if self.ema.warmup else self.decay

    def check(self) -> None:
        averages = list(self.ema.module.parameters())
        for average, expected in zip(averages, self.expected, strict=True):
            bound = BOUND[average.dtype]
            torch.testing.assert_close(average.double(), expected, rtol=bound, atol=bound)
        assert self.ema.n_averaged == self.n

    def run(self, n_steps: int = 4) -> "Followed":
        for _ in range(n_steps):
            self.step()
        return self


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Return a list that takes what each step has moved."""
    steps: list[list[Tensor]] = []
    after = Follower._after

    def noted(follower: Follower, *args: Any) -> None:
        steps.append(list(follower.moved))
        after(follower, *args)

    monkeypatch.setattr(Follower, "_after", noted)
    return steps


def counts(moved: list[list[Tensor]]) -> list[int]:
    return [len(of_step) for of_step in moved]
