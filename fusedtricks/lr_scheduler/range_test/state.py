"""Putting a model, an optimizer and a scaler back as they were, bit by bit, in the same objects."""

import copy
from collections.abc import Iterator, MutableMapping, MutableSequence, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedtricks.optim.base import FusedOptimizer
from fusedtricks.optim.state import StepRecord

__all__ = ["kept"]


@contextmanager
def kept(
    modules: Sequence[nn.Module], optimizer: Optimizer, scaler: torch.amp.GradScaler | None
) -> Iterator[None]:
    """Undo, however the block ends, what it does to `modules`, `optimizer` and `scaler`.

    Comes back: parameters and buffers, gradients, the mode and the extra state of every module;
    groups, state and attributes of the optimizer; the scaler's attributes. All objects stay the
    same ones, and what did not exist is absent again.

    Args:
        modules: The model, and what else has parameters or buffers.
        optimizer: Its parameters need not belong to `modules`.
        scaler: None if there is none.
    """
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    params = [param for part in parts for param in part._parameters.values() if param is not None]
    params += [param for group in optimizer.param_groups for param in group["params"]]
    values = _Values()
    with ExitStack() as stack:
        stack.callback(_forget_plans, optimizer)
        for part in parts:
            values.add(part._parameters)
            values.add(part._buffers)
            _keep_mode_and_extra_state(part, stack)
        values.add(optimizer)
        if scaler is not None:
            values.add(vars(scaler))
        stack.callback(values.restore)
        _keep_grads(list(dict.fromkeys(params)), stack)
        yield


class _Values:
    """The values of tensors and containers; `restore` writes them into the same objects."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._mappings: list[tuple[MutableMapping[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[MutableSequence[Any], list[Any]]] = []

    def add(self, value: Any) -> None:
        """Remember a tensor or what a container holds, at any depth; pass by everything else."""
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value  # kept alive, so that the id stays its own
        if isinstance(value, Tensor):
            self._tensors.append((value, _own_elements(value).clone()))
        elif isinstance(value, MutableMapping):
            saved = dict(value.items())
            self._mappings.append((value, saved))
            self._add_all(saved.values())
        elif isinstance(value, MutableSequence):
            self._sequences.append((value, list(value)))
            self._add_all(value)
        elif isinstance(value, tuple):
            self._add_all(value)
        elif isinstance(value, Optimizer | StepRecord):
            self.add(vars(value))

    def _add_all(self, values: Any) -> None:
        for value in values:
            self.add(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Write everything back."""
        for mapping, saved in self._mappings:
            for key in [key for key in mapping if key not in saved]:
                del mapping[key]
            mapping.update(saved)
        for sequence, items in self._sequences:
            sequence.clear()
            sequence.extend(items)
        for tensor, copied in self._tensors:
            _own_elements(tensor).copy_(copied)


def _own_elements(tensor: Tensor) -> Tensor:
    """Return a view without the elements that an expanded tensor only repeats."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(1) if s == 0 else slice(None) for s in tensor.stride())]


def _keep_mode_and_extra_state(part: nn.Module, stack: ExitStack) -> None:
    stack.callback(setattr, part, "training", part.training)
    if type(part).get_extra_state is not nn.Module.get_extra_state:
        stack.callback(part.set_extra_state, copy.deepcopy(part.get_extra_state()))


def _keep_grads(params: list[Tensor], stack: ExitStack) -> None:
    # A gradient may be written to, where zero_grad fills it or where it lies in a bucket of DDP.
    saved = [
        (param, param.grad, None if param.grad is None else param.grad.detach().clone())
        for param in params
    ]

    @torch.no_grad()
    def restore() -> None:
        for param, grad, copied in saved:
            param.grad = grad
            if grad is not None:
                grad.copy_(copied)

    stack.callback(restore)


def _forget_plans(optimizer: Optimizer) -> None:
    """Let the optimizer, and those it wraps, gather their tensors anew in the next step."""
    for value in (optimizer, *vars(optimizer).values()):
        if isinstance(value, FusedOptimizer):
            value._plan = None
