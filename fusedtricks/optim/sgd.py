"""SGD with momentum."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedtricks.optim.base import Extras, FusedOptimizer
from fusedtricks.optim.validation import (
    check_flags,
    check_lr,
    check_momentum,
    check_nonnegative,
)

__all__ = ["SGD"]


class SGD(FusedOptimizer):
    r"""SGD with momentum and all gradient transforms in the same sweep.

    With g the transformed gradient plus weight_decay * param::

        buf   = g                                     the first time a parameter is updated
        buf   = momentum * buf + (1 - dampening) * g  afterwards
        param = param - lr * (g + momentum * buf if nesterov else buf)

    The official gradient-centralization code centralizes g after the decay term was added; here
    the gradient alone is centralized.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        lr: Learning rate, a float or a one-element tensor. Default 1e-3.
        momentum: Share of the buffer that a step keeps. Default 0, which needs no buffer.
        dampening: Share of the gradient that does not enter the buffer. Default 0.
        weight_decay: L2 term per step. Default 0.
        nesterov: Look ahead by one momentum step. Default False.
        maximize: Ascend instead of descend. Default False.
        foreach: Accepted and ignored, ours is always fused.
        differentiable: Let autograd through the step (reference backend). Default False.
        fused: Accepted and ignored, ours is always fused.
        **extras: See `fusedtricks.optim.Extras`.

    Raises:
        ValueError: If a hyper-parameter is out of range.
        RuntimeError: If flags contradict each other, or the backend cannot run here.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning", in the form of torch.optim.SGD, which keeps lr outside the buffer.
    """

    algorithm = "sgd"
    flag_names: ClassVar[tuple[str, ...]] = ("momentum", "nesterov", "l2")
    has_step = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        check_lr(lr)
        check_momentum(momentum, dampening, nesterov)
        check_nonnegative("weight_decay", weight_decay)
        check_flags(foreach, fused, differentiable)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, **extras)

    def _flags(self, group: dict[str, Any]) -> tuple[bool, ...]:
        l2 = group["weight_decay"] != 0 and not self._decoupled(group)
        return group["momentum"] != 0, group["nesterov"], l2

    def _hyper(self, group: dict[str, Any]) -> Sequence[float]:
        return group["momentum"], group["dampening"], self._weight_decay(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _sparse_obstacle(self, group: dict[str, Any]) -> str:
        if group["momentum"] == 0 and group["weight_decay"] == 0:
            return ""
        return (
            f"{type(self).__name__} does not support sparse gradients with momentum or "
            "weight_decay; set both to 0"
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
        decay = self._weight_decay(group)
        if self._decoupled(group):
            param = param * (1 - lr * decay)
        elif decay != 0:
            grad = grad + decay * param
        momentum = group["momentum"]
        if momentum == 0:
            return param - lr * grad, {}
        buf = momentum * state["momentum_buffer"] + (1 - group["dampening"]) * grad
        if isinstance(step, Tensor):  # while torch.compile traces, which takes no branch on it
            buf = torch.where(step > 1, buf, grad)
        elif step <= 1:
            buf = grad
        direction = grad + momentum * buf if group["nesterov"] else buf
        return param - lr * direction, {"momentum_buffer": buf}
