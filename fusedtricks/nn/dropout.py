"""Dropout and stochastic depth whose probability follows a schedule."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fusedtricks._checks import check_module, check_number
from fusedtricks.lr_scheduler.group_schedules import as_schedules
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import Units, as_number
from fusedtricks.nn.model_tensors import model_tensors, unwrap_model

__all__ = ["DropoutSchedule", "ScheduledDropout"]

# What draws one number together -> how many dimensions have numbers of their own, None for all.
_OWN_DIMS = {"element": None, "batch": 0, "sample": 1, "channel": 2}


class ScheduledDropout(nn.Module):
    """Dropout whose probability is a tensor, so that torch.compile need not know it.

    y = x * m / (1 - p) in training, with m = 0 with probability p, else 1; y = x in evaluation. For
    p = 1, y = 0.

    `nn.Dropout` keeps p as a number, and a compiled model is compiled again for each new one, up to
    `torch._dynamo.config.recompile_limit` times, after which it runs uncompiled. Without
    torch.compile `nn.Dropout` is faster.

    p stays float32 in a model of another dtype, and numbers are drawn in float32 for inputs of all
    dtypes: 16-bit ones would round p to 1/256.

    Args:
        p: Probability to drop, in [0, 1]; to change it, `layer.p.fill_(0.3)`. It is no part of the
            state_dict, as in `nn.Dropout`; `reset_parameters`, needed after `to_empty`, makes it
            this number again. Default 0.5.
        per: What is dropped together: each "element" alone (`nn.Dropout`), a "channel" of a sample
            (`nn.Dropout2d`), a "sample" (stochastic depth, DropPath) or the "batch" (the same, with
            mode="batch"). Default "element".
        generator: Draws the numbers, on its own device. Default: that of the input's device.

    Raises:
        TypeError: If p is no number, or generator no Generator.
        ValueError: If an argument is out of range.

    Source: Srivastava et al. 2014, "Dropout", section 10, for the scale at training time; Tompson
        et al. 2015, "Efficient Object Localization Using Convolutional Networks", section 3.2, for
        channels; Huang et al. 2016, "Deep Networks with Stochastic Depth", for samples.
    """

    p: Tensor

    def __init__(
        self, p: float = 0.5, *, per: str = "element", generator: Generator | None = None
    ) -> None:
        super().__init__()
        p = as_number("ScheduledDropout", "p", p)
        check_number("ScheduledDropout", "p", p, low=0, high=1)
        if per not in (known := list(_OWN_DIMS)):
            raise ValueError(f"ScheduledDropout: expected per to be one of {known}, got {per!r}")
        if not isinstance(generator, Generator | None):
            raise TypeError(f"ScheduledDropout: expected generator to be one, got {generator!r}")
        self.per, self.generator, self._first_p = per, generator, p
        self.register_buffer("p", torch.empty((), dtype=torch.float32), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set p to what the layer was made with."""
        self.p.fill_(self._first_p)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, shape (N, ...) or (N, C, ...) for channels, with parts of it dropped."""
        if not self.training:
            return x
        own = x.shape[: _OWN_DIMS[self.per]]
        shape = (*own, *[1] * (x.ndim - len(own)))
        if self.generator is None:
            draws = torch.rand(shape, device=x.device)
        else:
            source = self.generator.device
            draws = torch.rand(shape, generator=self.generator, device=source).to(x.device)
        return (x * torch.where(draws >= self.p, 1 / (1 - self.p), 0)).to(x.dtype)

    def extra_repr(self) -> str:
        """Return the options, for `repr`."""
        return f"p={self.p}, per={self.per!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ScheduledDropout":
        p = self.p
        super()._apply(fn, recurse)
        if self.p.dtype != p.dtype:
            self.p = p.to(self.p.device)
        return self

    @staticmethod
    def convert(model: nn.Module) -> nn.Module:
        """Replace the dropout layers in a model by this one, with their p.

        Those are `nn.Dropout`, `nn.Dropout1d` to 3d (for inputs with a batch dimension),
        torchvision's `StochasticDepth`, and timm's `DropPath` with scale_by_keep. Do it before the
        model is compiled, and before a `DropoutSchedule` is made.

        Layers called attn_drop are left: timm's attention reads their p and gives it to
        scaled_dot_product_attention, which takes numbers only. So are `nn.MultiheadAttention`, LSTM
        and its like, whose probability is their own number. Layers with p = 0 are replaced, because
        a schedule may raise it.

        Args:
            model: Changed in place.

        Returns:
            The model, or what replaces it if it is such a layer itself. New layers are on the
            device of the model's first tensor.

        Raises:
            TypeError: If it is none.
            ValueError: If a layer's p is not in [0, 1]. Nothing has changed then.
        """
        check_module("ScheduledDropout.convert", "model", model)
        tensor = next(iter(model_tensors(model).values()), torch.empty(0))
        root = nn.ModuleDict({"model": model})
        old = {
            path: module
            for path, module in root.named_modules(remove_duplicate=False)
            if _granularity(module) and "attn_drop" not in path.split(".")
        }
        new: dict[nn.Module, nn.Module] = {}
        for path, module in old.items():
            p = _initial_p(module)
            check_number("ScheduledDropout.convert", f"p of {path}", p, low=0, high=1)
            with tensor.device:
                layer = ScheduledDropout(p, per=_granularity(module))
            new.setdefault(module, layer.train(module.training))
        for path, module in old.items():
            root.set_submodule(path, new[module])
        return root["model"]


class DropoutSchedule:
    """Let the probabilities of a model's dropout layers follow a schedule.

    p = schedule(n, initial_p) after n calls of `step`, for each layer with its own initial_p: a
    relative schedule keeps their proportions. initial_p is what the layer had before any schedule,
    noted in the layer under this name.

    Layers are `ScheduledDropout`, all of `nn.Dropout` to `nn.FeatureAlphaDropout`,
    `nn.MultiheadAttention`, LSTM and its like, torchvision's `StochasticDepth`, and modules called
    DropPath, of timm and others. In a compiled model only `ScheduledDropout` can change at every
    step (see there): call `ScheduledDropout.convert`, and pass kinds=[ScheduledDropout].

    Call `step` after every optimizer update.

    Args:
        model: Its layers are found now, also inside wrappers.
        schedule: A schedule of `fusedtricks.lr_scheduler`, or a function of n that gives a factor.
        kinds: Class, or classes, of the layers that follow it; of those above. Default: all.
        unit: What plain numbers in the schedule count, "update" or "epoch". Default "update".
        steps_per_epoch: Optimizer updates in an epoch, for "5ep".
        total_steps: Optimizer updates of the run, for "0.1dur".

    Raises:
        TypeError: If the schedule is neither schedule nor function.
        ValueError: If there is no such layer, a time cannot be resolved, or a probability would be
            outside [0, 1]; no layer has changed then. If a layer is in a stacked `Ensemble`.

    Example:
        >>> from fusedtricks.lr_scheduler import Exponential, Linear, Piecewise
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.4))
        >>> early = DropoutSchedule(model, Linear("2ep"), steps_per_epoch=2)
        >>> early.step()
        >>> round(model[1].p, 6)
        0.3
        >>> late = Piecewise(["2ep"], [0, 1])
        >>> curriculum = Exponential(0.999).between(None, 0)  # initial_p * (1 - 0.999^n)

    Source: Liu et al. 2023, "Dropout Reduces Underfitting", for early dropout (p falls linearly to
        0) and late dropout; Morerio et al. 2017, "Curriculum Dropout", for
        p = initial_p * (1 - exp(-gamma * n)).
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule | Callable[[float], float],
        *,
        kinds: Sequence[type[nn.Module]] | type[nn.Module] | None = None,
        unit: str = "update",
        steps_per_epoch: float | None = None,
        total_steps: float | None = None,
    ) -> None:
        self._units = Units(steps_per_epoch, total_steps, unit)
        self.schedule = as_schedules("DropoutSchedule", "p", [schedule], 1, self._units)[0]
        kinds = (kinds,) if isinstance(kinds, type) else kinds
        self._layers = {
            name: module
            for name, module in unwrap_model(model).named_modules()
            if _p_name(module) and (kinds is None or isinstance(module, tuple(kinds)))
        }
        if not self._layers:
            what = "dropout layer" if kinds is None else f"dropout layer of {list(kinds)}"
            raise ValueError(
                f"DropoutSchedule: expected a model with a {what}, got {type(model).__name__}"
            )
        for name, layer in self._layers.items():
            if isinstance(layer, ScheduledDropout) and layer.p.ndim > 0:
                raise ValueError(
                    f"DropoutSchedule: expected layers of one p each, but {name!r} has one for "
                    "each model of a stacked Ensemble; use Ensemble(models, stacked=False)"
                )
        self._apply(0)

    def values(self, t: float | None = None) -> dict[str, float]:
        """Return the probabilities by name of the layer.

        Args:
            t: Number of updates done. Default: now.
        """
        t = self.last_epoch if t is None else t
        return {name: float(self.schedule(t, _initial_p(m))) for name, m in self._layers.items()}

    def step(self, epoch: float | None = None) -> None:
        """Go to the next update, and set the probabilities for it.

        Args:
            epoch: Position to go to instead: number of updates done, or of epochs with
                unit="epoch".

        Raises:
            ValueError: If a probability would be outside [0, 1]. Nothing has changed then.
        """
        self._apply(self.last_epoch + 1 if epoch is None else self._units.position(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to a saved position and set the probabilities of it.

        Args:
            state_dict: What `state_dict` returned. The schedule, and initial_p, are those of now.

        Raises:
            ValueError: If it is no such state. Nothing has changed then.
        """
        if "last_epoch" not in state_dict:
            raise ValueError(
                f"DropoutSchedule: expected a state with last_epoch, got {list(state_dict)}"
            )
        self._apply(Units().position(state_dict["last_epoch"]))

    def _apply(self, t: float) -> None:
        values = self.values(t)
        for name, p in values.items():
            if not 0 <= p <= 1:
                raise ValueError(
                    f"DropoutSchedule: expected p in [0, 1], got {p} for {name!r} after {t} "
                    f"updates of {self.schedule!r}"
                )
        for name, layer in self._layers.items():
            layer.initial_p = _initial_p(layer)
            if isinstance(layer, ScheduledDropout):
                layer.p.fill_(values[name])
            else:
                setattr(layer, _p_name(layer), values[name])
        self.last_epoch: float = t


def _p_name(module: nn.Module) -> str | None:
    """Return what a dropout layer calls its probability, None for other modules."""
    # Not imported, because they are of optional packages.
    kind = type(module).__name__
    if isinstance(module, (ScheduledDropout, _DropoutNd)) or kind == "StochasticDepth":
        return "p"
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return "dropout"
    return "drop_prob" if kind.endswith("DropPath") else None


def _initial_p(layer: nn.Module) -> float:
    if hasattr(layer, "initial_p"):
        return layer.initial_p
    # DropPath may write None for 0.
    return float(getattr(layer, _p_name(layer)) or 0)


def _granularity(module: nn.Module) -> str | None:
    """Return what a dropout layer drops together, None if `ScheduledDropout` cannot do it."""
    kind = type(module).__name__
    if isinstance(module, nn.Dropout):
        return "element"
    if isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return "channel"
    if kind == "StochasticDepth":
        return "sample" if module.mode == "row" else "batch"
    if kind.endswith("DropPath") and getattr(module, "scale_by_keep", True):
        return "sample"
    return None
