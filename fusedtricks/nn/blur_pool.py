"""Downsampling that blurs before it drops pixels."""

import math
from collections.abc import Callable

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_bool, check_whole

__all__ = ["BlurPool", "ConvBlurPool", "MaxBlurPool"]


class BlurPool(nn.Module):
    """Blur every channel with a binomial filter, then keep every `stride`-th pixel.

    The filter is the outer product of row[k] = C(filt_size - 1, k) / 2^(filt_size - 1) with
    itself. Borders are reflected, floor((filt_size - 1) / 2) pixels before and
    ceil((filt_size - 1) / 2) after, so that each side of length n becomes ceil(n / stride). An odd
    filter is centred on the pixel that a strided layer would keep, an even one half a pixel
    later: in the middle of the two pixels that become one.

    The filter is a buffer that state dicts leave out: a model can gain and lose blurs without
    its checkpoints noticing.

    Args:
        channels: Channels C of the feature maps.
        filt_size: Pixels of the filter in each direction, at least 1: 1 is plain subsampling,
            2 averages, 3 is triangular. Default 4.
        stride: Distance of the pixels that are kept, at least 1. Default 2.

    Raises:
        TypeError: If an argument is no whole number.
        ValueError: If one is below 1.

    Example:
        >>> BlurPool(10, filt_size=4, stride=2)(torch.zeros(1, 10, 128, 128)).shape
        torch.Size([1, 10, 64, 64])

    Sides shorter than the reflection needs are reflected again and again, as numpy.pad does, where
    torch's own reflection (and timm's `BlurPool2d`) raises. For odd filters and stride 2 the
    result is that of timm; for even ones timm pads one pixel more in front, and its output of an
    even side is a pixel longer than that of the strided layer that it replaces.

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", section 3.
    """

    def __init__(self, channels: int, *, filt_size: int = 4, stride: int = 2) -> None:
        for name, value in {"channels": channels, "filt_size": filt_size, "stride": stride}.items():
            check_whole("BlurPool", name, value, 1)
        super().__init__()
        self.channels, self.filt_size, self.stride = int(channels), int(filt_size), int(stride)
        self.register_buffer(
            "filter", torch.empty(self.channels, 1, filt_size, filt_size), persistent=False
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write the filter, as after `to_empty` moved the model from the meta device."""
        n = self.filt_size - 1
        row = torch.tensor(
            [math.comb(n, k) / 2**n for k in range(n + 1)],
            dtype=self.filter.dtype,
            device=self.filter.device,
        )
        self.filter.copy_(row[:, None] * row)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

        The dtype is that of a convolution: the filter's, which the features have to share, and the
        16 bits of autocast where it is on.
        """
        padded = _reflect(features, (self.filt_size - 1) // 2, self.filt_size // 2)
        return functional.conv2d(padded, self.filter, stride=self.stride, groups=self.channels)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.channels}, filt_size={self.filt_size}, stride={self.stride}"


# For torch.fx, which cannot follow what depends on a size, the whole is one call.
@torch.fx.wrap
def _reflect(features: Tensor, before: int, after: int) -> Tensor:
    if features.ndim not in (3, 4):
        raise ValueError(
            f"BlurPool: expected features of shape (N, C, H, W), got {list(features.shape)}"
        )
    if min(features.shape[-2:]) > after:
        return functional.pad(features, (before, after, before, after), mode="reflect")
    return _reflect_short(_reflect_short(features, -2, before, after), -1, before, after)


def _reflect_short(features: Tensor, dim: int, before: int, after: int) -> Tensor:
    length = features.shape[dim]
    period = max(2 * (length - 1), 1)  # There and back again; a single pixel is repeated.
    steps = torch.arange(-before, length + after, device=features.device) % period
    return features.index_select(dim, torch.minimum(steps, period - steps))


class MaxBlurPool(nn.Sequential):
    """Max pooling of which every window is computed, then blurred, then subsampled.

    y = BlurPool(max over kernel_size x kernel_size at stride 1), of the size that max pooling
    with this stride has.

    Args:
        channels: Channels C of the feature maps.
        kernel_size: Pixels of the window in each direction. Default 2.
        stride: Stride of the blur. Default 2.
        padding: Pixels added around the maps, never the maximum. Default 0.
        filt_size: Size of the blur's filter. Default 4.

    Raises:
        ValueError: If `BlurPool` or `nn.MaxPool2d` refuses an argument.

    Example:
        ResNet's pooling, anti-aliased:

        >>> MaxBlurPool(64, 3, padding=1)(torch.zeros(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", section 3, figure 2.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 2,
        *,
        stride: int = 2,
        padding: int = 0,
        filt_size: int = 4,
    ) -> None:
        super().__init__()
        self.max = nn.MaxPool2d(kernel_size, stride=1, padding=padding)
        self.blur = BlurPool(channels, filt_size=filt_size, stride=stride)


class ConvBlurPool(nn.Sequential):
    """A convolution at stride 1, normalisation, activation, then blur and subsampling.

    y = BlurPool(activation(norm(conv(x)))), of the size that a strided convolution has. The blur
    comes after the activation: before it, it would only be a part of the convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Pixels of the convolution's kernel in each direction; the maps are padded with
            kernel_size // 2 zeros. Default 3.
        stride: Stride of the blur. Default 2.
        filt_size: Size of the blur's filter. Default 4.
        bias: Whether the convolution has a bias; useless before a normalisation. Default True.
        norm: Makes the normalisation from `out_channels`. Default: none.
        activation: Makes the activation. Default `nn.ReLU`.

    Raises:
        TypeError: If `bias` is neither True nor False, or another argument of another type.
        ValueError: If `BlurPool` or `nn.Conv2d` refuses an argument.

    Example:
        >>> layer = ConvBlurPool(3, 16, bias=False, norm=nn.BatchNorm2d)
        >>> layer(torch.zeros(1, 3, 33, 32)).shape
        torch.Size([1, 16, 17, 16])

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", section 3, figure 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 2,
        filt_size: int = 4,
        bias: bool = True,
        norm: Callable[[int], nn.Module] = nn.Identity,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        check_bool("ConvBlurPool", "bias", bias)
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )
        self.norm = norm(out_channels)
        self.activation = activation()
        self.blur = BlurPool(out_channels, filt_size=filt_size, stride=stride)
