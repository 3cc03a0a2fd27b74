"""How the images of ImageNet are prepared, out of torchvision's parts and ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedtricks import _extras
from fusedtricks._checks import check_whole
from fusedtricks.data.checks import check_interval, check_pair, checked_normalisation
from fusedtricks.data.colour import HSVJitter, PCANoise

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "imagenet_eval_transform", "imagenet_train_transform"]

# Red, green and blue in [0, 1]; what torchvision's and timm's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_train_transform(
    size: int = 224,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    jitter: tuple[float, float] = (0.6, 1.4),
    noise_std: float = 0.1,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Callable[[Any], Tensor]:
    """Return the transform of training images that "Bag of Tricks" starts from.

    A random box of a random area and of proportions from 3:4 to 4:3, resized to a square; mirrored
    half of the time; hue, saturation and value scaled; noise along ImageNet's colours; normalised.
    Everything is drawn from torch's default generator, which `DataLoader` seeds differently for
    each worker; nothing comes from numpy or Python's random.

    The transform is a torchvision.transforms.v2.Compose; more of torchvision's goes around it:
    TrivialAugmentWide or RandAugment before, RandomErasing after.

    Args:
        size: Height and width of the result in pixels, at least 1. Default 224.
        area: Smallest and largest part of the image that is taken, above 0 and at most 1. Default
            (0.08, 1).
        jitter: Smallest and largest factor of `HSVJitter`. Default (0.6, 1.4).
        noise_std: Standard deviation of `PCANoise`. Default 0.1.
        mean: Subtracted from red, green and blue in [0, 1]. Default ImageNet's.
        std: What they are then divided by, above 0. Default ImageNet's.

    Returns:
        A picklable transform from a PIL image, or a uint8 tensor of shape (3, H, W), to a float32
        tensor of shape (3, size, size). Given a sample, such as an image and its label or a dict,
        it changes the image and passes the rest through.

    Raises:
        MissingExtraError: If torchvision cannot be imported.
        ValueError: If size, area, a factor, noise_std, mean or std is out of range.
        TypeError: If one of them is of another kind.

    Example:
        >>> from torchvision.transforms import v2
        >>> transform = v2.Compose([imagenet_train_transform(160), v2.RandomErasing(0.25)])
        >>> transform(torch.randint(256, (3, 200, 300), dtype=torch.uint8)).shape
        torch.Size([3, 160, 160])

    Source: He et al. 2019, "Bag of Tricks for Image Classification", section 2.1. Mean and std are
        torchvision's, which differ from the paper's in the third digit.
    """
    check_whole("imagenet_train_transform", "size", size, low=1)
    check_interval("imagenet_train_transform", "area", area, high=1)
    check_pair("imagenet_train_transform", "jitter", jitter)
    mean, std = checked_normalisation("imagenet_train_transform", mean, std, n_channels=3)
    v2 = _extras.require("torchvision.transforms.v2")
    return v2.Compose(
        [
            v2.RGB(),
            v2.ToImage(),
            v2.RandomResizedCrop(size, scale=area, ratio=(3 / 4, 4 / 3), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            HSVJitter(*jitter),
            PCANoise(noise_std),
            v2.Normalize(mean, std),
        ]
    )


def imagenet_eval_transform(
    size: int = 224,
    *,
    resize: int = 256,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Callable[[Any], Tensor]:
    """Return the transform of images that a network is tested with: nothing in it is random.

    The shorter side is resized, the centre is cut out and normalised. It takes nothing from any
    generator, so that a test set is the same for any number of workers.

    Args:
        size: Height and width of the result in pixels, at least 1. Default 224.
        resize: Length of the shorter side before, in pixels. Default 256.
        mean: Subtracted from red, green and blue in [0, 1]. Default ImageNet's.
        std: What they are then divided by, above 0. Default ImageNet's.

    Returns:
        A picklable transform from a PIL image, or a uint8 tensor of shape (3, H, W), to a float32
        tensor of shape (3, size, size). Given a sample, such as an image and its label or a dict,
        it changes the image and passes the rest through.

    Raises:
        MissingExtraError: If torchvision cannot be imported.
        ValueError: If size is larger than resize or below 1, or mean or std is out of range.
        TypeError: If size or resize is no whole number, or mean or std no sequence of numbers.

    Example:
        >>> transform = imagenet_eval_transform(160, resize=182)
        >>> transform(torch.randint(256, (3, 200, 300), dtype=torch.uint8)).shape
        torch.Size([3, 160, 160])

    Source: He et al. 2019, "Bag of Tricks for Image Classification", section 2.1.
    """
    check_whole("imagenet_eval_transform", "size", size, low=1)
    check_whole("imagenet_eval_transform", "resize", resize, low=1)
    if size > resize:
        raise ValueError(
            f"imagenet_eval_transform: expected size of at most resize={resize}, got {size}; the "
            "crop would stick out of the image"
        )
    mean, std = checked_normalisation("imagenet_eval_transform", mean, std, n_channels=3)
    v2 = _extras.require("torchvision.transforms.v2")
    return v2.Compose(
        [
            v2.RGB(),
            v2.ToImage(),
            v2.Resize(resize, antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
