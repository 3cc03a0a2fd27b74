"""Steps through the fused ops: by a plan in eager mode, by lists while torch.compile traces."""

import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedtricks import backends, ops, reference
from fusedtricks.optim import plan as python_plan
from fusedtricks.optim.averaging import averager_of, choose_averages, is_offer, note_moved
from fusedtricks.reference import Entry, GradOptions, Outcome, centralize_ndim

if TYPE_CHECKING:
    from fusedtricks.optim.base import FusedOptimizer

__all__ = ["planned_step", "step"]

# What has the classes Plan and GroupValues.
_planner: Any = python_plan if ops.native is None else ops.native


def step(
    optimizer: "FusedOptimizer", entries: list[Entry], options: GradOptions, library: str
) -> Outcome:
    """Take a step for checked `entries`, building a new plan for this and the following ones.

    Args:
        optimizer: Whose step it is.
        entries: The parameters that have a gradient.
        options: What happens to the gradients.
        library: The namespace of the ops, see `fusedtricks.ops`.
    """
    if torch.compiler.is_compiling():
        return _listed_step(optimizer, entries, options, library)
    on_device = any(backends.skips_on_device(entry.param.device) for entry in entries)
    if on_device:
        _check_not_capturing(optimizer, entries)
        _count_skipped(optimizer, entries)
    # A skipped step must not even create state, so it is recognised beforehand. On a device that
    # would mean to wait; there a state that no step has used yet is as good as none.
    elif options.found_inf is not None and options.found_inf.item() != 0:
        return Outcome(skipped=True)
    elif options.skips_nonfinite:
        _, norm, nonfinite = reference.transform(entries, options)
        if nonfinite.item() != 0:
            return Outcome(True, norm, nonfinite)
    averager = averager_of(optimizer)
    offer = None if averager is None else averager.offer()[0]
    averages = choose_averages(optimizer, entries, offer)
    optimizer._plan = _build_plan(optimizer, entries, averages, library, on_device)
    optimizer._plan_layout = _layout(optimizer)
    # Not the offer itself: once its hook is removed, nothing is to keep the averages.
    optimizer._plan_offer = None if offer is None else weakref.ref(offer)
    outcome = planned_step(optimizer, options)
    if outcome is None:
        # What a plan cannot hold, say a tuple in place of the list of parameters.
        optimizer._plan = None
        outcome = _listed_step(optimizer, entries, options, library)
        torch.autograd.graph.increment_version(_written(optimizer, entries))
    return outcome


def _check_not_capturing(optimizer: "FusedOptimizer", entries: list[Entry]) -> None:
    if any(entry.param.is_cuda for entry in entries) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{type(optimizer).__name__}: take a step with the same parameters, options and "
            "gradients before capturing one in a CUDA graph; a capture must not create state"
        )


def _count_skipped(optimizer: "FusedOptimizer", entries: list[Entry]) -> None:
    record = optimizer._record
    device = next(e.param.device for e in entries if backends.skips_on_device(e.param.device))
    if record.skipped_on_device is None or record.skipped_on_device.device != device:
        record.skipped_steps = optimizer.skipped_steps
        record.skipped_on_device = torch.zeros((), dtype=torch.int64, device=device)


def _written(optimizer: "FusedOptimizer", entries: list[Entry]) -> list[Tensor]:
    """Return the tensors that a step writes, step counts apart."""
    written = [entry.param for entry in entries]
    for entry in entries:
        state = optimizer.state[entry.param] if optimizer._watched(entry) else {}
        written += [state[name] for name in optimizer._watched(entry) if name != "step"]
    return written


def planned_step(optimizer: "FusedOptimizer", options: GradOptions) -> Outcome | None:
    """Take a step by the optimizer's plan; None if it is stale, and then nothing has changed."""
    if optimizer.backend == "reference" or _layout(optimizer) != optimizer._plan_layout:
        return None
    averager = averager_of(optimizer)
    offer, weight = (None, 0.0) if averager is None else averager.offer()
    if not is_offer(optimizer._plan_offer, offer):
        return None
    values = _planner.GroupValues()
    for group in optimizer.param_groups:
        values.add(
            group["lr"],
            optimizer._hyper(group),
            _variant(optimizer, group),
            group["maximize"],
            centralize_ndim(group["centralize_grad"]),
        )
    result = optimizer._plan.step(
        optimizer.param_groups,
        optimizer.state,
        values,
        _sweeps_grads(optimizer, options),
        options.skips_nonfinite,
        options.clip_value,
        options.max_norm,
        options.grad_scale,
        options.found_inf,
        optimizer._record.skipped_on_device,
        [] if offer is None else [average for _, average in offer.planned],
        weight,
    )
    if not result.done:
        return None
    if not result.skipped:
        note_moved(averager, offer)
    return Outcome(result.skipped, result.norm, result.nonfinite)


def _variant(optimizer: "FusedOptimizer", group: dict[str, Any]) -> int:
    # A branch, which torch.compile guards, where a flag depends on a number that varies.
    return sum(1 << bit if flag else 0 for bit, flag in enumerate(optimizer._flags(group)))


def _layout(optimizer: "FusedOptimizer") -> list[Any]:
    """Return what decides which tensors a plan binds; a plan is stale once it differs."""
    return [
        (optimizer._state_names(group), group["master_weights"], group["differentiable"])
        for group in optimizer.param_groups
    ]


def _sweeps_grads(optimizer: "FusedOptimizer", options: GradOptions) -> bool:
    return (
        options.max_norm is not None
        or options.skips_nonfinite
        or options.wants_flag
        or any(group["centralize_grad"] for group in optimizer.param_groups)
    )


def _build_plan(
    optimizer: "FusedOptimizer",
    entries: list[Entry],
    averages: dict[Tensor, Tensor],
    library: str,
    on_device: bool,
) -> Any:
    n_groups = len(optimizer.param_groups)
    plan = _planner.Plan(library, f"{optimizer.algorithm}_", n_groups, on_device)
    taking_part = {id(entry.param): entry for entry in entries}
    batches: dict[Any, int] = {}
    seen: Counter[int] = Counter()
    positions = {id(param): position for position, param in enumerate(averages)}
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            plan.add(param, index)
            entry = taking_part.get(id(param))
            if entry is None:
                continue
            state, count = optimizer._ensure_state(entry, counts_on_device=True)
            names = optimizer._state_names(group)
            watched = optimizer._watched(entry)
            key = _batch_key(optimizer, entry, seen[id(param)])
            batch = batches.setdefault(key, len(batches))
            seen[id(param)] += 1
            plan.bind(
                batch,
                state["master_param"] if optimizer._has_master(entry) else None,
                positions.get(id(param), -1),
                [state[name] for name in names],
                count if watched else None,
                state if watched else None,
                watched,
            )
    plan.seal(optimizer.state)
    return plan


def _batch_key(optimizer: "FusedOptimizer", entry: Entry, n_before: int) -> Any:
    """Return what the parameters of one op call have in common."""
    # A parameter listed twice is updated twice, one after the other. SGD without momentum counts
    # steps where there is a master only.
    counts = bool(optimizer._watched(entry))
    return entry.param.device, optimizer._state_names(entry.group), counts, n_before


@dataclass(slots=True)
class _Batch:
    """The tensor arguments of one op call."""

    group_sizes: list[int]
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    models: list[Tensor] = field(default_factory=list)
    model_index: list[int] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)

    def add(self, optimizer: "FusedOptimizer", entry: Entry) -> None:
        state, count = optimizer._ensure_state(entry, counts_on_device=True)
        if optimizer._has_master(entry):
            self.model_index.append(len(self.params))
            self.models.append(entry.param)
            self.params.append(state["master_param"])
        else:
            self.params.append(entry.param)
        self.grads.append(entry.grad)
        self.states += [state[name] for name in optimizer._state_names(entry.group)]
        if optimizer._watched(entry):
            self.steps.append(count)
        self.group_sizes[entry.group_index] += 1


def _as_tensor(lr: float | Tensor) -> Tensor:
    return lr if isinstance(lr, Tensor) else torch.tensor(lr, dtype=torch.float64, device="cpu")


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _listed_step(
    optimizer: "FusedOptimizer", entries: list[Entry], options: GradOptions, library: str
) -> Outcome:
    """Take a step by op calls alone, which torch.compile can trace."""
    all_ops = getattr(torch.ops, library)
    groups = optimizer.param_groups
    batches: dict[Any, _Batch] = {}
    seen: Counter[int] = Counter()
    for entry in entries:
        key = _batch_key(optimizer, entry, seen[id(entry.param)])
        seen[id(entry.param)] += 1
        batches.setdefault(key, _Batch([0] * len(groups))).add(optimizer, entry)
    centralize = [centralize_ndim(group["centralize_grad"]) for group in groups]
    lr = [_as_tensor(group["lr"]) for group in groups]
    norm = coefficient = nonfinite = None
    found_inf = options.found_inf
    row_means: list[Tensor | None] = [None] * len(batches)
    if _sweeps_grads(optimizer, options):
        statistics = [
            all_ops.grad_statistics(
                batch.grads,
                batch.group_sizes,
                centralize,
                _on(options.grad_scale, batch.grads[0].device),
                options.clip_value,
            )
            for batch in batches.values()
        ]
        row_means = [means for means, _ in statistics]
        device = statistics[0][1].device
        norm, coefficient, nonfinite = all_ops.finalize_statistics(
            [totals.to(device) for _, totals in statistics], options.max_norm
        )
        if options.skips_nonfinite:
            found_inf = nonfinite if found_inf is None else nonfinite + found_inf
    op = getattr(all_ops, f"{optimizer.algorithm}_")
    counter = optimizer._record.skipped_on_device
    for batch, means in zip(batches.values(), row_means, strict=True):
        device = batch.params[0].device
        counts = counter is not None and counter.device == device
        op(
            batch.params,
            batch.grads,
            batch.states,
            batch.models,
            batch.model_index,
            # The hooks that average, which torch.compile traces, find nothing moved.
            [],
            [],
            batch.steps,
            lr,
            [value for group in groups for value in optimizer._hyper(group)],
            [_variant(optimizer, group) for group in groups],
            batch.group_sizes,
            [int(group["maximize"]) for group in groups],
            centralize,
            means,
            _on(coefficient, device) if options.max_norm is not None else None,
            _on(options.grad_scale, device),
            options.clip_value,
            0.0,
            _on(found_inf, device),
            counter if counts else None,
        )
        counter = None if counts else counter
    return Outcome(False, norm, nonfinite)
