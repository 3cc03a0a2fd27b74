"""Adam and AdamW for the Triton backend; csrc/optimizers/adam.h has the formulas in full."""

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from .arithmetic import divide, one_minus_power, square_root

# Hyper-parameters of the op, values of its flags, and constants of `prepare`.
N_HYPER = 5
N_VARIANTS = 4
N_CONSTANTS = 7


def n_states(flags: int) -> int:
    """Return the number of states with the given flags, see `fusedtricks.optim.Adam`."""
    return 3 if flags & 1 else 2


def constants(hyper: Sequence[float]) -> tuple[float, ...]:
    """Return what `prepare` takes, from beta1, beta2, eps, weight_decay, bias_correction."""
    beta1, beta2, eps, weight_decay, bias_correction = hyper
    # With a logarithm of -inf, the power is 0 and nothing is corrected.
    log1, log2 = (
        math.log(beta) if bias_correction and beta > 0 else -math.inf for beta in (beta1, beta2)
    )
    return 1 - beta1, beta2, 1 - beta2, eps, weight_decay, log1, log2


@triton.jit
def prepare(constants, lr, step):
    """The constants of a parameter's update, once per program."""
    one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, log_beta1, log_beta2 = constants
    step_size = divide(lr, one_minus_power(log_beta1, step))
    root_scale = divide(1.0, square_root(one_minus_power(log_beta2, step)))
    keep = 1.0 - lr * weight_decay
    return (
        one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, eps, keep, weight_decay,
    )  # fmt: skip


@triton.jit
def update(prepared, grad, param, states, FLAGS: tl.constexpr):
    """The new parameter and states; flags: 1 amsgrad, 2 l2."""
    one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, eps, keep, decay = prepared
    if FLAGS & 2:
        grad = grad + decay * param
    else:
        param = param * keep
    exp_avg = states[0] + one_minus_beta1 * (grad - states[0])
    exp_avg_sq = beta2 * states[1] + one_minus_beta2 * grad * grad
    if FLAGS & 1:
        # Written so that a NaN in exp_avg_sq wins, as in torch.maximum.
        second = tl.where(states[2] > exp_avg_sq, states[2], exp_avg_sq)
        states = (exp_avg, exp_avg_sq, second)
    else:
        second = exp_avg_sq
        states = (exp_avg, exp_avg_sq)
    param = param - divide(step_size * exp_avg, square_root(second) * root_scale + eps)
    return param, states
