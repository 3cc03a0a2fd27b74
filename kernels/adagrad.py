"""Adagrad for the Triton backend; csrc/optimizers/adagrad.h has the formulas in full."""

from collections.abc import Sequence

import triton
import triton.language as tl

from .arithmetic import divide, square_root

# Hyper-parameters of the op, values of its flags, and constants of `prepare`.
N_HYPER = 4
N_VARIANTS = 2
N_CONSTANTS = 4


def n_states(flags: int) -> int:
    """Return the number of states with the given flags, see `fusedtricks.optim.Adagrad`."""
    return 1


def constants(hyper: Sequence[float]) -> tuple[float, ...]:
    """Return what `prepare` takes, from lr_decay, eps, eps_inside, weight_decay."""
    return tuple(hyper)


@triton.jit
def prepare(constants, lr, step):
    """The constants of a parameter's update, once per program."""
    lr_decay, eps, eps_inside, weight_decay = constants
    step_size = divide(lr, 1.0 + (step - 1.0) * lr_decay)
    return step_size, eps, eps_inside, weight_decay


@triton.jit
def update(prepared, grad, param, states, FLAGS: tl.constexpr):
    """The new parameter and states; flags: 1 l2."""
    step_size, eps, eps_inside, weight_decay = prepared
    if FLAGS & 1:
        grad = grad + weight_decay * param
    total = states[0] + grad * grad
    param = param - divide(step_size * grad, square_root(total + eps_inside) + eps)
    return param, (total,)
