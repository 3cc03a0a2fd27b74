"""Arithmetic that rounds as IEEE 754 says, in float32 and float64."""

import triton
import triton.language as tl


@triton.jit
def divide(a, b):
    """Divide, correctly rounded; Triton's own float32 division is an approximation."""
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def square_root(x):
    """The correctly rounded square root."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def one_minus_power(log_base, exponent):
    """1 - base^exponent for a base in [0, 1), given its logarithm.

    Subtracting a rounded power from 1 would lose the digits of a base near 1. The error of the
    result is at most a few units in the last place: the series of -(exp(y) - 1) near 0, where
    its 12th (float64: 20th) term is below half a unit, and the exponential elsewhere.
    """
    y = exponent * log_base
    N_TERMS: tl.constexpr = 20 if y.dtype == tl.float64 else 12
    series = y * 0.0 + 1.0
    for k in tl.static_range(N_TERMS - 1):
        series = 1.0 + y * series * (1.0 / (N_TERMS - k))
    return tl.where(y > -1.0, -y * series, 1.0 - tl.exp(y))


@triton.jit
def double_from_bits(bits):
    """The float64 whose bits are an integer argument.

    Triton passes Python's floats as float32.
    """
    return bits.to(tl.int64).to(tl.float64, bitcast=True)
