"""Adagrad."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from fusedtricks.optim.base import Extras, FusedOptimizer
from fusedtricks.optim.validation import check_flags, check_lr, check_nonnegative
from fusedtricks.reference import Entry

__all__ = ["Adagrad"]


class Adagrad(FusedOptimizer):
    r"""Adagrad with all gradient transforms in the same sweep.

    With g the transformed gradient plus weight_decay * param::

        sum   = sum + g^2
        param = param - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(sum) + eps)

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        lr: Learning rate, a float or a one-element tensor. Default 1e-2.
        lr_decay: Decay of lr per step. Default 0.
        weight_decay: L2 term per step. Default 0.
        initial_accumulator_value: What `sum` starts with. Default 0.
        eps: Added to the root. Default 1e-10.
        foreach: Accepted and ignored, ours is always fused.
        maximize: Ascend instead of descend. Default False.
        differentiable: Let autograd through the step (reference backend). Default False.
        fused: Accepted and ignored, ours is always fused.
        eps_inside_sqrt: Add eps under the root, as the paper does. Default False.
        **extras: See `fusedtricks.optim.Extras`.

    Raises:
        ValueError: If a hyper-parameter is out of range.
        RuntimeError: If flags contradict each other, or the backend cannot run here.

    Source: Duchi, Hazan & Singer 2011, "Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization", in the form of torch.optim.Adagrad.
    """

    algorithm = "adagrad"
    flag_names: ClassVar[tuple[str, ...]] = ("l2",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        eps_inside_sqrt: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        check_lr(lr)
        check_nonnegative("lr_decay", lr_decay)
        check_nonnegative("weight_decay", weight_decay)
        check_nonnegative("initial_accumulator_value", initial_accumulator_value)
        check_nonnegative("epsilon", eps)
        check_flags(foreach, fused, differentiable)
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
            "eps_inside_sqrt": eps_inside_sqrt,
        }
        super().__init__(params, defaults, **extras)
        # As in torch.optim: the state is there from the start, so that it can be shared.
        self._create_state()

    def share_memory(self) -> None:
        """Move the state to shared memory, for training from several processes."""
        for values in self._create_state():
            values["step"].share_memory_()
            values["sum"].share_memory_()

    def _create_state(self) -> list[dict[str, Any]]:
        """Return the state of all parameters, creating what is missing."""
        return [
            self._ensure_state(Entry(param, param, group, index, position))[0]
            for index, group in enumerate(self.param_groups)
            for position, param in enumerate(group["params"])
        ]

    def _initial_value(self, group: dict[str, Any]) -> float:
        return group["initial_accumulator_value"]

    def _flags(self, group: dict[str, Any]) -> tuple[bool, ...]:
        return (group["weight_decay"] != 0,)

    def _hyper(self, group: dict[str, Any]) -> Sequence[float]:
        eps = group["eps"]
        outside, inside = (0.0, eps) if group["eps_inside_sqrt"] else (eps, 0.0)
        return group["lr_decay"], outside, inside, group["weight_decay"]

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def _sparse_obstacle(self, group: dict[str, Any]) -> str:
        if group["weight_decay"] == 0:
            return ""
        return "weight_decay option is not compatible with sparse gradients; set it to 0"

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
        if group["weight_decay"] != 0:
            grad = grad + group["weight_decay"] * param
        total = state["sum"] + grad * grad
        eps = group["eps"]
        root = (total + eps).sqrt() if group["eps_inside_sqrt"] else total.sqrt() + eps
        clr = lr / (1 + (step - 1) * group["lr_decay"])
        return param - clr * grad / root, {"sum": total}
