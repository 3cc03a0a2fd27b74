"""Checks of what a learning-rate range test is given."""

import inspect
import math
from dataclasses import dataclass
from itertools import chain
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

__all__ = ["Settings", "check_loss", "check_objects", "lr_ratios", "split_pair"]


@dataclass(frozen=True)
class Settings:
    """The numbers among the arguments of `lr_range_test`; refuses those out of range."""

    start_lr: float
    end_lr: float
    n_updates: int
    repeats: int
    smoothing: float
    divergence: float
    accumulate: int

    def __post_init__(self) -> None:
        self._expect("start_lr", _is_number(self.start_lr) and 0 < self.start_lr < math.inf)
        self._expect("end_lr", _is_number(self.end_lr) and self.start_lr < self.end_lr < math.inf)
        self._expect("n_updates", _is_count(self.n_updates) and self.n_updates >= 2)
        self._expect("repeats", _is_count(self.repeats) and self.repeats >= 1)
        self._expect("smoothing", _is_number(self.smoothing) and 0 <= self.smoothing < 1)
        self._expect("divergence", _is_number(self.divergence) and self.divergence > 1)
        self._expect("accumulate", _is_count(self.accumulate) and self.accumulate >= 1)

    def lrs(self) -> list[float]:
        """Return the largest learning rate of every update."""
        growth, last = self.end_lr / self.start_lr, self.n_updates - 1
        # The end is given, not computed, so that it has no rounding error.
        return [*(self.start_lr * growth ** (i / last) for i in range(last)), float(self.end_lr)]

    def _expect(self, name: str, holds: bool) -> None:
        if not holds:
            expected = {
                "start_lr": "a positive finite number, such as 1e-7",
                "end_lr": f"a finite number > start_lr, which is {self.start_lr}",
                "n_updates": "an integer >= 2, such as 100",
                "repeats": "an integer >= 1",
                "smoothing": "a number in [0, 1); 0 for no smoothing",
                "divergence": "a number > 1; math.inf never stops a finite loss",
                "accumulate": "an integer >= 1",
            }
            _refuse(name, expected[name], repr(getattr(self, name)))


def check_objects(
    model: nn.Module,
    optimizer: Optimizer,
    loader: Any,
    loss_fn: Any,
    batch_loss: Any,
    scaler: Any,
    autocast: Any,
    progress: Any,
) -> None:
    """Raise ValueError unless the arguments are of the kinds that `lr_range_test` tells."""
    if not isinstance(model, nn.Module):
        _refuse("model", "a torch.nn.Module", repr(model))
    if not isinstance(optimizer, Optimizer):
        _refuse("optimizer", "a torch.optim.Optimizer", repr(optimizer))
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        _refuse("optimizer", "one whose step() needs no closure", type(optimizer).__name__)
    if any(is_lazy(tensor) for tensor in chain(model.parameters(), model.buffers())):
        _refuse(
            "model",
            "one whose parameters all have a shape; run a batch through it first",
            "uninitialized parameters of a lazy module",
        )
    kinds = ("__iter__", "__getitem__", "next")
    if not any(callable(getattr(loader, kind, None)) for kind in kinds):
        _refuse("loader", "an iterable over batches, such as a DataLoader", repr(loader))
    if (loss_fn is None) == (batch_loss is None):
        _refuse(
            "loss_fn",
            "either loss_fn(outputs, targets), or None and batch_loss(model, batch)",
            "neither" if loss_fn is None else "both",
        )
    for name, value in (("loss_fn", loss_fn), ("batch_loss", batch_loss)):
        if value is not None and not callable(value):
            _refuse(name, "a function", repr(value))
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        _refuse("scaler", "a torch.amp.GradScaler or None", repr(scaler))
    if autocast is not None and autocast not in (torch.float16, torch.bfloat16):
        _refuse("autocast", "torch.float16, torch.bfloat16 or None", repr(autocast))
    if not isinstance(progress, bool) and not callable(progress):
        _refuse("progress", "True, False or a function", repr(progress))


def lr_ratios(optimizer: Optimizer) -> list[float]:
    """Return the lr of every group over the largest one; of "initial_lr" if all are 0.

    Raises:
        ValueError: If one is negative or not finite.
    """
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    for index, lr in enumerate(lrs):
        if not 0 <= lr < math.inf:
            _refuse(f"the lr of parameter group {index}", "a finite number >= 0", repr(lr))
    if max(lrs) == 0:
        lrs = [float(group.get("initial_lr", 0)) for group in optimizer.param_groups]
    if max(lrs) == 0:
        return [1.0] * len(lrs)
    return [lr / max(lrs) for lr in lrs]


def split_pair(batch: Any) -> tuple[Any, Any]:
    """Return inputs and targets.

    Raises:
        ValueError: If the batch is no pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        _refuse("loader", "batches (inputs, targets) for loss_fn; or pass batch_loss", found)
    return batch[0], batch[1]


def check_loss(loss: Any, name: str) -> None:
    """Raise ValueError unless `loss` is one element that depends on parameters.

    Args:
        loss: What a function returned.
        name: The argument that the function came as.
    """
    if not isinstance(loss, Tensor):
        _refuse(name, "a function that returns a scalar tensor", repr(loss))
    if loss.numel() != 1:
        shape = tuple(loss.shape)
        _refuse(
            name,
            "a function that returns a scalar, such as the mean over the batch",
            f"shape {shape}",
        )
    if not loss.requires_grad:
        _refuse(
            name, "a function that returns a loss with a gradient", "one detached from the model"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _refuse(name: str, expected: str, found: str) -> None:
    raise ValueError(f"lr_range_test: {name}: expected {expected}; got {found}")
