"""What an optimizer keeps for each parameter, and when it is created."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fusedtricks.reference import Entry

__all__ = ["StateMixin", "StepRecord"]


@dataclass
class StepRecord:
    """What the last step found.

    An object of its own, because older versions of torch.compile refuse to assign attributes of an
    optimizer.
    """

    norm: Tensor | None = None
    norm_dtype: torch.dtype = torch.float32
    nonfinite: Tensor | None = None
    skipped_steps: int = 0
    # Steps that Python has seen: not compiled ones, nor replays of a CUDA graph.
    n_steps: int = 0
    # Whether the last step could be skipped.
    can_skip: bool = False
    # 0-dim int64 on the device of the first parameter, for steps that are skipped there.
    skipped_on_device: Tensor | None = None


class StateMixin:
    """The part of `FusedOptimizer` that creates the state of a parameter."""

    _record: StepRecord

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of the gradients before clipping by it, 0-dim, None without a statistics sweep."""
        # Converted here, because it would be one more launch in every step.
        norm = self._record.norm
        return None if norm is None else norm.to(self._record.norm_dtype)

    @property
    def skipped_steps(self) -> int:
        """Number of steps left out because a gradient was not finite; waits for the device."""
        counted = self._record.skipped_on_device
        return self._record.skipped_steps + (0 if counted is None else int(counted))

    @skipped_steps.setter
    def skipped_steps(self, value: int) -> None:
        self._record.skipped_steps = value
        if self._record.skipped_on_device is not None:
            # Not replaced: a plan or a captured graph counts in it.
            self._record.skipped_on_device.zero_()

    def skip_flags(self) -> list[Tensor]:
        """Return what may say that the last step was skipped: it was if one of them is not 0.

        They may be on any device, and of any dtype. Where no step can be skipped there is none.
        """
        flags = [getattr(self, "found_inf", None)]  # of torch's GradScaler, during a step
        if self._record.can_skip:
            flags.append(self._record.nonfinite)
        return [torch.as_tensor(flag) for flag in flags if flag is not None]

    def master_of(self, param: Tensor, group: dict[str, Any] | None = None) -> Tensor | None:
        """Return the float32 copy that steps update in place of a parameter; None without one.

        Args:
            param: One of this optimizer's, which is the copy rounded.
            group: The group that it is in. Default: looked for in all.
        """
        master = self.state.get(param, {}).get("master_param")
        if master is None:
            return None
        if group is None:
            groups = self.param_groups
            group = next(g for g in groups if any(each is param for each in g["params"]))
        # One that is no longer used stays in the state.
        return master if _wants_master(param, group) else None

    def _has_master(self, entry: Entry) -> bool:
        return _wants_master(entry.param, entry.group)

    def _watched(self, entry: Entry) -> list[str]:
        names = list(self._state_names(entry.group))
        if self.has_step:
            names.append("step")
        if self._has_master(entry):
            names.append("master_param")
        return names

    def _ensure_state(
        self, entry: Entry, *, counts_on_device: bool = False
    ) -> tuple[dict[str, Any], Tensor]:
        """Return the state of a parameter, creating what is missing, and its step count.

        Algorithms without a count in their state get one that only tells a first step apart: 0 if
        the states are new, else 1. The compiled backends want counts on the parameter's device.
        """
        watched = self._watched(entry)
        device = entry.param.device if counts_on_device else torch.device("cpu")
        if not watched:
            return {}, torch.ones((), device=device)
        state = self.state[entry.param]
        fresh = False
        if self._has_master(entry):
            _follow_param(state, entry.param.detach())
        like = state["master_param"] if self._has_master(entry) else entry.param
        if self.has_step and "step" not in state:
            dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
            on_device = counts_on_device or entry.group.get("capturable")
            state["step"] = torch.zeros(
                (), dtype=dtype, device=entry.param.device if on_device else None
            )
        for name in self._state_names(entry.group):
            if name not in state:
                fresh = True
                state[name] = self._new_state(like, entry.group)
        if self.has_step:
            if counts_on_device and state["step"].device != device:
                state["step"] = state["step"].to(device)
            return state, state["step"]
        return state, self._update_count(state[watched[0]], fresh, device)

    def _update_count(self, buffer: Tensor, fresh: bool, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.full((), 0.0 if fresh else 1.0, device=device)
        # Kept, because a first step that is skipped on the device leaves it at 0.
        counts = self.__dict__.setdefault("_update_counts", WeakIdKeyDictionary())
        count = counts.get(buffer)
        if count is None or fresh or count.device != device:
            count = counts[buffer] = torch.full((), 0.0 if fresh else 1.0, device=device)
        return count

    def _without_unused(self, states: dict[Any, Any]) -> dict[Any, Any]:
        """Return per-parameter states without buffers that no step has used.

        Those are there because every step was skipped on the device. torch has none then, and
        starts one with the first gradient.
        """
        counts = dict(self.__dict__.get("_update_counts", {}))
        by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        for buffer, count in counts.items():
            by_device.setdefault(count.device, []).append((buffer, count))
        unused = {
            id(buffer)
            for pairs in by_device.values()
            for (buffer, _), used in zip(
                pairs, torch.stack([count for _, count in pairs]).tolist(), strict=True
            )
            if used == 0
        }
        if not unused:
            return states
        kept = {}
        for key, values in states.items():
            if isinstance(values, dict):
                values = {n: v for n, v in values.items() if id(v) not in unused}
            if values != {}:
                kept[key] = values
        return kept

    def _new_state(self, like: Tensor, group: dict[str, Any]) -> Tensor:
        value = self._initial_value(group)
        fill = complex(value, value) if like.is_complex() else value
        return torch.full_like(like, fill, memory_format=torch.preserve_format).detach()


def _wants_master(param: Tensor, group: dict[str, Any]) -> bool:
    return group["master_weights"] and param.dtype in (torch.float16, torch.bfloat16)


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
