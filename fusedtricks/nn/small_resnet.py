"""A residual network for images of 8x8 pixels."""

from collections.abc import Sequence

from torch import nn

from fusedtricks.nn.resnet_blocks import check_counts
from fusedtricks.nn.resnets import ResNet

__all__ = ["SmallResNet"]


class SmallResNet(ResNet):
    """A `ResNet` with basic blocks and three resolutions, small enough for a CPU.

    The stem keeps the resolution, every stage but the first halves it: 8x8, 4x4, 2x2 with the
    defaults. Most parameters sit in the last stage, where a convolution is cheap, so that the
    optimizer step is a visible part of a training step.

    Args:
        in_channels: Channels of the images. Default 1.
        n_classes: Number of outputs. Default 10.
        widths: Channels of each stage. Default (32, 64, 128).
        blocks: Blocks of each stage. Default (1, 2, 6), in all 1.9 M parameters in 65 tensors.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a number is below 1, or `widths` and `blocks` differ in length or are empty.

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
        # Once more, since `ResNet` would call the blocks layers.
        check_counts("SmallResNet", {"widths": widths, "blocks": blocks})
        super().__init__(
            "basic",
            blocks,
            widths=widths,
            variant="B",
            stem="small",
            in_channels=in_channels,
            n_classes=n_classes,
        )

    @property
    def head(self) -> nn.Linear:
        """The layer that makes the logits."""
        return self.fc
