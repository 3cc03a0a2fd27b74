"""The two-branch residual network that Shake-Shake was made for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_module
from fusedtricks.nn.resnet_blocks import check_counts, convolution
from fusedtricks.nn.shake import ShakeShake

__all__ = ["ShakeShakeBlock", "ShakeShakeResNet"]

# The source keeps it while the stages get wider.
_STEM_WIDTH = 16


class ShakeShakeResNet(nn.Module):
    """A pre-activation ResNet with two branches per block: "26 2x32d" with the defaults.

    A 3x3 convolution with batch normalisation, the blocks, ReLU, the mean over all pixels, and a
    linear layer. Every stage but the first halves the resolution and doubles the width. There are
    2 * sum(blocks) + 2 layers one behind the other.

    Args:
        in_channels: Channels of the images. Default 3.
        n_classes: Number of outputs. Default 10.
        width: Channels of the first stage, even. Default 32; 64 and 96 in the source, too.
        blocks: Blocks of each stage. Default (4, 4, 4).
        shake: How all blocks weigh their branches. Default `ShakeShake()`, which the source calls
            Shake-Shake-Image.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a number is below 1, `width` is odd, or `blocks` is empty.

    Example:
        >>> ShakeShakeResNet(1, 10, width=8, blocks=(1, 1))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])

    Source: Gastaldi 2017, "Shake-Shake regularization", section 2.1; details that it leaves out,
        such as the ReLU before the shortcut's convolutions, as in the author's code.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        *,
        width: int = 32,
        blocks: Sequence[int] = (4, 4, 4),
        shake: ShakeShake | None = None,
    ) -> None:
        counts = {"in_channels": in_channels, "n_classes": n_classes, "width": width}
        check_counts("ShakeShakeResNet", {"blocks": blocks}, **counts)
        if width % 2:
            raise ValueError(f"ShakeShakeResNet: expected an even width, got {width}")
        shake = ShakeShake() if shake is None else shake
        check_module("ShakeShakeResNet", "shake", shake)
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(in_channels, _STEM_WIDTH, stride=1))
        self.stages = nn.ModuleList()
        width_in = _STEM_WIDTH
        for stage, n_blocks in enumerate(blocks):
            layers = nn.Sequential()
            for index in range(n_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(ShakeShakeBlock(width_in, width * 2**stage, stride, shake))
                width_in = width * 2**stage
            self.stages.append(layers)
        self.head = nn.Linear(width_in, n_classes)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (N, n_classes), of images, shape (N, in_channels, H, W)."""
        features = self.stem(images)
        for stage in self.stages:
            features = stage(features)
        return self.head(functional.relu(features).mean(dim=(2, 3)))


class ShakeShakeBlock(nn.Module):
    """shortcut(x) + shake(first(relu(x)), second(relu(x))).

    A branch is Conv3x3-BN-ReLU-Conv3x3-BN. The ReLU in front of both, and of a shortcut that is not
    the identity, is computed once.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output, even.
        stride: Of the first convolutions and of the shortcut.
        shake: How the branches are weighed; may be shared between blocks.

    Source: Gastaldi 2017, "Shake-Shake regularization", figure 1.
    """

    def __init__(self, width_in: int, width_out: int, stride: int, shake: ShakeShake) -> None:
        super().__init__()
        self.first = _branch(width_in, width_out, stride)
        self.second = _branch(width_in, width_out, stride)
        self.shake = shake
        is_same = width_in == width_out and stride == 1
        self.shortcut = None if is_same else ShiftedShortcut(width_in, width_out, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H / stride, W / stride)."""
        active = functional.relu(features)
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return shortcut + self.shake(self.first(active), self.second(active))


class ShiftedShortcut(nn.Module):
    """Two 1x1 convolutions on pixels that lie one apart, side by side, and batch normalisation.

    A 1x1 convolution with stride 2 sees a quarter of the pixels. The second one sees the image
    shifted by a pixel to the right and to the bottom, with zeros moving in, hence another quarter.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output, even; each convolution gives half of them.
        stride: Of both convolutions.

    Source: Gastaldi 2017, "Shake-Shake regularization", section 2.1.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.plain = convolution(width_in, width_out // 2, 1, stride=stride)
        self.shifted = convolution(width_in, width_out // 2, 1, stride=stride)
        self.norm = nn.BatchNorm2d(width_out)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H / stride, W / stride), rounded up."""
        shifted = functional.pad(features, (1, -1, 1, -1))
        return self.norm(torch.cat([self.plain(features), self.shifted(shifted)], dim=1))


def _branch(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_conv_norm(width_in, width_out, stride),
        nn.ReLU(inplace=True),
        *_conv_norm(width_out, width_out, stride=1),
    )


def _conv_norm(width_in: int, width_out: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return convolution(width_in, width_out, 3, stride=stride), nn.BatchNorm2d(width_out)
