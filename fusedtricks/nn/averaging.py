"""The exponential moving average of a model's weights."""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.hooks import RemovableHandle

from fusedtricks._checks import check_bool, check_number
from fusedtricks.lr_scheduler.scaling import beta_from_half_life
from fusedtricks.lr_scheduler.times import as_number
from fusedtricks.nn.following import Follower
from fusedtricks.nn.model_tensors import (
    buffers_without_statistics,
    check_same_tensors,
    copy_tensors,
    like,
    model_tensors,
    replace_infinite,
    restored_after_error,
    unwrap_model,
)

__all__ = ["ModelEMA"]

_BUFFERS = ("average", "copy", "recompute")
_SHORT = (torch.float16, torch.bfloat16)


class ModelEMA(AveragedModel):
    """Average a model's weights over its updates, exponentially, for evaluation.

    With n updates averaged so far, `n_averaged`, and the model's present weights w::

        average = w                                 for n = 0
        average = d * average + (1 - d) * w         for n > 0
        d = decay, with warmup min(decay, (1 + n) / (10 + n))

    So after `half_life` further updates the first weights count 1/2. `module` holds the averages: a
    copy of the model, in evaluation mode, without gradients. Averages of 16-bit parameters are
    float32, because steps of (1 - decay) are less than the spacing of such numbers: call the
    average under autocast, or put it into the 16-bit model with `applied_to`.

    Copied instead are integer buffers (a truncated average of `num_batches_tracked` stays at its
    first value), buffers that hold inf or NaN at the beginning (masks), parameters that were frozen
    then and are now, and later inf and NaN in buffers, as long as they last.

    It is torch's `AveragedModel`, with its state_dict and, for decay alone, the same numbers as
    with `get_ema_multi_avg_fn`. But it can be pickled, tensors are matched by name, and an update
    waits for no device, unless the averages are on the CPU and the model is not. Make it after
    `apply_blurpool` and all else that replaces layers: it refuses a model with other names.

    A step that a GradScaler leaves out changes no weight; averaging the same ones again does no
    harm. Under DistributedDataParallel all ranks average the same parameters. Statistics of batch
    normalisation are those of the rank's own batches, in the model as in the average: save those of
    one rank, or broadcast `ema.module.buffers()` before all ranks evaluate.

    Args:
        model: What to average; wrappers of torch.compile and for several devices are left out.
        decay: Share of the old average in the new one, in [0, 1).
        half_life: Instead of decay: updates, above 0; decay = 0.5^(1 / half_life). See
            `beta_from_half_life` for epochs.
        warmup: Whether the early averages are shorter, so that the first weights, often random, are
            forgotten soon. Default False.
        buffers: "average": floating-point buffers are averaged as weights are. "copy": all are the
            model's. "recompute": as "copy", but evaluation needs `recompute_buffers` first, because
            statistics of batch normalisation belong to the weights. Default "average".
        device: Where the averages are. Default: where the model is.

    Raises:
        TypeError: If the model is no module, a number is none, or warmup is not True or False.
        ValueError: If not one of decay and half_life is given, or an argument is out of range.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> ema = ModelEMA(model, decay=0.75)
        >>> for weight in (8.0, 4.0, 0.0, 16.0):
        ...     _ = nn.init.constant_(model.weight, weight)
        ...     ema.update_parameters(model)
        >>> with ema.applied_to(model):
        ...     model.weight.item()
        7.9375

    Source: Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", for
        averaging; Szegedy et al. 2016, "Rethinking the Inception Architecture", section 8, for the
        exponential one; TensorFlow's `ExponentialMovingAverage`, `num_updates`, for the warm-up.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float | None = None,
        half_life: float | None = None,
        warmup: bool = False,
        buffers: str = "average",
        device: torch.device | str | None = None,
    ) -> None:
        check_bool("ModelEMA", "warmup", warmup)
        if buffers not in _BUFFERS:
            raise ValueError(f"ModelEMA: expected buffers to be one of {_BUFFERS}, got {buffers!r}")
        decay = _checked_decay(decay, half_life)
        super().__init__(unwrap_model(model, "ModelEMA"), device, use_buffers=buffers == "average")
        self.decay = decay
        self.warmup = warmup
        self.buffer_mode = buffers
        # On the CPU, see _apply: no step waits for a device to read it.
        self.n_averaged = torch.zeros((), dtype=torch.long, device="cpu")
        self.module._apply(lambda tensor: tensor.float() if tensor.dtype in _SHORT else tensor)
        self._moving = frozenset(
            name for name, tensor in model_tensors(self.module).items() if self._can_move(tensor)
        )
        # Statistics are many, and wrong if they are infinite.
        self._guarded = self._moving & buffers_without_statistics(self.module)
        self.requires_grad_(False)
        self.eval()
        self._recomputes = buffers == "recompute" and any(
            isinstance(each, _BatchNorm) and each.track_running_stats
            for each in self.module.modules()
        )
        self._is_stale = False
        self.register_load_state_dict_post_hook(_expect_stale_buffers)

    def _can_move(self, tensor: Tensor) -> bool:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return False
        if isinstance(tensor, nn.Parameter):
            return tensor.requires_grad
        return self.use_buffers and bool(tensor.isfinite().all())

    def extra_repr(self) -> str:
        """Return the options, for `repr`."""
        return f"decay={self.decay}, warmup={self.warmup}, buffers={self.buffer_mode!r}"

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the present weights of the model into the averages.

        Args:
            model: The one that this was made from, or one with the same names and shapes, on any
                device, of any dtype, wrapped or not.

        Raises:
            TypeError: If it is no module.
            ValueError: If a name or a shape differs. Nothing has changed then.
        """
        averages, currents = self._matched(model)
        self._move(averages, currents, self._movable(averages, currents), ())

    def _movable(
        self, averages: dict[str, Tensor], currents: dict[str, Tensor]
    ) -> dict[Tensor, str]:
        # By tensor, so that shared ones move once. Frozen parameters may have been released.
        return {
            average: name
            for name, average in averages.items()
            if name in self._moving or currents[name].requires_grad
        }

    @torch.no_grad()
    def _move(
        self,
        averages: dict[str, Tensor],
        values: dict[str, Tensor],
        movable: dict[Tensor, str],
        moved: Collection[Tensor],
    ) -> None:
        """Take the values into all averages but those that have moved."""
        weight = self._next_weight()
        if weight is None:
            copy_tensors(averages, values)
        else:
            targets = [average for average in movable if average not in moved]
            if targets:
                sources = like(targets, [values[movable[target]] for target in targets])
                torch._foreach_lerp_(targets, sources, weight)
            replace_infinite({name: averages[name] for name in self._guarded}, values)
            copied = {name: average for name, average in averages.items() if average not in movable}
            copy_tensors(copied, values)
        self.n_averaged += 1
        self._is_stale = self._recomputes

    def _next_weight(self) -> float | None:
        """Return the share of the weights in the next average, None if it is a copy of them."""
        n = int(self.n_averaged)
        # Once more: the attribute may have been changed, and a NaN would be in all averages.
        decay = _checked_decay(self.decay, None)
        if n == 0:
            return None
        return 1 - (min(decay, (1 + n) / (10 + n)) if self.warmup else decay)

    def follow(self, optimizer: Optimizer, model: nn.Module) -> RemovableHandle:
        """Call `update_parameters(model)` after every step of an optimizer.

        Optimizers of fusedtricks do most of it in their own sweep over memory (docs/extras.md tells
        when). The averages are the same up to rounding, with two differences: a parameter that is
        a rounded master counts with the master's digits, and a step that is skipped on a GPU
        leaves the averages alone.

        A copied or unpickled optimizer does not have it, nor has a checkpoint; `load_state_dict`
        leaves it in place.

        Args:
            optimizer: One of torch or fusedtricks that updates the model.
            model: The model.

        Returns:
            A handle, whose `remove()` ends it.

        Raises:
            TypeError: If they are no optimizer and no module.
            ValueError: If it has none of the model's parameters, or the model does not fit. A later
                step raises if the model no longer fits; no average has changed then, and with an
                optimizer of fusedtricks nothing at all.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"follow: expected optimizer to be an Optimizer, got {type(optimizer).__name__}"
            )
        self._matched(model)
        known = {id(param) for group in optimizer.param_groups for param in group["params"]}
        if known.isdisjoint(id(param) for param in model.parameters()):
            raise ValueError(
                f"follow: expected an optimizer of the model's parameters, but "
                f"{type(optimizer).__name__} has none of them"
            )
        if type(self).update_parameters is not ModelEMA.update_parameters:
            return optimizer.register_step_post_hook(lambda *_: self.update_parameters(model))
        return Follower(self, model).follow(optimizer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged model.

        Raises:
            RuntimeError: In evaluation mode, if buffers="recompute" and they were not computed
                since the last update or load_state_dict.
        """
        if not self.training:
            self._check_buffers("forward")
        return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """Put the averages into the model for a `with` block; afterwards it is as it was.

        Values are copied into the model's tensors, in their dtype and on their device, so that
        compiled graphs, wrappers and optimizers keep working. What the block changes in parameters
        and buffers, by training for example, is lost at its end.

        Args:
            model: As for `update_parameters`.

        Raises:
            ValueError: If a name or a shape differs.
            RuntimeError: As for `forward`.
        """
        self._check_buffers("applied_to")
        averages, currents = self._matched(model)
        kept = {name: current.detach().clone() for name, current in currents.items()}
        copy_tensors(currents, averages)
        try:
            yield model
        finally:
            # Found again, because moving a model to another device replaces its buffers.
            copy_tensors(model_tensors(unwrap_model(model)), kept)

    def recompute_buffers(
        self, loader: Iterable[Any], device: torch.device | str | None = None
    ) -> None:
        """Compute the statistics of batch normalisation with the averaged weights.

        Args:
            loader: Batches: tensors, or tuples that begin with the input. One pass.
            device: Where inputs go. Default: where the averages are.

        Raises:
            ValueError: If there is no batch. After this, and errors of others, nothing has changed.

        Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
            Generalization", section 3.2; done by `torch.optim.swa_utils.update_bn`.
        """
        first = next(batches := iter(loader), None)
        if first is None:
            raise ValueError("recompute_buffers: expected a loader of at least one batch, got none")
        device = device or next(iter(model_tensors(self.module).values())).device
        with restored_after_error(self.module):
            update_bn(itertools.chain([first], batches), self.module, device)
        self._is_stale = False

    def _check_buffers(self, what: str) -> None:
        if self._is_stale:
            raise RuntimeError(
                f"{what}: the statistics of batch normalisation do not belong to the averaged "
                "weights, because ModelEMA was made with buffers='recompute'; call "
                "recompute_buffers(loader) first"
            )

    def _matched(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        averages = model_tensors(self.module)
        currents = model_tensors(unwrap_model(model, "ModelEMA"))
        check_same_tensors("ModelEMA", averages, currents)
        return averages, currents

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ModelEMA":
        n_averaged = self.n_averaged
        super()._apply(fn, recurse)
        self.n_averaged = n_averaged
        return self


def _checked_decay(decay: float | None, half_life: float | None) -> float:
    if (decay is None) == (half_life is None):
        raise ValueError(
            f"ModelEMA: expected either decay or half_life, got decay={decay} and "
            f"half_life={half_life}"
        )
    if decay is None:
        half_life = as_number("ModelEMA", "half_life", half_life)
        check_number("ModelEMA", "half_life", half_life, above=0)
        return beta_from_half_life(half_life)
    decay = as_number("ModelEMA", "decay", decay)
    if not 0 <= decay < 1:
        raise ValueError(f"ModelEMA: expected decay in [0, 1), got {decay}")
    return decay


def _expect_stale_buffers(ema: ModelEMA, _: Any) -> None:
    # A checkpoint does not tell whether its statistics were computed after its last update.
    ema._is_stale = ema._recomputes
