"""The only place that lists the optimizers: every test over optimizers runs over these cases.

No hyper-parameter equals its default and no two are equal, so that a lost or swapped one shows.
"""

from dataclasses import dataclass
from typing import Any

import torch

from fusedtricks import optim


@dataclass(frozen=True)
class Case:
    """An optimizer with arguments, and the torch.optim class that defines it."""

    name: str
    cls: type[optim.FusedOptimizer]
    torch_cls: type[torch.optim.Optimizer]
    kwargs: dict[str, Any]
    # What the torch class takes in place of kwargs; None: the same.
    other_torch_kwargs: dict[str, Any] | None = None
    # torch has no SGDW: SGD plus a hand-written decay is its definition.
    decays_by_hand: float = 0.0

    @property
    def torch_kwargs(self) -> dict[str, Any]:
        """Arguments of `torch_cls`."""
        return self.kwargs if self.other_torch_kwargs is None else self.other_torch_kwargs

    def torch_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step that defines this case, with the gradients as they are."""
        if self.decays_by_hand:
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for param in group["params"]:
                        if param.grad is not None:
                            param.mul_(1 - group["lr"] * self.decays_by_hand)
        optimizer.step()


_ADAM = {"lr": 0.03, "betas": (0.81, 0.93), "eps": 2e-3}
_SGD = {"lr": 0.04, "momentum": 0.83}
_RMSPROP = {"lr": 0.02, "alpha": 0.87, "eps": 3e-3}
_ADAGRAD = {"lr": 0.06, "lr_decay": 0.11, "initial_accumulator_value": 0.29, "eps": 4e-3}


def _same(name: str, **kwargs: Any) -> Case:
    class_name = name.split("-")[0]
    return Case(name, getattr(optim, class_name), getattr(torch.optim, class_name), kwargs)


def _sgdw(name: str, **kwargs: Any) -> Case:
    without_decay = {k: v for k, v in kwargs.items() if k != "weight_decay"}
    decay = kwargs["weight_decay"]
    return Case(name, optim.SGDW, torch.optim.SGD, kwargs, without_decay, decay)


CASES = [
    _same("AdamW", **_ADAM, weight_decay=0.13),
    _same("AdamW-amsgrad-maximize", **_ADAM, weight_decay=0.13, amsgrad=True, maximize=True),
    _same("Adam-nodecay", **_ADAM),
    _same("Adam-l2", **_ADAM, weight_decay=0.17),
    _same("Adam-l2-amsgrad", **_ADAM, weight_decay=0.17, amsgrad=True),
    _same("Adam-decoupled", **_ADAM, weight_decay=0.17, decoupled_weight_decay=True),
    _same("SGD-plain", lr=0.04),
    _same("SGD-l2", lr=0.04, weight_decay=0.19),
    _same("SGD-momentum", **_SGD),
    _same("SGD-momentum-dampening", **_SGD, dampening=0.23, weight_decay=0.19),
    _same("SGD-nesterov-maximize", **_SGD, nesterov=True, weight_decay=0.19, maximize=True),
    _sgdw("SGDW", lr=0.04, weight_decay=0.31),
    _sgdw("SGDW-momentum", **_SGD, dampening=0.23, weight_decay=0.31),
    _sgdw("SGDW-nesterov", **_SGD, nesterov=True, weight_decay=0.31),
    _same("RMSprop", **_RMSPROP),
    _same("RMSprop-l2-maximize", **_RMSPROP, weight_decay=0.37, maximize=True),
    _same("RMSprop-momentum", **_RMSPROP, momentum=0.79, weight_decay=0.37),
    _same("RMSprop-centered", **_RMSPROP, centered=True, weight_decay=0.37),
    _same("RMSprop-centered-momentum", **_RMSPROP, centered=True, momentum=0.79),
    _same("Adagrad", **_ADAGRAD),
    _same("Adagrad-l2-maximize", **_ADAGRAD, weight_decay=0.41, maximize=True),
]

# One case of each class, for properties that do not depend on the variant.
MAIN_CASES = [
    case
    for case in CASES
    if case.name
    in {
        "AdamW",
        "Adam-l2",
        "SGD-momentum-dampening",
        "SGDW-momentum",
        "RMSprop-momentum",
        "Adagrad",
    }
]
