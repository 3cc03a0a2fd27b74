"""A residual network for images of 8x8 pixels."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SmallResNet"]


class SmallResNet(nn.Module):
    """A ResNet with basic blocks, three resolutions and batch normalisation.

    The stem keeps the resolution, every stage but the first halves it: 8x8, 4x4, 2x2 with the
    defaults. Most parameters sit in the last stage, where a convolution is cheap, so that the
    optimizer step is a visible part of a training step.

    Args:
        in_channels: Channels of the images. Default 1.
        n_classes: Number of outputs. Default 10.
        widths: Channels of each stage. Default (32, 64, 128).
        blocks: Blocks of each stage. Default (1, 2, 6), in all 1.9 M parameters in 65 tensors.

    Raises:
        ValueError: If `widths` and `blocks` differ in length, or are empty.

    Example:
        >>> import torch
        >>> SmallResNet()(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", figure 5 left.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 10,
        *,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (1, 2, 6),
    ) -> None:
        if not widths or len(widths) != len(blocks):
            raise ValueError(
                f"SmallResNet: expected widths and blocks of one length, got {widths} and {blocks}"
            )
        super().__init__()
        self.stem = _conv_norm(in_channels, widths[0], 3, stride=1)
        self.stages = nn.ModuleList()
        width_in = widths[0]
        for stage, (width, n_blocks) in enumerate(zip(widths, blocks, strict=True)):
            layers = nn.Sequential()
            for index in range(n_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(BasicBlock(width_in, width, stride))
                width_in = width
            self.stages.append(layers)
        self.head = nn.Linear(width_in, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (N, n_classes), of images, shape (N, in_channels, H, W)."""
        features = functional.relu(self.stem(images))
        for stage in self.stages:
            features = stage(features)
        return self.head(features.mean(dim=(2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added, projected where shapes differ."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(width_in, width_out, 3, stride)
        self.second = _conv_norm(width_out, width_out, 3, stride=1)
        is_same = width_in == width_out and stride == 1
        self.shortcut = nn.Identity() if is_same else _conv_norm(width_in, width_out, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H / stride, W / stride)."""
        residual = self.second(functional.relu(self.first(features)))
        return functional.relu(residual + self.shortcut(features))


def _conv_norm(width_in: int, width_out: int, kernel_size: int, stride: int) -> nn.Sequential:
    # The normalisation's bias makes one in the convolution useless.
    convolution = nn.Conv2d(
        width_in, width_out, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(width_out))
