"""Saving and loading optimizer state without losing precision or sharing tensors."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from fusedtricks.optim.state import StepRecord

__all__ = ["CheckpointMixin", "remember_initial_lr"]

# What an optimizer keeps besides defaults, groups and state when it is pickled or copied.
_KEPT = (
    "clip_grad_norm",
    "clip_grad_value",
    "skip_nonfinite",
    "write_grads",
    "backend",
    "_record",
)


# Options of groups that torch.optim does not have.
_OURS = {
    "centralize_grad",
    "master_weights",
    "decouple_lr",
    "bias_correction",
    "eps_inside_sqrt",
}


def remember_initial_lr(group: dict[str, Any]) -> None:
    """Note the learning rate that a decay by (lr / initial_lr) refers to, if there is one."""
    if group["decouple_lr"]:
        initial_lr = group.setdefault("initial_lr", group["lr"])
        if isinstance(initial_lr, Tensor) and (
            initial_lr is group["lr"] or initial_lr.device.type != "cpu"
        ):
            # On the CPU, so that no step waits for a device to read it.
            group["initial_lr"] = initial_lr.detach().to("cpu", copy=True)


class CheckpointMixin:
    """Overrides of torch.optim.Optimizer's pickling and loading."""

    def __getstate__(self) -> dict[str, Any]:
        kept = super().__getstate__()
        states = defaultdict(dict, self._without_unused(self.state))
        return kept | {"state": states} | {name: getattr(self, name) for name in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        self.__dict__.setdefault("_record", StepRecord())
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            remember_initial_lr(group)
        for param, values in self.state.items():
            if not isinstance(param, Tensor) or not isinstance(values, dict):
                continue
            # Checkpoints of older torch versions hold numbers, and None for a missing buffer.
            step = values.get("step")
            if step is not None and not isinstance(step, Tensor):
                values["step"] = torch.tensor(float(step), dtype=torch.float32)
            if "momentum_buffer" in values and values["momentum_buffer"] is None:
                del values["momentum_buffer"]

    def state_dict(self) -> dict[str, Any]:
        """Return groups and state as torch.optim does; waits for the device after skipped steps."""
        saved = super().state_dict()
        saved["state"] = self._without_unused(saved["state"])
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` of this or of the torch.optim class of the same name returned.

        Unlike torch.optim, tensors keep their dtype (an fp32 moment of a bf16 parameter is not
        rounded) and are copied, so that the loaded optimizer shares nothing with the dict.

        Args:
            state_dict: Groups and state; not altered.

        Raises:
            ValueError: If groups, their sizes, or the shape of a state do not fit this optimizer.
                Nothing has changed then.
        """
        loaded: dict[str, Any] = {}
        groups_before = [dict(group) for group in self.param_groups]

        def before(optimizer: Any, given: dict[str, Any]) -> None:
            loaded.update(given)
            self._check_shapes(given)

        def after(optimizer: Any) -> None:
            # What torch.optim does not know is not in its checkpoints.
            for group, old, new in zip(
                self.param_groups, groups_before, loaded["param_groups"], strict=True
            ):
                group.update({name: old[name] for name in _OURS & old.keys() - new.keys()})
            self._restore_exactly(loaded)

        handles = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _params_by_id(self, given: dict[str, Any]) -> dict[int, Tensor]:
        ids = [index for group in given["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        return dict(zip(ids, params, strict=False))

    def _per_element_states(self) -> set[str]:
        names = {name for group in self.param_groups for name in self._state_names(group)}
        return names | {"master_param"}

    def _check_shapes(self, given: dict[str, Any]) -> None:
        params = self._params_by_id(given)
        names = self._per_element_states()
        for index, values in given["state"].items():
            param = params.get(index)
            if param is None or not isinstance(values, dict):
                continue
            for name in names & values.keys():
                value = values[name]
                if isinstance(value, Tensor) and value.shape != param.shape:
                    raise ValueError(
                        f"{type(self).__name__}: {name} of parameter {index} in the state dict has "
                        f"shape {tuple(value.shape)}, the parameter {tuple(param.shape)}; it does "
                        "not belong to this model"
                    )

    def _restore_exactly(self, given: dict[str, Any]) -> None:
        params = self._params_by_id(given)
        for index, values in given["state"].items():
            param = params.get(index)
            if param is None or not isinstance(values, dict):
                continue
            for name, value in values.items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.detach().to(param.device, copy=True)
