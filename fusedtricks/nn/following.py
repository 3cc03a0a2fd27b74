"""Averages that follow the steps of an optimizer."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fusedtricks.nn.model_tensors import MatchedTensors, unwrap_model
from fusedtricks.optim.averaging import Averager, Offer, averager_of
from fusedtricks.optim.base import FusedOptimizer

if TYPE_CHECKING:
    from fusedtricks.nn.averaging import ModelEMA

__all__ = ["Follower"]


class Follower(Averager):
    """Averages after every step what an optimizer of fusedtricks has not averaged on its way."""

    def __init__(self, ema: "ModelEMA", model: nn.Module) -> None:
        self._ema, self._model = ema, unwrap_model(model)
        self._tensors = MatchedTensors("ModelEMA", self._models)
        self._seen: Any = None
        self._movable: dict[Tensor, str] = {}
        self._offer = Offer({})
        # The tensors as they were right before the sweep, which changes no more than values.
        self._current: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def _models(self) -> tuple[nn.Module, nn.Module]:
        return self._ema.module, self._model

    def follow(self, optimizer: Optimizer) -> RemovableHandle:
        """Hook it into the steps of an optimizer; return the handle."""
        return optimizer.register_step_post_hook(self._after)

    def begin(self) -> None:
        """See `Averager`."""
        super().begin()
        self._current = None

    def offer(self) -> tuple[Offer | None, float]:
        """See `Averager`; raises before the sweep if the models no longer fit each other."""
        if self._current is None:
            self._look()
        weight = self._ema._next_weight()
        return (None, 0.0) if weight is None else (self._offer, weight)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        is_ours = isinstance(optimizer, FusedOptimizer)
        # What a step without this one's offer left is of an earlier step.
        if torch.compiler.is_compiling() or not is_ours or averager_of(optimizer) is not self:
            self.begin()
        if self._current is None:
            self._look()
        (averages, currents), moved = self._current, self.moved
        self.begin()
        if is_ours:
            currents = _with_masters(optimizer, averages, currents, moved)
        self._ema._move(averages, currents, self._movable, moved)

    def _look(self) -> None:
        """Find the tensors, and if anything has changed, what moves and what the step may move."""
        averages, currents = self._current = self._tensors.get()
        trains = [current.requires_grad for current in currents.values()]
        if self._seen is not None:
            first, other, trained = self._seen
            if averages is first and currents is other and trains == trained:
                return
        self._seen = averages, currents, trains
        self._movable = self._ema._movable(averages, currents)
        self._offer = Offer(
            {
                currents[name]: average
                for average, name in self._movable.items()
                if isinstance(currents[name], nn.Parameter)
            }
        )


def _with_masters(
    optimizer: FusedOptimizer,
    averages: dict[str, Tensor],
    currents: dict[str, Tensor],
    moved: Any,
) -> dict[str, Tensor]:
    """Return the values to average: where a parameter is the rounded master, the master's."""
    masters = {
        param: optimizer.master_of(param, group)
        for group in optimizer.param_groups
        if group["master_weights"]
        for param in group["params"]
    }
    values = dict(currents) if masters else currents
    for name, current in currents.items() if masters else ():
        master = masters.get(current)
        if master is None or averages[name] in moved:
            continue
        # Others may have written to the parameter since.
        is_rounded = master.to(current.dtype) == current
        values[name] = torch.where(is_rounded, master, current.to(master.dtype))
    return values
