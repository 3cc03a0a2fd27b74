"""The learning-rate range test: which learning rates lower the loss, and where it diverges."""

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedtricks.lr_scheduler.range_test.checks import (
    Settings,
    check_loss,
    check_objects,
    lr_ratios,
    split_pair,
)
from fusedtricks.lr_scheduler.range_test.data import (
    BatchStream,
    keep_data_order,
    keep_random_numbers,
)
from fusedtricks.lr_scheduler.range_test.progress import OnUpdate, reporting
from fusedtricks.lr_scheduler.range_test.result import Curve, RangeTest
from fusedtricks.lr_scheduler.range_test.state import kept

__all__ = ["lr_range_test"]


def lr_range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    loader: Iterable[Any],
    *,
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    n_updates: int = 100,
    repeats: int = 1,
    smoothing: float = 0.98,
    divergence: float = 4.0,
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool | OnUpdate = True,
) -> RangeTest:
    """Train a little with a growing learning rate, record the loss, and undo the training.

    Update i of n_updates uses lr_i = start_lr * (end_lr / start_lr)**(i / (n_updates - 1)) in the
    parameter group whose lr is largest; every other group keeps its ratio to that one. If all are
    0, as at the start of a warm-up, the ratios are those of "initial_lr"; if there is none, all
    groups use lr_i. A tensor lr is filled in place. With `decouple_lr`, "initial_lr" follows lr, so
    that the decay of a step stays the group's weight_decay. Everything else in the groups stays.

    The loss of an update is measured before its step. Smoothed, it is
    s_i = (1 - smoothing) / (1 - smoothing**(i + 1)) * sum_{j <= i} smoothing**(i - j) * loss_j.

    The test ends early, without a step, when s_i > divergence * min(s_0 ... s_i), or when a loss is
    inf or NaN. Where the smallest s is negative the limit is min + (divergence - 1) * |min|.
    When torch.distributed is initialized, losses are averaged over all processes first: all stop at
    the same update. Every process has to call this.

    Afterwards, also after an exception or Ctrl-C, everything is as before, bit for bit: parameters,
    buffers, gradients and modes; state, groups and attributes of the optimizer; the scaler; the
    global random numbers of Python, NumPy, torch and CUDA; and the order of the data, as far as it
    is known to: generators among the attributes of a loader, its samplers and datasets, and what
    has `state_dict` and `load_state_dict`. What an iterator has yielded is gone. That takes a
    second copy of model and optimizer state. Run it before training or between epochs.

    A model in training mode is used as it is, so that parts in evaluation mode stay so; another is
    put in training mode. Learning-rate schedulers are not advanced.

    Args:
        model: The model.
        optimizer: Any torch.optim.Optimizer whose `step` needs no closure.
        loss_fn: Called as loss_fn(model(inputs), targets) for batches (inputs, targets); returns
            the mean loss of the batch, a scalar. None with `batch_loss`.
        loader: Yields batches; started again when it ends. Or an object whose `next()` returns a
            batch, such as `fusedtricks.train.Batches`.
        batch_loss: For everything else: called as batch_loss(model, batch), returns a scalar.
        start_lr: First learning rate. Default 1e-7.
        end_lr: Last learning rate. Default 10.
        n_updates: Number of updates, at least 2. Default 100.
        repeats: Number of repetitions: each starts from the same model, optimizer and scaler, and
            goes on with the data and the random numbers where the last one ended. The result is
            their median. Default 1.
        smoothing: Weight of the past in the moving average, in [0, 1). The average trails the loss,
            by up to 1 / (1 - smoothing) updates. Default 0.98.
        divergence: Stop at so many times the smallest smoothed loss; > 1, math.inf for never.
            Default 4.
        accumulate: Batches per update: their gradients and losses are averaged. Default 1.
        scaler: Scales the loss and steps the optimizer. Updates that it skips are recorded in
            `Curve.skipped`; losses are recorded unscaled.
        autocast: dtype for torch.autocast around model and loss. Default None, no autocast.
        device: Where the tensors of each batch are moved to. Default None, they stay.
        progress: Whether to draw a bar on standard error if that is a terminal and rich is
            installed; or a function, called after each update with the number of updates done, the
            number of all, the learning rate and the loss. Default True.

    Returns:
        Curves and suggestions.

    Raises:
        ValueError: If an argument is out of range; nothing has changed then. If the loader yields
            nothing, or the loss is no scalar that depends on the model; all is undone then.

    Example:
        >>> result = lr_range_test(model, optimizer, nn.functional.cross_entropy, loader)
        >>> result.plot("range_test.png")
        >>> lrs = result.suggestion_for_groups(result.suggestions.minimum_over_10)

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3; Gugger
        2018, "How Do You Find A Good Learning Rate": exponential ramp, bias-corrected smoothing and
        the stop at 4 times the smallest smoothed loss.
    """
    settings = Settings(start_lr, end_lr, n_updates, repeats, smoothing, divergence, accumulate)
    check_objects(model, optimizer, loader, loss_fn, batch_loss, scaler, autocast, progress)
    ratios = lr_ratios(optimizer)
    modules = [m for m in (model, loss_fn, batch_loss) if isinstance(m, nn.Module)]
    trial = _Trial(
        model, modules, optimizer, loss_fn, batch_loss, scaler, autocast, settings, ratios
    )
    with ExitStack() as stack:
        keep_random_numbers(stack)
        keep_data_order(loader, stack)
        batches = BatchStream(loader, device)
        stack.callback(batches.close)
        on_update = stack.enter_context(reporting(progress))
        curves = []
        for index in range(repeats):
            with kept(modules, optimizer, scaler), torch.enable_grad():
                curves.append(trial.run(batches, index * n_updates, on_update))
    return RangeTest.from_curves(curves, ratios)


@dataclass(frozen=True)
class _Trial:
    """What is trained, and how; see `lr_range_test`."""

    model: nn.Module
    modules: list[nn.Module]
    optimizer: Optimizer
    loss_fn: Callable[[Any, Any], Tensor] | None
    batch_loss: Callable[[nn.Module, Any], Tensor] | None
    scaler: torch.amp.GradScaler | None
    autocast: torch.dtype | None
    settings: Settings
    ratios: list[float]

    def run(self, batches: BatchStream, n_before: int, on_update: OnUpdate) -> Curve:
        """Run once through the learning rates, and leave the training as it is then."""
        if not self.model.training:
            self.model.train()
        settings, lrs = self.settings, self.settings.lrs()
        losses: list[float] = []
        smoothed: list[float] = []
        skipped: list[int] = []
        reason, average, smallest = "end", 0.0, math.inf
        for index, lr in enumerate(lrs):
            self._set_lr(lr)
            loss = self._backward(batches)
            if not math.isfinite(loss):
                reason = "not finite"
                break
            average = settings.smoothing * average + (1 - settings.smoothing) * loss
            losses.append(loss)
            smoothed.append(average / (1 - settings.smoothing ** (index + 1)))
            smallest = min(smallest, smoothed[-1])
            if smoothed[-1] > _limit(smallest, settings.divergence):
                reason = "diverged"
                break
            if self._step():
                skipped.append(index)
            on_update(n_before + index + 1, settings.repeats * settings.n_updates, lr, loss)
        stop_lr = None if reason == "end" else lr
        return Curve(lrs[: len(losses)], losses, smoothed, reason, stop_lr, skipped)

    @torch.no_grad()
    def _set_lr(self, largest: float) -> None:
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            lr = largest * ratio
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
            if group.get("decouple_lr"):
                group["initial_lr"] = lr

    def _backward(self, batches: BatchStream) -> float:
        """Make the gradients of an update, and return its loss."""
        for module in self.modules:
            module.zero_grad()
        self.optimizer.zero_grad()
        losses = []
        for _ in range(self.settings.accumulate):
            loss = self._loss(batches.next())
            losses.append(loss.detach().reshape(()))
            loss = loss / self.settings.accumulate
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return _mean(losses)

    def _loss(self, batch: Any) -> Tensor:
        with nullcontext() if self.autocast is None else self._autocast():
            if self.batch_loss is not None:
                loss = self.batch_loss(self.model, batch)
            else:
                inputs, targets = split_pair(batch)
                loss = self.loss_fn(self.model(inputs), targets)
        check_loss(loss, "loss_fn" if self.batch_loss is None else "batch_loss")
        return loss

    def _autocast(self) -> torch.autocast:
        params = chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
        return torch.autocast(next(params).device.type, self.autocast)

    def _step(self) -> bool:
        """Step the optimizer; return whether it left the update out."""
        # A skipped step is counted by our optimizers, and lowers the scale for all.
        n_before = getattr(self.optimizer, "skipped_steps", 0)
        scale = 0.0 if self.scaler is None else self.scaler.get_scale()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() < scale:
                return True
        return getattr(self.optimizer, "skipped_steps", 0) > n_before


def _limit(smallest: float, divergence: float) -> float:
    """Return the largest smoothed loss that is not yet a divergence."""
    if smallest > 0:
        return divergence * smallest
    return smallest + (divergence - 1) * abs(smallest)


def _mean(losses: list[Tensor]) -> float:
    """Return the mean over all losses of all processes."""
    mean = torch.stack(losses).to("cpu", torch.float64).mean()
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        # The backend of the processes may take tensors of one kind of device only.
        mean = mean.to(losses[0].device)
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean.item()
