"""Random rotations, scales and shifts: which maps, which way round, and what is outside."""

import math

import pytest
import torch
from torch import Tensor

from fusedtricks.data.image_ops import random_affine
from tests.batches_of_images import make_batch, seeded

OUTSIDE = 1e9


def _maps(n_images: int, height: int, width: int, **options: float | tuple) -> Tensor:
    """Return the maps, shape (N, 2, 3), from pixels (y, x, 1) to (y, x) where they come from.

    From the centre, and found without knowing how it is done: interpolation of ramps is exact.
    """
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    ramps = torch.stack([y.expand(height, width), x.expand(height, width)])
    images = ramps.expand(n_images, -1, -1, -1)
    result = random_affine(images, fill=OUTSIDE, generator=seeded(), **options)
    places = torch.stack([*ramps, torch.ones(height, width, dtype=torch.float64)], dim=-1)
    maps = []
    for image in result:
        is_inside = image.abs().amax(dim=0) < height + width
        assert is_inside.sum() > 50
        given, found = places[is_inside], image[:, is_inside].mT
        solution = torch.linalg.lstsq(given, found).solution
        torch.testing.assert_close(given @ solution, found, rtol=0, atol=1e-5)
        maps.append(solution.mT)
    return torch.stack(maps)


def _parts(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return factors, angles in degrees, and shifts (2, N) in pixels, of rotations and scales."""
    linear, offset = maps[:, :, :2], maps[:, :, 2]
    factors = torch.linalg.det(linear) ** -0.5
    angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    # Where the centre goes to: 0 = linear (shift) + offset.
    return factors, angles, -torch.linalg.solve(linear, offset).mT


def test_maps_are_rotations_scales_and_shifts_in_the_wanted_ranges():
    degrees, low, high, shift = 35.0, 1.25, 1.75, 6.0
    maps = _maps(300, 40, 30, degrees=degrees, scale=(low, high), shift=shift)
    torch.testing.assert_close(maps[:, 0, 0], maps[:, 1, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps[:, 0, 1], -maps[:, 1, 0], rtol=0, atol=1e-5)
    factors, angles, (down, right) = _parts(maps)
    for drawn, least, most in (
        (factors, low, high),
        (angles, -degrees, degrees),
        (down, -shift, shift),
        (right, -shift, shift),
    ):
        unit = ((drawn - least) / (most - least)).sort().values
        assert unit[0] > -1e-4
        assert unit[-1] < 1 + 1e-4
        steps = torch.arange(1, len(unit) + 1) / len(unit)
        # Kolmogorov-Smirnov: exceeded once in a thousand.
        assert (unit - steps).abs().max() < 1.95 / math.sqrt(len(unit))
    drawn = torch.stack([factors, angles, down, right])
    correlations = torch.corrcoef(drawn) - torch.eye(4, dtype=torch.float64)
    assert correlations.abs().max() < 4 / math.sqrt(len(maps))


def test_larger_scales_enlarge():
    images = torch.zeros(2, 1, 9, 11)
    images[:, :, 3:6, 4:7] = 1
    result = random_affine(images, scale=(3, 3))
    # Three pixels become nine.
    assert abs(result[0, 0, 4].sum() - 9) < 0.1
    assert result[0, 0, 4, 5] == 1


def test_agreement_with_torchvision():
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = torch.randn(1, 3, 20, 31, dtype=torch.float64)
    options = {"degrees": 60, "scale": (0.7, 0.8), "shift": 4}
    result = random_affine(images, fill=0.5, generator=seeded(), **options)
    factors, angles, (down, right) = _parts(_maps(1, 20, 31, **options))
    expected = functional.affine(
        images - 0.5,
        angle=float(angles),
        translate=[float(right), float(down)],
        scale=float(factors),
        shear=[0.0, 0.0],
        interpolation=functional.InterpolationMode.BILINEAR,
    )
    torch.testing.assert_close(result, expected + 0.5, rtol=0, atol=1e-4)


def test_no_map_changes_nothing():
    images, _ = make_batch()
    result = random_affine(images, degrees=0, scale=(1, 1), shift=0, fill=0.5)
    torch.testing.assert_close(result, images, rtol=0, atol=1e-5)


def test_outside_of_the_image_is_the_fill():
    images = torch.ones(40, 1, 16, 16)
    result = random_affine(images, shift=6, fill=-2.0, generator=seeded())
    for corner in (result[:, :, 0, 0], result[:, :, -1, -1]):
        is_fill = (corner + 2).abs() < 1e-5
        assert 10 < is_fill.sum() < 40
    assert (result[:, :, 8, 8] - 1).abs().max() < 1e-5
    assert result.min() > -2.001
    assert result.max() < 1.001


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: random_affine(IMAGES, scale=1.5),
            TypeError,
            "random_affine: expected scale to be two numbers, .*, got 1.5",
        ),
        (
            lambda: random_affine(IMAGES, degrees=-5),
            ValueError,
            r"random_affine: expected degrees to be a finite number of at least 0, got -5",
        ),
        (
            lambda: random_affine(IMAGES, scale=(0, 1)),
            ValueError,
            r"random_affine: expected scale above 0, got \(0, 1\)",
        ),
        (
            lambda: random_affine(IMAGES, scale=(1.5, 1.25)),
            ValueError,
            r"random_affine: expected scale to be a finite number of at least 1.5, got 1.25",
        ),
        (
            lambda: random_affine(IMAGES, shift=math.inf),
            ValueError,
            r"random_affine: expected shift to be a finite number of at least 0, got inf",
        ),
        (
            lambda: random_affine(IMAGES.to(torch.uint8)),
            TypeError,
            "random_affine: expected images of a floating point dtype, got torch.uint8",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
