"""The reference backend: one step in plain torch, on any device, for any dtype, differentiable.

It defines what the fused backends compute. Every operation happens in float32 for 16-bit data and
in the data's own precision otherwise; results are rounded once, when they are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fusedtricks.optim.base import FusedOptimizer

__all__ = ["Entry", "GradOptions", "centralize_ndim", "run", "transform"]


@dataclass(slots=True)
class Entry:
    """A parameter that takes part in a step."""

    param: Tensor
    grad: Tensor
    group: dict[str, Any]
    group_index: int
    position: int


@dataclass(slots=True)
class GradOptions:
    """What a step does to the gradients, the same for all parameter groups."""

    clip_value: float | None = None
    max_norm: float | None = None
    skips_nonfinite: bool = False
    wants_flag: bool = False
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


@dataclass(slots=True)
class Outcome:
    """What came of a step."""

    skipped: bool
    norm: Tensor | None = None
    nonfinite: Tensor | None = None


def centralize_ndim(mode: bool | str) -> int:
    """Return the smallest ndim that `centralize_grad=mode` centralizes, 0 for none."""
    if mode == "conv":
        return 4
    return 2 if mode else 0


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    keeps_its_own = dtype.is_complex or dtype in (torch.float32, torch.float64)
    return dtype if keeps_its_own else torch.float32


def _values(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad


def _with_values(grad: Tensor, values: Tensor) -> Tensor:
    if not grad.is_sparse:
        return values
    grad = grad.coalesce()
    return torch.sparse_coo_tensor(
        grad.indices(), values, grad.shape, is_coalesced=True, check_invariants=False
    )


def _global_norm(grads: Sequence[Tensor]) -> Tensor:
    norms = []
    for grad in grads:
        values = _values(grad)
        # float64 where there is one, so that squares of large float32 values do not overflow.
        wide = None if values.device.type == "mps" or values.is_complex() else torch.float64
        norms.append(torch.linalg.vector_norm(values, dtype=wide).to(grads[0].device))
    return torch.linalg.vector_norm(torch.stack(norms))


def transform(
    entries: Sequence[Entry], options: GradOptions
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Unscale, clip by value, clip by norm and centralize the gradients of `entries`.

    Returns:
        The gradients in the precision of the update, the norm before clipping by it (None if it
        was not needed) and the number of parameters with non-finite gradients (None likewise).
    """
    grads = []
    flags = []
    for entry in entries:
        grad = entry.grad.to(_compute_dtype(entry.param.dtype)).resolve_conj()
        values = _values(grad)
        if options.skips_nonfinite or options.wants_flag:
            flags.append((~torch.isfinite(_values(entry.grad))).any().float())
        if options.grad_scale is not None:
            values = values / options.grad_scale.to(values.device)
        if options.clip_value is not None:
            values = values.clamp(-options.clip_value, options.clip_value)
        grads.append(_with_values(grad, values))
    norm = nonfinite = None
    if options.max_norm is not None or flags or any(_is_centralized(entry) for entry in entries):
        norm = _global_norm(grads)
    if flags:
        nonfinite = torch.stack([flag.to(flags[0].device) for flag in flags]).sum()
    if options.max_norm is not None:
        coefficient = (options.max_norm / (norm + 1e-6)).clamp(max=1.0)
        grads = [g * coefficient.to(g.device, _values(g).dtype) for g in grads]
    centered = [
        g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True) if _is_centralized(entry) else g
        for entry, g in zip(entries, grads, strict=True)
    ]
    return centered, norm, nonfinite


def _is_centralized(entry: Entry) -> bool:
    smallest = centralize_ndim(entry.group["centralize_grad"])
    return bool(smallest) and entry.param.ndim >= smallest and entry.param.numel() > 0


def run(optimizer: "FusedOptimizer", entries: Sequence[Entry], options: GradOptions) -> Outcome:
    """Take one step of `optimizer` for `entries`; nothing is written before all is checked."""
    if options.found_inf is not None and options.found_inf.item() != 0:
        return Outcome(skipped=True)
    grads, norm, nonfinite = transform(entries, options)
    if options.skips_nonfinite and nonfinite.item() != 0:
        return Outcome(True, norm, nonfinite)
    for entry, grad in zip(entries, grads, strict=True):
        state, step = optimizer._ensure_state(entry)
        step += 1
        update = _update_sparse if grad.is_sparse else _update_dense
        update(optimizer, entry, grad, state, step)
    return Outcome(False, norm, nonfinite)


def _update_dense(
    optimizer: "FusedOptimizer", entry: Entry, grad: Tensor, state: dict[str, Any], step: Tensor
) -> None:
    names = optimizer._state_names(entry.group)
    target = state["master_param"] if optimizer._has_master(entry) else entry.param
    tensors = [target, *(state[name] for name in names)]
    new = _apply(optimizer, entry, grad, tensors, names, step)
    for tensor, value in zip(tensors, new, strict=True):
        tensor.copy_(value)
    if target is not entry.param:
        entry.param.copy_(target)


def _update_sparse(
    optimizer: "FusedOptimizer", entry: Entry, grad: Tensor, state: dict[str, Any], step: Tensor
) -> None:
    # An element without a gradient does not move, so the update sees the touched ones alone.
    grad = grad.coalesce()
    touched = tuple(grad.indices())
    names = optimizer._state_names(entry.group)
    target = state["master_param"] if optimizer._has_master(entry) else entry.param
    tensors = [target, *(state[name] for name in names)]
    new = _apply(optimizer, entry, grad.values(), [t[touched] for t in tensors], names, step)
    for tensor, value in zip(tensors, new, strict=True):
        tensor[touched] = value.to(tensor.dtype)
    if target is not entry.param:
        entry.param[touched] = target[touched].to(entry.param.dtype)


def _apply(
    optimizer: "FusedOptimizer",
    entry: Entry,
    grad: Tensor,
    tensors: Sequence[Tensor],
    names: Sequence[str],
    step: Tensor,
) -> list[Tensor]:
    """Return the new values of `tensors` = [param, *states]."""
    if grad.is_complex():
        real = _apply(
            optimizer,
            entry,
            torch.view_as_real(grad),
            [torch.view_as_real(t) for t in tensors],
            names,
            step,
        )
        return [torch.view_as_complex(value.contiguous()) for value in real]
    # Autograd may need the old values, which the caller overwrites.
    keeps = entry.group["differentiable"]
    param, *states = (t.to(_compute_dtype(t.dtype), copy=keeps) for t in tensors)
    if entry.group["maximize"]:
        grad = -grad
    state = dict(zip(names, states, strict=True))
    lr = entry.group["lr"]
    lr = lr.reshape(()).to(param.device) if isinstance(lr, Tensor) else lr
    count = step if torch.compiler.is_compiling() or entry.group.get("capturable") else step.item()
    param, state = optimizer.reference(param, grad, state, entry.group, lr, count)
    return [param, *(state[name] for name in names)]
