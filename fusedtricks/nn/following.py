"""Averages that follow the steps of an optimizer."""

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fusedtricks.nn.model_tensors import MatchedTensors, unwrap_model
from fusedtricks.optim.averaging import Averaging
from fusedtricks.optim.base import FusedOptimizer

if TYPE_CHECKING:
    from fusedtricks.nn.averaging import ModelEMA

__all__ = ["Follower"]


class Follower:
    """Averages after every step what an optimizer of fusedtricks has not averaged on its way."""

    def __init__(self, ema: "ModelEMA", model: nn.Module) -> None:
        self._ema = ema
        self._tensors = MatchedTensors("ModelEMA", ema.module, unwrap_model(model))
        self._movable: dict[Tensor, str] = {}
        self._averages: dict[Tensor, Tensor] = {}
        self._seen: Any = None

    def follow(self, optimizer: Optimizer) -> RemovableHandle:
        """Hook it into the steps of an optimizer; return the handle."""
        self._handle = optimizer.register_step_post_hook(self._after)
        self._averaging = Averaging(self._handle.id, self._ema._next_weight)
        return self._handle

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        averages, currents = self._tensors.get()
        self._look_at(averages, currents)
        if not isinstance(optimizer, FusedOptimizer):
            self._ema._move(averages, currents, self._movable)
            return
        masters = _masters(optimizer)
        values = currents
        if masters:
            values = {name: masters.get(current, current) for name, current in currents.items()}
        self._ema._move(averages, values, self._movable, self._averaging.take_moved())
        is_first = next(iter(optimizer._optimizer_step_post_hooks)) == self._handle.id
        if is_first and not _adds_to_step(optimizer):
            self._averaging.averages = self._averages
            optimizer.averaging = self._averaging

    def _look_at(self, averages: dict[str, Tensor], currents: dict[str, Tensor]) -> None:
        """Find what moves, and what the next step may move, if anything has changed."""
        trains = [current.requires_grad for current in currents.values()]
        if self._seen is not None:
            first, other, trained = self._seen
            if averages is first and currents is other and trains == trained:
                return
        self._seen = averages, currents, trains
        self._movable = self._ema._movable(averages, currents)
        self._averages = {
            currents[name]: average
            for average, name in self._movable.items()
            if isinstance(currents[name], nn.Parameter)
        }


def _adds_to_step(optimizer: FusedOptimizer) -> bool:
    """Return whether a subclass has a step of its own, which may change the parameters too."""
    return inspect.unwrap(type(optimizer).step) is not inspect.unwrap(FusedOptimizer.step)


def _masters(optimizer: FusedOptimizer) -> dict[Tensor, Tensor]:
    """Return the float32 copies of those parameters that have one."""
    pairs = {
        param: optimizer.master_of(param, group)
        for group in optimizer.param_groups
        if group["master_weights"]
        for param in group["params"]
    }
    return {param: master for param, master in pairs.items() if master is not None}
