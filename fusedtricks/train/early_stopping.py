"""Stopping when the validation result no longer improves, and going back to the best model."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fusedtricks._checks import check_module, check_number, check_whole

__all__ = ["EarlyStopping"]

_MODES = ("min", "max")
_KEYS = ("mode", "best", "best_step", "n_bad", "n_steps", "reference", "model")


class EarlyStopping:
    """Stop after `patience` evaluations in a row without improvement; keep the best model.

    With mode "min", for values v_1, v_2, ... and the reference r, at first inf:

        v_t < r - min_delta: r becomes v_t, n_bad becomes 0; otherwise n_bad grows by 1.
        should_stop = n_bad >= patience.

    `best` is the smallest of all values, and the copy of the model belongs to it, also where it
    improved by less than min_delta. (Keras and Lightning keep the weights of r instead, which may
    be worse.) Small improvements count once they add up to more than min_delta. A value that is
    inf or NaN is never an improvement, so that a run that has diverged stops as well.

    Prechelt's UP_s stops when the validation error was larger than one strip before, s times in a
    row. This is its common variant that compares with the best value instead of the last one:
    patience=s stops when UP_s does (strips of one evaluation) or earlier, and does not go on while
    the error jumps up and down. His GL_alpha is in `fusedtricks.train.diagnose`.

    One lecture describes early stopping as no longer updating some of the weights. That is
    freezing (`requires_grad_(False)`). This ends training, and goes back to the best weights.

    When torch.distributed is initialized, the value of rank 0 counts in all processes, so that all
    decide the same. Every process has to call `step`; those of other ranks may pass None. If each
    evaluates a part of the validation set, average the values first.

    Args:
        patience: Evaluations in a row without improvement after which to stop, at least 1.
        mode: "min" for losses and errors, "max" for accuracies. Default "min".
        min_delta: By how much more a value has to improve on the reference, at least 0, in the unit
            of the values. Default 0.

    Attributes:
        best: Best value so far, or None.
        best_step: Which call of `step` brought it, from 0, or None.
        n_bad: Evaluations since the last improvement.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If patience is no whole number, or min_delta no number.

    Example:
        >>> stopper = EarlyStopping(2)
        >>> [stopper.step(loss) for loss in (0.9, 0.7, 0.8, 0.7, 0.1)]
        [False, False, False, True, False]
        >>> stopper = EarlyStopping(10, mode="max", min_delta=0.001)
        >>> for epoch in range(100):
        ...     train(model)
        ...     if stopper.step(accuracy(model), model):
        ...         break
        >>> stopper.restore(model)

    Source: Prechelt 1998, "Early Stopping - But When?", section 2 (UP_s); Bengio 2012, "Practical
        Recommendations for Gradient-Based Training of Deep Architectures", section 3.1 (patience).
    """

    def __init__(self, patience: int, *, mode: str = "min", min_delta: float = 0.0) -> None:
        check_whole("EarlyStopping", "patience", patience, 1)
        if mode not in _MODES:
            raise ValueError(f"EarlyStopping: expected mode 'min' or 'max', got {mode!r}")
        check_number("EarlyStopping", "min_delta", min_delta, low=0)
        self.patience = patience
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_step: int | None = None
        self.n_bad = 0
        self._n_steps = 0
        self._reference: float | None = None
        self._model: dict[str, Any] | None = None

    @property
    def should_stop(self) -> bool:
        """Whether the last `patience` evaluations brought no improvement."""
        return self.n_bad >= self.patience

    @property
    def is_best(self) -> bool:
        """Whether the last evaluation was the best so far."""
        return self.best_step is not None and self.best_step == self._n_steps - 1

    def step(self, value: float | Tensor | None, model: nn.Module | None = None) -> bool:
        """Take in the result of an evaluation.

        Args:
            value: A number, or a tensor with one element; reading one on a GPU waits for it. None
                on ranks other than 0.
            model: If it is the best so far, a copy of its `state_dict()` is made, exact, where its
                tensors are: that takes as much memory as the model, and twice that until the older
                copy is freed. Default None: no copy.

        Returns:
            `should_stop`.

        Raises:
            TypeError: If the value is no number, or model is no module.
            ValueError: If the value has several elements.
        """
        if model is not None:
            check_module("step", "model", model)
        number = _agreed(value)
        is_finite = math.isfinite(number)
        if is_finite and self._is_better(number, self.best, 0.0):
            # First: if the memory does not suffice, the older copy still belongs to `best`.
            copied = None if model is None else _copy(model.state_dict())
            self.best, self.best_step, self._model = number, self._n_steps, copied
        if is_finite and self._is_better(number, self._reference, self.min_delta):
            self._reference = number
            self.n_bad = 0
        else:
            self.n_bad += 1
        self._n_steps += 1
        return self.should_stop

    def restore(self, model: nn.Module) -> None:
        """Give the model the parameters and buffers that were best.

        The optimizer's state stays: it belongs to later weights.

        Raises:
            RuntimeError: If there is no copy, or it is of another model: other names, or other
                shapes. Nothing has changed then.
        """
        if self._model is None:
            reason = "no value was finite" if self.best is None else "step() got no model with it"
            raise RuntimeError(
                f"restore: there is no copy of the best model, because {reason}; call "
                "step(value, model) after each evaluation"
            )
        _check_fits(self._model, model.state_dict())
        model.load_state_dict(self._model)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the copy of the best model, which is not copied again.

        `torch.load(..., weights_only=True)` reads it, if it reads the model's own state.
        """
        return {
            "mode": self.mode,
            "best": self.best,
            "best_step": self.best_step,
            "n_bad": self.n_bad,
            "n_steps": self._n_steps,
            "reference": self._reference,
            "model": self._model,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position, with the patience and min_delta of this object.

        Raises:
            ValueError, TypeError: If it is no such state, or that of another mode. Nothing has
                changed then.
        """
        missing = [name for name in _KEYS if name not in state]
        if missing:
            raise ValueError(
                f"load_state_dict: expected what EarlyStopping.state_dict() returned, got no "
                f"{missing[0]!r}"
            )
        if state["mode"] != self.mode:
            raise ValueError(
                f"load_state_dict: expected a state with mode={self.mode!r}, as this object has, "
                f"got mode={state['mode']!r}"
            )
        _check_values(state)
        self.best = state["best"]
        self.best_step = state["best_step"]
        self.n_bad = state["n_bad"]
        self._n_steps = state["n_steps"]
        self._reference = state["reference"]
        self._model = state["model"]

    def _is_better(self, value: float, than: float | None, by: float) -> bool:
        if than is None:
            return True
        return value < than - by if self.mode == "min" else value > than + by


def _check_values(state: dict[str, Any]) -> None:
    """Refuse values that `state_dict` never returns."""
    owner = "load_state_dict"
    for name in ("n_bad", "n_steps"):
        check_whole(owner, name, state[name], 0)
    names = ("best", "best_step", "reference")
    is_none = [state[name] is None for name in names]
    if any(is_none) and not all(is_none):
        given = ", ".join(f"{name}={state[name]!r}" for name in names)
        raise ValueError(f"{owner}: expected all of them or none to be None, got {given}")
    if not any(is_none):
        check_number(owner, "best", state["best"])
        check_number(owner, "reference", state["reference"])
        check_whole(owner, "best_step", state["best_step"], 0, state["n_steps"] - 1)
    if state["model"] is not None and not isinstance(state["model"], Mapping):
        kind = type(state["model"]).__name__
        raise TypeError(f"{owner}: expected model to be a dict of tensors, or None, got {kind}")


def _check_fits(best: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse a copy of another model, of which torch would load the part that fits."""
    for name in [*present, *best]:
        if name not in present or name not in best:
            whose = "the copy" if name in best else "the model"
            raise RuntimeError(
                f"restore: expected the model that step() got, but only {whose} has {name!r}"
            )
        ours, theirs = best[name], present[name]
        # Parameters of lazy layers have no shape before the first batch, and take any.
        has_shape = isinstance(ours, Tensor) and isinstance(theirs, Tensor) and not is_lazy(theirs)
        if has_shape and ours.shape != theirs.shape:
            raise RuntimeError(
                f"restore: expected the model that step() got, whose {name!r} has shape "
                f"{list(ours.shape)}, got one with {list(theirs.shape)}"
            )


def _agreed(value: float | Tensor | None) -> float:
    """Return the value as a number, in all processes that of rank 0."""
    distributed = torch.distributed
    is_alone = not (distributed.is_available() and distributed.is_initialized())
    if is_alone or distributed.get_rank() == 0:
        value = _number(value)
    if is_alone:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"step: expected a value with one element, got a tensor of shape {list(value.shape)}; "
            "average it first"
        )
    number = value.item() if hasattr(value, "item") else value  # of torch or NumPy
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"step: expected value to be a number, got {value!r}")
    return float(number)


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that later training does not reach; extra state may be anything."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }
