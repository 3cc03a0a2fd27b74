"""What the update sweep prepares once: the tables of a call and the bodies of its kernel."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from . import checks
from .choices import Choices
from .launch import LANGUAGE_DTYPES, N_THREADS
from .layouts import Staged, row_length_if_centralized, stage_like, stage_param
from .tables import Table, Ticket, Uploaded, upload
from .update_kernel import Body, column

__all__ = ["ITEM", "Plan", "StepArgs", "block_size", "build_plan", "max_registers"]

# Elements of a work item.
ITEM = 8192


class StepArgs(NamedTuple):
    """The arguments of an optimizer's op, see `fusedtricks.ops`."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[Tensor]
    model_params: list[Tensor]
    model_index: list[int]
    averages: list[Tensor]
    average_index: list[int]
    steps: list[Tensor]
    lr: list[Tensor]
    hyper: list[float]
    variants: list[int]
    group_sizes: list[int]
    maximize: list[int]
    centralize: list[int]
    row_means: Tensor | None
    coefficient: Tensor | None
    grad_scale: Tensor | None
    clip_value: float | None
    average_weight: float
    found_inf: Tensor | None
    skipped_steps: Tensor | None


@dataclass
class Plan:
    """What stays from call to call while the layouts of all tensors do."""

    algorithm: ModuleType
    device: torch.device
    n_rows: int
    n_items: int
    bodies: Choices
    max_registers: int
    step_dtypes: Choices
    staged: list[Staged]
    tensors: Uploaded
    items: Uploaded
    addresses: Table
    groups: Table
    ticket: Ticket


def build_plan(op: str, r: StepArgs, device_lr: list[Tensor | None], device: torch.device) -> Plan:
    """Check the arguments of a call and lay out its tables.

    Args:
        op: Name of the op, for errors.
        r: Its arguments.
        device_lr: The learning rate of each group on the device, None if the host knows it.
        device: Where all tensors have to be.

    Raises:
        RuntimeError, TypeError, ValueError: If an argument does not fit; it names what.
    """
    algorithm = importlib.import_module(f"fusedtricks.kernels.{op[:-1]}")
    n_states = _check_lists(op, algorithm, r)
    layout = _Layout(op, r, device_lr, device, n_states)
    for index, group in enumerate(checks.groups_of_tensors(op, len(r.params), r.group_sizes)):
        layout.add(index, group)
    for name, taken in (("model_index", layout.n_models), ("average_index", layout.n_averages)):
        given = getattr(r, name)
        if taken != len(given):
            raise ValueError(
                f"{op}: expected {name} to increase and to be below {len(r.params)}, got "
                f"{list(given)}"
            )
    bodies = Choices.of(layout.bodies)
    for record, body in zip(layout.records, layout.bodies, strict=True):
        record["body"] = bodies.values.index(body)
    records = [[record[name] for name in sorted(record, key=column)] for record in layout.records]
    items = torch.arange(len(records), dtype=torch.int32, device="cpu")
    n_items = [-(-param.numel() // ITEM) for param in r.params]
    counts = torch.tensor(n_items, dtype=torch.int64, device="cpu")
    n_group_values = len(r.lr) * (2 + algorithm.N_CONSTANTS)
    return Plan(
        algorithm=algorithm,
        device=device,
        n_rows=layout.n_rows,
        n_items=layout.n_items,
        bodies=bodies,
        max_registers=max_registers(bodies.values),
        step_dtypes=Choices.of(b.step for b in layout.bodies if b.step is not None),
        staged=layout.staged,
        tensors=upload(torch.tensor(records, dtype=torch.int64, device="cpu"), device),
        items=upload(items.repeat_interleave(counts), device),
        addresses=Table(device, torch.int64, layout.n_addresses),
        groups=Table(device, torch.float64, n_group_values),
        ticket=Ticket(device),
    )


def _check_lists(op: str, algorithm: ModuleType, r: StepArgs) -> int:
    """Check the lengths of all lists; return the number of states of each tensor."""
    per_group = (r.variants, r.maximize, r.centralize)
    checks.check_groups(op, len(r.group_sizes), per_group, r.hyper, algorithm.N_HYPER, r.lr)
    numbers = set()
    for flags, size in zip(r.variants, r.group_sizes, strict=True):
        if not 0 <= flags < algorithm.N_VARIANTS:
            raise ValueError(f"{op}: expected variants below {algorithm.N_VARIANTS}, got {flags}")
        if size:
            numbers.add(algorithm.n_states(flags))
    if len(numbers) > 1:
        raise ValueError(
            f"{op}: expected groups with the same states in one call, got {sorted(numbers)}"
        )
    n_states = max(numbers, default=0)
    n = len(r.params)
    for what, expected in (("grads", n), ("states", n * n_states), ("steps", n)):
        got = len(getattr(r, what))
        if got != expected and not (what == "steps" and got == 0):
            raise ValueError(f"{op}: expected {expected} {what}, got {got}")
    if len(r.model_params) != len(r.model_index):
        raise ValueError(
            f"{op}: expected one model_index for each of {len(r.model_params)} model_params, got "
            f"{len(r.model_index)}"
        )
    if len(r.averages) != len(r.average_index):
        raise ValueError(
            f"{op}: expected one average_index for each of {len(r.averages)} averages, got "
            f"{len(r.average_index)}"
        )
    return n_states


def block_size(dtypes: Iterable[torch.dtype]) -> int:
    """Return how many elements a program loads at a time: at least 16 bytes for each thread."""
    return N_THREADS * 16 // min(4, *(dtype.itemsize for dtype in dtypes))


def max_registers(bodies: Iterable[Body]) -> int:
    """Return the bound on registers of a thread: three, two or one blocks fit on an SM."""
    if any(body.compute == tl.float64 for body in bodies):
        return 168
    if all(body.block <= 1024 and _n_streams(body) < 6 for body in bodies):
        return 80
    return 128


def _n_streams(body: Body) -> int:
    return 2 + len(body.states.values) + (body.average is not None)


class _Layout:
    """The rows of the table of tensors, one after the other.

    The table of addresses holds parameters, gradients, states, 16-bit copies, averages, step counts
    and learning rates, in this order.
    """

    def __init__(
        self,
        op: str,
        r: StepArgs,
        device_lr: list[Tensor | None],
        device: torch.device,
        n_states: int,
    ) -> None:
        self.bodies: list[Body] = []
        self.records: list[dict[str, int]] = []
        self.staged: list[Staged] = []
        self.n_rows = self.n_items = self.n_models = self.n_averages = 0
        self._op, self._r, self._device = op, r, device
        self._n_states = n_states
        self._first_model = (2 + n_states) * len(r.params)
        self._first_average = self._first_model + len(r.model_params)
        self._first_step = self._first_average + len(r.averages)
        first_lr = self._first_step + len(r.steps)
        self._lr_dtypes = [None if lr is None else lr.dtype for lr in device_lr]
        on_device = [lr is not None for lr in device_lr]
        self._lr_at = [first_lr + sum(on_device[:group]) for group in range(len(device_lr))]
        self.n_addresses = first_lr + sum(on_device)

    def add(self, index: int, group: int) -> None:
        r, param = self._r, self._r.params[index]
        checks.check_tensor(f"{self._op}: parameter {index}", param, param.shape, self._device)
        row_length = row_length_if_centralized(param, r.centralize[group])
        first_state = 2 * len(r.params) + index * self._n_states
        self._staged_like = stage_param(index, param, row_length > 0)
        self.staged += self._staged_like
        self._take("the gradient", index, len(r.params) + index, r.grads[index], False)
        states = r.states[index * self._n_states : (index + 1) * self._n_states]
        for k, state in enumerate(states):
            self._take("a state", index, first_state + k, state, True)
        model = None
        if self.n_models < len(r.model_index) and r.model_index[self.n_models] == index:
            model = r.model_params[self.n_models]
            self._take("the model copy", index, self._first_model + self.n_models, model, True)
        average = None
        if self.n_averages < len(r.average_index) and r.average_index[self.n_averages] == index:
            average = r.averages[self.n_averages]
            self._take("the average", index, self._first_average + self.n_averages, average, True)
        step = r.steps[index] if r.steps else None
        if step is not None:
            checks.check_step(self._op, step, index, self._device)
        self._record(index, group, row_length, step)
        self.n_models += model is not None
        self.n_averages += average is not None
        stored = [t for t in (param, r.grads[index], model, average, *states) if t is not None]
        self.bodies.append(
            Body(
                flags=r.variants[group],
                block=block_size(tensor.dtype for tensor in stored),
                compute=tl.float64 if param.dtype == torch.float64 else tl.float32,
                is_centralized=row_length > 0,
                grad=LANGUAGE_DTYPES[r.grads[index].dtype],
                param=LANGUAGE_DTYPES[param.dtype],
                model=_language_dtype(model),
                average=_language_dtype(average),
                states=Choices(tuple(LANGUAGE_DTYPES[state.dtype] for state in states)),
                step=_language_dtype(step),
                lr=LANGUAGE_DTYPES.get(self._lr_dtypes[group]),
            )
        )

    def _take(self, what: str, index: int, position: int, tensor: Tensor, written: bool) -> None:
        """Check a tensor that belongs to a parameter, and stage it if its layout is another."""
        param = self._r.params[index]
        name = f"{self._op}: {what} of parameter {index}"
        checks.check_tensor(name, tensor, param.shape, self._device)
        is_staged = bool(self._staged_like)
        self.staged += stage_like(position, tensor, index, param, is_staged, written)

    def _record(self, index: int, group: int, row_length: int, step: Tensor | None) -> None:
        """Add a row; update_kernel.py has the columns."""
        param = self._r.params[index]
        self.records.append(
            {
                "numel": param.numel(),
                "row_length": row_length,
                "first_row": self.n_rows,
                "group": group,
                "body": 0,
                "first_item": self.n_items,
                "step": self._first_step + index,
                "step_bytes": 0 if step is None else step.element_size(),
                "model": self._first_model + self.n_models,
                "average": self._first_average + self.n_averages,
                "lr": self._lr_at[group],
            }
        )
        self.n_rows += param.shape[0] if row_length > 0 else 0
        self.n_items += -(-param.numel() // ITEM)


def _language_dtype(tensor: Tensor | None) -> Any:
    return None if tensor is None else LANGUAGE_DTYPES[tensor.dtype]
