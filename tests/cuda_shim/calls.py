"""Calls of an optimizer's op on tensors of any dtype and place, and what torch.optim makes of them.

With the tunables of the CUDA backend and the seed of the shim, for the tests of its kernels.
"""

import contextlib
import ctypes
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedtricks import ops
from tests import devices
from tests.cases import Case
from tests.values import transform_by_hand

NEEDS_SHIM = "needs FUSEDTRICKS_TEST_SHIM, see make test-kernels"
FLOAT_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# One unit in the last place of what is stored, relative to the value.
UNIT = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@contextlib.contextmanager
def tuned(**changes: int) -> Iterator[None]:
    """Change tunables of the CUDA backend for a while."""
    before = ops.native.cuda_tunables()
    ops.native.set_cuda_tunables(**changes)
    try:
        yield
    finally:
        ops.native.set_cuda_tunables(**before)


def set_seed(seed: int) -> None:
    """Choose the order in which the shim runs threads and blocks."""
    ctypes.CDLL(devices.SHIM).fusedtricks_shim_set_seed(ctypes.c_uint64(seed))


def count_launches() -> int:
    """Return the number of kernels that the shim has run."""
    count = ctypes.CDLL(devices.SHIM).fusedtricks_shim_launches
    count.restype = ctypes.c_uint64
    return count()


def in_place(stream: str, value: Tensor) -> Tensor:
    """Leave a tensor where the allocator put it, which is aligned."""
    return value


def shifted(stream: str, value: Tensor) -> Tensor:
    """Move a tensor one element further, so that no access of 16 bytes is possible."""
    return torch.cat([value.new_zeros(1), value.reshape(-1)])[1:].view(value.shape)


def bits(tensor: Tensor) -> str:
    """Return a digest of the bytes of the values, which a failed test can print."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(flat.numpy().tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class DTypes:
    """What the tensors of a parameter are made of; None: it has no such tensor."""

    param: torch.dtype = torch.float32
    grad: torch.dtype = torch.float32
    state: torch.dtype = torch.float32
    model: torch.dtype | None = None
    average: torch.dtype | None = None


@dataclass(frozen=True)
class GradOptions:
    """What happens to the gradients before the update."""

    grad_scale: float | None = None
    clip_value: float | None = None
    max_norm: float | None = None
    centralize: int = 0


AVERAGE_WEIGHT = 0.3
COMBINED = GradOptions(grad_scale=4.0, clip_value=0.4, max_norm=1.3, centralize=2)


def vary(case: Case, index: int) -> dict[str, Any]:
    """Return options of a parameter group that differ from those of every other index."""
    options: dict[str, Any] = {"lr": case.kwargs["lr"] * (1 + index / 64)}
    for name in ("momentum", "alpha", "eps"):
        if name in case.kwargs:
            options[name] = case.kwargs[name] * (1 - index / 512)
    if "betas" in case.kwargs:
        options["betas"] = tuple(beta - index / 1024 for beta in case.kwargs["betas"])
    if "weight_decay" in case.kwargs and not case.decays_by_hand:
        options["weight_decay"] = case.kwargs["weight_decay"] * (1 + index / 128)
    return options


class Call:
    """The tensors of one op call. Equal arguments make equal tensors."""

    def __init__(
        self,
        case: Case,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[DTypes] = (DTypes(),),
        *,
        group_size: int | None = None,
        step: Tensor | None = None,
        place: Callable[[str, Tensor], Tensor] = in_place,
    ) -> None:
        """Make the tensors of `shapes` with `dtypes` in turn, `group_size` to a parameter group."""
        self.case = case
        self.shapes = list(shapes)
        self.dtypes = [dtypes[i % len(dtypes)] for i in range(len(self.shapes))]
        size = group_size or max(len(self.shapes), 1)
        self.group_sizes = [size] * (len(self.shapes) // size)
        assert sum(self.group_sizes) == len(self.shapes)
        self.group_options = [vary(case, g) for g in range(len(self.group_sizes))]
        groups = [{"params": [torch.zeros(1)], **options} for options in self.group_options]
        self._optimizer = case.cls(groups, **case.kwargs)
        self.state_names = self._optimizer._state_names(self._optimizer.param_groups[0])
        self._random = torch.Generator().manual_seed(77)
        self._place = place
        self._make_tensors(torch.tensor(2.0) if step is None else step)

    def _make_tensors(self, step: Tensor) -> None:
        each = list(zip(self.shapes, self.dtypes, strict=True))
        self.params = [self._normal("param", shape, d.param) for shape, d in each]
        self.grads = [self._normal("grad", shape, d.grad) for shape, d in each]
        # The first state is larger than the squares of the others: rmsprop takes a variance.
        self.states = [
            self._make(
                name, torch.rand(shape, generator=self._random) / 2 + 0.5 + (k == 0), d.state
            )
            for shape, d in each
            for k, name in enumerate(self.state_names)
        ]
        self.model_index = [i for i, (_, d) in enumerate(each) if d.model is not None]
        self.models = [
            self._make("model", torch.zeros(self.shapes[i]), self.dtypes[i].model)
            for i in self.model_index
        ]
        self.average_index = [i for i, (_, d) in enumerate(each) if d.average is not None]
        self.averages = [
            self._normal("average", self.shapes[i], self.dtypes[i].average)
            for i in self.average_index
        ]
        self.steps = [step.clone() for _ in each]

    def _normal(self, stream: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._make(stream, torch.randn(shape, generator=self._random), dtype)

    def _make(self, stream: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        return self._place(stream, value.to(dtype))

    @property
    def written(self) -> list[Tensor]:
        """Everything that the op writes."""
        return [*self.params, *self.states, *self.models, *self.averages, *self.steps]

    def written_bits(self) -> list[str]:
        """Return the digests of everything that the op writes."""
        return [bits(tensor) for tensor in self.written]

    def statistics(self, options: GradOptions) -> tuple[Tensor, Tensor]:
        """Return the means of the rows and the totals."""
        return torch.ops.fusedtricks.grad_statistics(
            self.grads,
            self.group_sizes,
            [options.centralize] * len(self.group_sizes),
            as_scale(options.grad_scale),
            options.clip_value,
        )

    def run(
        self,
        options: GradOptions = GradOptions(),
        *,
        means: Tensor | None = None,
        coefficient: Tensor | None = None,
        found_inf: Tensor | None = None,
        skipped_steps: Tensor | None = None,
    ) -> Tensor | None:
        """Run both sweeps, without `means` and `coefficient` where wanted; return the norm."""
        norm = None
        if means is None and (options.max_norm is not None or options.centralize):
            means, totals = self.statistics(options)
            finalize = torch.ops.fusedtricks.finalize_statistics
            norm, coefficient, _ = finalize([totals], options.max_norm)
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        getattr(torch.ops.fusedtricks, f"{optimizer.algorithm}_")(
            self.params,
            self.grads,
            self.states,
            self.models,
            self.model_index,
            self.averages,
            self.average_index,
            self.steps,
            [torch.tensor(group["lr"], dtype=torch.float64) for group in groups],
            [value for group in groups for value in optimizer._hyper(group)],
            [sum(bool(f) << k for k, f in enumerate(optimizer._flags(g))) for g in groups],
            self.group_sizes,
            [int(group["maximize"]) for group in groups],
            [options.centralize] * len(groups),
            means,
            coefficient,
            as_scale(options.grad_scale),
            options.clip_value,
            AVERAGE_WEIGHT,
            found_inf,
            skipped_steps,
        )
        return norm

    def expected(self, options: GradOptions = GradOptions()) -> "Expected":
        """Return what torch.optim makes of the present tensors in float64."""
        twins = [p.detach().double().clone().requires_grad_() for p in self.params]
        for twin, grad in zip(twins, self.grads, strict=True):
            twin.grad = grad.double() / (options.grad_scale or 1)
        norm = transform_by_hand(twins, options.clip_value, options.max_norm, options.centralize)
        size, kwargs = self.group_sizes[0], self.case.torch_kwargs
        groups = [
            {"params": twins[g * size : (g + 1) * size], **of_group}
            for g, of_group in enumerate(self.group_options)
        ]
        optimizer = self.case.torch_cls(groups, **kwargs)
        n = len(self.state_names)
        for i, twin in enumerate(twins):
            states = [s.double().clone() for s in self.states[i * n : (i + 1) * n]]
            optimizer.state[twin] = dict(zip(self.state_names, states, strict=True))
            if optimizer.state[twin].keys() != {"momentum_buffer"}:
                optimizer.state[twin]["step"] = self.steps[i].double().clone()
            elif self.steps[i] == 0:
                del optimizer.state[twin]["momentum_buffer"]
        self.case.torch_step(optimizer)
        states = [optimizer.state[twin][name] for twin in twins for name in self.state_names]
        steps = [step.double() + 1 for step in self.steps]
        averages = [
            torch.lerp(average.double(), twins[i].detach(), AVERAGE_WEIGHT)
            for average, i in zip(self.averages, self.average_index, strict=True)
        ]
        return Expected([t.detach() for t in twins], states, averages, steps, norm)

    def assert_close(
        self, expected: "Expected", *, base: float = 4e-6, double: float = 1e-12
    ) -> None:
        """Compare; `base` is the tolerance of float32 computations, `double` of float64 ones."""
        n = len(self.state_names)
        for i, dtypes in enumerate(self.dtypes):
            in_double = dtypes.param == dtypes.grad == dtypes.state == torch.float64
            bound = double if in_double else base
            where = f"tensor {i} of shape {tuple(self.shapes[i])} and {dtypes}"
            close(self.params[i], expected.params[i], bound, where)
            for k, name in enumerate(self.state_names):
                at = i * n + k
                close(self.states[at], expected.states[at], bound, f"{name} of {where}")
            assert self.steps[i].double() == expected.steps[i], f"step of {where}"
        for model, i in zip(self.models, self.model_index, strict=True):
            # Rounded from the computed parameter, which is not that of the oracle to the bit.
            close(model, expected.params[i], base, f"model copy of tensor {i}, {self.dtypes[i]}")
        pairs = zip(self.averages, expected.averages, self.average_index, strict=True)
        for average, wanted, i in pairs:
            dtypes = self.dtypes[i]
            exact = {dtypes.param, dtypes.grad, dtypes.state, dtypes.average} == {torch.float64}
            close(average, wanted, double if exact else base, f"average of tensor {i}, {dtypes}")


@dataclass(frozen=True)
class Expected:
    """What a call should leave, in float64."""

    params: list[Tensor]
    states: list[Tensor]
    averages: list[Tensor]
    steps: list[Tensor]
    norm: Tensor | None


def close(actual: Tensor, expected: Tensor, bound: float, what: str) -> None:
    """Compare with `bound`, relative and absolute, and a rounding to the dtype of `actual`."""
    torch.testing.assert_close(
        actual.detach().double(),
        expected.double(),
        rtol=bound + UNIT[actual.dtype],
        atol=bound,
        msg=lambda text: f"{what}: {text}",
    )


def as_scale(value: float | None) -> Tensor | None:
    """Return a loss scale as the ops take it."""
    return None if value is None else torch.tensor(value)


def exact_norm(grads: Sequence[Tensor]) -> float:
    """Return the norm with one rounding per square."""
    return math.sqrt(math.fsum(x * x for grad in grads for x in grad.double().reshape(-1).tolist()))
