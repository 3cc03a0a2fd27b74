"""Everything an optimizer may change, kept bit for bit, to show that it changed nothing."""

from typing import Any

import torch
from torch import Tensor

from fusedtricks.optim import FusedOptimizer
from tests import devices

__all__ = ["assert_unchanged", "snapshot"]


def _bits(value: Any) -> Any:
    """Return the whole storage of a tensor with its layout, so that neighbours count too."""
    if not isinstance(value, Tensor):
        return repr(value)
    layout = (str(value.dtype), str(value.device), tuple(value.shape), str(value.layout))
    if value.is_sparse:
        parts = value._indices(), value._values()
        return *layout, *(part.reshape(-1).tolist() for part in parts)
    if value.device.type == "meta" or type(value) not in (Tensor, torch.nn.Parameter):
        return layout
    memory = torch.empty(0, dtype=torch.uint8, device=value.device).set_(value.untyped_storage())
    return *layout, value.stride(), value.storage_offset(), value.data_ptr(), _digest(memory)


def _digest(memory: Tensor) -> bytes:
    return memory.cpu().numpy().tobytes()


def _used_state(optimizer: FusedOptimizer, param: Tensor) -> dict[str, Any]:
    """Return the state of a parameter; nothing if all its steps were skipped on the device."""
    state = optimizer.state.get(param) or {}
    if devices.SKIPS_ON_DEVICE:
        counts = getattr(optimizer, "_update_counts", {})
        steps = [value for key, value in state.items() if key == "step"]
        steps += [counts[v] for v in state.values() if isinstance(v, Tensor) and v in counts]
        if steps and all(step.item() == 0 for step in steps):
            return {}
    return state


def snapshot(optimizer: FusedOptimizer) -> dict[str, Any]:
    """Keep parameters, gradients, states, group options and attributes of `optimizer`."""
    kept: dict[str, Any] = {
        "n_states": sum(bool(_used_state(optimizer, p)) for p in optimizer.state)
    }
    for g, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key != "params":
                kept[f"group {g} {key}"] = _bits(value)
        for i, param in enumerate(group["params"]):
            name = f"param {g}.{i}"
            kept[name] = _bits(param.detach() if type(param) is torch.nn.Parameter else param)
            kept[f"{name} grad"] = (id(param.grad), _bits(param.grad))
            for key, value in _used_state(optimizer, param).items():
                kept[f"{name} state {key}"] = _bits(value)
    return kept


def assert_unchanged(optimizer: FusedOptimizer, kept: dict[str, Any]) -> None:
    """Raise AssertionError naming what differs from `snapshot`."""
    now = snapshot(optimizer)
    different = [key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key)]
    assert not different, f"changed: {sorted(different)}"
