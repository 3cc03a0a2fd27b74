"""Residual blocks: ours, and how to find those of torchvision and timm."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from fusedtricks._checks import check_whole

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "Variant",
    "check_counts",
    "convolution",
    "find_residual_blocks",
    "is_a",
]

Variant = Literal["A", "B", "C", "D"]

# Their layers are conv1, bn1, conv2, bn2 and so on, in the order of use, and `downsample`.
_KNOWN_BLOCKS = [
    f"{module}.{name}"
    for module in (__name__, "torchvision.models.resnet", "timm.models.resnet")
    for name in ("BasicBlock", "Bottleneck")
]


class BasicBlock(nn.Module):
    """y = relu(bn2(conv2(relu(bn1(conv1(x))))) + downsample(x)), both convolutions 3x3.

    Args:
        width_in: Channels of the input.
        width: Channels of both convolutions.
        stride: Of the first convolution and of the shortcut.
        variant: "D" for a shortcut that averages; the others do not differ.
    """

    expansion = 1

    def __init__(self, width_in: int, width: int, *, stride: int, variant: Variant) -> None:
        super().__init__()
        self.conv1 = convolution(width_in, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(width_in, width, stride, averages=variant == "D")

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride), rounded up."""
        residual = self.act1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        return self.act2(residual + self.downsample(features))


class Bottleneck(nn.Module):
    """As `BasicBlock` with convolutions of 1x1, 3x3 and 1x1, the last one of 4 * width channels.

    Args:
        width_in: Channels of the input.
        width: Channels of the first two convolutions.
        stride: Of the shortcut, and of the first convolution ("A") or the second one.
        variant: "A", or "D" for a shortcut that averages; "B" and "C" do not differ.
    """

    expansion = 4

    def __init__(self, width_in: int, width: int, *, stride: int, variant: Variant) -> None:
        super().__init__()
        width_out = self.expansion * width
        strides = (stride, 1) if variant == "A" else (1, stride)
        self.conv1 = convolution(width_in, width, 1, stride=strides[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = convolution(width, width, 3, stride=strides[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = convolution(width, width_out, 1)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(width_in, width_out, stride, averages=variant == "D")

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, 4 * width, H / stride, W / stride), rounded up."""
        residual = self.act1(self.bn1(self.conv1(features)))
        residual = self.act2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.act3(residual + self.downsample(features))


def convolution(width_in: int, width_out: int, kernel_size: int, *, stride: int = 1) -> nn.Conv2d:
    """Return a padded convolution with the weights of He et al. 2015, "Delving Deep", eq. 14.

    The normalisation that follows makes a bias useless.
    """
    layer = nn.Conv2d(
        width_in, width_out, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def check_counts(what: str, per_stage: dict[str, Sequence[int]], **counts: int) -> None:
    """Refuse counts below 1; those per stage must be of one length, and of at least one stage.

    Raises:
        TypeError: If one is no whole number, or those per stage are no sequence.
        ValueError: If one is below 1, or there are more or fewer of one kind than of the others.
    """
    for name, values in per_stage.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(f"{what}: expected {name} to be whole numbers, got {values!r}")
        if not values:
            raise ValueError(f"{what}: expected {name} of at least one stage, got none")
    if len({len(values) for values in per_stage.values()}) > 1:
        names, got = (" and ".join(map(str, each)) for each in (per_stage, per_stage.values()))
        raise ValueError(f"{what}: expected {names} of one length, got {got}")
    for name, values in per_stage.items():
        for value in values:
            check_whole(what, name, value, 1)
    for name, value in counts.items():
        check_whole(what, name, value, 1)


def find_residual_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the residual blocks of fusedtricks, torchvision and timm in a model, by name.

    A block is known by its class or a base of it, so that neither library need be installed.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if any(is_a(module, known) for known in _KNOWN_BLOCKS)
    }


def is_a(module: nn.Module, class_name: str) -> bool:
    """Tell whether a module is of a class, given as "package.module.Name", or of a subclass."""
    return any(
        f"{base.__module__}.{base.__qualname__}" == class_name for base in type(module).mro()
    )


def _shortcut(width_in: int, width_out: int, stride: int, *, averages: bool) -> nn.Module:
    if width_in == width_out and stride == 1:
        return nn.Identity()
    if not averages:
        return nn.Sequential(
            convolution(width_in, width_out, 1, stride=stride), nn.BatchNorm2d(width_out)
        )
    # At the end of an odd side, the average is over what is there: timm's and GluonCV's weights
    # were trained so. The place is taken also where there is nothing to average: names count.
    pool = nn.AvgPool2d(stride, ceil_mode=True)
    return nn.Sequential(
        pool if stride > 1 else nn.Identity(),
        convolution(width_in, width_out, 1),
        nn.BatchNorm2d(width_out),
    )
