"""A training run of one model with one optimizer, which can stop and go on at any batch."""

import copy
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from fusedtricks._checks import check_whole
from fusedtricks.train.batches import Batches
from fusedtricks.train.steppers import Stepper

__all__ = ["DivergedError", "Trainer", "accuracy", "percentile", "weights_sha256"]

EpochRecord = dict[str, float]

_KEYS = (
    "model",
    "optimizer",
    "scheduler",
    "batches",
    "history",
    "step_s",
    "train_s",
    "loss_sum",
)


class DivergedError(RuntimeError):
    """Training cannot go on because the loss is inf or NaN."""


class Trainer:
    """Train a classifier epoch by epoch and measure every batch.

    `run` stops after any batch at which it is asked to. `state_dict` then holds everything the
    rest of the run depends on: continued from it, with the same number of threads, the run ends
    with the very weights it would have had without the stop.

    Args:
        model: Maps images, shape (B, C, H, W), to logits, shape (B, K).
        stepper: Updates the parameters of `model`.
        scheduler: Stepped once per batch, after the optimizer.
        batches: The training data.
        test_images: Shape (M, C, H, W).
        test_labels: Shape (M,), int64.
        epochs: Length of the run, at least 0.
        label_smoothing: Share of the target probability given to all classes alike. Default 0.

    Attributes:
        history: One record per finished epoch: `epoch` (from 1), `loss` (mean over the training
            images, smoothed as trained), `accuracy` (on the test set, 0 to 1), `lr` (after the
            last batch) and `step_ms` (median of the epoch).
        step_s: Wall time in seconds of clipping, centralizing and updating, one per batch.
        train_s: Wall time in seconds of the whole batch, forward and backward included.

    Raises:
        ValueError: If epochs is negative.
        TypeError: If epochs is no whole number.
    """

    def __init__(
        self,
        model: nn.Module,
        stepper: Stepper,
        scheduler: LRScheduler,
        batches: Batches,
        test_images: Tensor,
        test_labels: Tensor,
        *,
        epochs: int,
        label_smoothing: float = 0.0,
    ) -> None:
        check_whole("Trainer", "epochs", epochs, 0)
        self.model = model
        self.stepper = stepper
        self.scheduler = scheduler
        self.batches = batches
        self.test_images = test_images
        self.test_labels = test_labels
        self.epochs = epochs
        self.label_smoothing = label_smoothing
        self.history: list[EpochRecord] = []
        self.step_s: list[float] = []
        self.train_s: list[float] = []
        self._loss_sum = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or more, in a run that goes on with fewer."""
        return len(self.history) >= self.epochs

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_batch: Callable[[float], None] = lambda loss: None,
        on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    ) -> bool:
        """Train to the end, or until asked to stop.

        Args:
            should_stop: Asked after every batch.
            on_batch: Called after every batch with its loss.
            on_epoch: Called after every epoch with its record.

        Returns:
            Whether the run is finished.

        Raises:
            DivergedError: If the loss is no longer finite.
        """
        while not self.is_finished:
            self.model.train()
            # A run that stopped after the last batch of an epoch goes on with its evaluation.
            while self._batches_done() < len(self.batches):
                on_batch(self._train_batch())
                if should_stop():
                    return False
            self._finish_epoch()
            on_epoch(self.history[-1])
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the run depends on; shares tensors with the trainer."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "batches": self.batches.state_dict(),
            "history": self.history,
            "step_s": self.step_s,
            "train_s": self.train_s,
            "loss_sum": self._loss_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the trainer that `state` is from was.

        Raises:
            ValueError: If it is no such state.
            ValueError, RuntimeError: If it is the state of another model. As after all errors,
                nothing has changed then.
        """
        missing = [name for name in _KEYS if name not in state]
        if missing:
            raise ValueError(
                "load_state_dict: expected what Trainer.state_dict() returned, got no "
                f"{missing[0]!r}"
            )
        before = copy.deepcopy(self.state_dict())
        try:
            self._load(state)
        except BaseException:
            self._load(before)
            raise

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.batches.load_state_dict(state["batches"])
        self.history = list(state["history"])
        self.step_s = list(state["step_s"])
        self.train_s = list(state["train_s"])
        self._loss_sum = state["loss_sum"]

    def _batches_done(self) -> int:
        return len(self.step_s) - len(self.history) * len(self.batches)

    def _train_batch(self) -> float:
        start = time.perf_counter()
        images, labels = self.batches.next()
        self.stepper.optimizer.zero_grad()
        logits = self.model(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        loss.backward()
        step_start = time.perf_counter()
        self.stepper.step()
        end = time.perf_counter()
        self.scheduler.step()
        self.step_s.append(end - step_start)
        self.train_s.append(end - start)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} in epoch {len(self.history) + 1}, batch "
                f"{self.batches.position}; a smaller learning rate helps"
            )
        self._loss_sum += value * len(labels)
        return value

    def _finish_epoch(self) -> None:
        record = {
            "epoch": len(self.history) + 1,
            "loss": self._loss_sum / len(self.batches.images),
            "accuracy": accuracy(self.model, self.test_images, self.test_labels),
            "lr": self.scheduler.optimizer.param_groups[0]["lr"],
            "step_ms": 1e3 * percentile(self.step_s[-len(self.batches) :], 50),
        }
        self.history.append(record)
        self._loss_sum = 0.0


def percentile(values: list[float], percent: float) -> float:
    """Return the value that `percent` (0 to 100) of the others are below, interpolated."""
    return torch.tensor(values, dtype=torch.float64).quantile(percent / 100).item()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images, 0 to 1, whose largest logit is at the label.

    Args:
        model: Left in evaluation mode.
        images: Shape (M, C, H, W).
        labels: Shape (M,), int64.
    """
    model.eval()
    return (model(images).argmax(dim=1) == labels).double().mean().item()


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, bit by bit, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
