"""Which memory layouts the kernels take, and copies for all others."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_copyable, check_writable


class Staged(NamedTuple):
    """A tensor of a call that takes part as a copy.

    Attributes:
        position: Its index among the tensors of the call.
        like: The index of the tensor whose layout the copy gets; None for a contiguous one.
        is_written: Whether the copy is written back.
    """

    position: int
    like: int | None
    is_written: bool


def row_length_if_centralized(tensor: Tensor, smallest_ndim: int) -> int:
    """Return the number of elements of each row, 0 if the gradient is not centralized."""
    if smallest_ndim <= 0 or tensor.dim() < smallest_ndim or tensor.numel() == 0:
        return 0
    return tensor.numel() // tensor.shape[0]


def is_dense(tensor: Tensor, rows_matter: bool) -> bool:
    """Return whether a tensor fills its memory, its rows one after the other if they matter."""
    if tensor.is_contiguous():
        return True
    if tensor.numel() == 0 or (rows_matter and not _rows_are_contiguous(tensor)):
        return tensor.numel() == 0
    expected = 1
    for step, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n != 1:
            if step != expected:
                return False
            expected *= n
    return True


def _rows_are_contiguous(tensor: Tensor) -> bool:
    # Dim 0 is outermost in a dense tensor.
    n_rows = tensor.shape[0]
    return n_rows <= 1 or tensor.stride(0) * n_rows == tensor.numel()


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Return whether elements of the same index lie at the same offset."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    return all(
        n == 1 or mine == other
        for n, mine, other in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def stage_param(position: int, param: Tensor, rows_matter: bool) -> list[Staged]:
    """Return what has to be staged of a parameter."""
    check_writable(param)
    if is_dense(param, rows_matter):
        return []
    check_copyable(param)
    return [Staged(position, None, True)]


def stage_like(
    position: int, tensor: Tensor, like: int, param: Tensor, param_is_staged: bool, is_written: bool
) -> list[Staged]:
    """Return what has to be staged of a tensor that has to have its parameter's layout."""
    if is_written:
        check_writable(tensor)
    if tensor.is_contiguous() if param_is_staged else same_layout(tensor, param):
        return []
    if is_written:
        check_copyable(tensor)
    return [Staged(position, like, is_written)]


class Copies:
    """The tensors of a call, those that are staged replaced by copies."""

    def __init__(self, tensors: Sequence[Tensor], staged: Sequence[Staged]) -> None:
        self.tensors = list(tensors)
        self._to_write: list[tuple[Tensor, Tensor]] = []
        for position, like, is_written in staged:
            original = self.tensors[position]
            if like is None:
                copy = original.contiguous()
            else:
                layout = self.tensors[like]
                copy = torch.empty_strided(
                    layout.shape, layout.stride(), dtype=original.dtype, device=original.device
                ).copy_(original)
            self.tensors[position] = copy
            if is_written:
                self._to_write.append((original, copy))

    def write_back(self) -> None:
        """Copy what the kernels wrote to where it belongs."""
        for original, copy in self._to_write:
            original.copy_(copy)
