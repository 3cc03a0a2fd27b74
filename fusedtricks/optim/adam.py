"""Adam."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedtricks.optim.base import Extras, FusedOptimizer
from fusedtricks.optim.validation import (
    check_betas,
    check_flags,
    check_lr,
    check_nonnegative,
)

__all__ = ["Adam"]


class Adam(FusedOptimizer):
    r"""Adam with all gradient transforms in the same sweep.

    With g the transformed gradient (plus weight_decay * param unless the decay is decoupled)::

        exp_avg    = exp_avg + (1 - beta1) * (g - exp_avg)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2
        param      = param - lr / (1 - beta1^t) * exp_avg
                     / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps)

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        lr: Learning rate, a float or a one-element tensor. Default 1e-3.
        betas: Decay rates of the two moments per step, in [0, 1). Default (0.9, 0.999).
        eps: Added to the root, after bias correction. Default 1e-8.
        weight_decay: Decay per unit of lr. Default 0.
        amsgrad: Divide by the largest exp_avg_sq so far. Default False.
        foreach: Accepted and ignored, ours is always fused.
        maximize: Ascend instead of descend. Default False.
        capturable: Accepted; the CPU needs nothing for it.
        differentiable: Let autograd through the step (reference backend). Default False.
        fused: Accepted and ignored, ours is always fused.
        decoupled_weight_decay: Scale the parameter by 1 - lr * weight_decay instead of adding the
            decay to the gradient. Default False.
        bias_correction: False leaves out both corrections. Default True.
        **extras: See `fusedtricks.optim.Extras`.

    Raises:
        ValueError: If a hyper-parameter is out of range.
        RuntimeError: If flags contradict each other, or the backend cannot run here.

    Source: Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1; Reddi et
    al. 2018 for amsgrad.
    """

    algorithm = "adam"
    flag_names: ClassVar[tuple[str, ...]] = ("amsgrad", "l2")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        bias_correction: bool = True,
        **extras: Unpack[Extras],
    ) -> None:
        check_lr(lr)
        check_nonnegative("epsilon", eps)
        betas = check_betas(betas)
        check_nonnegative("weight_decay", weight_decay)
        check_flags(foreach, fused, differentiable)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
            "bias_correction": bias_correction,
        }
        super().__init__(params, defaults, **extras)

    def _decoupled(self, group: dict[str, Any]) -> bool:
        return group["decoupled_weight_decay"]

    def _flags(self, group: dict[str, Any]) -> tuple[bool, ...]:
        return group["amsgrad"], group["weight_decay"] != 0 and not self._decoupled(group)

    def _hyper(self, group: dict[str, Any]) -> Sequence[float]:
        # Tensor betas are read at every step, as a tensor lr is.
        beta1, beta2 = (b.item() if isinstance(b, Tensor) else b for b in group["betas"])
        return beta1, beta2, group["eps"], self._weight_decay(group), group["bias_correction"]

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return names if group["amsgrad"] else names[:2]

    def _sparse_obstacle(self, group: dict[str, Any]) -> str:
        return (
            f"{type(self).__name__} does not support sparse gradients, please consider SparseAdam "
            "instead"
        )

    def reference(
        self,
        param: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        lr: float | Tensor,
        step: float | Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the updated parameter and states; the definition of the algorithm."""
        beta1, beta2 = group["betas"]
        decay = self._weight_decay(group)
        if self._decoupled(group):
            param = param * (1 - lr * decay)
        elif decay != 0:
            grad = grad + decay * param
        exp_avg = state["exp_avg"] + (1 - beta1) * (grad - state["exp_avg"])
        exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad * grad
        new = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        second = exp_avg_sq
        if group["amsgrad"]:
            second = torch.maximum(state["max_exp_avg_sq"], exp_avg_sq)
            new["max_exp_avg_sq"] = second
        corrects = group["bias_correction"]
        correction1 = 1 - beta1**step if corrects else 1.0
        correction2 = 1 - beta2**step if corrects else 1.0
        root = second.sqrt() / correction2**0.5 + group["eps"]
        return param - lr / correction1 * exp_avg / root, new
