"""Weight decay that does not depend on how long training takes, and AdamWR and SGDWR with it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from typing_extensions import Unpack

from fusedtricks.lr_scheduler.cycles import RestartingSchedule, WarmRestarts, find_cycle
from fusedtricks.lr_scheduler.group_schedules import SchedulerOptions
from fusedtricks.lr_scheduler.parsing import register
from fusedtricks.lr_scheduler.per_group import one_or_list
from fusedtricks.lr_scheduler.scheduler import ScheduledLR
from fusedtricks.lr_scheduler.times import Time, as_number

__all__ = ["NormalizedDecay", "NormalizedWarmRestarts", "normalized_weight_decay"]


def normalized_weight_decay(
    w_norm: float, batch_size: float, dataset_size: float, epochs: float
) -> float:
    """Return w = w_norm * sqrt(batch_size / (dataset_size * epochs)).

    Longer training wants less decay per update; w_norm is meant to stay the same. Since
    dataset_size * epochs / batch_size is the number of updates n, this is w_norm / sqrt(n).

    Args:
        w_norm: Normalized decay, at least 0; 0.025 to 0.05 for AdamW in the source.
        batch_size: Samples per update, above 0.
        dataset_size: Samples per epoch, above 0.
        epochs: Epochs of the run, or of the cycle between two restarts, above 0.

    Returns:
        The decay per update at the full learning rate, not multiplied with it: `weight_decay` of an
        optimizer with decouple_lr=True. For one that decays by lr * weight_decay, as torch's AdamW,
        divide by the full learning rate.

    Raises:
        ValueError: If an argument is out of range.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", appendix B.1.
    """
    sizes = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs}
    if as_number("normalized_weight_decay", "w_norm", w_norm) < 0:
        raise ValueError(f"normalized_weight_decay: expected w_norm of at least 0, got {w_norm}")
    for name, size in sizes.items():
        if as_number("normalized_weight_decay", name, size) <= 0:
            raise ValueError(f"normalized_weight_decay: expected {name} above 0, got {size}")
    return w_norm * math.sqrt(batch_size / (dataset_size * epochs))


@register
@dataclass(frozen=True)
class NormalizedDecay(RestartingSchedule):
    """Decay normalized to the length of the cycle: value(t) = w_norm / (lr * sqrt(T_i)).

    w_norm is the optimizer's own weight_decay (so that groups without decay stay without), T_i the
    updates of the cycle that t is in; see `normalized_weight_decay`.

    Args:
        T_0: Length of the first cycle, above 0.
        T_mult: Growth of the cycles, an integer of at least 1. Default 1.
        lr: 1 for optimizers with decouple_lr=True, which decay by (lr / initial_lr) * weight_decay.
            The full learning rate for those that decay by lr * weight_decay. Default 1.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", appendix B.
    """

    times = ("T_0",)

    T_0: Time
    T_mult: int = 1
    lr: float = 1.0

    def __post_init__(self) -> None:
        self._check_restarts()
        self._check_numbers("lr", above=0)

    def _factor(self, t: float) -> float:
        _, _, length = find_cycle(t, self._time("T_0"), self.T_mult)
        return 1.0 / (self.lr * math.sqrt(length))


class NormalizedWarmRestarts(ScheduledLR):
    """Warm restarts with normalized decay: with AdamW this is AdamWR, with SGDW it is SGDWR.

    With eta_t = (1 + cos(pi * T_cur / T_i)) / 2 in cycle i, T_i = T_0 * T_mult^i updates long::

        lr = eta_t * initial_lr
        decay of an update = eta_t * w_norm / sqrt(T_i)

    w_norm is the optimizer's weight_decay. Both readings of decoupled decay give the same: groups
    with decouple_lr=True, whose decay is (lr / initial_lr) * weight_decay as in the paper, and
    those whose decay is lr * weight_decay as in torch, for which initial_lr is divided out.

    Args:
        optimizer: With decoupled decay: AdamW, SGDW, or Adam(decoupled_weight_decay=True). Its
            weight_decay is w_norm, its lr the largest.
        T_0: Updates of the first cycle, or a time; not epochs counted by hand, since the decay
            depends on the number of updates.
        T_mult: Growth of the cycles, an integer of at least 1. Default 1; the paper has 2.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    A group added later needs `append_schedule(NormalizedDecay(...), "weight_decay")`, unless all
    have decouple_lr=True.

    Raises:
        ValueError: If the decay of a group is not decoupled, or its lr is 0.

    Example:
        >>> optimizer = fusedtricks.optim.AdamW(
        ...     model.parameters(), lr=1e-3, weight_decay=0.025, decouple_lr=True)
        >>> scheduler = NormalizedWarmRestarts(optimizer, "10ep", 2, steps_per_epoch=len(loader))

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", section 3 and
        appendix B; SGDW keeps the learning rate outside the momentum buffer, see its docstring.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: Time,
        T_mult: int = 1,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        decays = [
            NormalizedDecay(T_0, T_mult, _factor_of_decay(optimizer, index))
            for index in range(len(getattr(optimizer, "param_groups", ())))
        ]
        # One for all groups, later ones too, if it does not depend on the group.
        options["weight_decay"] = one_or_list(decays) if decays[0].lr == 1 else decays
        super().__init__(optimizer, WarmRestarts(T_0, T_mult), last_epoch, **options)


def _factor_of_decay(optimizer: Optimizer, index: int) -> float:
    """Return what the optimizer multiplies weight_decay with at the full learning rate."""
    group = optimizer.param_groups[index]
    if not _is_decoupled(optimizer, group):
        raise ValueError(
            f"NormalizedWarmRestarts: expected decoupled decay, {type(optimizer).__name__} adds "
            f"its decay to the gradient in param group {index}; use AdamW or SGDW"
        )
    if group.get("decouple_lr"):
        return 1.0
    lr = float(group.get("initial_lr", group["lr"]))
    if lr == 0:
        raise ValueError(
            f"NormalizedWarmRestarts: expected an lr above 0 in param group {index}, got 0"
        )
    return lr


def _is_decoupled(optimizer: Any, group: dict[str, Any]) -> bool:
    if hasattr(optimizer, "_decoupled"):
        return optimizer._decoupled(group)
    return group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
