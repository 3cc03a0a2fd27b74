"""Statistics of layers and tensors, which stay on their device until somebody asks."""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "HISTOGRAM_EDGES",
    "TensorStatistics",
    "UpdateRecord",
    "chosen_layers",
    "dense_tensors",
    "fetch",
    "finite_or_none",
    "saturation_bounds",
]

# The bins of magnitudes end at 2^_LOWEST, and at every power of two up to 2^_HIGHEST. float16 ends
# at 2^-24 and below 2^16.
_LOWEST = -32
_HIGHEST = 16
_N_MAGNITUDES = _HIGHEST - _LOWEST + 2
_N_BINS = 2 * _N_MAGNITUDES - 1
_POWERS = [2.0**exponent for exponent in range(_LOWEST, _HIGHEST + 1)]

# Bin i holds values from edge i - 1 to edge i; the first and the last bin are open.
HISTOGRAM_EDGES: tuple[float, ...] = (*(-power for power in reversed(_POWERS)), *_POWERS)

# Share of the range, from either end, that counts as saturated.
_MARGIN = 0.01


def saturation_bounds(module: nn.Module) -> tuple[float, float] | None:
    """Return the two values at which the outputs of `module` saturate, None if there are none."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one, too.
        return module.min_val, module.max_val
    if isinstance(module, nn.Sigmoid | nn.Hardsigmoid):
        return 0.0, 1.0
    return (-1.0, 1.0) if isinstance(module, nn.Tanh | nn.Softsign) else None


def chosen_layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the layers that `Monitor` watches, by name, in the model's order.

    Args:
        model: The model.
        names: Those of modules, or None: all modules that contain no other.
    """
    modules = dict(model.named_modules())
    if names is None:
        names = _innermost(modules)
    if isinstance(names, str):
        raise TypeError(f"Monitor: expected layers to be a list of names, got the string {names!r}")
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(str(name), modules)
            hint = f"did you mean {near[0]!r}?" if near else "see model.named_modules()"
            raise ValueError(f"Monitor: the model has no layer {name!r}; {hint}")
    if not names:
        raise ValueError("Monitor: expected at least one layer, got an empty list")
    return {name: module for name, module in modules.items() if name in names}


def _innermost(modules: dict[str, nn.Module]) -> list[str]:
    """Return the names of the layers: of modules that contain no other.

    What computes a parametrised weight is no layer, but part of the one that has the weight.
    nn.MultiheadAttention is a layer, too: it never calls the one inside.
    """
    names = []
    for name, module in modules.items():
        children = [child for child, _ in module.named_children() if child != "parametrizations"]
        is_attention = isinstance(module, nn.MultiheadAttention)
        is_part = "parametrizations" in name.split(".")
        if (is_attention or not children) and not is_part:
            names.append(name)
    return names


class TensorStatistics:
    """Mean, variance, histogram and shares of all values of several tensors.

    `add` only queues operations: it never reads a value, and copies nothing from or to the host.
    Means and variances of the tensors are combined by Chan's formula,

        mean = mean_a + (mean_b - mean_a) * n_b / n
        m2 = m2_a + m2_b + (mean_b - mean_a)^2 * n_a * n_b / n,    variance = m2 / n,

    in float32, or float64 for float64; a sum of squares would lose the variance of values whose
    mean is large.

    The bins of the histogram are powers of two of either sign, so that activations and gradients of
    any scale fit, and records of different times can be compared. A power of two belongs to the bin
    farther from 0.

    Args:
        bounds: The two values at which outputs saturate. Default None.

    Attributes:
        n: Number of values.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.
    """

    def __init__(self, bounds: tuple[float, float] | None = None) -> None:
        self.n = 0
        self._bounds = bounds
        self._moments: Tensor | None = None  # [mean, m2]
        self._counts: Tensor | None = None  # [*histogram, not finite, zero, saturated]

    def add(self, values: Tensor) -> None:
        """Take in all values of a floating point tensor of any shape."""
        n = values.numel()
        if n == 0:
            return
        values = values.detach()
        values = values if values.dtype == torch.float64 else values.float()
        moments = _moments(values)
        counts = self._count(values.reshape(-1))
        if self._moments is None or self._counts is None:
            self._moments, self._counts = moments, counts
        else:
            self._moments = _combined(self._moments, self.n, moments, n)
            self._counts = self._counts + counts
        self.n += n

    def tensors(self) -> list[Tensor]:
        """Return what `to_record` needs, or an empty list if there was no value."""
        if self._moments is None or self._counts is None:
            return []
        return [self._moments, self._counts]

    def to_record(self, fetched: Iterator[Any]) -> dict[str, Any] | None:
        """Return a record that JSON can hold.

        Args:
            fetched: Yields the values of `tensors()`.

        Returns:
            `n`; `mean` and `std` (over n, not n - 1), None where they are not finite; the shares, 0
            to 1, `zero` (exactly 0), `saturated` (None without bounds) and `nonfinite`; and
            `histogram`, the number of finite values in each bin. None if there was no value.
        """
        if self.n == 0:
            return None
        mean, m2 = next(fetched)
        *histogram, nonfinite, zero, saturated = next(fetched)
        return {
            "n": self.n,
            "mean": finite_or_none(mean),
            "std": math.sqrt(m2 / self.n) if math.isfinite(m2) else None,
            "zero": zero / self.n,
            "saturated": None if self._bounds is None else saturated / self.n,
            "nonfinite": nonfinite / self.n,
            "histogram": histogram,
        }

    def _count(self, values: Tensor) -> Tensor:
        # |x| is in [2^(exponent - 1), 2^exponent). This needs no edges, which would have to be
        # copied to the device.
        magnitude = torch.frexp(values).exponent.clamp(_LOWEST, _HIGHEST + 1).sub_(_LOWEST)
        index = magnitude * values.sign() + (_N_MAGNITUDES - 1)
        index = index.masked_fill_(~values.isfinite(), _N_BINS).long()
        # bincount would wait for the device to learn its length; histc is not deterministic there.
        histogram = torch.zeros(_N_BINS + 1, dtype=torch.int64, device=values.device)
        histogram.scatter_add_(0, index, histogram.new_ones(1).expand(values.numel()))
        zero = values.numel() - torch.count_nonzero(values)
        saturated = torch.zeros_like(zero)
        if self._bounds is not None:
            low, high = self._bounds
            margin = _MARGIN * (high - low)
            is_saturated = (values <= low + margin) | (values >= high - margin)
            saturated = torch.count_nonzero(is_saturated)
        return torch.cat([histogram, torch.stack([zero, saturated])])


def _moments(values: Tensor) -> Tensor:
    variance, mean = torch.var_mean(values, correction=0)
    return torch.stack([mean, variance * values.numel()])


def _combined(a: Tensor, n_a: int, b: Tensor, n_b: int) -> Tensor:
    n = n_a + n_b
    b = b.to(a)
    difference = b[0] - a[0]
    mean = a[0] + difference * (n_b / n)
    m2 = a[1] + b[1] + difference**2 * (n_a * n_b / n)
    return torch.stack([mean, m2])


@dataclass
class UpdateRecord:
    """What a due update has recorded; all dicts are by the names of layers.

    Attributes:
        index: Number of updates before it.
        weights: Copies from before the update.
        norms: [norm of the change, norm before], from `finish` on.
    """

    index: int
    activations: dict[str, TensorStatistics] = field(default_factory=dict)
    gradients: dict[str, TensorStatistics] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)

    def finish(self, layers: dict[str, nn.Module]) -> None:
        """Compare the copied weights with the present ones, and free the copies; sort the layers.

        Args:
            layers: All watched layers, in the order of the record.
        """
        ran = self.activations
        self.activations = {name: ran[name] for name in layers if name in ran}
        for name, before in self.weights.items():
            dtype = torch.promote_types(before.dtype, torch.float32)
            before = before.to(dtype)
            change = layers[name]._parameters["weight"].detach().to(dtype) - before
            norms = [torch.linalg.vector_norm(change), torch.linalg.vector_norm(before)]
            self.norms[name] = torch.stack(norms)
        self.weights = {}

    def tensors(self) -> list[Tensor]:
        """Return what `to_record` needs."""
        tensors = []
        for name, activation in self.activations.items():
            tensors += activation.tensors()
            if name in self.gradients:
                tensors += self.gradients[name].tensors()
            if name in self.norms:
                tensors.append(self.norms[name])
        return tensors

    def to_record(self, fetched: Iterator[Any]) -> dict[str, Any]:
        """Return the record of the update; `fetched` yields the values of `tensors()`."""
        layers = {}
        for name, activation in self.activations.items():
            gradient = self.gradients.get(name)
            record = {
                "activation": activation.to_record(fetched),
                "gradient": None if gradient is None else gradient.to_record(fetched),
                "update_ratio": None,
            }
            if name in self.norms:
                change, before = next(fetched)
                record["update_ratio"] = finite_or_none(change / before) if before > 0 else None
            layers[name] = record
        return {"update": self.index, "layers": layers}


def dense_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the dense floating point tensors of an output, at any depth."""
    if isinstance(output, Tensor):
        is_dense = output.layout == torch.strided and not output.is_nested
        if is_dense and output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from dense_tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from dense_tensors(part)


def fetch(tensors: Sequence[Tensor]) -> list[Any]:
    """Return the values of tensors as numbers or lists, with one wait per device, dtype and shape.

    Args:
        tensors: Of any devices, dtypes and shapes.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        key = (tensor.device, tensor.dtype, tensor.shape)
        groups.setdefault(key, []).append(index)
    values: list[Any] = [None] * len(tensors)
    for indices in groups.values():
        rows = torch.stack([tensors[index] for index in indices]).tolist()
        for index, row in zip(indices, rows, strict=True):
            values[index] = row
    return values


def finite_or_none(value: float) -> float | None:
    """Return the value, or None for inf and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
