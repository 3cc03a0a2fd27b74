"""Flips, shifts and noise, each image for itself, and what they share with affine maps."""

import math

import pytest
import torch

from fusedtricks.data.image_ops import add_noise, random_flip, random_shift
from fusedtricks.train.batches import Batches
from tests.batches_of_images import make_batch, seeded
from tests.devices import DEVICE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("vertical", [False, True])
def test_flips_mirror_whole_images_as_often_as_wanted(vertical, dtype):
    n, probability = 2000, 0.3
    images = torch.arange(n * 2 * 3 * 4).reshape(n, 2, 3, 4).remainder(251).to(dtype)
    result = random_flip(images, probability=probability, vertical=vertical, generator=seeded())
    mirrored = torch.stack([image.flip(1 if vertical else 2) for image in images])
    is_flipped = (result != images).flatten(1).any(dim=1)
    assert result.dtype == dtype
    assert result.equal(torch.where(is_flipped[:, None, None, None], mirrored, images))
    share = is_flipped.double().mean()
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / n)


def test_certain_flips():
    images, _ = make_batch()
    assert random_flip(images, probability=1).equal(images.flip(3))
    assert random_flip(images, probability=0).equal(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_shifts_go_to_every_place_equally_often(dtype):
    n, max_shift, height, width = 2500, 2, 5, 7
    image = torch.arange(1, 71).reshape(2, height, width).to(dtype)
    result = random_shift(
        image.expand(n, -1, -1, -1), max_shift=max_shift, fill=99, generator=seeded()
    )
    assert result.dtype == dtype
    counts = torch.zeros(5, 5)
    for down in range(-max_shift, max_shift + 1):
        for right in range(-max_shift, max_shift + 1):
            expected = torch.full_like(image, 99)
            for y in range(height):
                for x in range(width):
                    if 0 <= y - down < height and 0 <= x - right < width:
                        expected[:, y, x] = image[:, y - down, x - right]
            is_this = (result == expected).flatten(1).all(dim=1)
            counts[down + max_shift, right + max_shift] = is_this.sum()
    assert counts.sum() == n
    # Chi-squared with 24 degrees of freedom exceeds 51.2 once in a thousand.
    assert ((counts - n / 25) ** 2 / (n / 25)).sum() < 51.2


def test_what_moves_in_may_differ_between_images():
    images, _ = make_batch()
    background = images[:, :, :1, :1]
    result = random_shift(images, max_shift=30, fill=background, generator=seeded())
    is_background = result == background
    for image, original, is_filled in zip(result, images, is_background, strict=True):
        pixels = image[~is_filled]
        assert torch.isin(pixels, original).all()
    assert is_background.any()


def test_shifts_farther_than_the_image():
    result = random_shift(torch.ones(50, 1, 2, 3), max_shift=40, fill=4.0, generator=seeded())
    assert (result == 4.0).flatten(1).all(dim=1).sum() > 30


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the trainer's batches are on the CPU")
def test_the_trainers_batches_are_shifted_by_it():
    images = torch.randint(0, 16, (13, 1, 8, 8)).float()
    labels = torch.arange(13)
    batches = Batches(images, labels, batch_size=5, seed=11, max_shift=2)
    generator = seeded(11)
    chosen = torch.randperm(13, generator=generator)[:5]
    expected = random_shift(
        images[chosen], max_shift=2, fill=images[chosen, :, :1, :1], generator=generator
    )
    result, _ = batches.next()
    assert result.equal(expected)
    assert not result.equal(images[chosen])
    assert generator.get_state().equal(batches.state_dict()["generator"])


@pytest.mark.parametrize("max_shift", [0, 1])
def test_the_result_is_always_a_new_tensor(max_shift):
    images = torch.randn(3, 2, 5, 7)
    for each in (images, images.to(memory_format=torch.channels_last), images.mT):
        before = each.clone()
        result = random_shift(each, max_shift=max_shift, generator=seeded())
        assert max_shift > 0 or result.equal(each)
        result.zero_()
        assert each.equal(before)
        is_last = each.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [(torch.uint8, 255), (torch.uint8, 0.0), (torch.int8, -128), (torch.bool, 1)],
)
def test_integers_are_filled_with_any_number_of_their_range(dtype, fill):
    images = torch.ones(2, 1, 3, 3, dtype=dtype)
    for each in (fill, torch.full((2, 1, 1, 1), fill, dtype=dtype)):
        result = random_shift(images, max_shift=40, fill=each, generator=seeded())
        assert result.equal(torch.full_like(images, fill))


def test_noise_is_normal_and_independent():
    images = torch.full((20, 3, 32, 32), 5.0, dtype=torch.float64)
    noise = add_noise(images, std=0.3, generator=seeded()) - images
    n = noise.numel()
    assert abs(noise.mean()) < 4 * 0.3 / math.sqrt(n)
    assert abs(noise.std() / 0.3 - 1) < 4 / math.sqrt(2 * n)
    assert abs((noise**4).mean() / 0.3**4 - 3) < 4 * math.sqrt(96 / n)
    for shifted in (noise.roll(1, 0), noise.roll(1, 1), noise.roll(1, 2), noise.roll(1, 3)):
        correlation = torch.corrcoef(torch.stack([noise.flatten(), shifted.flatten()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(n)


IMAGES = torch.zeros(2, 3, 8, 8)
BYTES = IMAGES.to(torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: random_flip(IMAGES[0]),
            ValueError,
            r"random_flip: expected images of shape \(N, C, H, W\), got \[3, 8, 8\]",
        ),
        (
            lambda: random_flip(IMAGES, probability=-0.5),
            ValueError,
            r"random_flip: expected probability in \[0, 1\], got -0.5",
        ),
        (
            lambda: random_shift(IMAGES, max_shift=1.5),
            TypeError,
            "random_shift: expected max_shift to be a whole number, got 1.5",
        ),
        (
            lambda: random_shift(IMAGES, max_shift=-1),
            ValueError,
            "random_shift: expected max_shift of at least 0, got -1",
        ),
        (
            lambda: random_shift(IMAGES, max_shift=2, fill=torch.zeros(3)),
            ValueError,
            r"random_shift: expected .* fill of shape \[2, 3, 1, 1\], got one of shape \[3\]",
        ),
        *(
            (
                lambda fill=fill: random_shift(BYTES, max_shift=2, fill=fill),
                ValueError,
                rf"random_shift: expected fill in \[0, 255\], got {fill}",
            )
            for fill in (-1, 300, math.nan)
        ),
        (
            lambda: random_shift(BYTES, max_shift=0, fill=0.5),
            ValueError,
            "random_shift: expected fill to be a whole number for .* torch.uint8, got 0.5",
        ),
        (
            lambda: random_shift(BYTES, max_shift=2, fill=torch.full((2, 3, 1, 1), 0.5)),
            TypeError,
            "random_shift: expected fill of the images' dtype torch.uint8, got torch.float32",
        ),
        (
            lambda: random_shift(IMAGES, max_shift=2, fill="a"),
            TypeError,
            "random_shift: expected fill to be a number, got 'a'",
        ),
        (
            lambda: random_shift(IMAGES, max_shift=2, fill=None),
            TypeError,
            "random_shift: expected fill to be a number, got None",
        ),
        (
            lambda: random_shift(IMAGES.half(), max_shift=2, fill=1e6),
            ValueError,
            r"random_shift: expected fill in \[-65504.0, 65504.0\], got 1000000.0",
        ),
        (
            lambda: add_noise(IMAGES, std=0.1, generator=42),
            TypeError,
            r"got 42; from a seed, torch.Generator\(\).manual_seed\(42\)",
        ),
        (
            lambda: add_noise(IMAGES, std=-0.1),
            ValueError,
            r"add_noise: expected std to be a finite number of at least 0, got -0.1",
        ),
        (
            lambda: add_noise(IMAGES.to(torch.uint8), std=0.1),
            TypeError,
            "add_noise: expected images of a floating point dtype, got torch.uint8",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
