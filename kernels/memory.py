"""Loads and stores at addresses that a table holds, and the transform of gradients."""

import triton
import triton.language as tl

from .arithmetic import divide


@triton.jit
def read(address, offsets, mask, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, FULL: tl.constexpr):
    """Values at an address plus offsets, in the type of the computation.

    FULL promises an address that is a multiple of 16 and a mask that is true everywhere; both
    together make Triton emit 16-byte accesses.
    """
    pointer = address.to(tl.pointer_type(DTYPE))
    if FULL:
        return tl.load(tl.multiple_of(pointer, 16) + offsets).to(COMPUTE)
    else:
        return tl.load(pointer + offsets, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def write(address, offsets, mask, values, DTYPE: tl.constexpr, FULL: tl.constexpr):
    """Store values at an address plus offsets, see `read`."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if FULL:
        tl.store(tl.multiple_of(pointer, 16) + offsets, values.to(DTYPE))
    else:
        tl.store(pointer + offsets, values.to(DTYPE), mask=mask)


@triton.jit
def inverse_scale(scale_ptr, COMPUTE: tl.constexpr):
    """One over the loss scale, 1 if there is none."""
    if scale_ptr is None:
        return tl.full((), 1.0, COMPUTE)
    else:
        return divide(1.0, tl.load(scale_ptr).to(COMPUTE))


@triton.jit
def unscale_and_clamp(grad, inv_scale, limit):
    """Unscale, then clip by value; comparisons are false for NaN, which passes as in clamp."""
    grad = grad * inv_scale
    grad = tl.where(grad > limit, limit, grad)
    return tl.where(grad < -limit, -limit, grad)
