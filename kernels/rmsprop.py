"""RMSprop for the Triton backend; csrc/optimizers/rmsprop.h has the formulas in full."""

from collections.abc import Sequence

import triton
import triton.language as tl

from .arithmetic import divide, square_root

# Hyper-parameters of the op, values of its flags, and constants of `prepare`.
N_HYPER = 5
N_VARIANTS = 8
N_CONSTANTS = 6


def n_states(flags: int) -> int:
    """Return the number of states with the given flags, see `fusedtricks.optim.RMSprop`."""
    return 1 + (flags & 1) + (flags >> 1 & 1)


def constants(hyper: Sequence[float]) -> tuple[float, ...]:
    """Return what `prepare` takes, from alpha, eps, eps_inside, momentum, weight_decay."""
    alpha, *others = hyper
    return alpha, 1 - alpha, *others


@triton.jit
def prepare(constants, lr, step):
    """The constants of a parameter's update, once per program."""
    alpha, one_minus_alpha, eps, eps_inside, momentum, weight_decay = constants
    return lr, alpha, one_minus_alpha, eps, eps_inside, momentum, weight_decay


@triton.jit
def update(prepared, grad, param, states, FLAGS: tl.constexpr):
    """The new parameter and states; flags: 1 momentum, 2 centered, 4 l2."""
    lr, alpha, one_minus_alpha, eps, eps_inside, momentum, weight_decay = prepared
    if FLAGS & 4:
        grad = grad + weight_decay * param
    square_avg = alpha * states[0] + one_minus_alpha * grad * grad
    second = square_avg
    if FLAGS & 2:
        last = states[len(states) - 1]
        grad_avg = last + one_minus_alpha * (grad - last)
        second = second - grad_avg * grad_avg
    direction = divide(grad, square_root(second + eps_inside) + eps)
    new = (square_avg,)
    if FLAGS & 1:
        direction = momentum * states[1] + direction
        new = new + (direction,)
    if FLAGS & 2:
        new = new + (grad_avg,)
    return param - lr * direction, new
