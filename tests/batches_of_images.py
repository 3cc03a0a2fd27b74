"""Batches for the tests of tricks on images, and what a plan says, pixel by pixel."""

import torch
from torch import Generator, Tensor

from fusedtricks.data.plan import BatchPlan

N_CLASSES = 5


def seeded(seed: int = 7) -> Generator:
    """Return a generator on the CPU."""
    return Generator().manual_seed(seed)


def make_batch(n_images: int = 7, height: int = 9, width: int = 11) -> tuple[Tensor, Tensor]:
    """Return images of three channels, and labels of all classes."""
    return torch.randn(n_images, 3, height, width), torch.arange(n_images) % N_CLASSES


def pixel_by_pixel(images: Tensor, plan: BatchPlan, fill: float) -> Tensor:
    """Return what the definition of a plan makes of images, in float64."""
    images = images.double()
    result = images.clone()
    n_images, _, height, width = images.shape
    for i in range(n_images):
        other = images[plan.partner[i]]
        share = plan.own_share[i].double()
        for y in range(height):
            for x in range(width):
                result[i, :, y, x] = share * images[i, :, y, x] + (1 - share) * other[:, y, x]
                top, bottom, left, right = plan.patch[i].tolist()
                if top <= y < bottom and left <= x < right:
                    result[i, :, y, x] = other[:, y, x]
                top, bottom, left, right = plan.hole[i].tolist()
                if top <= y < bottom and left <= x < right:
                    result[i, :, y, x] = fill
    return result
