"""Whether the Triton kernels can run here, and the way to them; Triton is imported when needed."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["INTERPRETS", "device_obstacle", "missing_reason", "run", "version"]

# Triton reads it when kernels are defined: they then run on the CPU, slowly, in Python.
INTERPRETS = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

# The names under which builds of Triton are distributed.
_DISTRIBUTIONS = (
    "triton",
    "triton-rocm",
    "pytorch-triton-rocm",
    "pytorch-triton",
    "triton-windows",
)
_INSTALL = "install it with: pip install 'triton>=3.6' (CUDA and ROCm builds of torch bring it)"


def version() -> str:
    """Return the version of the installed Triton, empty if there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _find_missing() -> str:
    """Return what is missing to run Triton kernels on some device, empty if nothing is."""
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed; {_INSTALL}"
    installed = version()
    numbers = re.match(r"(\d+)\.(\d+)", installed)
    # On AMD GPUs, Triton 3.6 takes the square root of subnormal numbers for NaN.
    minimum = (3, 6) if torch.version.hip is None else (3, 7)
    if numbers and (int(numbers[1]), int(numbers[2])) < minimum:
        return (
            f"Triton {installed} is installed and {minimum[0]}.{minimum[1]} or newer is needed; "
            f"{_INSTALL}"
        )
    if INTERPRETS:
        return ""
    if not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc", "cl")))):
        return "Triton needs a C compiler to launch kernels; install gcc or set CC"
    return ""


# Once, because torch.compile cannot trace the question.
missing_reason = _find_missing()


def device_obstacle(device: torch.device) -> str:
    """Return why Triton kernels cannot run on a CPU or CUDA device, empty if they can."""
    if INTERPRETS:
        # It takes addresses of the host.
        return "" if device.type == "cpu" else "TRITON_INTERPRET=1 is set; unset it for a GPU"
    if device.type != "cuda":
        return "Triton kernels run on GPUs only, or in the interpreter with TRITON_INTERPRET=1"
    if torch.compiler.is_compiling() or torch.version.cuda is None:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return ""
    return f"Triton needs compute capability 8.0 or newer, the device has {major}.{minor}"


def _find_kernels() -> None:
    """Make fusedtricks.kernels importable in a checkout, where it lies beside fusedtricks."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "csrc").is_dir() and (checkout / "kernels" / "driver.py").is_file():
        sys.modules["fusedtricks"].__path__.append(str(checkout))


_find_kernels()


def run(op: str, *arguments: Any) -> Any:
    """Run the implementation of an op of `fusedtricks.ops` in `fusedtricks.kernels`."""
    if missing_reason:
        raise RuntimeError(f"{op}: no kernels for this device: {missing_reason}")
    driver = importlib.import_module("fusedtricks.kernels.driver")
    return driver.run(op, *arguments)
