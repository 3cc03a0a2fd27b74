"""What an optimizer keeps for each parameter, and when it is created."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedtricks.reference import Entry

__all__ = ["StateMixin", "StepRecord"]


@dataclass
class StepRecord:
    """What the last step found.

    An object of its own, because older versions of torch.compile refuse to assign attributes of an
    optimizer.
    """

    grad_norm: Tensor | None = None
    norm_dtype: torch.dtype = torch.float32
    nonfinite: Tensor | None = None
    skipped_steps: int = 0


class StateMixin:
    """The part of `FusedOptimizer` that creates the state of a parameter."""

    _record: StepRecord

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of the gradients before clipping by it, 0-dim, None without a statistics sweep."""
        return self._record.grad_norm

    @property
    def skipped_steps(self) -> int:
        """Number of steps left out because a gradient was not finite."""
        return self._record.skipped_steps

    @skipped_steps.setter
    def skipped_steps(self, value: int) -> None:
        self._record.skipped_steps = value

    def _has_master(self, entry: Entry) -> bool:
        return entry.group["master_weights"] and entry.param.dtype in (
            torch.float16,
            torch.bfloat16,
        )

    def _watched(self, entry: Entry) -> list[str]:
        names = list(self._state_names(entry.group))
        if self.has_step:
            names.append("step")
        if self._has_master(entry):
            names.append("master_param")
        return names

    def _ensure_state(self, entry: Entry) -> tuple[dict[str, Any], Tensor]:
        """Return the state of a parameter, creating what is missing, and its step count.

        Algorithms without a count in their state get one that only tells a first step apart: 0 if
        the states are new, else 1.
        """
        watched = self._watched(entry)
        if not watched:
            return {}, torch.ones((), device="cpu")
        state = self.state[entry.param]
        fresh = False
        if self._has_master(entry):
            _follow_param(state, entry.param.detach())
        like = state["master_param"] if self._has_master(entry) else entry.param
        if self.has_step and "step" not in state:
            dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
            state["step"] = torch.zeros((), dtype=dtype)
        for name in self._state_names(entry.group):
            if name not in state:
                fresh = True
                state[name] = self._new_state(like, entry.group)
        if self.has_step:
            return state, state["step"]
        return state, torch.full((), 0.0 if fresh else 1.0, device="cpu")

    def _new_state(self, like: Tensor, group: dict[str, Any]) -> Tensor:
        value = self._initial_value(group)
        fill = complex(value, value) if like.is_complex() else value
        return torch.full_like(like, fill, memory_format=torch.preserve_format).detach()


def _follow_param(state: dict[str, Any], param: Tensor) -> None:
    """Create the master of `param`, or give it the values that others wrote to the parameter.

    Where the parameter still is the rounded master, the master keeps its digits.
    """
    master = state.get("master_param")
    if master is None:
        state["master_param"] = param.clone().float()
    elif not torch.compiler.is_compiling():
        written = (master.to(param.dtype) != param) & ~(master.isnan() & param.isnan())
        if written.any():
            master.copy_(torch.where(written, param.to(master.dtype), master))
