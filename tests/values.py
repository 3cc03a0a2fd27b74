"""Parameters, gradients and tolerances of the suites that compare values."""

import torch
from torch import Tensor

from tests.devices import BACKENDS as BACKENDS
from tests.devices import DEVICE

ON_GPU = DEVICE.type != "cpu"

# (relative, absolute) per dtype. float32: a few roundings per step over 5 steps of size <= 0.06 on
# values of about 1. float64: the same. 16 bits: the stored result is rounded at each step, so the
# error is a few units in the last place (2^-8 for bf16, 2^-11 for fp16).
TOLERANCE = {
    torch.float32: (3e-6, 3e-6),
    torch.float64: (1e-12, 1e-12),
    torch.bfloat16: (4e-2, 4e-2),
    torch.float16: (5e-3, 5e-3),
}
# Empty, scalar, prime, several rows, a row longer than a work item, more than one work item.
SHAPES = [(0,), (), (1009,), (5, 3), (4, 3, 3, 3), (2, 0), (2, 65551), (3, 32771), (1, 9)]
# The same for the Triton kernels, whose work items are smaller: the interpreter is slow.
TRITON_SHAPES = [(0,), (), (1009,), (5, 3), (4, 3, 3, 3), (2, 0), (2, 8209), (1, 16421), (1, 9)]


def shapes_for(backend: str) -> list[tuple[int, ...]]:
    """Return the shapes to test a backend with."""
    return TRITON_SHAPES if backend == "triton" and not ON_GPU else SHAPES


def make_params(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    """Return leaf tensors with values of about 1."""
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def wide_copy(params: list[Tensor]) -> list[Tensor]:
    """Return the same values in float64, for the oracle."""
    return [p.detach().double().clone().requires_grad_() for p in params]


def set_grads(params: list[Tensor], oracle: list[Tensor], dtype: torch.dtype | None = None) -> None:
    """Give both lists the same gradients; the oracle's are the rounded values in float64."""
    for param, wide in zip(params, oracle, strict=True):
        grad = torch.randn(param.shape).to(dtype or param.dtype)
        if dtype is not None and dtype != param.dtype:
            param.grad_dtype = dtype
        param.grad = grad
        wide.grad = grad.double()


def transform_by_hand(
    params: list[Tensor], clip_value: float | None, max_norm: float | None, smallest_ndim: int
) -> Tensor | None:
    """Clip by value, by norm, and centralize, as users write it around torch.optim."""
    norm = None
    if clip_value is not None:
        torch.nn.utils.clip_grad_value_(params, clip_value)
    if max_norm is not None:
        norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
    for param in params:
        if smallest_ndim and param.ndim >= smallest_ndim and param.numel():
            param.grad -= param.grad.mean(dim=tuple(range(1, param.ndim)), keepdim=True)
    return norm


def assert_same(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Compare with the tolerance of `dtype`."""
    rtol, atol = TOLERANCE[dtype]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach().double(), e.detach(), rtol=rtol, atol=atol)
