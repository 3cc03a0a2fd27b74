"""Watching a run: losses, and per layer activations, gradients and the size of updates."""

import weakref
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fusedtricks._checks import check_bool, check_module, check_whole
from fusedtricks.train.activations import (
    HISTOGRAM_EDGES,
    TensorStatistics,
    UpdateRecord,
    chosen_layers,
    dense_tensors,
    fetch,
    finite_or_none,
    saturation_bounds,
)
from fusedtricks.train.monitor_state import check_monitor_state

__all__ = ["Monitor"]

# Losses, or statistics of layers, that wait on the device before they are fetched unasked: some MB.
_MAX_WAITING = 4096


class Monitor:
    """Record losses, and statistics of every layer in every k-th update, without waiting.

    Call `step(loss)` once after each `optimizer.step()`. The updates 0, every, 2 * every, ... are
    *due*: only then do the layers have hooks, and a forward pass in training mode with gradients
    records, per layer,

        activation: the layer's output (the first tensor of several), as other layers get it;
        gradient: that of the loss with respect to this output;
        update_ratio: |w_after - w_before| / |w_before|, Euclidean norms of the layer's `weight`.

    Several forward passes in one update, as with gradient accumulation, are taken together. So are
    what torch.utils.checkpoint computes twice, and the gradients of several backward passes through
    one graph. With a GradScaler, gradients are those of the scaled loss, as the layers compute
    them. Update ratios are of the weights as stored: in float16 and bfloat16 small updates may
    vanish in them; parametrised weights (`weight_norm`) have none.

    All of this stays on the device. `losses()`, `records()` and `state_dict()` fetch it, and wait;
    without them that happens once per 4096 losses or statistics, so that they cannot fill the
    memory. What a due update costs is limited by `max_values`; others have no hooks.

    Hooks do not run in compiled code. Run due updates uncompiled, with the same parameters:

        output = (model if monitor.is_due else compiled)(inputs)

    or, for `model.compile()`, inside
    `torch.compiler.set_stance("force_eager" if monitor.is_due else "default")`.

    With DistributedDataParallel give it the wrapped or the inner model; each process records its
    own part of the batch, so one monitor on rank 0 is enough. Copies and pickles of the model have
    hooks that do nothing.

    Args:
        model: The model. Functions, and layers not called as `layer(inputs)`, cannot be seen.
        every: Updates from one record to the next, at least 1. Default 100.
        layers: Names of modules, as in `model.named_modules()`. Default None: all modules that
            contain no other, and nn.MultiheadAttention as a whole.
        max_values: Of larger outputs, and their gradients, take the first samples only, along
            dim 0: as many as have no more values than this, but at least one. Default 2**18.
        updates: Whether to measure update ratios, which takes a copy of the layers' weights
            during due updates. Default True.

    Raises:
        ValueError: If an argument is out of range, or no module has one of the names.
        TypeError: If an argument is of another kind, such as a string for layers.

    Example:
        >>> monitor = Monitor(model, every=50)
        >>> for inputs, labels in loader:
        ...     loss = loss_fn(model(inputs), labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     monitor.step(loss)
        >>> monitor.records()[-1]["layers"]["head"]["gradient"]["std"]
        0.0123
        >>> draw_monitor(monitor.state_dict(), "monitor.png")

    Source: Glorot & Bengio 2010, "Understanding the Difficulty of Training Deep Feedforward Neural
        Networks", figures 2, 6 and 7; for the update ratio, of which about 1e-3 is called healthy,
        the notes of the course CS231n, "Neural Networks Part 3".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        layers: Sequence[str] | None = None,
        max_values: int = 2**18,
        updates: bool = True,
    ) -> None:
        check_module("Monitor", "model", model)
        check_whole("Monitor", "every", every, 1)
        check_whole("Monitor", "max_values", max_values, 1)
        check_bool("Monitor", "updates", updates)
        self.model = model
        self.every = int(every)
        self.max_values = int(max_values)  # a small integer of NumPy would overflow
        self.updates = updates
        self._layers = chosen_layers(model, layers)
        self._n_updates = 0
        self._losses: list[float | None] = []
        self._waiting_losses: list[Tensor | float] = []
        self._records: list[dict[str, Any]] = []
        self._waiting: list[UpdateRecord] = []
        self._current: UpdateRecord | None = None
        self._handles: list[RemovableHandle] = []
        self._is_closed = False
        self._begin()

    @property
    def is_due(self) -> bool:
        """Whether the coming update is recorded."""
        return self._current is not None

    def step(self, loss: Tensor | float | None = None) -> None:
        """Finish an update; to be called after `optimizer.step()`.

        Args:
            loss: The loss of the batch, a scalar, if it is to be recorded.

        Raises:
            ValueError: If the loss has several elements.
            TypeError: If the loss is no real number.
            RuntimeError: If the update was due and no layer ran. Nothing is changed then.
        """
        _check_loss(loss)
        if self._current is not None and not self._current.activations:
            raise RuntimeError(
                "step: none of the layers ran in training mode with gradients in an update that "
                "is to be recorded; if the model is compiled, run it uncompiled while "
                "monitor.is_due (see Monitor)"
            )
        if loss is not None:
            self._add_loss(loss)
        if self._current is not None:
            self._current.finish(self._layers)
            self._waiting.append(self._current)
        self._n_updates += 1
        self._begin()
        # Last: if it fails, the update is finished, and what waits still does.
        if len(self._waiting_losses) >= _MAX_WAITING:
            self.losses()
        if len(self._waiting) * len(self._layers) >= _MAX_WAITING:
            self._fetch_records()

    def losses(self) -> list[float | None]:
        """Return the losses given to `step`; None for inf and NaN, as JSON has neither."""
        waiting = self._waiting_losses
        fetched = iter(fetch([loss for loss in waiting if isinstance(loss, Tensor)]))
        self._losses += [
            finite_or_none(next(fetched) if isinstance(loss, Tensor) else loss) for loss in waiting
        ]
        self._waiting_losses = []
        return list(self._losses)

    def records(self) -> list[dict[str, Any]]:
        """Return what was recorded, in plain Python types that JSON can hold.

        Returns:
            One dict per due update that is finished: `update`, counted from 0, and `layers`, which
            maps the names of those that ran, in the model's order, to dicts with `activation`,
            `gradient` (None without backward pass) and `update_ratio` (None without weight, or if
            it is not finite). The first two are as `TensorStatistics.to_record` describes.
        """
        self._fetch_records()
        return list(self._records)

    def state_dict(self) -> dict[str, Any]:
        """Return everything so far, in plain Python types; `draw_monitor` takes it.

        Returns:
            `n_updates`, `losses`, `records`, and `edges`, what separates the histograms' bins.
        """
        return {
            "n_updates": self._n_updates,
            "losses": self.losses(),
            "records": self.records(),
            "edges": list(HISTOGRAM_EDGES),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position.

        Raises:
            ValueError, TypeError: If it is no such state, or one with other bins. Nothing has
                changed then.
        """
        check_monitor_state(state)
        self._losses, self._waiting_losses = list(state["losses"]), []
        self._records, self._waiting = list(state["records"]), []
        self._n_updates = state["n_updates"]
        self._begin()

    def close(self) -> None:
        """Remove all hooks for good; what was recorded stays, and `step` goes on with losses."""
        self._is_closed = True
        self._begin()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Attach the hooks if the coming update is due, else take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._current = None
        if self._n_updates % self.every == 0 and not self._is_closed:
            self._current = UpdateRecord(self._n_updates)
            self._handles = [
                layer.register_forward_hook(_Hook(self, name))
                for name, layer in self._layers.items()
            ]

    def _see(self, name: str, layer: nn.Module, output: Any) -> None:
        """Take in what a layer returned, and have its gradient taken in later."""
        update = self._current
        tensor = next(dense_tensors(output), None)
        is_training = self.model.training and torch.is_grad_enabled()
        if update is None or not is_training or tensor is None:
            return
        bounds = saturation_bounds(layer)
        activations = update.activations.setdefault(name, TensorStatistics(bounds))
        activations.add(self._first_samples(tensor))
        weight = next(dense_tensors(layer._parameters.get("weight")), None)
        if self.updates and weight is not None and name not in update.weights:
            update.weights[name] = weight.detach().clone()
        if not tensor.requires_grad:
            return
        gradients = update.gradients.setdefault(name, TensorStatistics())
        # A hook of the module would keep later layers from working in place.
        tensor.register_hook(lambda gradient: gradients.add(self._first_samples(gradient)))

    def _first_samples(self, tensor: Tensor) -> Tensor:
        if tensor.numel() <= self.max_values:
            return tensor
        return tensor[: max(self.max_values * len(tensor) // tensor.numel(), 1)]

    def _add_loss(self, loss: Tensor | float) -> None:
        if isinstance(loss, Tensor):
            # A copy: the caller may go on calculating with it.
            loss = loss.detach().reshape(()).clone()
        self._waiting_losses.append(loss if isinstance(loss, Tensor) else float(loss))

    def _fetch_records(self) -> None:
        waiting = self._waiting
        fetched = iter(fetch([tensor for update in waiting for tensor in update.tensors()]))
        self._records += [update.to_record(fetched) for update in waiting]
        self._waiting = []


def _check_loss(loss: Any) -> None:
    is_number = isinstance(loss, Tensor | Real) and not isinstance(loss, bool)
    if loss is not None and not is_number:
        raise TypeError(f"step: expected loss to be a number or a tensor, got {loss!r}")
    if not isinstance(loss, Tensor):
        return
    if loss.is_complex() or loss.dtype == torch.bool:
        raise TypeError(f"step: expected loss to be real, got a tensor of {loss.dtype}")
    if loss.numel() != 1:
        raise ValueError(
            f"step: expected loss to have one element, got shape {list(loss.shape)}; average it"
        )


class _Hook:
    """A forward hook that holds no monitor, so that copies of the model do not hold one either."""

    def __init__(self, monitor: Monitor | None, name: str) -> None:
        self._monitor = None if monitor is None else weakref.ref(monitor)
        self._name = name

    def __call__(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        monitor = None if self._monitor is None else self._monitor()
        if monitor is not None:
            monitor._see(self._name, layer, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, self._name)
