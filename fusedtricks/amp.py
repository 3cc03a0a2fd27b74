"""Loss scaling for fp16 training without a sweep of its own over the gradients."""

from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from fusedtricks.optim.base import FusedOptimizer

__all__ = ["GradScaler"]


class GradScaler(torch.amp.GradScaler):
    """Drop-in for `torch.amp.GradScaler` that reads the gradients once less per step.

    torch's scaler searches all gradients for inf and NaN before it calls a fused optimizer. This
    one leaves the search to the statistics sweep that a fusedtricks optimizer makes anyway when it
    clips or centralizes, and takes the flag from there for `update()`, on the device. Scales,
    skipped steps and parameters are those of torch's scaler, bit for bit. With the optimizers of
    others, and after an explicit `unscale_()`, it is torch's scaler.

    Args:
        device: Device type that the losses are on, "cuda" or "cpu". Default "cuda".
        init_scale: Scale of the first step. Default 2^16.
        growth_factor: What the scale is multiplied with after `growth_interval` good steps.
            Default 2.
        backoff_factor: What it is multiplied with after a skipped step. Default 0.5.
        growth_interval: Number of good steps in a row before the scale grows. Default 2000.
        enabled: False makes `step()` call the optimizer and the rest do nothing. Default True.

    Example:
        >>> import torch, fusedtricks
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = fusedtricks.optim.AdamW(model.parameters(), clip_grad_norm=1.0)
        >>> scaler = fusedtricks.amp.GradScaler("cpu")
        >>> scaler.scale(model(torch.ones(1, 4)).sum()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()

    Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.
    """

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Take a step of `optimizer` unless a gradient is inf or NaN.

        Args:
            optimizer: Owner of the gradients, still scaled unless `unscale_()` was called.
            *args: Passed to `optimizer.step`.
            **kwargs: Passed to `optimizer.step`; no closure.

        Returns:
            What `optimizer.step` returned.

        Raises:
            RuntimeError: With a closure, or for a second step since the last `update()`.
        """
        if not self._finds_nonfinite_itself(optimizer) or "closure" in kwargs:
            return super().step(optimizer, *args, **kwargs)
        scale, _ = self._check_scale_growth_tracker("step")
        # Kept only while it steps: an exception must not leave a scale behind for the next try.
        own_scale = getattr(optimizer, "grad_scale", None)
        optimizer.grad_scale = scale if own_scale is None else scale * own_scale
        optimizer._wants_flag = True
        optimizer._record.nonfinite = None
        try:
            result = optimizer.step(*args, **kwargs)
        finally:
            del optimizer.grad_scale
            optimizer._wants_flag = False
        flag, optimizer._record.nonfinite = optimizer._record.nonfinite, None
        state = self._per_optimizer_states[id(optimizer)]
        # No flag: no parameter had a gradient.
        state["found_inf_per_device"] = {} if flag is None else {flag.device: flag}
        state["stage"] = OptState.STEPPED
        return result

    def _finds_nonfinite_itself(self, optimizer: torch.optim.Optimizer) -> bool:
        return (
            self._enabled
            and isinstance(optimizer, FusedOptimizer)
            and self._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY
        )
