"""The op that prepares a batch with the Triton kernel, when it can be taken, and its plan."""

import importlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fusedtricks import _triton
from fusedtricks.data.plan import BatchPlan
from fusedtricks.ops import TRITON_LIBRARY

__all__ = ["on_device", "pack", "run", "takes", "unpack"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The kernel numbers the parts of an image by the second axis of its grid, which has 16 bits, and
# tells channels apart by comparisons, a few instructions for each.
_MOST_ELEMENTS = 2**27
_MOST_CHANNELS = 16


def takes(backend: str, images: Tensor, dtype: torch.dtype) -> bool:
    """Return whether the kernel is to prepare these images.

    Raises:
        RuntimeError: If backend="triton" asks for it and it cannot; the text says why.
    """
    if backend == "reference":
        return False
    obstacle = _triton.missing_reason or _triton.device_obstacle(images.device)
    if dtype not in _DTYPES:
        obstacle = f"the kernel computes in float32, and dtype is {dtype}"
    elif images.shape[1] > _MOST_CHANNELS or images.shape[1:].numel() > _MOST_ELEMENTS:
        obstacle = (
            f"the kernel takes images of up to {_MOST_CHANNELS} channels and {_MOST_ELEMENTS:,} "
            f"elements, and they are {list(images.shape[1:])}"
        )
    if backend == "triton" and obstacle:
        raise RuntimeError(
            f'prepare_batch: backend="triton" cannot run here: {obstacle}; use backend="auto"'
        )
    # Triton's interpreter is for tests.
    return backend == "triton" or (not obstacle and images.device.type == "cuda")


def on_device(plan: BatchPlan, device: torch.device) -> BatchPlan:
    """Return the plan on a device, in one copy on the way to a GPU, which nothing waits for."""
    # torch.compile traces no page-locked memory.
    if plan.partner.device.type != "cpu" or device.type != "cuda" or torch.compiler.is_compiling():
        return plan.to(device)
    return unpack(pack(plan).pin_memory().to(device, non_blocking=True), plan)


# Those of eight bytes first, so that all lie at multiples of the size of their elements.
_PACKED = ("partner", "patch", "hole", "own_share")


def pack(plan: BatchPlan) -> Tensor:
    """Return the bytes of all tensors of a plan."""
    tensors = [getattr(plan, name).contiguous() for name in _PACKED]
    return torch.cat([tensor.view(-1).view(torch.uint8) for tensor in tensors])


def unpack(packed: Tensor, plan: BatchPlan) -> BatchPlan:
    """Return the plan that was packed: views of the bytes with the shapes of `plan`."""
    tensors = {name: getattr(plan, name) for name in _PACKED}
    parts = packed.split([tensor.nbytes for tensor in tensors.values()])
    views = {
        name: part.view(tensor.dtype).view(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }
    return replace(plan, **views)


def run(
    images: Tensor,
    plan: BatchPlan | None,
    mean: Sequence[float],
    std: Sequence[float],
    fill: float,
    dtype: torch.dtype,
    is_channels_last: bool,
) -> Tensor:
    """Return the prepared images; the plan lies on their device."""
    mix: tuple[Tensor | None, ...] = (None, None, None)
    if plan is not None and plan.is_mixed:
        mix = (plan.partner, plan.own_share, plan.patch if plan.has_patches else None)
    hole = plan.hole if plan is not None and plan.has_holes else None
    op = torch.ops.fusedtricks_triton.prepare_batch
    return op(images, *mix, hole, mean, std, fill, dtype, is_channels_last)


def _run_kernel(*arguments: object) -> Tensor:
    return importlib.import_module("fusedtricks.kernels.batch").prepare_batch(*arguments)


def _fake(images: Tensor, *rest: object) -> Tensor:
    dtype, is_channels_last = rest[-2:]
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    return torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=memory_format)


# An op, so that torch.compile and profilers see the launch, not what is around it.
_library = torch.library.Library(TRITON_LIBRARY, "FRAGMENT")
_library.define(
    "prepare_batch(Tensor images, Tensor? partner, Tensor? own_share, Tensor? patch, Tensor? hole, "
    "float[] mean, float[] std, float fill, ScalarType dtype, bool channels_last) -> Tensor"
)
_library.impl("prepare_batch", _run_kernel, "CPU" if _triton.INTERPRETS else "CUDA")
torch.library.register_fake(f"{TRITON_LIBRARY}::prepare_batch", _fake, lib=_library)
