"""C++, Triton and Python compute the same update, for any hyper-parameters and states."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import CASES, Case
from tests.devices import BACKENDS
from tests.pairs import case_name, leaf

SHAPE = (37, 5)
# Where each hyper-parameter may lie; what is not listed is an option and stays.
RANGES = {
    "lr": (1e-5, 0.3),
    "eps": (1e-10, 1e-2),
    "weight_decay": (1e-4, 0.5),
    "momentum": (0.05, 0.99),
    "dampening": (0.05, 0.9),
    "alpha": (0.5, 0.9999),
    "lr_decay": (1e-4, 0.3),
    "betas": (0.3, 0.99999),
}
# In units of the float64 result's neighbourhood of 1: a few roundings.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def random_options(case: Case, rng: random.Random) -> dict[str, Any]:
    """Draw new values for the hyper-parameters of a case, log-uniformly from their ranges."""

    def draw(name: str) -> float:
        low, high = RANGES[name]
        return low * (high / low) ** rng.random()

    drawn = {name: draw(name) for name in case.kwargs if name in RANGES and name != "betas"}
    if "betas" in case.kwargs:
        drawn["betas"] = (draw("betas"), draw("betas"))
    if case.kwargs.get("nesterov"):
        drawn.pop("dampening", None)
    return {**case.kwargs, **drawn}


def fill_state(state: dict[str, Tensor], count: int) -> None:
    for name, value in state.items():
        if name == "step":
            value.fill_(count)
        elif name in ("exp_avg", "momentum_buffer", "grad_avg"):
            value.copy_(torch.randn(SHAPE) / 4)
        else:
            # RMSprop takes the root of square_avg - grad_avg^2.
            value.copy_(torch.rand(SHAPE) + 1.5)


def run(
    case: Case, options: dict[str, Any], backend: str, dtype: torch.dtype, seed: int
) -> list[Tensor]:
    """Return the parameter and its states after a step from states that `seed` decides."""
    torch.manual_seed(seed)
    param = leaf(torch.randn(SHAPE).float().to(dtype))
    optimizer = case.cls([param], backend=backend, **options)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    with torch.no_grad():
        param.copy_(torch.randn(SHAPE))
        fill_state(
            optimizer.state.get(param, {}), count=random.Random(seed).choice([0, 1, 2, 9, 10**5])
        )
    param.grad = torch.randn(SHAPE).float().to(dtype)
    optimizer.step()
    state = optimizer.state.get(param, {})
    return [param.detach().double(), *(state[name].double() for name in sorted(state))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_all_backends_agree_on_random_states(case: Case, dtype: torch.dtype, seed: int) -> None:
    options = random_options(case, random.Random(f"{case.name} {seed}"))
    exact = run(case, options, "reference", torch.float64, seed)
    for backend in BACKENDS:
        for value, expected in zip(run(case, options, backend, dtype, seed), exact, strict=True):
            bound = TOLERANCE[dtype]
            torch.testing.assert_close(
                value, expected, rtol=bound, atol=bound, msg=lambda text, b=backend: f"{b}: {text}"
            )
