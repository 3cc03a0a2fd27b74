"""The wrapper that torch puts around every `step`, without its cost when nobody listens."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["hook_step", "plain_step"]


def hook_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `step` as torch does, but call it directly while there is no hook and no profiler.

    A range for the profiler costs 0.1 ms when a forward and backward pass have emptied the caches
    (`bench/bench_host.py --caches cold`, with and without this wrapper). torch puts one around the
    step of every class; of those that a call passes, the outermost runs the hooks.
    """
    hooked = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        outermost = type(self).step
        if outermost is not wrapper and _is_wrapper(outermost):
            return step(self, *args, **kwargs)
        if (
            torch.compiler.is_compiling()
            or torch.autograd._profiler_enabled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        ):
            return hooked(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    return wrapper


def _is_wrapper(step: Callable[..., Any]) -> bool:
    # Not by an attribute, which functools.wraps would copy to what users put around it.
    return getattr(step, "__code__", None) is _CODE


def plain_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return what `hook_step` has wrapped, or the step itself."""
    return step.__wrapped__ if _is_wrapper(step) else step


_CODE = hook_step(lambda self: None).__code__
