"""Colours: conversion as in the standard library, jitter and noise as in the papers."""

import colorsys
import copy
import math
import pickle
from functools import partial

import pytest
import torch

from fusedtricks.data.colour import (
    HSVJitter,
    PCANoise,
    hsv_jitter,
    hsv_to_rgb,
    pca_noise,
    rgb_to_hsv,
)
from tests.batches_of_images import seeded
from tests.devices import DEVICE

# As published with fb.resnet.torch; eigenvectors are columns.
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64, device="cpu")
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    dtype=torch.float64,
    device="cpu",
)


def _all_colours():
    """Every colour with six levels of each channel, primaries and greys among them."""
    levels = torch.arange(6, dtype=torch.float64) / 5
    return torch.cartesian_prod(levels, levels, levels).T.reshape(3, 12, 18)


def _by_colorsys(function, image):
    pixels = [function(*pixel) for pixel in image.flatten(1).T.tolist()]
    return torch.tensor(pixels, dtype=torch.float64).T.reshape(image.shape)


def test_conversions_are_those_of_the_standard_library():
    colours = _all_colours()
    torch.testing.assert_close(
        rgb_to_hsv(colours), _by_colorsys(colorsys.rgb_to_hsv, colours), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        hsv_to_rgb(colours), _by_colorsys(colorsys.hsv_to_rgb, colours), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(dtype):
    images = torch.rand(2, 5, 3, 7, 9, dtype=dtype)
    back = hsv_to_rgb(rgb_to_hsv(images))
    torch.testing.assert_close(back, images, rtol=0, atol=1e-6)
    assert rgb_to_hsv(images).shape == images.shape


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0, 1.3])
def test_jitter_by_a_known_factor(factor):
    image = _all_colours()

    def scaled(red, green, blue):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb(
            hue * factor % 1, min(saturation * factor, 1), min(value * factor, 1)
        )

    expected = _by_colorsys(scaled, image)
    for batch in (image[None], image.expand(4, -1, -1, -1)):
        result = hsv_jitter(batch, low=factor, high=factor)
        # The factor is a float32 number.
        torch.testing.assert_close(result, expected.expand_as(batch), rtol=0, atol=1e-6)


def test_every_image_draws_three_factors_of_its_own():
    n, low, high = 4000, 0.7, 1.2
    hsv = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    images = hsv_to_rgb(hsv[:, None, None]).expand(n, -1, 2, 3)
    result = rgb_to_hsv(hsv_jitter(images, low=low, high=high, generator=seeded()))
    assert (result.amax(dim=(2, 3)) - result.amin(dim=(2, 3))).abs().max() < 1e-9
    factors = (result[:, :, 0, 0] / hsv).T
    units = (factors - low) / (high - low)
    assert units.min() > -1e-6
    assert units.max() < 1 + 1e-6
    steps = torch.arange(1, n + 1) / n
    for unit in units:
        # Kolmogorov-Smirnov: exceeded once in a thousand.
        assert (unit.sort().values - steps).abs().max() < 1.95 / math.sqrt(n)
    correlations = torch.corrcoef(units) - torch.eye(3, dtype=torch.float64)
    assert correlations.abs().max() < 4 / math.sqrt(n)


def test_noise_lies_along_the_published_components():
    n, std = 4000, 0.3
    images = torch.rand(n, 3, 2, 3, dtype=torch.float64)
    offsets = pca_noise(images, std=std, generator=seeded()) - images
    assert (offsets - offsets[:, :, :1, :1]).abs().max() < 1e-12
    # The vectors are orthonormal to four digits.
    unit = EIGENVECTORS.mT.to(DEVICE) @ offsets[:, :, 0, 0].mT
    drawn = unit / EIGENVALUES[:, None].to(DEVICE) / std
    assert drawn.mean(dim=1).abs().max() < 4 / math.sqrt(n)
    assert (drawn.std(dim=1) - 1).abs().max() < 4 / math.sqrt(2 * n)
    assert ((drawn**4).mean(dim=1) - 3).abs().max() < 4 * math.sqrt(96 / n)
    correlations = torch.corrcoef(drawn) - torch.eye(3, dtype=torch.float64)
    # The second direction is so much longer than the third that its last digit shows there.
    assert correlations.abs().max() < 4 / math.sqrt(n) + 0.01


def test_noise_of_no_size_changes_nothing():
    images = torch.rand(3, 3, 5, 7)
    assert pca_noise(images, std=0).equal(images)


@pytest.mark.parametrize(
    ("module", "function", "text"),
    [
        (
            HSVJitter(0.7, 1.2),
            partial(hsv_jitter, low=0.7, high=1.2),
            "HSVJitter(low=0.7, high=1.2)",
        ),
        (PCANoise(0.3), partial(pca_noise, std=0.3), "PCANoise(std=0.3)"),
    ],
)
def test_modules_take_single_images_and_can_be_copied(module, function, text):
    image = torch.rand(3, 7, 5)
    torch.manual_seed(5)
    expected = function(image[None])[0]
    for twin in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module).eval()):
        torch.manual_seed(5)
        assert twin(image).equal(expected)
        assert repr(twin) == text
    images = torch.rand(2, 3, 7, 5)
    torch.manual_seed(5)
    expected = function(images)
    torch.manual_seed(5)
    assert module(images).equal(expected)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU a look would wait")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_images_outside_of_their_range_are_refused(dtype):
    images = torch.full((2, 3, 4, 5), 0.5)
    images[1, 2, 3, 4] = 1.0005
    images[1, 2, 3, 3] = -0.0005
    assert hsv_jitter(images.to(dtype)).isfinite().all()
    for value in (255.0, -0.25, math.nan):
        images[1, 2, 3, 4] = value
        with pytest.raises(ValueError, match=r"hsv_jitter: expected images in \[0, 1\], got"):
            hsv_jitter(images.to(dtype))
        assert pca_noise(images.to(dtype)).shape == images.shape


@pytest.mark.parametrize("module", [HSVJitter(), PCANoise()])
def test_modules_say_how_to_prepare_other_images(module):
    image_class = pytest.importorskip("PIL.Image")
    name = type(module).__name__
    message = f"{name}: expected images to be a tensor, got Image; for PIL images, .*ToImage"
    with pytest.raises(TypeError, match=message):
        module(image_class.new("RGB", (5, 4)))
    with pytest.raises(TypeError, match=f"{name}: expected images to be a tensor, got NoneType"):
        module(None)
    pytest.importorskip("torchvision")
    with pytest.raises(TypeError, match=message):
        module(image_class.new("RGB", (5, 4)), 3)


@pytest.mark.parametrize("module", [HSVJitter(0.25, 0.5), PCANoise(0.75)])
def test_modules_change_nothing_but_the_images_of_a_sample(module):
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    image = torch.rand(3, 4, 5)
    torch.manual_seed(3)
    expected = module(image)
    explicit, mask = tv_tensors.Image(image), tv_tensors.Mask(torch.ones(4, 5))
    label = torch.rand(3, 4, 5)
    torch.manual_seed(3)
    result, other_label, other_mask = module(explicit, label, mask)
    assert result.equal(expected)
    assert other_label is label
    assert other_mask is module(mask) is mask
    torch.manual_seed(3)
    sample = module({"label": label, "nested": [explicit, "name"]})
    assert sample["label"] is label
    assert sample["nested"][0].equal(expected)
    torch.manual_seed(3)
    # Without an explicit image, the first tensor is one.
    result, other_label = module((image, label))
    assert result.equal(expected)
    assert other_label is label
    assert type(module(explicit)) is tv_tensors.Image
    assert type(module(image)) is torch.Tensor


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: hsv_jitter(IMAGES[:, :1]),
            ValueError,
            r"hsv_jitter: expected images of 3 channels, got \[2, 1, 8, 8\]",
        ),
        (
            lambda: hsv_jitter(IMAGES.to(torch.uint8)),
            TypeError,
            "hsv_jitter: expected images of a floating point dtype, got torch.uint8",
        ),
        (
            lambda: hsv_jitter(IMAGES, low=-0.5),
            ValueError,
            r"hsv_jitter: expected low to be a finite number of at least 0, got -0.5",
        ),
        (
            lambda: hsv_jitter(IMAGES, low=0.75, high=0.5),
            ValueError,
            r"hsv_jitter: expected high to be a finite number of at least 0.75, got 0.5",
        ),
        (
            lambda: pca_noise(IMAGES, generator=42),
            TypeError,
            r"got 42; from a seed, torch.Generator\(\).manual_seed\(42\)",
        ),
        (
            lambda: HSVJitter(2, 1),
            ValueError,
            "HSVJitter: expected high .* of at least 2, got 1",
        ),
        (
            lambda: pca_noise(IMAGES[0]),
            ValueError,
            r"pca_noise: expected images of shape \(N, C, H, W\), got \[3, 8, 8\]",
        ),
        (
            lambda: pca_noise(IMAGES, std=-1),
            ValueError,
            r"pca_noise: expected std to be a finite number of at least 0, got -1",
        ),
        (lambda: PCANoise("0.1"), TypeError, "PCANoise: expected std to be a number, got '0.1'"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
