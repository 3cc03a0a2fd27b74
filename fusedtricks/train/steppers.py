"""The same optimizer step twice: fused by fusedtricks, and put together from torch's parts."""

from typing import Protocol

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fusedtricks import optim

__all__ = ["STEPPERS", "FusedStepper", "Stepper", "TorchStepper"]

BETAS = (0.9, 0.99)
MAX_NORM = 1.0


class Stepper(Protocol):
    """Clips, centralizes and applies the gradients in `step`."""

    optimizer: torch.optim.Optimizer

    def step(self) -> None:
        """Update the parameters once."""


class FusedStepper:
    """AdamW of fusedtricks, which clips and centralizes while it updates.

    Args:
        model: The model to train; its norms and biases are not decayed.
        lr: Largest learning rate.
        weight_decay: Decay per unit of lr.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        self.optimizer = optim.AdamW(
            optim.param_groups(model, weight_decay, verbose=False),
            lr=lr,
            betas=BETAS,
            centralize_grad=True,
            clip_grad_norm=MAX_NORM,
        )

    def step(self) -> None:
        """Update the parameters once."""
        self.optimizer.step()


class TorchStepper:
    """torch's fused AdamW after `clip_grad_norm_` and the usual centralization loop.

    Args:
        model: The model to train; its norms and biases are not decayed.
        lr: Largest learning rate.
        weight_decay: Decay per unit of lr.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        groups = optim.param_groups(model, weight_decay, verbose=False)
        self.parameters = [param for group in groups for param in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)

    def step(self) -> None:
        """Update the parameters once; alters the gradients."""
        clip_grad_norm_(self.parameters, MAX_NORM)
        with torch.no_grad():
            for param in self.parameters:
                if param.ndim > 1:
                    param.grad -= param.grad.mean(dim=tuple(range(1, param.ndim)), keepdim=True)
        self.optimizer.step()


STEPPERS: dict[str, type[FusedStepper] | type[TorchStepper]] = {
    "fusedtricks": FusedStepper,
    "torch": TorchStepper,
}
