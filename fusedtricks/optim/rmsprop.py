"""RMSprop."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from fusedtricks.optim.base import Extras, FusedOptimizer
from fusedtricks.optim.validation import check_lr, check_nonnegative, check_unit_interval

__all__ = ["RMSprop"]


class RMSprop(FusedOptimizer):
    r"""RMSprop with all gradient transforms in the same sweep.

    With g the transformed gradient plus weight_decay * param::

        square_avg = alpha * square_avg + (1 - alpha) * g^2
        grad_avg   = grad_avg + (1 - alpha) * (g - grad_avg)         if centered
        avg        = sqrt(square_avg - grad_avg^2) + eps             without grad_avg if not
        buf        = momentum * buf + g / avg                        if momentum
        param      = param - lr * (buf if momentum else g / avg)

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        lr: Learning rate, a float or a one-element tensor. Default 1e-2.
        alpha: Share of square_avg that a step keeps, in [0, 1]. Default 0.99.
        eps: Added to the root. Default 1e-8.
        weight_decay: L2 term per step. Default 0.
        momentum: Share of the buffer that a step keeps. Default 0, which needs no buffer.
        centered: Divide by the estimated standard deviation. Default False.
        capturable: Accepted; the CPU needs nothing for it.
        foreach: Accepted and ignored, ours is always fused.
        maximize: Ascend instead of descend. Default False.
        differentiable: Let autograd through the step (reference backend). Default False.
        eps_inside_sqrt: Add eps under the root, as Tieleman & Hinton and TensorFlow do. Default
            False.
        **extras: See `fusedtricks.optim.Extras`.

    Raises:
        ValueError: If a hyper-parameter is out of range.
        RuntimeError: If the backend cannot run here.

    Source: Tieleman & Hinton 2012, "Lecture 6.5: rmsprop"; Graves 2013, "Generating Sequences With
    Recurrent Neural Networks", for the centered form.
    """

    algorithm = "rmsprop"
    flag_names: ClassVar[tuple[str, ...]] = ("momentum", "centered", "l2")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        eps_inside_sqrt: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        check_lr(lr)
        check_nonnegative("epsilon", eps)
        check_nonnegative("momentum", momentum)
        check_nonnegative("weight_decay", weight_decay)
        check_unit_interval("alpha", alpha)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "eps_inside_sqrt": eps_inside_sqrt,
        }
        super().__init__(params, defaults, **extras)

    def _flags(self, group: dict[str, Any]) -> tuple[bool, ...]:
        return group["momentum"] > 0, group["centered"], group["weight_decay"] != 0

    def _hyper(self, group: dict[str, Any]) -> Sequence[float]:
        eps = group["eps"]
        outside, inside = (0.0, eps) if group["eps_inside_sqrt"] else (eps, 0.0)
        return group["alpha"], outside, inside, group["momentum"], group["weight_decay"]

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        names = ["square_avg"]
        if group["momentum"] > 0:
            names.append("momentum_buffer")
        if group["centered"]:
            names.append("grad_avg")
        return tuple(names)

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
        alpha, eps, momentum = group["alpha"], group["eps"], group["momentum"]
        if group["weight_decay"] != 0:
            grad = grad + group["weight_decay"] * param
        square_avg = alpha * state["square_avg"] + (1 - alpha) * grad * grad
        new = {"square_avg": square_avg}
        second = square_avg
        if group["centered"]:
            new["grad_avg"] = state["grad_avg"] + (1 - alpha) * (grad - state["grad_avg"])
            second = second - new["grad_avg"] * new["grad_avg"]
        root = (second + eps).sqrt() if group["eps_inside_sqrt"] else second.sqrt() + eps
        direction = grad / root
        if momentum > 0:
            direction = momentum * state["momentum_buffer"] + direction
            new["momentum_buffer"] = direction
        return param - lr * direction, new
