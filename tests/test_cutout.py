"""Cutout: where the squares are, how large, and in how many images."""

import math

import pytest
import torch

from fusedtricks.data.holes import Cutout, cutout
from tests.batches_of_images import make_batch, seeded


def _holes(images, **options):
    """Which pixels of images of ones are filled, shape (N, H, W), the same in all channels."""
    result = cutout(images, fill=-3.0, generator=seeded(), **options)
    is_filled = result == -3.0
    assert (is_filled | (result == images)).all()
    assert (is_filled == is_filled[:, :1]).all()
    return is_filled[:, 0]


@pytest.mark.parametrize(("height", "width"), [(9, 14), (7, 7), (1, 3)])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 40])
def test_every_image_has_one_square_around_a_pixel_of_its_own(size, height, width):
    n_images = 400
    holes = _holes(torch.ones(n_images, 2, height, width), size=size)
    # Every place there is, by its definition, and none but those.
    places = set()
    for y in range(height):
        for x in range(width):
            hole = torch.zeros(height, width, dtype=torch.bool)
            top, left = y - size // 2, x - size // 2
            hole[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = True
            places.add(tuple(hole.flatten().tolist()))
    seen = {tuple(hole.flatten().tolist()) for hole in holes}
    assert seen <= places
    assert len(seen) >= 0.8 * len(places)


def test_all_centres_are_equally_likely():
    height, width, n = 3, 5, 6000
    holes = _holes(torch.ones(n, 1, height, width), size=1)
    counts = holes.sum(dim=0).double()
    assert counts.sum() == n
    expected = n / (height * width)
    # Chi-squared with 14 degrees of freedom exceeds 36.1 once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 36.1


def test_each_image_decides_for_itself():
    n, probability = 3000, 0.3
    images = torch.ones(n, 1, 8, 8)
    is_cut = _holes(images, size=3, probability=probability).flatten(1).any(dim=1)
    share = is_cut.double().mean()
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / n)
    assert _holes(images, size=3, probability=1).flatten(1).any(dim=1).all()
    assert not _holes(images, size=3, probability=0).any()


def test_images_without_a_square_and_targets_stay_as_they_are():
    images, labels = make_batch()
    trick = Cutout(3, probability=0.4, fill=0.625)
    result, targets = trick(images, labels, generator=seeded(1))
    is_cut = (result == 0.625).flatten(1).any(dim=1)
    assert is_cut.any()
    assert not is_cut.all()
    assert result[~is_cut].equal(images[~is_cut])
    assert targets.labels.equal(labels)
    assert targets.weights.equal(torch.ones(7, 1))
    assert not targets.is_mixed


def test_function_and_class_are_the_same():
    images, labels = make_batch()
    expected, _ = Cutout(5, probability=0.6, fill=0.25)(images, labels, generator=seeded())
    result = cutout(images, size=5, probability=0.6, fill=0.25, generator=seeded())
    assert result.equal(expected)


@pytest.mark.parametrize("n_images", [0, 1, 5])
def test_input_and_layout_stay(n_images):
    images = torch.randn(n_images, 3, 7, 5).to(memory_format=torch.channels_last)
    before = images.clone()
    result = cutout(images, size=3, generator=seeded())
    assert images.equal(before)
    assert result.shape == images.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert n_images == 0 or not result.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_pixels_outside_are_exactly_what_they_were(dtype):
    images = torch.randn(6, 3, 9, 11).to(dtype)
    result = cutout(images, size=4, fill=0.1, generator=seeded())
    fill = torch.tensor(0.1, dtype=dtype)
    assert result.dtype == dtype
    assert ((result == images) | (result == fill)).all()
    assert (result == fill).flatten(1).any(dim=1).all()


def test_it_compiles_without_a_break():
    images, _ = make_batch()
    compiled = torch.compile(lambda x: cutout(x, size=4), fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    expected = cutout(images, size=4)
    torch.manual_seed(3)
    assert compiled(images).equal(expected)


def test_it_composes_with_random_erasing_of_torchvision():
    v2 = pytest.importorskip("torchvision.transforms.v2")
    images, _ = make_batch(height=32, width=32)
    erased = v2.RandomErasing(p=1.0, value=5.0)(cutout(images, size=4, generator=seeded()))
    assert (erased == 5.0).any()
    assert (erased == 0.0).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Cutout(-1), ValueError, "Cutout: expected size of at least 0, got -1"),
        (lambda: Cutout(2.5), TypeError, "Cutout: expected size to be a whole number, got 2.5"),
        (lambda: Cutout(True), TypeError, "expected size to be a whole number, got True"),
        (
            lambda: Cutout(3, probability=1.5),
            ValueError,
            r"Cutout: expected probability in \[0, 1\], got 1.5",
        ),
        (
            lambda: Cutout(3, fill=math.nan),
            ValueError,
            r"Cutout: expected fill to be a finite number, got nan",
        ),
        (lambda: Cutout(3, fill="mean"), TypeError, "expected fill to be a number, got 'mean'"),
        (
            lambda: cutout(torch.zeros(3, 8, 8), size=3),
            ValueError,
            r"cutout: expected images of shape \(N, C, H, W\), got \[3, 8, 8\]; .* images\[None\]",
        ),
        (
            lambda: cutout(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), size=3),
            TypeError,
            "cutout: expected images of a floating point dtype, got torch.uint8",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
