"""Averages of parameters, which a fused step can move in its own sweep over memory."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusedtricks import backends
from fusedtricks.optim.entry_checks import mismatch
from fusedtricks.reference import Entry

if TYPE_CHECKING:
    from fusedtricks.optim.base import FusedOptimizer

__all__ = ["Averaging", "fused_averages", "note_moved", "wanted_averages"]


@dataclass(eq=False)
class Averaging:
    """What a step hook of an optimizer, such as that of `ModelEMA.follow`, asks of the next steps.

    A step moves those averages that it can: average += weight * (param - average). The hook does
    so with all others. It holds as long as the hook is the first one, because the sweep would miss
    what an earlier one does to the parameters.

    Attributes:
        hook_id: Of the hook, as in the handle of `register_step_post_hook`.
        next_weight: Returns the weight of the next step; None if it is to move none.
        averages: The average of each parameter, every one of them once; another dict if one of them
            is another, by which a plan knows that it holds no longer.
        moved: What the last step has moved; the hook empties it.
    """

    hook_id: int
    next_weight: Callable[[], float | None]
    averages: dict[Tensor, Tensor] = field(default_factory=dict)
    moved: Collection[Tensor] = ()

    def take_moved(self) -> Collection[Tensor]:
        """Return what the last step has moved, and forget it."""
        moved, self.moved = self.moved, ()
        return moved


def wanted_averages(optimizer: "FusedOptimizer") -> tuple[dict[Tensor, Tensor] | None, float]:
    """Return the averages that the next step is to move, None for none, and their weight."""
    averaging, hooks = optimizer.averaging, optimizer._optimizer_step_post_hooks
    if averaging is not None and averaging.hook_id not in hooks:
        averaging = optimizer.averaging = None  # removed: nothing keeps the averages
    if averaging is None or next(iter(hooks)) != averaging.hook_id:
        return None, 0.0
    weight = averaging.next_weight()
    return (None, 0.0) if weight is None else (averaging.averages, weight)


def fused_averages(
    optimizer: "FusedOptimizer", entries: list[Entry], averages: dict[Tensor, Tensor] | None
) -> dict[Tensor, Tensor]:
    """Return those of the averages that the ops can move, by parameter."""
    if not averages:
        return {}
    times = Counter(id(entry.param) for entry in entries)
    return {
        entry.param: averages[entry.param]
        for entry in entries
        # One that is listed twice moves twice in a step, and its average once.
        if entry.param in averages
        and times[id(entry.param)] == 1
        and _can_fuse(optimizer, entry, averages[entry.param])
    }


def _can_fuse(optimizer: "FusedOptimizer", entry: Entry, average: Tensor) -> bool:
    param = entry.param
    # The sweep averages what it has computed, of which a 16-bit parameter keeps a rounded part.
    is_exact = param.dtype in (torch.float32, torch.float64) or optimizer._has_master(entry)
    if not is_exact or average.dtype not in backends._DTYPES or mismatch(average, param):
        return False
    # A state dict that was assigned may have left the average in the parameter's own memory.
    memory = average.untyped_storage().data_ptr()
    return memory == 0 or memory != param.untyped_storage().data_ptr()


def note_moved(optimizer: "FusedOptimizer", averages: dict[Tensor, Tensor]) -> None:
    """Tell the hook which averages the step has moved: those of parameters with a gradient."""
    if averages:
        moved = {average for param, average in averages.items() if param.grad is not None}
        optimizer.averaging.moved = moved
