"""The scheduler: puts the values of schedules into the groups of an optimizer."""

import math
import warnings
import weakref
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedtricks.lr_scheduler.configuration import describe, differences, restore
from fusedtricks.lr_scheduler.group_options import OPTIONS, initial_value, write_option
from fusedtricks.lr_scheduler.group_schedules import (
    AnySchedule,
    Schedules,
    as_schedules,
    check_lengths,
    check_options,
    last_end,
)
from fusedtricks.lr_scheduler.skips import SkipCounter
from fusedtricks.lr_scheduler.times import Units, as_number

__all__ = ["ScheduledLR"]


class ScheduledLR(LRScheduler):
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
        schedules: Name of each scheduled option -> its schedules, in updates: one, or a list to
            which those of groups that are added later are appended.
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
        self._skips = SkipCounter(scaler)
        self._skips.watch(optimizer)
        self._has_warned = False
        self._end = last_end(self.schedules)
        self.last_epoch: float = last_epoch
        self._initial_step()
        self._follow_loading()

    # Position. -----------------------------------------------------------------------------------

    def step(self, epoch: float | None = None) -> None:
        """Go to the next update, and set the values for it.

        Nothing happens if the last update was skipped because of a non-finite gradient.

        Args:
            epoch: Position to go to instead: number of updates done, or of epochs with
                unit="epoch", fractions included.
        """
        self._step_count += 1
        if epoch is None and self._skips.was_skipped(self.optimizer):
            return
        self._update_lr(epoch)

    def _update_lr(self, epoch: float | None = None) -> None:
        # torch's SequentialLR calls this with epoch 0 at milestones.
        if epoch is None:
            position = self.last_epoch + 1
        elif as_number("step", "epoch", epoch) < 0:
            raise ValueError(f"step: expected epoch of at least 0, got {epoch}")
        else:
            position = epoch * (self._units.steps_per_epoch if self._units.unit == "epoch" else 1)
        self._apply(position)
        self.last_epoch = position
        self._warn_at_end()

    def _initial_step(self) -> None:
        # torch's SequentialLR calls this for its first scheduler.
        self._step_count = 0
        self.step()

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
        bases = self.initial_values(option)
        schedules = self.schedules[option]
        if not isinstance(schedules, list):
            of_bases = {base: schedules(t, base) for base in set(bases)}
            return [of_bases[base] for base in bases]
        check_lengths(type(self).__name__, option, schedules, len(bases))
        return [schedule(t, base) for schedule, base in zip(schedules, bases, strict=False)]

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
        """The groups' learning rates before any scheduler."""
        return self.initial_values("lr")

    def _apply(self, t: float) -> None:
        if "lr" not in self.schedules:
            self.initial_values("lr")  # Noted, as every scheduler of torch does.
        # All values before the first is written: an error leaves every group as it was.
        values = {option: self.values(option, t) for option in self.schedules}
        for option, of_groups in values.items():
            if not all(map(math.isfinite, of_groups)):
                raise ValueError(
                    f"{type(self).__name__}: expected finite values of {option}, got {of_groups} "
                    f"at step {t}"
                )
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

    # Checkpoints. --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return position and configuration, in plain Python types."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": [float(lr) for lr in self._last_lr],
            "config": describe(self),
        }

    def load_state_dict(self, state_dict: dict[str, Any], config: str = "error") -> None:
        """Go to a saved position and set the values of it.

        It does not matter whether the optimizer's checkpoint is loaded before or after.

        Args:
            state_dict: What `state_dict` returned, here or in another process.
            config: If the schedules, or the learning rates they start from, differ from the saved
                ones: "error" refuses, "keep" goes on with those of this scheduler, "restore" takes
                the saved ones. Default "error".

        Raises:
            ValueError: For another `config`, the state of another kind of scheduler, or a different
                configuration with "error". Nothing has changed then.
        """
        if config not in ("error", "keep", "restore"):
            raise ValueError(
                f"load_state_dict: expected config 'error', 'keep' or 'restore', got {config!r}"
            )
        if not {"last_epoch", "config"} <= state_dict.keys():
            raise ValueError(
                f"{type(self).__name__}: expected the state of a fusedtricks scheduler, got one "
                f"with {sorted(state_dict)}; for the state of a torch scheduler make this one with "
                "last_epoch=state['last_epoch'] - 1"
            )
        found = differences(describe(self), state_dict["config"])
        if found and config == "error":
            raise ValueError(
                f"{type(self).__name__}: the checkpoint was made with another configuration:\n"
                + "\n".join(found)
                + "\nload_state_dict(state, config='keep') goes on with the present one, "
                "config='restore' with that of the checkpoint"
            )
        if found and config == "restore":
            restore(self, state_dict["config"])
            self._end = last_end(self.schedules)
        # Inside torch's SequentialLR, a scheduler that has not begun is at -1.
        if state_dict["last_epoch"] >= 0:
            self._apply(state_dict["last_epoch"])
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict.get("_step_count", self._step_count)
        self._skips.forget()

    def _follow_loading(self) -> None:
        """Set the values again whenever the optimizer has loaded a checkpoint."""
        scheduler = weakref.ref(self)

        def after(optimizer: Optimizer) -> None:
            alive = scheduler()
            if alive is not None and alive.last_epoch >= 0:
                alive._skips.forget()
                alive._apply(alive.last_epoch)

        self._hook = self.optimizer.register_load_state_dict_post_hook(after)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_hook"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._follow_loading()
