"""Which backends exist, which of them work on this machine, and why the others do not."""

import functools
import os
import platform
from typing import Any

import torch
from torch import Tensor

from fusedtricks import __version__, ops

__all__ = ["BACKENDS", "check", "format_info", "info", "obstacle", "skips_on_device"]

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def missing(name: str) -> str:
    """Return why the backend `name` cannot run here and what to do, empty if it can."""
    if name == "cpu":
        return ops.missing_reason
    if name == "cuda":
        return _cuda_missing() or ("" if torch.cuda.is_available() else _NO_DEVICE)
    if name == "triton":
        return (
            f"fusedtricks {__version__} has no triton backend; use backend='auto', which takes the "
            "compiled backends where they can run and the reference backend elsewhere"
        )
    return ""


_NO_DEVICE = (
    "torch sees no CUDA device (torch.cuda.is_available() is False); check `nvidia-smi`, "
    "CUDA_VISIBLE_DEVICES and that torch is a CUDA build, or use backend='auto'"
)


def _cuda_missing() -> str:
    """Return why the extension has no CUDA kernels, empty if it has."""
    if ops.native is None:
        return ops.missing_reason
    if "cuda" in ops.native.build_info():
        return ""
    advice = (
        "reinstall with: FUSEDTRICKS_CUDA=1 pip install --no-build-isolation . or use "
        "backend='auto', which takes the best that can run"
    )
    if torch.version.cuda is None:
        advice = "install a CUDA build of torch and " + advice
    return f"the extension was compiled without CUDA; {advice}"


# Once, because torch.compile cannot trace the question.
_NO_KERNELS = _cuda_missing() if torch.version.hip is None else "it is no NVIDIA device"


@functools.cache
def _device_obstacle(device: torch.device) -> str:
    """Return why the kernels cannot run on a CUDA device, empty if they can."""
    archs = ops.native.build_info()["cuda_archs"]
    major, minor = torch.cuda.get_device_capability(device)
    if _runs_on(major, minor, [int(arch) for arch in archs.split(";")]):
        return ""
    return (
        f"a parameter on {device}: the extension was compiled for compute capability {archs}, the "
        f"device has {major}.{minor}; reinstall with FUSEDTRICKS_CUDA_ARCHS={major}{minor}"
    )


def _runs_on(major: int, minor: int, archs: list[int]) -> bool:
    """Return whether code for `archs` runs on a device, the newest arch's on all newer ones."""
    # Machine code runs within a major version; that of the newest arch is there as PTX too.
    fits = any(arch // 10 == major and arch % 10 <= minor for arch in archs)
    return fits or max(archs) <= 10 * major + minor


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


def skips_on_device(device: torch.device) -> bool:
    """Return whether flags on this device are left there, because reading them would wait."""
    return device.type != "cpu"


def obstacle(backend: str, param: Tensor, grad: Tensor, differentiable: bool) -> str:
    """Return why the compiled backends cannot take this parameter, empty if one can.

    Args:
        backend: "auto" for any of them, or the one that is wanted.
        param: The parameter.
        grad: Its gradient.
        differentiable: Whether autograd has to follow the step.
    """
    if ops.native is None:
        return ops.missing_reason
    if differentiable:
        return "differentiable=True"
    if not torch.compiler.is_compiling() and param.is_neg():
        return "a parameter that is a negated view"
    for what, tensor in (("parameter", param), ("gradient", grad)):
        if type(tensor) not in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
            return f"a {what} of type {type(tensor).__name__}"
        if tensor.device.type not in ("cpu", "cuda") or backend not in (
            "auto",
            "reference",
            tensor.device.type,
        ):
            return f"a {what} on {tensor.device}"
        if tensor.layout != torch.strided:
            return f"a {what} of layout {tensor.layout}"
        if tensor.dtype not in _DTYPES:
            return f"a {what} of dtype {tensor.dtype}"
    if not param.is_cuda:
        return ""
    if _NO_KERNELS:
        return f"a parameter on {param.device}: {_NO_KERNELS}"
    return "" if torch.compiler.is_compiling() else _device_obstacle(param.device)


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
        "cuda": native.get("cuda"),
        "cuda_archs": native.get("cuda_archs"),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "backends": {
            name: {"available": not missing(name), "reason": missing(name)}
            for name in BACKENDS
            if name != "auto"
        },
    }


def _format_cuda(info: dict[str, Any]) -> str:
    if info["cuda"] is None:
        return "none"
    return f"compiled with CUDA {info['cuda']} for compute capability {info['cuda_archs']}"


def format_info(info: dict[str, Any]) -> str:
    """Lay out what `info()` returned for reading."""
    lines = [
        f"fusedtricks {info['fusedtricks']}, torch {info['torch']}, Python {info['python']}",
        f"instruction set: {info['instruction_set'] or 'none (no compiled backend)'}",
        f"threads: {info['threads']} of {info['cores']} cores",
        f"CUDA kernels: {_format_cuda(info)}",
        "backends:",
    ]
    for name, entry in info["backends"].items():
        lines.append(f"  {name:<10} {'yes' if entry['available'] else 'no: ' + entry['reason']}")
    return "\n".join(lines)
