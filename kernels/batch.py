"""The host side of the sweep over a batch of images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .batch_kernel import batch_kernel
from .launch import device_scope, options

__all__ = ["prepare_batch"]

# Elements of a thread, and threads of a program where the images are large enough for them.
PER_THREAD = 8
MOST_THREADS = 256
# Elements of a program: several blocks, which share what is read of the plan.
ITEM = 4096
# The bytes of a store.
WIDE = 16


class Layout(NamedTuple):
    """Where the elements are, and how they are cut: the kernel's compile-time arguments."""

    segments: int
    channels: int
    is_flat: bool
    is_aligned: bool
    has_whole_groups: bool
    group: int
    block: int

    @property
    def n_threads(self) -> int:
        """Threads of a program."""
        return self.block // PER_THREAD

    @property
    def max_registers(self) -> int:
        """What keeps 1,024 threads on a multiprocessor, 512 where nothing is computed by groups."""
        return 64 if self.is_aligned else 128

    def constants(self) -> dict[str, Any]:
        """Return the constexpr arguments of the kernel."""
        return {
            "SEGMENTS": self.segments,
            "CHANNELS": self.channels,
            "FLAT": self.is_flat,
            "ALIGNED": self.is_aligned,
            "WHOLE_GROUPS": self.has_whole_groups,
            "GROUP": self.group,
            "BLOCK": self.block,
            "ITEM": ITEM,
        }


def prepare_batch(
    images: Tensor,
    partner: Tensor | None,
    own_share: Tensor | None,
    patch: Tensor | None,
    hole: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    fill: float,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Run the op, see `fusedtricks.data.prepare`; the plan lies on the device of the images."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=memory_format)
    if out.numel() == 0:
        return out
    if not _is_taken(images):
        images = images.contiguous(memory_format=memory_format)
    layout = find_layout(images, dtype, channels_last)
    n_images, _, height, width = images.shape
    numel = height * width * layout.channels
    plan = [None if tensor is None else tensor.contiguous() for tensor in (partner, own_share)]
    plan += [None if boxes is None else boxes.contiguous() for boxes in (patch, hole)]
    with device_scope(images.device):
        batch_kernel[(n_images * layout.segments, triton.cdiv(numel, ITEM))](
            images,
            out,
            *plan,
            tuple(255 * m for m in mean),
            tuple(1 / (255 * s) for s in std),
            fill,
            n_images,
            images.stride(0),
            images.stride(1),
            _pixel_stride(images),
            height,
            width,
            numel,
            **layout.constants(),
            **options(layout.n_threads, layout.max_registers),
        )
    return out


def find_layout(images: Tensor, dtype: torch.dtype, channels_last: bool) -> Layout:
    """Return how to cut a batch that `_is_taken`."""
    n_images, n_channels, height, width = images.shape
    segments, channels = (1, n_channels) if channels_last else (n_channels, 1)
    group = WIDE // dtype.itemsize
    row_length = width * channels
    numel = height * row_length
    is_flat = (channels == 1 or images.stride(1) == 1) and (
        height * width == 1 or _pixel_stride(images) == channels
    )
    distances = [images.data_ptr(), images.stride(0) * (n_images > 1)]
    distances.append(images.stride(1) * (segments > 1))
    is_aligned = numel % group == 0 and (not is_flat or all(d % group == 0 for d in distances))
    n_threads = min(triton.next_power_of_2(triton.cdiv(numel, PER_THREAD)), MOST_THREADS)
    return Layout(
        segments,
        channels,
        is_flat,
        is_aligned,
        row_length % group == 0,
        group,
        max(n_threads, 32) * PER_THREAD,
    )


def _pixel_stride(images: Tensor) -> int:
    """Return the distance of neighbouring pixels."""
    return images.stride(3) if images.shape[3] > 1 else images.stride(2)


def _is_taken(images: Tensor) -> bool:
    """Return whether the kernel finds its way in a batch that is not empty."""
    n_channels, height, width = images.shape[1:]
    row, column = images.stride()[2:]
    if height > 1 and width > 1 and row != width * column:
        return False
    # It counts within an image in 32 bits.
    last = (n_channels - 1) * images.stride(1) + (height * width - 1) * _pixel_stride(images)
    return last < 2**31
