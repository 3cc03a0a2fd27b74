"""Which backends exist, which of them work on this machine, and why the others do not."""

import os
import platform
from typing import Any

import torch
from torch import Tensor

from fusedtricks import __version__, ops

__all__ = ["BACKENDS", "check", "cpu_obstacle", "format_info", "info"]

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def missing(name: str) -> str:
    """Return why the backend `name` cannot run here and what to do, empty if it can."""
    if name == "cpu":
        return ops.missing_reason
    if name in ("cuda", "triton"):
        return (
            f"fusedtricks {__version__} has no {name} backend; use backend='auto', which runs on "
            "the CPU with the compiled backend and elsewhere with the reference backend"
        )
    return ""


def check(name: str) -> None:
    """Raise if `name` is no backend, or one that cannot run on this machine.

    Raises:
        ValueError: If there is no such backend.
        RuntimeError: If the backend exists but not here; the text says what to do.
    """
    if name not in BACKENDS:
        raise ValueError(f"Invalid backend value: {name!r}, expected one of {', '.join(BACKENDS)}")
    reason = missing(name)
    if reason:
        raise RuntimeError(f"backend={name!r} cannot run here: {reason}")


def cpu_obstacle(param: Tensor, grad: Tensor, differentiable: bool) -> str:
    """Return why the compiled CPU backend cannot take this parameter, empty if it can."""
    if ops.native is None:
        return ops.missing_reason
    if differentiable:
        return "differentiable=True"
    if not torch.compiler.is_compiling() and param.is_neg():
        return "a parameter that is a negated view"
    for what, tensor in (("parameter", param), ("gradient", grad)):
        if type(tensor) not in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
            return f"a {what} of type {type(tensor).__name__}"
        if tensor.device.type != "cpu":
            return f"a {what} on {tensor.device}"
        if tensor.layout != torch.strided:
            return f"a {what} of layout {tensor.layout}"
        if tensor.dtype not in _DTYPES:
            return f"a {what} of dtype {tensor.dtype}"
    return ""


def info() -> dict[str, Any]:
    """Describe versions, instruction set, threads and backends; everything is JSON-able."""
    native = ops.native.build_info() if ops.native is not None else {}
    return {
        "fusedtricks": __version__,
        "torch": torch.__version__,
        "built_for_torch": native.get("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "instruction_set": native.get("isa"),
        "compiler": native.get("compiler"),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "backends": {
            name: {"available": not missing(name), "reason": missing(name)}
            for name in BACKENDS
            if name != "auto"
        },
    }


def format_info(info: dict[str, Any]) -> str:
    """Lay out what `info()` returned for reading."""
    lines = [
        f"fusedtricks {info['fusedtricks']}, torch {info['torch']}, Python {info['python']}",
        f"instruction set: {info['instruction_set'] or 'none (no compiled backend)'}",
        f"threads: {info['threads']} of {info['cores']} cores",
        "backends:",
    ]
    for name, entry in info["backends"].items():
        lines.append(f"  {name:<10} {'yes' if entry['available'] else 'no: ' + entry['reason']}")
    return "\n".join(lines)
