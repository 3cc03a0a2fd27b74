"""What a `Plan` in Python is made of, and how it sees that it still holds."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import is_
from typing import Any

import torch
from torch import Tensor

from fusedtricks import backends
from fusedtricks.optim.averaging import share_memory

__all__ = [
    "Batch",
    "Findings",
    "GroupValues",
    "KnownStates",
    "PlanEntry",
    "Selection",
    "StepOptions",
    "StepResult",
    "are",
    "versions_of",
]

_TYPES = (Tensor, torch.nn.Parameter)


class GroupValues:
    """Everything that may change from step to step without changing the plan; of each group."""

    def __init__(self) -> None:
        self.lr: list[Any] = []
        self.hyper = array("d")
        self.variants: list[int] = []
        self.maximize: list[int] = []
        self.centralize: list[int] = []

    def add(
        self, lr: Any, hyper: Sequence[float], variant: int, maximize: bool, centralize: int
    ) -> None:
        """Add the values of the next group."""
        self.lr.append(lr)
        self.hyper.extend(hyper)
        self.variants.append(variant)
        self.maximize.append(int(maximize))
        self.centralize.append(centralize)


@dataclass(slots=True)
class StepResult:
    """What came of a step; not `done` if the plan is stale, and then nothing was changed."""

    done: bool = False
    skipped: bool = False
    norm: Tensor | None = None
    nonfinite: Tensor | None = None


@dataclass(slots=True)
class StepOptions:
    """How the gradients are treated in one step, for all groups.

    Attributes:
        sweeps_grads: Whether to run the statistics sweep.
        skips_nonfinite: Whether a gradient that is not finite skips the step.
        clip_value: The largest absolute value of a gradient's element.
        max_norm: The largest norm of all gradients.
        grad_scale: What the gradients are divided by.
        found_inf: Skips the step if it is not 0.
        skipped_steps: Counts what is skipped on the device.
        averages: Those that `bind` gave the positions of.
        average_weight: 1 - their decay.
    """

    sweeps_grads: bool
    skips_nonfinite: bool
    clip_value: float | None
    max_norm: float | None
    grad_scale: Tensor | None
    found_inf: Tensor | None
    skipped_steps: Tensor | None
    averages: list[Tensor]
    average_weight: float


@dataclass(slots=True)
class Findings:
    """What the statistics sweep found, and what follows from it."""

    row_means: list[Tensor | None]
    norm: Tensor | None = None
    coefficient: Tensor | None = None
    nonfinite: Tensor | None = None
    found_inf: Tensor | None = None


@dataclass(slots=True, eq=False)
class PlanEntry:
    """A parameter, and what `bind` gave it; the batch is -1 before."""

    param: Tensor
    group: int
    dtype: torch.dtype
    device: torch.device
    impl: int  # the address of what torch.utils.swap_tensors exchanges
    version: int  # of the parameter when it was the rounded master
    batch: int = -1
    master: Tensor | None = None
    average: int = -1
    states: list[Tensor] = field(default_factory=list)
    step: Tensor | None = None
    owner: dict[str, Any] | None = None
    watched: tuple[str, ...] = ()

    def fits(self, grad: Tensor, averages: list[Tensor]) -> bool:
        """Return whether the ops can take the parameter with this gradient, and its average."""
        param = self.param
        return (
            param.dtype == self.dtype
            and param.device == self.device
            and not param.is_neg()
            and type(grad) in _TYPES
            and grad.layout == torch.strided
            and grad.dtype in backends._DTYPES
            and grad.device == self.device
            and grad.shape == param.shape
            and (self.average < 0 or self._has_fitting_average(averages))
        )

    def _has_fitting_average(self, averages: list[Tensor]) -> bool:
        # The average belongs to someone else, who may have moved it.
        if self.average >= len(averages):
            return False
        average, param = averages[self.average], self.param
        return (
            type(average) in _TYPES
            and not average.is_neg()
            and average.layout == torch.strided
            and average.device == self.device
            and average.dtype in backends._DTYPES
            and (average.dtype != torch.float64 or param.dtype == torch.float64)
            and _has_own_elements(average, param.shape)
            and not share_memory(average, param)
        )

    def has_own_elements(self) -> bool:
        """Return whether an op would write the parameter and its states as they are."""
        shape = self.param.shape
        return all(_has_own_elements(tensor, shape) for tensor in (self.param, *self.states))


def _has_own_elements(tensor: Tensor, shape: torch.Size) -> bool:
    return tensor.shape == shape and not any(
        n > 1 and s == 0 for n, s in zip(shape, tensor.stride(), strict=True)
    )


class Batch:
    """The arguments of one op call that stay from step to step."""

    def __init__(self, entries: list[PlanEntry], positions: list[int], n_groups: int) -> None:
        self.positions = positions
        self.device = entries[0].device
        self.params = [e.param if e.master is None else e.master for e in entries]
        self.states = [state for entry in entries for state in entry.states]
        self.models = [entry.param for entry in entries if entry.master is not None]
        self.model_index = [i for i, entry in enumerate(entries) if entry.master is not None]
        self.averages = [entry.average for entry in entries if entry.average >= 0]
        self.average_index = [i for i, entry in enumerate(entries) if entry.average >= 0]
        self.steps = [entry.step for entry in entries if entry.step is not None]
        self.group_sizes = [0] * n_groups
        for entry in entries:
            self.group_sizes[entry.group] += 1
        self.written = [*self.params, *self.states, *self.models]


class Selection:
    """The parameters that have a gradient, and the arguments that follow from them."""

    def __init__(self, entries: list[PlanEntry], mask: list[bool], n_groups: int) -> None:
        self.mask = mask
        self.entries = list(compress(entries, mask))
        by_batch: dict[int, list[int]] = {}
        for position, entry in enumerate(self.entries):
            by_batch.setdefault(entry.batch, []).append(position)
        self.batches = [
            Batch([self.entries[i] for i in positions], positions, n_groups)
            for _, positions in sorted(by_batch.items())
        ]
        rounded = [entry for entry in self.entries if entry.master is not None]
        self.rounded = rounded
        self._models = [entry.param for entry in rounded]
        self._impls = [entry.impl for entry in rounded]
        self._versions = [entry.version for entry in rounded]
        # An op checks its own tensors only; the first must not have written when the second
        # refuses.
        self._has_several = len(self.batches) > 1

    def fits(self, grads: list[Tensor], averages: list[Tensor]) -> bool:
        """Return whether the ops can take the parameters with these gradients and averages."""
        pairs = zip(self.entries, grads, strict=True)
        if not all(entry.fits(grad, averages) for entry, grad in pairs):
            return False
        if self._has_several and not all(entry.has_own_elements() for entry in self.entries):
            return False
        # Others may have written to a parameter, and its master has to follow.
        return not self._models or (
            [model._cdata for model in self._models] == self._impls
            and versions_of(self._models) == self._versions
        )

    def split(self, grads: list[Tensor]) -> list[list[Tensor]]:
        """Return the gradients of each batch."""
        if len(self.batches) == 1:
            return [grads]
        return [[grads[i] for i in batch.positions] for batch in self.batches]

    def note_versions(self) -> None:
        """Take the parameters for what their masters were rounded to."""
        self._versions = versions_of(self._models)

    def give_back_versions(self) -> None:
        """Leave the versions to the selection that takes this one's place."""
        for entry, version in zip(self.rounded, self._versions, strict=True):
            entry.version = version


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """Return the counts of the writes that autograd knows of; `tensor.data` is not among them."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # tensors of inference mode have no count
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def are(values: Iterable[Any], expected: Sequence[Any]) -> bool:
    """Return whether these are the `expected` objects, of which there are as many."""
    # Not ==, which compares the values of tensors.
    return all(map(is_, values, expected))


class KnownStates:
    """The states of the plan's parameters in an optimizer's state, which may hold other things."""

    def __init__(self, state: dict[Any, Any], params: Iterable[Tensor]) -> None:
        self._ids = set(map(id, params))
        self._remember(state)

    def _remember(self, state: dict[Any, Any]) -> None:
        self._keys, self._values = list(state), list(state.values())
        self._known = self._pick(state)

    def _pick(self, state: dict[Any, Any]) -> list[Any]:
        items = list(state.items())
        return [thing for pair in items if id(pair[0]) in self._ids for thing in pair]

    def are_in(self, state: dict[Any, Any]) -> bool:
        """Return whether every parameter still has the same dict."""
        if (
            len(state) == len(self._keys)
            and are(state, self._keys)
            and are(state.values(), self._values)
        ):
            return True
        known = self._pick(state)
        if len(known) != len(self._known) or not are(known, self._known):
            return False
        self._remember(state)  # and nothing that was removed from it
        return True
