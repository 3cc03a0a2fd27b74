"""ResNets without normalisation, for ImageNet and for small images."""

from collections.abc import Sequence

from torch import Tensor, nn

from fusedtricks._checks import check_bool, check_whole
from fusedtricks.nn.fixup import FixupBlock, ScalarBias, fixup_init_
from fusedtricks.nn.resnet_blocks import check_counts

__all__ = ["FixupBasicBlock", "FixupBottleneck", "FixupResNet"]


class FixupBasicBlock(FixupBlock):
    """Two 3x3 convolutions.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        stride: Of the first convolution. Default 1.
    """

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__(
            [_convolution(width_in, width, 3, stride), _convolution(width, width, 3)],
            _projection(width_in, width, stride),
        )


class FixupBottleneck(FixupBlock):
    """A 1x1, a 3x3 and a 1x1 convolution to four times the width.

    Args:
        width_in: Channels of the input.
        width: Channels of the 3x3 convolution; the output has 4 * width.
        stride: Of the 3x3 convolution. Default 1.
    """

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__(
            [
                _convolution(width_in, width, 1),
                _convolution(width, width, 3, stride),
                _convolution(width, 4 * width, 1),
            ],
            _projection(width_in, 4 * width, stride),
        )


class FixupResNet(nn.Module):
    """A ResNet without normalisation, initialised by `fixup_init_`.

    Every stage but the first halves the resolution. Shortcuts that change shape are 1x1
    convolutions, as the source's authors have them for ImageNet; for CIFAR they pad with zeros.

    Args:
        blocks: Blocks of each stage.
        block: `FixupBasicBlock` or `FixupBottleneck`. Default `FixupBasicBlock`.
        widths: Channels of each stage, a quarter of its output for `FixupBottleneck`. Default (16,
            32, 64).
        large_stem: True for a 7x7 convolution and a maximum, both with stride 2, of ImageNet's
            ResNets; False for a 3x3 convolution that keeps the resolution. Default False.
        n_classes: Number of outputs. Default 10.
        in_channels: Channels of the images. Default 3.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a number is below 1, or `widths` and `blocks` differ in length or are empty.

    Example:
        ResNet-50 is `FixupResNet((3, 4, 6, 3), block=FixupBottleneck, widths=(64, 128, 256, 512),
        large_stem=True, n_classes=1000)`.

        >>> import torch
        >>> FixupResNet((1, 2), widths=(8, 16), in_channels=1)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])

    Source: Zhang et al. 2019, "Fixup Initialization: Residual Learning Without Normalization".
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        block: type[FixupBasicBlock] | type[FixupBottleneck] = FixupBasicBlock,
        widths: Sequence[int] = (16, 32, 64),
        large_stem: bool = False,
        n_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        per_stage = {"widths": widths, "blocks": blocks}
        check_counts("FixupResNet", per_stage, n_classes=n_classes, in_channels=in_channels)
        check_bool("FixupResNet", "large_stem", large_stem)
        super().__init__()
        kernel_size, stride = (7, 2) if large_stem else (3, 1)
        self.stem = nn.Sequential(
            _convolution(in_channels, widths[0], kernel_size, stride), ScalarBias(), nn.ReLU()
        )
        if large_stem:
            self.stem.append(nn.MaxPool2d(3, 2, padding=1))
        self.stages = nn.ModuleList()
        width_in = widths[0]
        for stage, (width, n_blocks) in enumerate(zip(widths, blocks, strict=True)):
            layers = nn.Sequential()
            for index in range(n_blocks):
                layers.append(block(width_in, width, 2 if stage > 0 and index == 0 else 1))
                width_in = width * block.expansion
            self.stages.append(layers)
        self.head_bias = ScalarBias()
        self.head = nn.Linear(width_in, n_classes)
        fixup_init_(self)

    @classmethod
    def for_small_images(
        cls, depth: int, *, width: int = 16, n_classes: int = 10, in_channels: int = 3
    ) -> "FixupResNet":
        """Return the network of 6n + 2 layers that He et al. train on CIFAR: 20, 32, ... 110.

        Args:
            depth: 6n + 2, n >= 1; n blocks in each of three stages.
            width: Channels of the first stage; the others have 2 and 4 times as many. Default 16.
            n_classes: Number of outputs. Default 10.
            in_channels: Channels of the images. Default 3.

        Raises:
            TypeError: If an argument is no whole number.
            ValueError: If `depth` is none of those, or another number below 1.

        Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
        """
        check_whole("for_small_images", "depth", depth, 8)
        if depth % 6 != 2:
            raise ValueError(f"for_small_images: expected a depth of 6n + 2, n >= 1, got {depth}")
        check_whole("for_small_images", "width", width, 1)
        return cls(
            (int(depth) // 6,) * 3,
            widths=(width, 2 * width, 4 * width),
            n_classes=n_classes,
            in_channels=in_channels,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (N, n_classes), of images, shape (N, in_channels, H, W)."""
        features = self.stem(images)
        for stage in self.stages:
            features = stage(features)
        return self.head(self.head_bias(features.mean(dim=(2, 3))))


def _convolution(width_in: int, width_out: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _projection(width_in: int, width_out: int, stride: int) -> nn.Conv2d | None:
    if width_in == width_out and stride == 1:
        return None
    return _convolution(width_in, width_out, 1, stride)
