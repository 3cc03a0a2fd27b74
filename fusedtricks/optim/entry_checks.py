"""What is checked before a step writes anything, so that a bad input changes nothing."""

import itertools
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedtricks.optim.validation import check_extras
from fusedtricks.reference import Entry, centralize_ndim

if TYPE_CHECKING:
    from fusedtricks.optim.base import FusedOptimizer

__all__ = ["check_entry", "check_group", "check_writable_grad", "mismatch", "overlap"]

# States that an option adds when it is turned on later; all others exist from the first step on.
_APPEAR_LATER = frozenset({"momentum_buffer", "grad_avg", "max_exp_avg_sq", "master_param"})
_STATES_OF_ANY = _APPEAR_LATER | {"exp_avg", "exp_avg_sq", "square_avg", "sum"}
_ADVICE = (
    "; the checkpoint does not belong to this model, or the model changed after the state was made"
)


def check_group(optimizer: "FusedOptimizer", index: int) -> None:
    """Refuse a group whose options are not numbers.

    Raises:
        TypeError: If the learning rate or a hyper-parameter is not a number.
        ValueError: If the learning rate is a tensor of several elements, or centralize_grad is
            none of its values.
    """
    group = optimizer.param_groups[index]
    check_extras(group["centralize_grad"], None, None)
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(lr.shape)}")
    if not isinstance(lr, (Real, Tensor)):
        raise TypeError(
            f"{type(optimizer).__name__}: expected lr of group {index} to be a number or a "
            f"one-element tensor, got {lr!r}"
        )
    try:
        for value in optimizer._hyper(group):
            float(value)
    except (TypeError, ValueError, KeyError) as error:
        options = {name: value for name, value in group.items() if name != "params"}
        raise TypeError(
            f"{type(optimizer).__name__}: expected numbers in group {index}, got {options}"
        ) from error


def check_entry(optimizer: "FusedOptimizer", entry: Entry) -> None:
    """Refuse a parameter that no backend can update.

    Raises:
        RuntimeError: If the parameter or its gradient cannot be taken.
        TypeError: If a state is no tensor.
        ValueError: If a state does not fit the parameter, or is missing.
    """
    param, grad = entry.param, entry.grad
    name = _name(entry)
    if entry.group.get("fused") and param.device.type == "meta":
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of "
            f"supported devices, but {name} is {param.dtype} on meta"
        )
    if grad.is_sparse and optimizer._sparse_obstacle(entry.group):
        raise RuntimeError(optimizer._sparse_obstacle(entry.group))
    if grad.is_sparse and centralize_ndim(entry.group["centralize_grad"]):
        raise RuntimeError(
            f"centralize_grad does not support sparse gradients, and {name} has one; put it "
            "into a group with centralize_grad=False"
        )
    if grad.shape != param.shape or grad.device != param.device:
        raise RuntimeError(
            f"the gradient of {name} has shape {tuple(grad.shape)} on {grad.device}, the parameter "
            f"{tuple(param.shape)} on {param.device}; clear it with zero_grad() after changing the "
            "parameter"
        )
    if _is_expanded(param):
        raise RuntimeError(
            f"{name} has shape {tuple(param.shape)} and strides {param.stride()}: several of its "
            "elements share one memory location, because it was expanded; clone() it"
        )
    _check_state(optimizer, entry, name)


def check_writable_grad(entry: Entry) -> None:
    """Refuse a gradient that `write_grads=True` could not write.

    Raises:
        RuntimeError: If elements of the gradient share memory.
    """
    if _is_expanded(entry.grad):
        raise RuntimeError(
            f"write_grads=True cannot write the gradient of {_name(entry)}: it was expanded, so "
            "that its elements share memory; clone() it"
        )


def overlap(params: Sequence[Tensor]) -> bool:
    """Return whether two of `params`, plain tensors of one memory, may share elements.

    The spans from the first to the last element are compared, so that interleaved views count.
    """
    spans = sorted(
        (p.data_ptr(), p.data_ptr() + _extent(p) * p.element_size())
        for p in {id(p): p for p in params}.values()
        if p.numel() > 0
    )
    return any(begin < end for (_, end), (begin, _) in itertools.pairwise(spans))


def _extent(tensor: Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _check_state(optimizer: "FusedOptimizer", entry: Entry, name: str) -> None:
    state = optimizer.state.get(entry.param) or {}
    watched = optimizer._watched(entry)
    if not any(key in state for key in watched) and not (
        optimizer.has_step and _STATES_OF_ANY & state.keys()
    ):
        return
    for key in watched:
        wrong: str | None = None
        if key in state:
            value = state[key]
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(optimizer).__name__}: the state {key!r} of {name} is {value!r}, "
                    f"expected a tensor{_ADVICE}"
                )
            wrong = (_step_mismatch if key == "step" else mismatch)(value, entry.param)
        elif key not in _APPEAR_LATER:
            wrong = "is missing"
        if wrong:
            raise ValueError(
                f"{type(optimizer).__name__}: the state {key!r} of {name} {wrong}{_ADVICE}"
            )


def mismatch(value: Tensor, param: Tensor) -> str | None:
    """Return why a tensor cannot go with a parameter, None if it can."""
    if value.shape != param.shape or value.device != param.device:
        return (
            f"has shape {tuple(value.shape)} on {value.device}, the parameter "
            f"{tuple(param.shape)} on {param.device}"
        )
    if value.is_complex() != param.is_complex() or not (
        value.is_floating_point() or value.is_complex()
    ):
        return f"has dtype {value.dtype}, the parameter {param.dtype}"
    if value.layout != torch.strided or _is_expanded(value):
        return f"is {value.layout} or expanded, expected a dense tensor"
    return None


def _step_mismatch(value: Tensor, param: Tensor) -> str | None:
    if (
        value.numel() == 1
        and value.dtype in (torch.float32, torch.float64)
        and value.device in (param.device, torch.device("cpu"))
    ):
        return None
    return (
        f"has shape {tuple(value.shape)} and dtype {value.dtype} on {value.device}, expected one "
        "float32 or float64 on the CPU or the parameter's device"
    )


def _name(entry: Entry) -> str:
    names: Any = entry.group.get("param_names")
    if names:
        return f"parameter {names[entry.position]!r}"
    return f"parameter {entry.position} of group {entry.group_index}"
