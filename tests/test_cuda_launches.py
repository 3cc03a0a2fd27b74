"""How many kernels a step of the CUDA backend launches."""

from typing import Any

import pytest
import torch

from fusedtricks import optim
from tests import devices
from tests.cuda_shim.calls import NEEDS_SHIM, count_launches
from tests.pairs import leaf

pytestmark = pytest.mark.skipif(not devices.SHIM, reason=NEEDS_SHIM)

COMBINED = {"clip_grad_norm": 0.7, "clip_grad_value": 0.9, "centralize_grad": True}
ADAMW = {"lr": 0.03, "betas": (0.81, 0.93), "eps": 2e-3}


def launches(optimizer: torch.optim.Optimizer) -> int:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    optimizer.step()
    before = count_launches()
    optimizer.step()
    return count_launches() - before


def params(n: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [leaf(torch.randn(2, 3).to(dtype)) for _ in range(n)]


@pytest.mark.parametrize(("options", "n"), [({}, 1), (COMBINED, 3)], ids=["plain", "combined"])
def test_560_parameters_in_two_groups(options: dict[str, Any], n: int) -> None:
    decayed = {"params": params(280), "weight_decay": 0.13}
    others = {"params": params(280), "weight_decay": 0.0, "lr": 0.011, "betas": (0.7, 0.9)}
    assert launches(optim.AdamW([decayed, others], **ADAMW, **options)) == n


def test_490_parameters_with_masters() -> None:
    ours = optim.AdamW(params(490, torch.bfloat16), master_weights=True, **ADAMW, **COMBINED)
    assert launches(ours) == 3


@pytest.mark.parametrize(
    "cls", [optim.Adam, optim.SGD, optim.RMSprop, optim.Adagrad], ids=lambda cls: cls.__name__
)
def test_groups_with_and_without_decay_share_a_launch(cls: type) -> None:
    groups = [{"params": params(3), "weight_decay": d} for d in (0.0, 0.17, 0.0, 0.31)]
    assert launches(cls(groups, lr=0.02)) == 1


def test_two_thousand_parameters() -> None:
    assert launches(optim.AdamW(params(2000), **ADAMW)) == 4


def test_each_combination_of_dtypes_has_a_launch() -> None:
    mixed = [p for dtype in (torch.float32, torch.bfloat16) for p in params(5, dtype)]
    assert launches(optim.AdamW(mixed, **ADAMW)) == 2
    # One statistics launch for each dtype of gradients, one to finalize.
    assert launches(optim.AdamW(mixed, **ADAMW, **COMBINED)) == 5
