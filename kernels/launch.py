"""What the launches of all kernels share."""

import contextlib
import math
import struct
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fusedtricks import _triton

# Where the kernels run: in the interpreter, the CPU is the device.
DEVICE_TYPE = "cpu" if _triton.INTERPRETS else "cuda"

# Threads of a program.
N_THREADS = 256

LANGUAGE_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def common_device(tensors: list[Tensor]) -> torch.device:
    """Return the device of the first tensor that kernels can reach."""
    devices = (tensor.device for tensor in tensors if tensor.device.type == DEVICE_TYPE)
    return next(devices, torch.device(DEVICE_TYPE))


def device_scope(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make `device` the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def on_device(tensor: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Return the tensor as kernels take it."""
    if tensor is None or (tensor.device == device and tensor.dtype == dtype):
        return tensor
    return tensor.to(device, dtype, non_blocking=True)


def bits_of(value: float) -> int:
    """Return the bits of a float64, see `arithmetic.double_from_bits`."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def bits_of_limit(clip_value: float | None) -> int:
    """Return the bits of the largest magnitude of an element."""
    return bits_of(math.inf if clip_value is None else clip_value)


def options(n_threads: int, max_registers: int, *, amd: bool | None = None) -> dict[str, Any]:
    """Return the options of a launch.

    Args:
        n_threads: Threads of a program.
        max_registers: Bound on the registers of a thread. Without one, NVIDIA's assembler spills
            a few where it hopes to run one block more.
        amd: Whether it is for an AMD GPU, whose warps have 64 threads; None asks torch.
    """
    if torch.version.hip is not None if amd is None else amd:
        return {"num_warps": max(n_threads // 64, 1), "enable_fp_fusion": False}
    return {"num_warps": n_threads // 32, "enable_fp_fusion": False, "maxnreg": max_registers}
