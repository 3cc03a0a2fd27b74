"""All arms by name."""

from functools import partial

from bench.tricks import arms_data, arms_layers, arms_losses, arms_models, arms_optimization
from bench.tricks.arm import BASE, Arm
from bench.tricks.training import fit

__all__ = ["ARMS"]

_BASE = Arm(
    BASE,
    "3 residual blocks, SGD with momentum 0.9, lr 0.1, L2 5e-3, cosine, 15 epochs of 20 batches",
    partial(fit),
)
_MODULES = (arms_losses, arms_data, arms_layers, arms_models, arms_optimization)
ARMS = {arm.name: arm for arm in (_BASE, *(arm for module in _MODULES for arm in module.ARMS))}
