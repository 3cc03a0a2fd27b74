"""Layouts and addresses of many tensors at once, for drivers that are written in Python."""

from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from fusedtricks import ops

__all__ = ["snapshot"]

_PLAIN_TYPES = {Tensor, torch.nn.Parameter}
_COLUMNS = tuple(attrgetter(name) for name in ("dtype", "device", "shape"))


def snapshot(tensors: Sequence[Tensor]) -> tuple[Any, bytes]:
    """Tell whether kernels can be launched on `tensors` with what was prepared for others.

    Args:
        tensors: A list or tuple.

    Returns:
        The layouts, which are hashable and equal if and only if the tensors agree in number,
        dtype, device, sizes and strides; and the addresses as native int64. A tensor without plain
        strided memory has the address 0, and its kind in place of the strides.

    Raises:
        TypeError: If an element is no tensor.
    """
    if ops.native is not None:
        return ops.native.snapshot(tensors)
    return _python_snapshot(tensors)


def _python_snapshot(tensors: Sequence[Tensor]) -> tuple[Any, bytes]:
    with torch._C.DisableTorchFunction():
        if _PLAIN_TYPES.issuperset(map(type, tensors)):
            found = _plain_snapshot(tensors)
            if found is not None:
                return found
        rows = [_describe(index, tensor) for index, tensor in enumerate(tensors)]
    *layouts, addresses = zip(*rows, strict=True)
    return tuple(layouts), array("q", addresses).tobytes()


def _plain_snapshot(tensors: Sequence[Tensor]) -> tuple[Any, bytes] | None:
    """Take whole columns, so that the loops run in C; None if a tensor has no plain memory."""
    try:
        dtypes, devices, shapes = (tuple(map(column, tensors)) for column in _COLUMNS)
        is_complex = any(dtype.is_complex for dtype in set(dtypes))
        if any(map(Tensor.is_neg, tensors)) or (is_complex and any(map(Tensor.is_conj, tensors))):
            return None
        strides = tuple(map(Tensor.stride, tensors))
        addresses = array("q", map(Tensor.data_ptr, tensors))
    except RuntimeError:
        return None  # sparse and nested tensors do not have them all
    return (dtypes, devices, shapes, strides), addresses.tobytes()


def _describe(index: int, tensor: Tensor) -> tuple[Any, ...]:
    """Return dtype, device, shape, strides or else the kind of tensor, and address."""
    if not isinstance(tensor, Tensor):
        name = type(tensor).__name__
        raise TypeError(f"snapshot: expected tensors, element {index} is of type {name}")
    kind = _kind(tensor)
    shape = None if tensor.is_nested else tensor.shape
    rest = (kind, 0) if kind else (tensor.stride(), tensor.data_ptr())
    return tensor.dtype, tensor.device, shape, *rest


def _kind(tensor: Tensor) -> tuple[str, ...]:
    """Return what keeps a tensor from being plain strided memory."""
    oddities = {
        str(tensor.layout): tensor.layout != torch.strided,
        "is_neg": tensor.is_neg(),
        "is_conj": tensor.is_conj(),
        "is_nested": tensor.is_nested,
        type(tensor).__name__: _is_wrapper(tensor),
        "has no storage": not torch._C._has_storage(tensor),
    }
    return tuple(name for name, odd in oddities.items() if odd)


def _is_wrapper(tensor: Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
