"""Holes in images."""

import dataclasses
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Generator, Tensor

from fusedtricks._checks import check_number, check_whole
from fusedtricks.data.applying import planned_images
from fusedtricks.data.batch_tricks import BatchTrick
from fusedtricks.data.checks import check_images
from fusedtricks.data.drawing import device_of
from fusedtricks.data.plan import BatchPlan

__all__ = ["Cutout", "cutout"]


@dataclass(frozen=True)
class Cutout(BatchTrick):
    """Fill a square of every image; targets stay as they are.

    The centre is any pixel of the image, each as likely as the others, so that the square may
    stick out by half its size. Only for training: the network sees whole images afterwards.

    A square of odd size has that size; the authors' code rounds it down to an even one. For
    rectangles inside the image, use torchvision.transforms.v2.RandomErasing.

    Args:
        size: Side of the square in pixels, at least 0.
        probability: How likely each image gets one. Default 1.
        fill: Value inside. Default 0, the mean of images that are normalised.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a value is of another kind.

    Example:
        >>> images, targets = Cutout(8)(torch.rand(5, 3, 32, 32), torch.arange(5))
        >>> targets.is_mixed
        False

    Source: DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with
        Cutout", section 3.2; size 16 on CIFAR-10 and 8 on CIFAR-100, section 4.
    """

    size: int
    _: KW_ONLY
    probability: float = 1.0
    fill: float = 0.0

    cuts = True

    def __post_init__(self) -> None:
        check_whole("Cutout", "size", self.size, low=0)
        check_number("Cutout", "probability", self.probability, low=0, high=1)
        check_number("Cutout", "fill", self.fill, low=-float("inf"))

    def plan(
        self, n_images: int, height: int, width: int, *, generator: Generator | None = None
    ) -> BatchPlan:
        """Draw which images get a square, then its place; see `BatchTrick.plan`."""
        device = device_of(generator)
        drawn = torch.rand(3, n_images, generator=generator, device=device, dtype=torch.float64)
        is_cut = drawn[0] < self.probability
        edges = []
        for position, length in zip(drawn[1:], (height, width), strict=True):
            start = (position * length).to(torch.int64) - self.size // 2
            edges += [start.clamp(min=0), (start + self.size).clamp(max=length)]
        hole = torch.stack(edges, dim=1) * is_cut[:, None]
        return dataclasses.replace(BatchPlan.nothing(n_images, device), hole=hole, has_holes=True)


def cutout(
    images: Tensor,
    *,
    size: int,
    probability: float = 1.0,
    fill: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill a square of every image.

    Args:
        images: Shape (N, C, H, W), floating point; not modified.
        size: See `Cutout`.
        probability: See `Cutout`. Default 1.
        fill: See `Cutout`. Default 0.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format.

    Raises:
        ValueError: If a shape does not fit, or a value is out of range.
        TypeError: If a dtype or a value is of another kind.

    Example:
        >>> cutout(torch.rand(5, 3, 32, 32), size=8).shape
        torch.Size([5, 3, 32, 32])

    Source: see `Cutout`.
    """
    trick = Cutout(size, probability=probability, fill=fill)
    check_images("cutout", images)
    n_images, _, height, width = images.shape
    plan = trick.plan(n_images, height, width, generator=generator)
    return planned_images(images, plan, fill=fill)
