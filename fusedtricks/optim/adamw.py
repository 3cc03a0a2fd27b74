"""AdamW: Adam with decoupled weight decay."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from fusedtricks.optim.adam import Adam
from fusedtricks.optim.base import Extras

__all__ = ["AdamW"]


class AdamW(Adam):
    """AdamW: `Adam` that scales the parameter by 1 - lr * weight_decay before its update.

    Args:
        params: Tensors, named tensors or groups, as for torch.optim.
        lr: Learning rate, a float or a one-element tensor. Default 1e-3.
        betas: Decay rates of the two moments per step, in [0, 1). Default (0.9, 0.999).
        eps: Added to the root, after bias correction. Default 1e-8.
        weight_decay: Decay per unit of lr. Default 1e-2.
        amsgrad: Divide by the largest exp_avg_sq so far. Default False.
        maximize: Ascend instead of descend. Default False.
        foreach: Accepted and ignored, ours is always fused.
        capturable: Accepted; the CPU needs nothing for it.
        differentiable: Let autograd through the step (reference backend). Default False.
        fused: Accepted and ignored, ours is always fused.
        bias_correction: False leaves out both corrections. Default True.
        **extras: See `fusedtricks.optim.Extras`; `decouple_lr=True` gives the paper's decay.

    Raises:
        ValueError: If a hyper-parameter is out of range.
        RuntimeError: If flags contradict each other, or the backend cannot run here.

    Example:
        >>> import torch, fusedtricks
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = fusedtricks.optim.AdamW(
        ...     model.parameters(), lr=1e-3, centralize_grad=True, clip_grad_norm=1.0)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        bias_correction: bool = True,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            bias_correction=bias_correction,
            **extras,
        )

    def _decoupled(self, group: dict[str, Any]) -> bool:
        return True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch.optim.AdamW before 2.7 did not save the key, and torch.optim.Adam saves False.
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
