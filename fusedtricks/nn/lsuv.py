"""Layer-sequential unit variance: scale every layer by what it puts out."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel

from fusedtricks._checks import check_module, check_number, check_whole
from fusedtricks.nn.fixup import check_layer

__all__ = ["LSUVLayer", "LSUVRecord", "lsuv_"]

# _ConvNd is the base of every convolution, transposed ones included.
_LAYER_TYPES = (nn.Linear, _ConvNd)


@dataclass(frozen=True)
class LSUVLayer:
    """What `lsuv_` did to one layer.

    Attributes:
        name: Name of the module.
        std_before: Standard deviation of its output with orthonormal weights.
        std_after: The same once the weights were scaled.
        n_iterations: How often they were.
    """

    name: str
    std_before: float
    std_after: float
    n_iterations: int


@dataclass(frozen=True)
class LSUVRecord:
    """What `lsuv_` did to a model.

    Attributes:
        layers: The layers that it initialised, in the order of execution.
        left: Names of the layers that are as before, with the reason: "not run", "frozen", or
            "shares its weight with" another module.
    """

    layers: tuple[LSUVLayer, ...]
    left: dict[str, str]


@torch.no_grad()
def lsuv_(
    model: nn.Module,
    batch: Tensor | tuple[Any, ...],
    *,
    target_std: float = 1.0,
    tolerance: float = 0.1,
    max_iterations: int = 10,
    generator: Generator | None = None,
) -> LSUVRecord:
    """Initialise a model so that the output of every layer has unit variance on a batch.

    The weights of convolutions and linear layers become orthonormal, flattened to (dim 0, rest),
    and their biases 0. Then, in the order of execution, while |(std / target_std)^2 - 1| >
    tolerance and at most max_iterations times::

        weight = weight * target_std / std

    std is taken over all elements of the layer's output for `batch`, with the layers before it
    already scaled. One forward pass does it all, since each layer is repeated alone. It runs in the
    mode that the model is in, and leaves buffers (statistics of BatchNorm), gradients and torch's
    random generators (dropout) as they were. A layer that runs several times is scaled when it runs
    first. Others keep their weights all along: layers that do not run as modules, such as
    `out_proj` of `nn.MultiheadAttention`, frozen ones, and heads that are tied to an embedding.

    Args:
        model: Before DistributedDataParallel and before `torch.nn.utils.parametrize`; compiled
            models may stay so, the pass is not compiled.
        batch: The model's input, or a tuple of its inputs; as large and as varied as a training
            batch. For a loader's [images, labels], pass batch[0].
        target_std: Wanted standard deviation, above 0. Default 1.
        tolerance: Largest relative error of the variance, above 0. Default 0.1.
        max_iterations: At least 1. A layer without a bias is done after one. Default 10.
        generator: Where the orthonormal weights come from, in the order of `model.modules()`.
            Default: torch's.

    Returns:
        What was done, and what was left.

    Raises:
        TypeError: If `batch` is a list, or another argument of another type.
        ValueError: If an argument is out of range, a weight is parametrized or has no shape yet, or
            the output of a layer is constant or not finite.

    After an error, the model and the random generators are as before.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> record = lsuv_(model, torch.randn(64, 3))
        >>> [(layer.name, round(layer.std_after, 3)) for layer in record.layers]
        [('0', 1.0), ('2', 1.0)]

    Source: Mishkin & Matas 2016, "All You Need is a Good Init", algorithm 1.
    """
    _check_arguments(model, batch, target_std, tolerance, max_iterations)
    names = {m: name for name, m in model.named_modules() if isinstance(m, _LAYER_TYPES)}
    for module, name in names.items():
        check_layer("lsuv_", module, name)
    left = {name: "frozen" for m, name in names.items() if not m.weight.requires_grad}
    left |= _tied(model, names)
    names = {m: name for m, name in names.items() if name not in left}
    scaling = _Scaling(names, target_std, tolerance, max_iterations)
    states = [(g, g.get_state()) for g in _generators(names, generator)]
    try:
        scaling.draw(generator)
        _run(model, batch, scaling)
    except BaseException:
        scaling.undo()
        for source, state in states:
            source.set_state(state)
        raise
    left |= {names[m]: scaling.reasons.get(m, "not run") for m in names if m not in scaling.done}
    return LSUVRecord(tuple(scaling.done.values()), left)


class _Scaling:
    """The hook behind every layer: scales it when it runs first, and repeats it."""

    def __init__(
        self,
        names: dict[nn.Module, str],
        target_std: float,
        tolerance: float,
        max_iterations: int,
    ) -> None:
        self.done: dict[nn.Module, LSUVLayer] = {}
        self.reasons: dict[nn.Module, str] = {}
        self.names = names
        self._target_std = target_std
        self._tolerance = tolerance
        self._max_iterations = max_iterations
        self._owners: dict[Tensor, nn.Module] = {}
        self._drawn: dict[nn.Module, Tensor] = {}
        self._before: list[tuple[Tensor, Tensor]] = []

    def draw(self, generator: Generator | None) -> None:
        """Draw what `__call__` writes: layers that do not run keep their weights in the pass."""
        self._drawn = {module: _orthonormal(module.weight, generator) for module in self.names}

    def undo(self) -> None:
        """Put back what `__call__` wrote."""
        for parameter, before in self._before:
            parameter.copy_(before)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        owner = self._owners.setdefault(module.weight, module)
        if owner is not module:
            self.reasons[module] = f"shares its weight with {self.names[owner]}"
        if owner is not module or module in self.done:
            return output
        self._replace(module)
        output = module.forward(*args, **kwargs)
        std = std_before = self._std(module, output)
        n_iterations = 0
        while (
            abs((std / self._target_std) ** 2 - 1) > self._tolerance
            and n_iterations < self._max_iterations
        ):
            module.weight.mul_(self._target_std / std)
            output = module.forward(*args, **kwargs)
            std = self._std(module, output)
            n_iterations += 1
        self.done[module] = LSUVLayer(self.names[module], std_before, std, n_iterations)
        return output

    def _replace(self, module: nn.Module) -> None:
        parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
        self._before += [(parameter, parameter.clone()) for parameter in parameters]
        module.weight.copy_(self._drawn.pop(module))
        if module.bias is not None:
            module.bias.zero_()

    def _std(self, module: nn.Module, output: Tensor) -> float:
        std = output.float().std(correction=0).item() if output.numel() > 0 else math.nan
        if not 0 < std < math.inf:
            name = self.names[module] or "the model"
            raise ValueError(
                f"lsuv_: expected outputs of {name} that vary and are finite, got a "
                f"standard deviation of {std}; use a larger batch of real inputs"
            )
        return std


def _run(model: nn.Module, batch: Tensor | tuple[Any, ...], scaling: _Scaling) -> None:
    inputs = batch if isinstance(batch, tuple) else (batch,)
    # In front of the user's hooks, which then see what the repeated layer puts out.
    handles = [
        module.register_forward_hook(scaling, with_kwargs=True, prepend=True)
        for module in scaling.names
    ]
    try:
        # A compiled forward pass would leave hooks out that it has not seen.
        with _without_traces(model), torch.compiler.set_stance("force_eager"):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_traces(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers and torch's random generators back."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {t.device for t in model.parameters() if t.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    try:
        with torch.random.fork_rng([device.index for device in devices], device_type=kind):
            yield
    finally:
        for module, name, buffer, copied in buffers:
            buffer.copy_(copied)
            module._buffers[name] = buffer


def _tied(model: nn.Module, names: dict[nn.Module, str]) -> dict[str, str]:
    """Return the layers whose weight is a parameter of a module that is none of them."""
    others = {
        parameter: name or "the model itself"
        for name, module in model.named_modules()
        if module not in names
        for parameter in module._parameters.values()
    }
    return {
        name: f"shares its weight with {others[module.weight]}"
        for module, name in names.items()
        if module.weight in others
    }


def _orthonormal(weight: Tensor, generator: Generator | None) -> Tensor:
    # The factorisation behind it does not know 16 bits.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    device = weight.device if generator is None else generator.device
    drawn = torch.empty(weight.shape, dtype=dtype, device=device)
    return nn.init.orthogonal_(drawn, generator=generator).to(weight)


def _generators(layers: Iterable[nn.Module], generator: Generator | None) -> list[Generator]:
    """Return those that `_orthonormal` draws from."""
    if generator is not None:
        return [generator]
    devices = {layer.weight.device for layer in layers}
    on_cpu = [torch.default_generator] if torch.device("cpu") in devices else []
    others = [device for device in devices if device.type != "cpu"]
    return on_cpu + [torch.get_device_module(d).default_generators[d.index] for d in others]


def _check_arguments(
    model: nn.Module,
    batch: Tensor | tuple[Any, ...],
    target_std: float,
    tolerance: float,
    max_iterations: int,
) -> None:
    check_module("lsuv_", "model", model)
    if isinstance(batch, list):
        raise TypeError(
            "lsuv_: expected batch to be a tensor or a tuple of tensors, got a list; of a loader's "
            "[images, labels] pass batch[0], to a model that takes a list (batch,)"
        )
    check_number("lsuv_", "target_std", target_std, above=0)
    check_number("lsuv_", "tolerance", tolerance, above=0)
    check_whole("lsuv_", "max_iterations", max_iterations, 1)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "lsuv_: expected a model without DistributedDataParallel, in which every process would "
            "scale by its own batch; call it before wrapping, which spreads the first one's weights"
        )
