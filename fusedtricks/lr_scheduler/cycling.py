"""Schedulers with restarts and cycles, most with torch's names and signatures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from typing_extensions import Unpack

from fusedtricks.lr_scheduler.cycles import (
    Cyclic,
    OneCycle,
    WarmRestarts,
    WarmUpRestarts,
    find_cycle,
)
from fusedtricks.lr_scheduler.functions import Function, name_of
from fusedtricks.lr_scheduler.group_options import has_option
from fusedtricks.lr_scheduler.group_schedules import SchedulerOptions
from fusedtricks.lr_scheduler.per_group import per_group
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.scheduler import ScheduledLR
from fusedtricks.lr_scheduler.times import Time, as_number

__all__ = [
    "CosineAnnealingWarmRestarts",
    "CosineAnnealingWarmUpRestarts",
    "CyclicLR",
    "OneCycleLR",
]


class CosineAnnealingWarmRestarts(ScheduledLR):
    """Cosines from initial_lr to eta_min that start anew, as torch's, restarts never missed.

    lr(t) = eta_min + (initial_lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2

    Args:
        optimizer: The optimizer.
        T_0: Updates of the first cycle, or a time.
        T_mult: Growth of the cycles, an integer of at least 1. Default 1.
        eta_min: Smallest learning rate, or a list with one for each group. Default 0.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: Loshchilov & Hutter 2017, "SGDR", eq. 5.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: Time,
        T_mult: int = 1,
        eta_min: float | list[float] = 0.0,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        schedule = per_group(
            type(self).__name__,
            optimizer,
            lambda eta_min: WarmRestarts(T_0, T_mult).between(low=eta_min),
            eta_min=eta_min,
        )
        super().__init__(optimizer, schedule, last_epoch, **options)


class CosineAnnealingWarmUpRestarts(ScheduledLR):
    """Cosines with warm restarts and warm-ups, from the optimizer's lr up to eta_max and back.

    With eta_i = eta_max * gamma^i in cycle i, T_cur after its beginning::

        T_cur < T_up:  lr(t) = initial_lr + (eta_i - initial_lr) * T_cur / T_up
        else:          lr(t) = initial_lr + (eta_i - initial_lr) * (1 + cos(pi * x)) / 2,
                       x = (T_cur - T_up) / (T_i - T_up)

    The optimizer's lr is the smallest. The fall of a cycle is T_mult times as long as that of the
    one before: T_{i+1} = (T_i - T_up) * T_mult + T_up. `step()` and `step(t)` agree.

    Args:
        optimizer: The optimizer; its lr may be 0.
        T_0: Updates of the first cycle, its warm-up included, or a time.
        T_mult: Growth of the falls, an integer of at least 1. Default 1.
        eta_max: Largest learning rate, or a list with one for each group. Default 0.1.
        T_up: Updates of each warm-up, or a time. Default 0.
        gamma: Factor of eta_max from cycle to cycle. Default 1.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Example:
        Stepped once per epoch, restarts after 250 and 700 epochs:

        >>> optimizer = fusedtricks.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        >>> scheduler = CosineAnnealingWarmUpRestarts(
        ...     optimizer, T_0=250, T_mult=2, eta_max=0.1, T_up=50)

    Source: see `WarmUpRestarts`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: Time,
        T_mult: int = 1,
        eta_max: float | list[float] = 0.1,
        T_up: Time = 0,
        gamma: float = 1.0,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        schedule = per_group(
            type(self).__name__,
            optimizer,
            lambda eta_max: WarmUpRestarts(T_0, T_mult, eta_max, T_up, gamma),
            eta_max=eta_max,
        )
        super().__init__(optimizer, schedule, last_epoch, **options)


class CyclicLR(ScheduledLR):
    """From base_lr up to max_lr and down again, again and again, as torch's.

    lr(t) = base_lr + (max_lr - base_lr) * (1 - x) * scale, x from the peak, 0 to 1. Unlike torch's,
    initial_lr of the groups stays what it was, and the momentum of
    optimizers without one is left alone instead of raising.

    Args:
        optimizer: The optimizer.
        base_lr: Smallest learning rate, or a list with one for each group.
        max_lr: Largest learning rate, or a list with one for each group.
        step_size_up: Updates of the rise, or a time. Default 2000.
        step_size_down: Updates of the fall, or a time. Default None, as the rise.
        mode: "triangular", "triangular2" or "exp_range". Default "triangular".
        gamma: Factor per update for "exp_range". Default 1.
        scale_fn: Instead of a mode: factor of the height. A checkpoint holds its name only.
        scale_mode: What scale_fn gets: "cycle" (counted from 1) or "iterations". Default "cycle".
        cycle_momentum: Whether the momentum goes from max_momentum down to base_momentum and back.
            True needs an optimizer with momentum or betas. Default None: if there is one.
        base_momentum: Momentum at max_lr. Default 0.8.
        max_momentum: Momentum at base_lr. Default 0.9.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `Cyclic`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: Time = 2000,
        step_size_down: Time | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool | None = None,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        owner = type(self).__name__
        shape: Schedule = Cyclic(step_size_up, step_size_down, mode, gamma)
        if scale_fn is not None:
            shape = Cyclic(step_size_up, step_size_down) * _scale(
                scale_fn, scale_mode, step_size_up, step_size_down
            )
        schedule = per_group(
            owner,
            optimizer,
            lambda base_lr, max_lr: shape.between(base_lr, max_lr),
            base_lr=base_lr,
            max_lr=max_lr,
        )
        if _cycles_momentum(owner, optimizer, cycle_momentum, options):
            options["momentum"] = _momentum(owner, optimizer, shape, base_momentum, max_momentum)
        super().__init__(optimizer, schedule, last_epoch, **options)


class OneCycleLR(ScheduledLR):
    """One rise to max_lr and one long fall, with a momentum that mirrors it, as torch's.

    lr(t) = max_lr * `OneCycle`(total_steps, ...)(t). Unlike torch's, `initial_lr` of the groups
    stays what it was, any pct_start works, and steps after the end keep the last values instead of
    raising.

    Args:
        optimizer: The optimizer; its own lr is not used.
        max_lr: Largest learning rate, or a list with one for each group.
        total_steps: Updates of everything, or a time. Default None: epochs * steps_per_epoch.
        epochs: Epochs of everything, without total_steps.
        steps_per_epoch: Updates in an epoch.
        pct_start: Share of the rise. Default 0.3.
        anneal_strategy: "cos" or "linear". Default "cos".
        cycle_momentum: Whether the momentum goes from max_momentum down to base_momentum and back.
            True needs an optimizer with momentum or betas. Default None: if there is one.
        base_momentum: Momentum at max_lr. Default 0.85.
        max_momentum: Momentum at the beginning and at the end. Default 0.95.
        div_factor: max_lr over the first learning rate. Default 25.
        final_div_factor: The first learning rate over the last. Default 1e4.
        three_phase: Whether the fall has two parts. Default False.
        last_epoch: See `ScheduledLR`.
        **options: See `SchedulerOptions`.

    Source: see `OneCycle`, which has the formula.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: Time | None = None,
        epochs: float | None = None,
        steps_per_epoch: float | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool | None = None,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        owner = type(self).__name__
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            if not as_number(owner, name, value) > 0:
                raise ValueError(f"{owner}: expected {name} above 0, got {value}")
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError(
                    f"{owner}: expected total_steps, or epochs and steps_per_epoch, got None"
                )
            # In updates, whatever plain numbers count.
            total_steps = f"{as_number(owner, 'epochs', epochs) * steps_per_epoch}ba"
        start = 1 / div_factor
        shared = {"anneal_strategy": anneal_strategy, "three_phase": three_phase}
        lr = OneCycle(total_steps, pct_start, start=start, end=start / final_div_factor, **shared)
        schedule = per_group(
            owner, optimizer, lambda max_lr: lr.between(low=0.0, high=max_lr), max_lr=max_lr
        )
        if _cycles_momentum(owner, optimizer, cycle_momentum, options):
            # The share is 1 at the first phase's end and 0 at both other ends.
            shape = OneCycle(total_steps, pct_start, start=0.0, end=0.0, **shared)
            options["momentum"] = _momentum(owner, optimizer, shape, base_momentum, max_momentum)
        options["steps_per_epoch"] = steps_per_epoch
        super().__init__(optimizer, schedule, last_epoch, **options)


def _momentum(
    owner: str, optimizer: Optimizer, shape: Schedule, base_momentum: Any, max_momentum: Any
) -> Schedule | list[Schedule]:
    """Return the momentum that is high where the shape is low."""
    return per_group(
        owner,
        optimizer,
        lambda base_momentum, max_momentum: shape.between(max_momentum, base_momentum),
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )


def _cycles_momentum(
    owner: str, optimizer: Optimizer, wanted: bool | None, options: SchedulerOptions
) -> bool:
    """Return whether the momentum is to be cycled: never against the caller's own schedule."""
    has_momentum = all(has_option(g, "momentum") for g in getattr(optimizer, "param_groups", ()))
    if wanted and not has_momentum:
        raise ValueError(
            f"{owner}: expected an optimizer with momentum or betas for cycle_momentum=True, got "
            f"{type(optimizer).__name__}; leave cycle_momentum out"
        )
    if wanted and options.get("momentum") is not None:
        raise ValueError(f"{owner}: expected cycle_momentum or a momentum schedule, got both")
    if options.get("momentum") is not None:
        return False
    return has_momentum if wanted is None else wanted


def _scale(scale_fn: Callable[[float], float], mode: str, up: Time, down: Time | None) -> Schedule:
    if mode not in ("cycle", "iterations"):
        raise ValueError(f"CyclicLR: expected scale_mode 'cycle' or 'iterations', got {mode!r}")
    return _OfCycle(scale_fn, up, down) if mode == "cycle" else Function(scale_fn)


@dataclass(frozen=True)
class _OfCycle(Schedule):
    """A function of the number of the cycle, counted from 1."""

    times = ("step_size_up", "step_size_down")

    function: Callable[[float], float]
    step_size_up: Time
    step_size_down: Time | None

    def _factor(self, t: float) -> float:
        up = self._time("step_size_up")
        down = up if self.step_size_down is None else self._time("step_size_down")
        return float(self.function(find_cycle(t, up + down, 1)[0] + 1))

    def __repr__(self) -> str:
        return f"Function of the cycle({name_of(self.function)})"
