"""The scheduler: puts the values of schedules into the groups of an optimizer."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedtricks.lr_scheduler.checkpoints import CheckpointMixin
from fusedtricks.lr_scheduler.group_options import OPTIONS, initial_value, write_option
from fusedtricks.lr_scheduler.group_schedules import (
    AnySchedule,
    Schedules,
    as_schedules,
    check_lengths,
    check_options,
    last_end,
)
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.skips import make_skip_counter
from fusedtricks.lr_scheduler.times import Units

__all__ = ["ScheduledLR"]


class ScheduledLR(CheckpointMixin, LRScheduler):
    """Set the learning rate of an optimizer, and other options, to the values of schedules.

    After n calls of `step`, lr = schedule(n, initial_lr): a function of n alone, so that it does
    not matter in which order optimizer and scheduler are made and loaded. `initial_lr` is the
    group's lr before any scheduler, which torch keeps in the group under this name; it is read at
    every step and never changed.

    Call `step` after every optimizer update (once per k batches, when gradients of k batches
    accumulate), or once per epoch if all times are epochs. Updates skipped because of a non-finite
    gradient do not count. After the end the last value stays, with one warning.

    Args:
        optimizer: Any torch.optim.Optimizer. A tensor lr is filled in place.
        schedule: A schedule or function for all groups, also those added later, or a list with one
            for each group. None leaves the learning rate alone.
        last_epoch: As in torch: continue after this step; the groups must have "initial_lr".
            Default -1, a new run.
        **options: See `SchedulerOptions`.

    Attributes:
        schedules: Name of each scheduled option -> its schedules, in updates: one, or a list with
            one for each group; see `append_schedule`.
        last_epoch: Number of updates done.

    Raises:
        TypeError: If the optimizer or a schedule is of another type.
        ValueError: If a list does not have one schedule per group, a group lacks an option, or
            times cannot be resolved.

    Example:
        >>> schedule = Cosine("90ep").with_warmup("5ep", "inside")
        >>> scheduler = ScheduledLR(optimizer, schedule, steps_per_epoch=len(loader))
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: AnySchedule | None,
        last_epoch: int = -1,
        *,
        momentum: AnySchedule | None = None,
        beta2: AnySchedule | None = None,
        weight_decay: AnySchedule | None = None,
        unit: str = "update",
        steps_per_epoch: float | None = None,
        total_steps: float | None = None,
        scaler: Any = None,
    ) -> None:
        # Not LRScheduler.__init__: it wraps optimizer.step, which costs time in every step and
        # breaks torch.compile(fullgraph=True).
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer
        self._units = Units(steps_per_epoch, total_steps, unit)
        given = zip(OPTIONS, (schedule, momentum, beta2, weight_decay), strict=True)
        owner, n_groups = type(self).__name__, len(optimizer.param_groups)
        self.schedules: Schedules = {
            option: as_schedules(owner, option, value, n_groups, self._units)
            for option, value in given
            if value is not None
        }
        if not self.schedules:
            raise ValueError(f"{owner}: expected a schedule, got None for all options")
        check_options(owner, optimizer, self.schedules)
        self._check_initial_lr(last_epoch)
        self._skips = make_skip_counter(optimizer, scaler)
        self._has_warned = False
        self._end = last_end(self.schedules)
        self.last_epoch: float = last_epoch
        self._begin_following()
        self._initial_step()

    # Position. -----------------------------------------------------------------------------------

    def step(self, epoch: float | None = None) -> None:
        """Go to the next update, and set the values for it.

        Nothing happens if all updates since the last call, at least one, were skipped because of
        a non-finite gradient.

        Args:
            epoch: Position to go to instead: number of updates done, or of epochs with
                unit="epoch", fractions included.
        """
        self._step_count += 1
        if epoch is None and self._skips.were_skipped():
            return
        self._update_lr(epoch)

    def _update_lr(self, epoch: float | None = None) -> None:
        # torch's SequentialLR calls this with epoch 0 at milestones.
        if epoch is None:
            position = self.last_epoch + 1
        else:
            position = self._units.position(epoch)
            self._skips.watch()
        self._apply(position)
        if position > 0:
            self._follows, self._overwritten = True, {}
        self._warn_at_end()

    def _initial_step(self) -> None:
        # torch's SequentialLR calls this for its first scheduler.
        self._step_count = 1
        self._skips.watch()
        self._update_lr()

    def _warn_at_end(self) -> None:
        if self._has_warned:
            return
        end = self._end
        if end is None or self.last_epoch <= end:
            return
        self._has_warned = True
        warnings.warn(
            f"{type(self).__name__}: the schedule ended after {end} updates and keeps its "
            f"last value, lr {self._last_lr}; make it longer, or stop calling step()",
            UserWarning,
            stacklevel=4,
        )

    # Values. -------------------------------------------------------------------------------------

    def values(self, option: str = "lr", t: float | None = None) -> list[float]:
        """Return the values of all groups.

        Args:
            option: "lr", "momentum", "beta2" or "weight_decay".
            t: Number of updates done. Default: now.
        """
        t = self.last_epoch if t is None else t
        owner, bases = type(self).__name__, self.initial_values(option)
        schedules = self.schedules[option]
        try:
            if isinstance(schedules, list):
                check_lengths(owner, option, schedules, len(bases))
                found = [float(s(t, base)) for s, base in zip(schedules, bases, strict=False)]
            else:
                of_bases = {base: float(schedules(t, base)) for base in set(bases)}
                found = [of_bases[base] for base in bases]
        except OverflowError:
            found = [math.inf]
        if not all(map(math.isfinite, found)):
            raise ValueError(
                f"{owner}: expected finite values of {option}, got {found} at step {t}"
            )
        return found

    def get_lr(self) -> list[float]:
        """Return the learning rates of all groups at the present position."""
        if "lr" not in self.schedules:
            return [group["lr"] for group in self.optimizer.param_groups]
        return self.values("lr")

    _get_closed_form_lr = get_lr

    def preview(self, n: int) -> dict[str, list[list[float]]]:
        """Return the values of the first `n` updates: option -> update -> group."""
        return {option: [self.values(option, t) for t in range(n)] for option in self.schedules}

    def initial_values(self, option: str = "lr") -> list[float]:
        """Return what an option was in each group before any scheduler."""
        return [initial_value(group, option) for group in self.optimizer.param_groups]

    @property
    def base_lrs(self) -> list[float]:
        """The groups' learning rates before any scheduler, `initial_lr` of the groups."""
        return self.initial_values("lr")

    @base_lrs.setter
    def base_lrs(self, values: Sequence[float]) -> None:
        for group, value in zip(self.optimizer.param_groups, values, strict=True):
            group["initial_lr"] = float(value)

    def append_schedule(self, schedule: Schedule, option: str = "lr") -> None:
        """Add the schedule of a group that was added, where each group has its own.

        Args:
            schedule: With times in the units that the scheduler was made with.
            option: Whose schedule it is. Default "lr".

        Raises:
            ValueError: If all groups share one schedule, or times cannot be resolved.
        """
        found = self.schedules.get(option)
        if not isinstance(found, list):
            raise ValueError(
                f"{type(self).__name__}: expected {option} to have one schedule per group, but all "
                "groups, later ones too, share one"
            )
        found += as_schedules(type(self).__name__, option, [schedule], 1, self._units)

    def _apply(self, t: float) -> None:
        """Go to a position; an error leaves position and groups as they were."""
        before, self.last_epoch = self.last_epoch, t
        try:
            # Subclasses may have a get_lr of their own, as those of torch.
            values = {
                option: self.get_lr() if option == "lr" else self.values(option)
                for option in self.schedules
            }
        except Exception:
            self.last_epoch = before
            raise
        if "lr" not in values:
            self.initial_values("lr")  # Noted, as every scheduler of torch does.
        for option, of_groups in values.items():
            for group, value in zip(self.optimizer.param_groups, of_groups, strict=True):
                write_option(group, option, value)
        self._last_lr = [
            lr.detach().clone() if isinstance(lr, Tensor) else lr
            for lr in (group["lr"] for group in self.optimizer.param_groups)
        ]

    def _check_initial_lr(self, last_epoch: int) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            if last_epoch != -1 and "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{index}] when resuming "
                    "with last_epoch >= 0; load the optimizer's checkpoint first, or leave "
                    "last_epoch out and load the scheduler's"
                )
