"""Groups of one optimizer whose options need different states."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtricks import optim
from tests.cases import CASES, Case
from tests.pairs import BACKENDS, Pair, leaf

# The class, what all groups have, and one set of options per group; torch takes the same.
MIXES: dict[str, tuple[type, type, dict[str, Any], list[dict[str, Any]]]] = {
    "SGD momentum": (
        optim.SGD,
        torch.optim.SGD,
        {"lr": 0.04, "weight_decay": 0.19},
        [{"momentum": 0.0}, {"momentum": 0.83, "dampening": 0.23}, {"lr": 0.021}],
    ),
    "Adam amsgrad": (
        optim.Adam,
        torch.optim.Adam,
        {"lr": 0.03, "betas": (0.81, 0.93), "eps": 2e-3},
        [{"amsgrad": True}, {"weight_decay": 0.17}, {"amsgrad": True, "maximize": True}],
    ),
    "RMSprop centered and momentum": (
        optim.RMSprop,
        torch.optim.RMSprop,
        {"lr": 0.02, "alpha": 0.87, "eps": 3e-3},
        [{}, {"momentum": 0.79}, {"centered": True, "momentum": 0.61}, {"centered": True}],
    ),
}


def make_groups(mix: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Tensor]]:
    """Return groups of float32 parameters, the same in float64 for torch, and the parameters."""
    ours, theirs, params = [], [], []
    for options in MIXES[mix][3]:
        group = [leaf(torch.randn(shape)) for shape in ((101,), (5, 3), ())]
        ours.append({"params": group, **options})
        theirs.append({"params": [leaf(p.detach().double().clone()) for p in group], **options})
        params += group
    return ours, theirs, params


@pytest.mark.parametrize("masters", [False, True], ids=["", "masters"])
@pytest.mark.parametrize("clips", [False, True], ids=["", "clips"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mix", MIXES)
def test_groups_of_different_states(mix: str, backend: str, clips: bool, masters: bool) -> None:
    cls, torch_cls, common, _ = MIXES[mix]
    groups, twin_groups, params = make_groups(mix)
    twins = [p for group in twin_groups for p in group["params"]]
    extras: dict[str, Any] = {"clip_grad_norm": 0.7} if clips else {}
    ours = cls(groups, backend=backend, master_weights=masters, **extras, **common)
    theirs = torch_cls(twin_groups, foreach=False, **common)
    for _ in range(3):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn(param.shape)
            twin.grad = param.grad.double()
        ours.step()
        if clips:
            torch.nn.utils.clip_grad_norm_(twins, 0.7)
        theirs.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param.detach().double(), twin.detach(), rtol=3e-6, atol=3e-6)
        assert ours.state.get(param, {}).keys() == {
            name for name, value in theirs.state[twin].items() if value is not None
        }


def step_with_some_masters(case: Case, backend: str, compiles: bool) -> None:
    """Take steps with 16-bit and 32-bit parameters in one group, and compare with torch."""
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.float32)
    params = [leaf(torch.randn(7, 3).to(dtype)) for dtype in dtypes]
    pair = Pair(case, backend, params=params, master_weights=True)
    ours = pair.ours
    step = torch.compile(ours.step, backend="aot_eager") if compiles else ours.step
    for _ in range(3):
        pair.set_grads()
        step()
        case.torch_step(pair.theirs)
    for param, twin in zip(params, pair.twins, strict=True):
        master = ours.state[param].get("master_param") if param in ours.state else None
        assert (master is None) == (param.dtype == torch.float32)
        exact = param if master is None else master
        torch.testing.assert_close(exact.detach().double(), twin.detach(), rtol=1e-5, atol=1e-5)
        assert param.equal(exact.to(param.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masters_of_some_parameters_of_a_group(case: Case, backend: str) -> None:
    step_with_some_masters(case, backend, compiles=False)


@pytest.mark.parametrize("case", CASES[:1] + CASES[6:9] + CASES[11:12], ids=lambda case: case.name)
def test_compiled_steps_with_masters_of_some_parameters(case: Case) -> None:
    step_with_some_masters(case, "auto", compiles=True)
