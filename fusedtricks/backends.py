"""Which backends exist, which of them work on this machine, and why the others do not."""

import functools
import os
import platform
from typing import Any

import torch
from torch import Tensor

from fusedtricks import __version__, _triton, ops

__all__ = ["BACKENDS", "check", "find_library", "format_info", "info", "skips_on_device"]

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def missing(name: str) -> str:
    """Return why the backend `name` cannot run here and what to do, empty if it can."""
    if name == "cpu":
        return ops.missing_reason
    if name == "cuda":
        return _cuda_missing() or ("" if torch.cuda.is_available() else _NO_DEVICE)
    if name == "triton":
        runs_somewhere = _triton.INTERPRETS or torch.cuda.is_available()
        return _triton.missing_reason or ("" if runs_somewhere else _NO_TRITON_DEVICE)
    return ""


_NO_DEVICE = (
    "torch sees no CUDA device (torch.cuda.is_available() is False); check `nvidia-smi`, "
    "CUDA_VISIBLE_DEVICES and that torch is a CUDA build, or use backend='auto'"
)
_NO_TRITON_DEVICE = (
    "torch sees no GPU (torch.cuda.is_available() is False); check `nvidia-smi` or `rocminfo` and "
    "that torch is a CUDA or ROCm build, use backend='auto', or set TRITON_INTERPRET=1 to try the "
    "kernels on the CPU"
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
        f"the extension was compiled for compute capability {archs}, the device has "
        f"{major}.{minor}; reinstall with FUSEDTRICKS_CUDA_ARCHS={major}{minor}"
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


def find_library(
    backend: str, param: Tensor, grad: Tensor, differentiable: bool
) -> tuple[str, str]:
    """Find the ops (see `fusedtricks.ops`) that can update this parameter.

    Args:
        backend: "auto" for the best, or the one that is wanted.
        param: The parameter.
        grad: Its gradient.
        differentiable: Whether autograd has to follow the step.

    Returns:
        The library of ops, and why there is none, one of both empty.
    """
    if differentiable:
        return "", "differentiable=True"
    if not torch.compiler.is_compiling() and param.is_neg():
        return "", "a parameter that is a negated view"
    for what, tensor in (("parameter", param), ("gradient", grad)):
        if type(tensor) not in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
            return "", f"a {what} of type {type(tensor).__name__}"
        if tensor.layout != torch.strided:
            return "", f"a {what} of layout {tensor.layout}"
        if tensor.dtype not in _DTYPES:
            return "", f"a {what} of dtype {tensor.dtype}"
    library, obstacle = _library_for(backend, param.device)
    return library, f"a parameter on {param.device}: {obstacle}" if obstacle else ""


def _library_for(backend: str, device: torch.device) -> tuple[str, str]:
    """Return the library for a device, and why there is none, one of both empty."""
    if device.type not in ("cpu", "cuda"):
        return "", "only the reference backend runs there"
    of_triton = _triton.missing_reason or _triton.device_obstacle(device)
    if backend == "triton":
        return ("", of_triton) if of_triton else (ops.TRITON_LIBRARY, "")
    if backend in ("cpu", "cuda") and backend != device.type:
        return "", f"backend={backend!r} runs on {backend} devices only"
    compiled = ops.missing_reason if device.type == "cpu" else _cuda_obstacle(device)
    if not compiled:
        return ops.LIBRARY, ""
    if backend == "cuda" or device.type == "cpu" or of_triton:
        return "", compiled
    # Without CUDA kernels, the Triton kernels implement the common ops on GPUs. torch.compile takes
    # those for fit for its CUDA graphs.
    in_common = _NO_KERNELS and not torch.compiler.is_compiling()
    return (ops.LIBRARY if in_common else ops.TRITON_LIBRARY), ""


def _cuda_obstacle(device: torch.device) -> str:
    if _NO_KERNELS:
        return _NO_KERNELS
    return "" if torch.compiler.is_compiling() else _device_obstacle(device)


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
        "triton": _triton.version() or None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "backends": {
            name: {"available": not missing(name), "reason": missing(name)}
            for name in BACKENDS
            if name != "auto"
        },
        "auto": _auto_choices(),
    }


def _auto_choices() -> dict[str, dict[str, str]]:
    """Return the backend that "auto" takes on each device here, and why not a faster one."""
    missing_cpu = ops.missing_reason
    choices = {"cpu": {"backend": "reference" if missing_cpu else "cpu", "reason": missing_cpu}}
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        library, obstacle = _library_for("auto", device)
        reason = _cuda_obstacle(device)
        backend = "cuda" if library and not reason else "triton" if library else "reference"
        choices[str(device)] = {"backend": backend, "reason": reason and (obstacle or reason)}
    return choices


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
        f"Triton: {info['triton'] or 'none'}",
        "backends:",
    ]
    for name, entry in info["backends"].items():
        lines.append(f"  {name:<10} {'yes' if entry['available'] else 'no: ' + entry['reason']}")
    lines.append('backend="auto" takes:')
    for device, choice in info["auto"].items():
        reason = f" ({choice['reason']})" if choice["reason"] else ""
        lines.append(f"  {device:<10} {choice['backend']}{reason}")
    return "\n".join(lines)
