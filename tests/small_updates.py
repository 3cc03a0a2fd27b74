"""Updates of a small model on six samples, computed by one process or by two."""

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fusedtricks.losses import Flooding

# The first half of the samples is easy, so that the losses of two processes differ.
_SCALES = torch.tensor([1.0, 2.0, 1.5, 6.0, 8.0, 7.0], dtype=torch.float64, device="cpu")
INPUTS = torch.linspace(-1, 2, 18, dtype=torch.float64, device="cpu").sin().reshape(6, 3)
TARGETS = (_SCALES / 4)[:, None]


def make_model() -> nn.Module:
    """Return the same model each time, in float64 on the CPU."""
    with torch.device("cpu"):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for index, param in enumerate(model.parameters()):
            values = torch.arange(param.numel(), dtype=torch.float64, device="cpu")
            param.copy_((values + index).cos().reshape(param.shape))
    return model


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error."""
    return nn.functional.mse_loss(model(inputs), targets)


def gradients(model: nn.Module) -> list[float]:
    """Return all gradients, one after the other."""
    return [value for param in model.parameters() for value in param.grad.flatten().tolist()]


def updates_of_a_rank(rank: int, levels: list[float]) -> dict[str, Any]:
    """Do the updates of one of two processes; return what came of them."""
    group = distributed.new_group([0, 1])
    inputs, targets = INPUTS[3 * rank : 3 * rank + 3], TARGETS[3 * rank : 3 * rank + 3]
    return {
        "one batch": [_one_batch(Flooding(level), inputs, targets) for level in levels],
        "process group": [
            _one_batch(Flooding(level, process_group=group), inputs, targets) for level in levels
        ],
        "compiled": [
            _one_batch(Flooding(level), inputs, targets, is_compiled=True) for level in levels
        ],
        "accumulated": [_accumulated(Flooding(level), inputs, targets) for level in levels],
        "own loss": mean_loss(make_model(), inputs, targets).item(),
        "nan": _with_nan(rank),
        # Alone: it would wait for the other one in vain, if it asked.
        "evaluated": rank == 0 and Flooding(0.5).eval()(torch.tensor(0.25)).item(),
    }


def _one_batch(
    flooding: Flooding, inputs: Tensor, targets: Tensor, is_compiled: bool = False
) -> dict[str, object]:
    model = DistributedDataParallel(make_model())
    flood = (
        torch.compile(flooding, fullgraph=True, backend="aot_eager") if is_compiled else flooding
    )
    loss = flood(mean_loss(model, inputs, targets))
    loss.backward()
    return _found(model, flooding, loss.item())


def _accumulated(flooding: Flooding, inputs: Tensor, targets: Tensor) -> dict[str, object]:
    model = DistributedDataParallel(make_model())
    with model.no_sync():
        for index in range(2):
            part = slice(index, index + 1)
            flooding.add(mean_loss(model, inputs[part], targets[part]) / 3).backward()
    flooding.add(mean_loss(model, inputs[2:], targets[2:]) / 3).backward()
    flooding.flip_(model.parameters())
    return _found(model, flooding, math.nan)


def _found(model: nn.Module, flooding: Flooding, value: float) -> dict[str, object]:
    return {"gradients": gradients(model), "unflooded": flooding.loss.item(), "value": value}


def _with_nan(rank: int) -> list[bool]:
    # The loss of rank 0 is finite.
    flooding, weight = Flooding(0.1), torch.ones((), requires_grad=True)
    loss = flooding(weight * (0.2 if rank == 0 else math.nan))
    loss.backward()
    return [bool(loss.isnan()), bool(weight.grad.isnan())]
