"""Whether an optimizer left its last update out because a gradient was not finite."""

from typing import Any

from torch.optim import Optimizer

__all__ = ["SkipCounter"]


class SkipCounter:
    """Notice skipped updates between two calls of `was_skipped`.

    fusedtricks optimizers count them. This waits for the device, but only where updates can be
    skipped: with a GradScaler, or skip_nonfinite. For other optimizers the scale of `scaler` tells:
    it shrinks when an update was skipped.

    Args:
        scaler: The GradScaler that steps the optimizer, None without one.
    """

    def __init__(self, scaler: Any = None) -> None:
        self._scaler = scaler
        self.forget()

    def forget(self) -> None:
        """Let the next call of `was_skipped` compare with what is then, as after a checkpoint."""
        self._n_steps = self._n_skipped = self._scale = None

    def was_skipped(self, optimizer: Optimizer) -> bool:
        """Return whether all updates since the last call were skipped, and there was one."""
        record = getattr(optimizer, "_record", None)
        if record is not None:
            return self._read_record(optimizer, record)
        return self._scaler is not None and self._read_scale()

    def watch(self, optimizer: Optimizer) -> None:
        """Remember the present counts, to compare the next ones with."""
        self.was_skipped(optimizer)

    def _read_record(self, optimizer: Any, record: Any) -> bool:
        n_steps = record.n_steps
        n_skipped = self._n_skipped
        if n_skipped is None or record.can_skip:
            n_skipped = optimizer.skipped_steps
        steps_before, self._n_steps = self._n_steps, n_steps
        skipped_before, self._n_skipped = self._n_skipped, n_skipped
        if steps_before is None:
            return False
        # A replayed CUDA graph makes steps that Python does not count.
        n_new = max(n_steps - steps_before, 1)
        return n_skipped - skipped_before >= n_new

    def _read_scale(self) -> bool:
        before, self._scale = self._scale, self._scaler.get_scale()
        return before is not None and self._scale < before
