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
    partner, own_share = plan.partner.tolist(), plan.own_share.tolist()
    patches, holes = plan.patch.tolist(), plan.hole.tolist()
    for i, image in enumerate(images):
        other = images[partner[i]]
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                blend = own_share[i] * image[:, y, x] + (1 - own_share[i]) * other[:, y, x]
                result[i, :, y, x] = other[:, y, x] if is_inside(patches[i], y, x) else blend
                if is_inside(holes[i], y, x):
                    result[i, :, y, x] = fill
    return result


def is_inside(box: list[int], y: int, x: int) -> bool:
    """Return whether a pixel is inside of a box: top, bottom, left and right."""
    top, bottom, left, right = box
    return top <= y < bottom and left <= x < right
