"""Checks of an op's arguments, all before the first write; texts are those of the C++ ops."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "check_counter",
    "check_groups",
    "check_one_element",
    "check_row_means",
    "check_tensor",
    "check_totals",
    "groups_of_tensors",
]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensor(name: str, tensor: Tensor, shape: torch.Size, device: torch.device) -> None:
    """Refuse a tensor that kernels cannot take.

    Raises:
        RuntimeError: If it is not strided, or on another device.
        TypeError: If its dtype is not supported.
        ValueError: If it has another shape than the parameter.
    """
    if tensor.layout != torch.strided:
        raise RuntimeError(
            f'{name} is {tensor.layout}, expected a dense tensor; use backend="reference"'
        )
    if tensor.device != device:
        raise RuntimeError(f"{name} is on {tensor.device}, expected {device}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, expected float32, float64, bfloat16 or float16"
        )
    if tensor.shape != shape:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}, expected that of the parameter, "
            f"{list(shape)}; does the checkpoint belong to this model?"
        )


def check_writable(tensor: Tensor) -> None:
    """Refuse to write to a tensor whose elements share memory."""
    if any(step == 0 and n > 1 for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
        raise RuntimeError(
            f"cannot update a tensor of shape {list(tensor.shape)} and strides "
            f"{list(tensor.stride())}: several of its elements share one memory location (it was "
            "expanded); clone() it"
        )


def check_copyable(tensor: Tensor) -> None:
    """Refuse to copy back to what torch would not copy to, before anything is written."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"cannot update an inference tensor of strides {list(tensor.stride())} outside "
            "inference mode; clone() it"
        )


def groups_of_tensors(op: str, n_tensors: int, group_sizes: Sequence[int]) -> list[int]:
    """Return the group of each tensor."""
    if sum(group_sizes) != n_tensors or min(group_sizes, default=0) < 0:
        raise ValueError(
            f"{op}: group_sizes sum to {sum(group_sizes)}, expected {n_tensors} tensors in groups "
            f"of at least 0, got {list(group_sizes)}"
        )
    return [group for group, size in enumerate(group_sizes) for _ in range(size)]


def check_groups(
    op: str,
    n_groups: int,
    values: Sequence[Sequence[object]],
    hyper: Sequence[float],
    n_hyper: int,
    lr: Sequence[Tensor],
) -> None:
    """Refuse values of groups of another number than there are groups."""
    if any(len(value) != n_groups for value in (*values, lr)) or len(hyper) != n_groups * n_hyper:
        raise ValueError(
            f"{op}: expected lr, hyper, variants, maximize and centralize for {n_groups} groups"
        )
    for group, rate in enumerate(lr):
        if rate.numel() != 1:
            raise ValueError(
                f"{op}: expected lr of group {group} to have one element, got shape "
                f"{list(rate.shape)}"
            )


def check_one_element(name: str, tensor: Tensor | None) -> None:
    """Refuse a flag or scale of several elements."""
    if tensor is not None and tensor.numel() != 1:
        raise ValueError(f"expected {name} to have one element, got shape {list(tensor.shape)}")


def check_counter(op: str, counter: Tensor | None, device: torch.device) -> None:
    """Refuse a counter of skipped steps that kernels cannot count in."""
    if counter is None:
        return
    if counter.numel() != 1 or counter.dtype != torch.int64 or counter.device != device:
        raise ValueError(
            f"{op}: expected skipped_steps to be one int64 on {device}, got shape "
            f"{list(counter.shape)}, {counter.dtype} on {counter.device}"
        )


def check_step(op: str, step: Tensor, index: int, device: torch.device) -> None:
    """Refuse a step count that kernels cannot advance."""
    is_count = step.numel() == 1 and step.dtype in (torch.float32, torch.float64)
    if not is_count or step.device != device:
        raise ValueError(
            f"{op}: expected the step of parameter {index} to be one float32 or float64 on "
            f"{device}, got shape {list(step.shape)}, {step.dtype} on {step.device}"
        )


def check_row_means(op: str, means: Tensor | None, n_rows: int, device: torch.device) -> None:
    """Refuse means of another number of rows, or of another device, dtype or layout."""
    n = 0 if means is None else means.numel()
    if n != n_rows:
        raise ValueError(f"{op}: row_means: expected {n_rows} elements, got {n}")
    if n == 0:
        return
    fits = means.dtype in (torch.float32, torch.float64) and means.is_contiguous()
    if not fits or means.device != device:
        raise ValueError(
            f"{op}: row_means: expected contiguous float32 or float64 on {device}, got "
            f"{means.dtype} on {means.device} with strides {list(means.stride())}"
        )


def check_totals(totals: Sequence[Tensor], device: torch.device) -> None:
    """Refuse what `grad_statistics` cannot have returned."""
    for total in totals:
        fits = total.numel() == 2 and total.dtype == torch.float64 and total.is_contiguous()
        if not fits or total.device != device:
            raise ValueError(
                "finalize_statistics: totals: expected 2 contiguous float64 elements on "
                f"{device}, got shape {list(total.shape)}, {total.dtype} on {total.device} with "
                f"strides {list(total.stride())}"
            )
