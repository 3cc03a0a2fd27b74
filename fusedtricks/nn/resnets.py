"""Residual networks, as in the paper and with the tweaks of "Bag of Tricks"."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from fusedtricks._checks import check_bool
from fusedtricks.nn.resnet_blocks import (
    BasicBlock,
    Bottleneck,
    Variant,
    check_counts,
    convolution,
)
from fusedtricks.nn.zero_gamma import zero_gamma_

__all__ = ["ResNet", "resnet"]

Stem = Literal["imagenet", "small"]

_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
_DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A residual network of any number of stages, in the variants A to D.

    Every stage after the first halves the resolution in its first block. The variants differ in
    where, each adding to the one before:

    - "A": the first 1x1 convolution of a bottleneck has the stride, as in the first paper.
    - "B": its 3x3 convolution has it, so that no pixel goes unread; torchvision's ResNet.
    - "C": three 3x3 convolutions of half, half and the full width replace the stem's 7x7 one.
    - "D": shortcuts average 2x2 pixels in place of dropping three of them.

    Parameters and buffers are called as torchvision's (A, B) and timm's (B, C, D), so that
    their checkpoints load. To anti-alias any variant, see `apply_blurpool`.

    Args:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, and 1x1 of 4 times the
            width).
        layers: Blocks of each stage.
        widths: Channels of each stage's 3x3 convolutions, one per stage; the stem has the first.
            Default (64, 128, 256, 512).
        variant: "A", "B", "C" or "D". Default "D".
        stem: "imagenet" divides the resolution by 4, half of it by max pooling; "small" is one
            3x3 convolution at full resolution, for images of some 32 pixels, in all variants.
            Default "imagenet".
        in_channels: Channels of the images. Default 3.
        n_classes: Number of outputs. Default 1000.
        zero_gamma: Whether to apply `zero_gamma_`. Default False.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a name is unknown, a number is below 1, or `layers` and `widths` differ in
            length or are empty.

    Example:
        >>> import torch
        >>> net = ResNet("basic", (1, 2), widths=(8, 16), variant="B", stem="small", n_classes=5)
        >>> net(torch.zeros(7, 3, 33, 32)).shape
        torch.Size([7, 5])

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.1; He et al.
        2019, "Bag of Tricks for Image Classification with Convolutional Neural Networks", section
        4.2 and figure 2.
    """

    def __init__(
        self,
        block: Literal["basic", "bottleneck"],
        layers: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        variant: Variant = "D",
        stem: Stem = "imagenet",
        in_channels: int = 3,
        n_classes: int = 1000,
        zero_gamma: bool = False,
    ) -> None:
        _check_name("block", block, tuple(_BLOCKS))
        _check_name("variant", variant, get_args(Variant))
        _check_name("stem", stem, get_args(Stem))
        per_stage = {"layers": layers, "widths": widths}
        check_counts("ResNet", per_stage, in_channels=in_channels, n_classes=n_classes)
        check_bool("ResNet", "zero_gamma", zero_gamma)
        super().__init__()
        self.conv1 = _stem(in_channels, widths[0], stem, is_deep=variant in ("C", "D"))
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        is_small = stem == "small"
        self.maxpool = nn.Identity() if is_small else nn.MaxPool2d(3, stride=2, padding=1)
        make_block = _BLOCKS[block]
        self.n_stages = len(layers)
        width_in = widths[0]
        for stage, (n_blocks, width) in enumerate(zip(layers, widths, strict=True), start=1):
            width_out = make_block.expansion * width
            inputs = [width_in] + [width_out] * (n_blocks - 1)
            strides = [1 if stage == 1 else 2] + [1] * (n_blocks - 1)
            blocks = [
                make_block(width_in, width, stride=stride, variant=variant)
                for width_in, stride in zip(inputs, strides, strict=True)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            width_in = width_out
        self.fc = nn.Linear(width_in, n_classes)
        if zero_gamma:
            zero_gamma_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (N, n_classes), of images, shape (N, in_channels, H, W)."""
        features = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        for stage in range(1, self.n_stages + 1):
            features = getattr(self, f"layer{stage}")(features)
        return self.fc(features.mean(dim=(2, 3)))


def resnet(
    depth: Literal[18, 34, 50, 101, 152],
    *,
    variant: Variant = "D",
    stem: Stem = "imagenet",
    in_channels: int = 3,
    n_classes: int = 1000,
    zero_gamma: bool = False,
) -> ResNet:
    """Build a ResNet of a depth from the paper's table.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        variant: See `ResNet`, as for the other arguments. Default "D".
        stem: Default "imagenet".
        in_channels: Default 3.
        n_classes: Default 1000.
        zero_gamma: Default False.

    Raises:
        ValueError: If `depth` is another one, or `ResNet` refuses an argument.

    Example:
        >>> sum(p.numel() for p in resnet(50, variant="D").parameters())
        25576264

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1.
    """
    _check_name("depth", depth, tuple(_DEPTHS))
    block, layers = _DEPTHS[depth]
    return ResNet(
        block,
        layers,
        variant=variant,
        stem=stem,
        in_channels=in_channels,
        n_classes=n_classes,
        zero_gamma=zero_gamma,
    )


def _stem(in_channels: int, width: int, stem: Stem, *, is_deep: bool) -> nn.Module:
    """Return all convolutions before `bn1`."""
    if stem == "small":
        return convolution(in_channels, width, 3)
    if not is_deep:
        return convolution(in_channels, width, 7, stride=2)
    half = (width + 1) // 2
    layers = nn.Sequential(convolution(in_channels, half, 3, stride=2))
    for width_in, width_out in pairwise((half, half, width)):
        layers.append(nn.BatchNorm2d(width_in))
        layers.append(nn.ReLU(inplace=True))
        layers.append(convolution(width_in, width_out, 3))
    return layers


def _check_name(argument: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ValueError(f"ResNet: expected {argument} to be one of {known}, got {value!r}")
