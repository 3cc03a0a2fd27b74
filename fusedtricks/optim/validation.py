"""Checks of hyper-parameters, with the texts that users of torch.optim know."""

from numbers import Real
from typing import Any

from torch import Tensor

__all__ = [
    "check_betas",
    "check_extras",
    "check_flags",
    "check_lr",
    "check_momentum",
    "check_nonnegative",
    "check_unit_interval",
]


def check_lr(lr: float | Tensor) -> None:
    """Raise ValueError unless `lr` is a number >= 0 or a one-element tensor of such."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")


def check_nonnegative(name: str, value: float) -> None:
    """Raise ValueError unless value >= 0; `name` opens the message, as torch words it."""
    if not value >= 0.0:
        raise ValueError(f"Invalid {name} value: {value}")


def check_unit_interval(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value <= 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"Invalid {name} value: {value}, expected a number in [0, 1]")


def check_betas(betas: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the two betas, tensors among them as 0-dim tensors.

    Raises:
        ValueError: If they are not in [0, 1), not both floats or both one-element tensors.
    """
    if len(betas) != 2:
        raise ValueError(f"Invalid betas value: {betas}, expected two")
    for index, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{index}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")
    return tuple(b.reshape(()) if isinstance(b, Tensor) else b for b in betas)


def check_momentum(momentum: float, dampening: float, nesterov: bool) -> None:
    """Raise ValueError for a negative momentum, or Nesterov without momentum or with dampening."""
    check_nonnegative("momentum", momentum)
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")


def check_flags(foreach: bool | None, fused: bool | None, differentiable: bool) -> None:
    """Refuse the combinations of flags that torch.optim refuses."""
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def check_extras(
    centralize_grad: bool | str, clip_grad_norm: float | None, clip_grad_value: float | None
) -> None:
    """Check the options that every fusedtricks optimizer adds to torch's.

    Raises:
        ValueError: If a value is not among what is allowed.
    """
    if centralize_grad not in (True, False, "conv"):
        raise ValueError(
            f"Invalid centralize_grad value: {centralize_grad!r}, expected True, False or 'conv'"
        )
    for name, value in (("clip_grad_norm", clip_grad_norm), ("clip_grad_value", clip_grad_value)):
        if value is not None and not (isinstance(value, Real) and value >= 0):
            raise ValueError(f"Invalid {name} value: {value!r}, expected a number >= 0 or None")
