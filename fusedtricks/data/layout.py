"""The memory format of images."""

import torch
from torch import Tensor

__all__ = ["same_layout"]


def same_layout(result: Tensor, images: Tensor) -> Tensor:
    """Return `result`, shape (N, C, H, W), with channels last if those of `images` are last."""
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
    # Images of one channel or one pixel are both; torch calls them contiguous.
    if is_channels_last and not images.is_contiguous():
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()
