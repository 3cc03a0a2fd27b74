"""Whether an optimizer left its last updates out because a gradient was not finite."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["SkipCounter", "make_skip_counter"]


class SkipCounter:
    """Knows of no skipped updates: for optimizers of torch without a GradScaler."""

    def were_skipped(self) -> bool:
        """Return whether all updates since the last call, at least one, were skipped."""
        return False

    def watch(self) -> None:
        """Let the next call of `were_skipped` look at updates from now on."""


class _OwnCounter(SkipCounter):
    """Asks an optimizer of fusedtricks.

    That waits for the device, but only where updates can be skipped: with a GradScaler, or
    skip_nonfinite.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._n_steps = 0
        self._n_skipped = optimizer.skipped_steps
        self.watch()

    def were_skipped(self) -> bool:
        steps_before, skipped_before = self._n_steps, self._n_skipped
        self.watch()
        # A replayed CUDA graph takes steps that Python does not count.
        n_new = max(self._n_steps - steps_before, 1)
        n_skipped = self._n_skipped - skipped_before
        if n_skipped < 0:  # The count was set to 0 in between.
            n_skipped = self._n_skipped
        return n_skipped >= n_new

    def watch(self) -> None:
        record = self._optimizer._record
        self._n_steps = record.n_steps
        if record.can_skip:
            self._n_skipped = self._optimizer.skipped_steps


class _HookCounter(SkipCounter):
    """Counts the updates of an optimizer of torch, which a GradScaler may leave out.

    A hook sees every `step` that is taken. A fused step is also taken for non-finite gradients, and
    leaves everything alone then; the scaler tells it by the attribute `found_inf`.
    """

    def __init__(self, optimizer: Optimizer, scaler: Any) -> None:
        self._optimizer = optimizer
        self._scaler = scaler
        self._listen()
        self.watch()

    def were_skipped(self) -> bool:
        has_stepped = self._has_stepped or (self._steps is not None and bool(self._steps.item()))
        self.watch()
        return self._scaler.is_enabled() and not has_stepped

    def watch(self) -> None:
        self._has_stepped = False
        # On the device: whether one of the fused steps was real.
        self._steps: Tensor | None = None

    def _listen(self) -> None:
        counter = weakref.ref(self)

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            alive = counter()
            if alive is not None:
                alive._count(getattr(optimizer, "found_inf", None))

        weakref.finalize(self, self._optimizer.register_step_post_hook(after).remove)

    def _count(self, found_inf: Any) -> None:
        if not isinstance(found_inf, Tensor):
            self._has_stepped = True
            return
        is_real = found_inf == 0
        self._steps = is_real if self._steps is None else torch.logical_or(self._steps, is_real)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._listen()


def make_skip_counter(optimizer: Optimizer, scaler: Any) -> SkipCounter:
    """Return what notices the skipped updates of an optimizer.

    Args:
        optimizer: Of fusedtricks or torch.
        scaler: The GradScaler that steps an optimizer of torch, None without one.
    """
    if hasattr(optimizer, "_record") and hasattr(optimizer, "skipped_steps"):
        return _OwnCounter(optimizer)
    return SkipCounter() if scaler is None else _HookCounter(optimizer, scaler)
