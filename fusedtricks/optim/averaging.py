"""Averages of parameters, which a fused step can move in its own sweep over memory."""

import weakref
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusedtricks import backends
from fusedtricks.optim.entry_checks import mismatch
from fusedtricks.reference import Entry

if TYPE_CHECKING:
    from fusedtricks.optim.base import FusedOptimizer

__all__ = [
    "Averager",
    "Offer",
    "averager_of",
    "choose_averages",
    "is_offer",
    "note_moved",
    "share_memory",
]


@dataclass(eq=False)
class Offer:
    """Averages for the steps of one optimizer to move; another object when one is another.

    Attributes:
        averages: The average of each parameter, every one of them once.
        planned: Those that the optimizer's plan moves, in its order, with their parameters.
    """

    averages: dict[Tensor, Tensor]
    planned: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Averager:
    """The owner of a step hook that averages parameters, and lets the step do what it can of it.

    Its hook is a method. The step moves averages if that is the first hook, because it would miss
    what an earlier one does to the parameters: average += weight * (param - average).
    """

    moved: Collection[Tensor] = ()

    def begin(self) -> None:
        """Forget the last step, whether the hook was called after it or not."""
        self.moved = ()

    def offer(self) -> tuple[Offer | None, float]:
        """Return what the step is to move, None for nothing, and the weight."""
        raise NotImplementedError


def averager_of(optimizer: "FusedOptimizer") -> Averager | None:
    """Return the owner of the optimizer's first hook, if the step can average for it."""
    hook = next(iter(optimizer._optimizer_step_post_hooks.values()), None)
    owner = getattr(hook, "__self__", None)
    return owner if isinstance(owner, Averager) and optimizer._takes_plain_steps() else None


def is_offer(reference: "weakref.ref[Offer] | None", offer: Offer | None) -> bool:
    """Return whether a plan with a reference to an offer, None for none, goes with this one."""
    return (reference is None and offer is None) or (
        reference is not None and offer is not None and reference() is offer
    )


def choose_averages(
    optimizer: "FusedOptimizer", entries: list[Entry], offer: Offer | None
) -> dict[Tensor, Tensor]:
    """Return the averages that the ops can move, by parameter, and note them in the offer."""
    averages = {} if offer is None else offer.averages
    if not averages:
        return {}
    memory = {_memory(entry.param) for entry in entries} - {0}
    times = Counter(id(entry.param) for entry in entries)
    chosen = {
        entry.param: averages[entry.param]
        for entry in entries
        # One that is listed twice moves twice in a step, and its average once.
        if entry.param in averages
        and times[id(entry.param)] == 1
        and _can_fuse(optimizer, entry, averages[entry.param], memory)
    }
    offer.planned = list(chosen.items())
    return chosen


def _can_fuse(
    optimizer: "FusedOptimizer", entry: Entry, average: Tensor, memory: Collection[int]
) -> bool:
    """Return whether an op can move the average; `memory` is what the parameters lie in."""
    param = entry.param
    # The sweep averages what it has computed, of which a 16-bit parameter keeps a rounded part, in
    # the precision that it computes in.
    is_exact = param.dtype in (torch.float32, torch.float64) or optimizer._has_master(entry)
    is_wider = average.dtype == torch.float64 and param.dtype != torch.float64
    if not is_exact or is_wider or average.dtype not in backends._DTYPES or average.is_neg():
        return False
    if type(average) not in (Tensor, torch.nn.Parameter) or mismatch(average, param):
        return False
    # A state dict that was assigned may have left it where a parameter is.
    return _memory(average) not in memory


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors lie in one allocation."""
    return _memory(a) != 0 and _memory(a) == _memory(b)


def note_moved(averager: Averager | None, offer: Offer | None) -> None:
    """Tell the hook which averages the step has moved: those of parameters with a gradient."""
    if averager is not None and offer is not None:
        averager.moved = {average for param, average in offer.planned if param.grad is not None}
