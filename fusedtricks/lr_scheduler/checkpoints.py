"""Saving and loading schedulers, in any order with their optimizers."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedtricks.lr_scheduler.configuration import (
    describe,
    differences,
    explain,
    read_state,
    restored,
)
from fusedtricks.lr_scheduler.group_options import note_of, read_option, write_option
from fusedtricks.lr_scheduler.group_schedules import Schedules, last_end
from fusedtricks.lr_scheduler.skips import SkipCounter

__all__ = ["CheckpointMixin"]


class CheckpointMixin:
    """The part of `ScheduledLR` that checkpoints need.

    Attributes:
        _bases: Option -> what it was in each group when the scheduler was made.
        _keeps_bases: Whether those are used, whatever the optimizer's checkpoint brings.
        _overwritten: Option -> what the constructor found in each group, until it has moved on.
        _follows: Whether to set the values again when the optimizer has loaded a checkpoint: not
            before the scheduler has moved or been loaded, so that what was loaded stays until then.
    """

    optimizer: Optimizer
    schedules: Schedules
    last_epoch: float
    _step_count: int
    _last_lr: list[Any]
    _end: float | None
    _skips: SkipCounter

    def state_dict(self) -> dict[str, Any]:
        """Return position and configuration, in plain Python types."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": [float(lr) for lr in self._last_lr],
            "in_control": self._is_in_control(),
            "config": describe(self.schedules, self._initial()),
        }

    def load_state_dict(self, state_dict: dict[str, Any], config: str = "error") -> None:
        """Go to a saved position and set the values of it.

        It does not matter whether the optimizer's checkpoint is loaded before or after. If the
        values in the optimizer were those of another scheduler, or set by hand, when the state was
        saved, they are left to those.

        Args:
            state_dict: What `state_dict` returned, here or in another process.
            config: If the schedules, or the values they start from, differ from the saved ones:
                "error" refuses, "keep" goes on with those that this scheduler was made with,
                "restore" takes the saved ones. Default "error".

        Raises:
            ValueError: For another `config`, something that is no state of such a scheduler, or a
                different configuration with "error". Nothing has changed then.
        """
        owner = type(self).__name__
        if config not in ("error", "keep", "restore"):
            raise ValueError(
                f"load_state_dict: expected config 'error', 'keep' or 'restore', got {config!r}"
            )
        position, saved = read_state(owner, state_dict)
        n_groups = len(self.optimizer.param_groups)
        found = differences(describe(self.schedules, self._own_bases()), saved, n_groups)
        if found and config == "error":
            raise ValueError(explain(owner, found))
        before = self._snapshot()
        try:
            if found and config == "restore":
                self.schedules, self._bases = restored(owner, saved, self.optimizer)
                self._keeps_bases = False
                self._end = last_end(self.schedules)
                self._write_notes()
            elif found:
                self._bases, self._keeps_bases = self._own_bases(), True
                self._write_notes()
            # Inside torch's SequentialLR, a scheduler that has not begun is at -1.
            self._follows = position >= 0 and state_dict.get("in_control", True)
            if self._follows:
                self._apply(position)
            elif self._is_in_control():
                self._put_back()
        except Exception:
            self._roll_back(before)
            raise
        self.last_epoch = position
        self._step_count = state_dict.get("_step_count", self._step_count)
        self._skips.watch()

    def _put_back(self) -> None:
        """Give other schedulers back what the constructor has written over."""
        for option, values in self._overwritten.items():
            for group, value in zip(self.optimizer.param_groups, values, strict=False):
                write_option(group, option, value)
        self._overwritten = {}

    def _initial(self) -> dict[str, list[float]]:
        return {option: self.initial_values(option) for option in self.schedules}

    def _own_bases(self) -> dict[str, list[float]]:
        """Return what options were when the scheduler was made, or their group was added."""
        return {
            option: (known := self._bases.get(option, [])) + values[len(known) :]
            for option, values in self._initial().items()
        }

    def _write_notes(self) -> None:
        for option, values in self._bases.items():
            for group, value in zip(self.optimizer.param_groups, values, strict=False):
                group[note_of(option)] = value

    def _is_in_control(self) -> bool:
        """Return whether the optimizer has the values that the scheduler last set."""
        if self.last_epoch < 0:
            return False
        for option in self.schedules:
            values = self.get_lr() if option == "lr" else self.values(option)
            for group, value in zip(self.optimizer.param_groups, values, strict=True):
                present = read_option(group, option)
                if isinstance(present, Tensor):
                    value = torch.tensor(value, dtype=present.dtype).item()
                if float(present) != value:
                    return False
        return True

    def _snapshot(self) -> tuple[Any, ...]:
        notes = [
            {key: value for key, value in group.items() if key.startswith("initial_")}
            for group in self.optimizer.param_groups
        ]
        return notes, {
            name: getattr(self, name)
            for name in ("schedules", "_bases", "_keeps_bases", "_end", "_follows", "last_epoch")
        }

    def _roll_back(self, before: tuple[Any, ...]) -> None:
        notes, attributes = before
        for group, values in zip(self.optimizer.param_groups, notes, strict=True):
            group.update(values)
        self.__dict__.update(attributes)

    # The optimizer's checkpoints. ----------------------------------------------------------------

    def _begin_following(self) -> None:
        self._follows = self._keeps_bases = False
        self._was_in_control = False
        self._bases = self._initial()
        self._overwritten = {
            option: [float(read_option(group, option)) for group in self.optimizer.param_groups]
            for option in self.schedules
        }
        self._listen()

    def _listen(self) -> None:
        """Notice when the optimizer loads a checkpoint."""
        scheduler = weakref.ref(self)

        def before(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            alive = scheduler()
            if alive is not None:
                alive._was_in_control = alive._follows and alive._is_in_control()

        def after(optimizer: Optimizer) -> None:
            alive = scheduler()
            if alive is None:
                return
            alive._overwritten = {}
            if alive._was_in_control:
                if alive._keeps_bases:
                    alive._write_notes()
                alive._apply(alive.last_epoch)

        # Wrappers of optimizers may not have the hooks themselves.
        for optimizer in (self.optimizer, getattr(self.optimizer, "optimizer", None)):
            if hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):
                for handle in (
                    optimizer.register_load_state_dict_pre_hook(before),
                    optimizer.register_load_state_dict_post_hook(after),
                ):
                    weakref.finalize(self, handle.remove)
                return

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._listen()
