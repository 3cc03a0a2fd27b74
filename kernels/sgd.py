"""SGD and SGDW for the Triton backend; csrc/optimizers/sgd.h has the formulas in full."""

from collections.abc import Sequence

import triton
import triton.language as tl

# Hyper-parameters of the op, values of its flags, and constants of `prepare`.
N_HYPER = 3
N_VARIANTS = 8
N_CONSTANTS = 3


def n_states(flags: int) -> int:
    """Return the number of states with the given flags, see `fusedtricks.optim.SGD`."""
    return flags & 1


def constants(hyper: Sequence[float]) -> tuple[float, ...]:
    """Return what `prepare` takes, from momentum, dampening, weight_decay."""
    momentum, dampening, weight_decay = hyper
    return momentum, 1 - dampening, weight_decay


@triton.jit
def prepare(constants, lr, step):
    """The constants of a parameter's update, once per program."""
    momentum, grad_scale, weight_decay = constants
    # A new buffer is zero, so "buf = grad" is the general formula with other constants.
    is_first = step <= 1.0
    buffer_keep = tl.where(is_first, 0.0, momentum).to(momentum.dtype)
    grad_scale = tl.where(is_first, 1.0, grad_scale).to(momentum.dtype)
    return lr, momentum, buffer_keep, grad_scale, 1.0 - lr * weight_decay, weight_decay


@triton.jit
def update(prepared, grad, param, states, FLAGS: tl.constexpr):
    """The new parameter and states; flags: 1 momentum, 2 nesterov, 4 l2."""
    lr, momentum, buffer_keep, grad_scale, keep, weight_decay = prepared
    if FLAGS & 4:
        grad = grad + weight_decay * param
    else:
        param = param * keep
    if FLAGS & 1:
        buffer = buffer_keep * states[0] + grad_scale * grad
        direction = grad + momentum * buffer if FLAGS & 2 else buffer
        return param - lr * direction, (buffer,)
    else:
        return param - lr * grad, ()
