"""ImageNet's preparation of images, on real photographs; needs torchvision."""

import pickle
import random

import pytest
import torch

from fusedtricks.data.colour import HSVJitter, PCANoise
from fusedtricks.data.pipelines import imagenet_eval_transform, imagenet_train_transform
from tests.devices import DEVICE

v2 = pytest.importorskip("torchvision.transforms.v2")
pytestmark = pytest.mark.skipif(
    DEVICE.type != "cpu", reason="a data loader prepares images on the CPU"
)

MEAN, STD = (0.25, 0.5, 0.75), (0.125, 0.25, 0.5)


@pytest.fixture(scope="module")
def photographs():
    """Two photographs, uint8, shape (3, 427, 640), on the CPU as a data loader has them."""
    pytest.importorskip("PIL")
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    return [torch.tensor(image, device="cpu").permute(2, 0, 1) for image in images]


def _undo_normalisation(image):
    mean, std = (torch.tensor(each, device="cpu")[:, None, None] for each in (MEAN, STD))
    return image * std + mean


def test_training_images_are_crops_of_the_photographs(photographs):
    transform = imagenet_train_transform(
        97, area=(0.3, 0.5), jitter=(1, 1), noise_std=0, mean=MEAN, std=STD
    )
    for photograph in photographs:
        seen = set()
        for _ in range(8):
            image = transform(photograph)
            assert image.shape == (3, 97, 97)
            assert image.dtype == torch.float32
            pixels = _undo_normalisation(image)
            assert pixels.min() > -1e-5
            assert pixels.max() < 1 + 1e-5
            seen.add(float(pixels.sum()))
        assert len(seen) == 8


def test_the_crop_is_mirrored_half_of_the_time():
    # A ramp from left to right tells.
    ramp = torch.arange(200, dtype=torch.uint8, device="cpu").expand(3, 150, 200)
    transform = imagenet_train_transform(31)
    n = 200
    n_mirrored = sum(
        float(image[0, 15, 0] > image[0, 15, -1]) for image in _many(transform, ramp, n)
    )
    assert abs(n_mirrored - n / 2) < 4 * (n / 4) ** 0.5


def _many(transform, image, n):
    return (transform(image) for _ in range(n))


def test_the_wanted_part_of_the_image_is_taken():
    # Slopes tell the sides of the box.
    height, width, size = 120, 200, 24
    image = torch.zeros(3, height, width, dtype=torch.uint8, device="cpu")
    image[0] = torch.arange(width)
    image[1] = torch.arange(height)[:, None]
    transform = imagenet_train_transform(
        size, area=(0.2, 0.6), jitter=(1, 1), noise_std=0, mean=(0, 0, 0), std=(1, 1, 1)
    )
    areas, proportions = [], []
    for crop in _many(transform, image, 150):
        pixels = crop * 255
        slope_x = (pixels[0, :, -6] - pixels[0, :, 5]).abs().mean() / (size - 11)
        slope_y = (pixels[1, -6] - pixels[1, 5]).abs().mean() / (size - 11)
        areas.append(float(slope_x * slope_y) * size**2 / (height * width))
        proportions.append(float(slope_x / slope_y))
    assert 0.18 < min(areas) < 0.26
    assert 0.5 < max(areas) < 0.62
    assert 0.7 < min(proportions) < 0.85
    assert 1.2 < max(proportions) < 1.4


def test_colours_are_changed_before_normalisation():
    grey = torch.full((3, 50, 60), 128, dtype=torch.uint8, device="cpu")
    jittered = imagenet_train_transform(16, jitter=(0.5, 0.5), noise_std=0, mean=MEAN, std=STD)
    pixels = _undo_normalisation(jittered(grey))
    torch.testing.assert_close(pixels, torch.full_like(pixels, 64 / 255))
    noisy = imagenet_train_transform(16, jitter=(1, 1), noise_std=0.3, mean=MEAN, std=STD)
    offsets = [_undo_normalisation(image)[:, 0, 0] - 128 / 255 for image in _many(noisy, grey, 300)]
    # The variance of red along the three components.
    expected = (
        0.3
        * sum(
            (value * vector) ** 2
            for value, vector in zip(
                (0.2175, 0.0188, 0.0045), (-0.5675, 0.7192, 0.4009), strict=True
            )
        )
        ** 0.5
    )
    assert abs(torch.stack(offsets)[:, 0].std() / expected - 1) < 4 / (2 * 300) ** 0.5


def test_the_steps_of_the_paper_in_their_order():
    steps = imagenet_train_transform(97).transforms
    order = [v2.RandomResizedCrop, v2.RandomHorizontalFlip, HSVJitter, PCANoise, v2.Normalize]
    chosen = [step for step in steps if isinstance(step, tuple(order))]
    assert [type(step) for step in chosen] == order
    crop, flip, jitter, noise, normalise = chosen
    assert list(crop.size) == [97, 97]
    assert tuple(crop.scale) == (0.08, 1.0)
    assert tuple(crop.ratio) == (3 / 4, 4 / 3)
    assert flip.p == 0.5
    assert (jitter.low, jitter.high, noise.std) == (0.6, 1.4, 0.1)
    assert list(normalise.mean) == [0.485, 0.456, 0.406]
    assert list(normalise.std) == [0.229, 0.224, 0.225]


def test_test_images_are_the_centre(photographs):
    transform = imagenet_eval_transform(96, resize=112, mean=MEAN, std=STD)
    for photograph in photographs:
        image = transform(photograph)
        assert image.equal(transform(photograph))
        # Area means over the same centre: 96 of 112 pixels of the shorter side, 427.
        side = 427 * 96 / 112
        top, left = round((427 - side) / 2), round((640 - side) / 2)
        part = photograph[:, top : 427 - top, left : 640 - left].float() / 255
        expected = torch.nn.functional.interpolate(part[None], size=(96, 96), mode="area")[0]
        assert (_undo_normalisation(image) - expected).abs().mean() < 0.02


def test_pillow_images_of_any_mode_are_taken(photographs):
    image_class = pytest.importorskip("PIL.Image")
    transform = imagenet_eval_transform(96, resize=112)
    array = photographs[0].permute(1, 2, 0).numpy()
    pillow = image_class.fromarray(array)
    torch.testing.assert_close(transform(pillow), transform(photographs[0]))
    for mode in ("L", "RGBA"):
        assert transform(pillow.convert(mode)).shape == (3, 96, 96)
        assert imagenet_train_transform(97)(pillow.convert(mode)).shape == (3, 97, 97)


@pytest.mark.parametrize("before", [v2.RandAugment, v2.TrivialAugmentWide])
def test_it_composes_with_what_torchvision_has(photographs, before):
    transform = v2.Compose(
        [before(), imagenet_train_transform(97), v2.RandomErasing(p=1.0, value=9.0)]
    )
    for photograph in photographs:
        image = transform(photograph)
        assert image.shape == (3, 97, 97)
        assert image.isfinite().all()
        assert (image == 9.0).any()


def test_workers_of_a_data_loader_draw_different_images(photographs):
    transform = imagenet_train_transform(97)
    assert repr(pickle.loads(pickle.dumps(transform))) == repr(transform)
    loader = torch.utils.data.DataLoader(
        _Photographs(photographs[:1] * 4, transform), batch_size=2, num_workers=2
    )
    batches = [list(loader) for _ in range(2)]
    images = torch.cat([images for epoch in batches for images in epoch])
    assert images.shape == (8, 3, 97, 97)
    assert len({float(image.sum()) for image in images}) == 8


class _Photographs(torch.utils.data.Dataset):
    def __init__(self, images, transform):
        self.images = images
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


@pytest.mark.parametrize(
    "transform",
    [imagenet_train_transform(31, mean=MEAN, std=STD), imagenet_eval_transform(31, resize=37)],
    ids=["train", "eval"],
)
def test_labels_and_other_parts_of_a_sample_pass_through(photographs, transform):
    image_class = pytest.importorskip("PIL.Image")
    pillow = image_class.fromarray(photographs[0].permute(1, 2, 0).numpy())
    torch.manual_seed(5)
    expected = transform(pillow)
    assert expected.shape == (3, 31, 31)
    scores = torch.rand(3, 4, 5, device="cpu")
    for sample in ((pillow, 3, scores), [pillow, 3, scores]):
        torch.manual_seed(5)
        image, label, same_scores = transform(sample)
        assert image.equal(expected)
        assert label == 3
        assert same_scores is scores
    torch.manual_seed(5)
    image, label = transform(pillow, 3)
    assert image.equal(expected)
    assert label == 3
    torch.manual_seed(5)
    sample = transform({"label": 3, "scores": scores, "image": pillow})
    assert sample["image"].equal(expected)
    assert type(sample["image"]) is type(expected)
    assert sample["label"] == 3
    assert sample["scores"] is scores
    loader = torch.utils.data.DataLoader(
        _Photographs([(pillow, 3)] * 4, transform), batch_size=2, num_workers=2
    )
    for images, labels in loader:
        assert type(images) is torch.Tensor
        assert images.shape == (2, 3, 31, 31)
        assert labels.tolist() == [3, 3]


def test_everything_random_comes_from_torch(photographs):
    numpy_random = pytest.importorskip("numpy.random")
    before = random.getstate(), str(numpy_random.get_state())
    state = torch.get_rng_state()
    first = imagenet_train_transform(31)(photographs[0])
    assert not torch.get_rng_state().equal(state)
    torch.set_rng_state(state)
    assert imagenet_train_transform(31)(photographs[0]).equal(first)
    torch.set_rng_state(state)
    imagenet_eval_transform(31, resize=37)(photographs[0])
    assert torch.get_rng_state().equal(state)
    assert (random.getstate(), str(numpy_random.get_state())) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"jitter": 0.4}, TypeError, "expected jitter to be two numbers, .*, got 0.4"),
        ({"area": 0.4}, TypeError, "expected area to be two numbers, .*, got 0.4"),
        ({"area": (1.0, 0.08)}, ValueError, r"expected area in \[1.0, 1\], got 0.08"),
        ({"area": (-1, 2)}, ValueError, r"expected area in \[0, 1\], got -1"),
        ({"area": (0.5, 2)}, ValueError, r"expected area in \[0.5, 1\], got 2"),
        ({"area": (0, 1)}, ValueError, r"expected area above 0, got \(0, 1\)"),
        ({"size": (32, 32)}, TypeError, r"expected size to be a whole number, got \(32, 32\)"),
        ({"size": 0}, ValueError, "expected size of at least 1, got 0"),
    ],
)
def test_bad_arguments_of_the_training_transform(arguments, error, message):
    with pytest.raises(error, match=f"imagenet_train_transform: {message}"):
        imagenet_train_transform(**arguments)


def test_bad_arguments():
    message = r"imagenet_eval_transform: expected size to be a whole number, got \(32, 32\)"
    with pytest.raises(TypeError, match=message):
        imagenet_eval_transform((32, 32))
    with pytest.raises(TypeError, match=r"expected resize to be a whole number, got 64\.5"):
        imagenet_eval_transform(32, resize=64.5)
    with pytest.raises(ValueError, match="expected size of at least 1, got 0"):
        imagenet_eval_transform(0)
    with pytest.raises(ValueError, match="expected 3 values of mean and of std, got 1 and 3"):
        imagenet_eval_transform(32, mean=(0.5,))
    with pytest.raises(ValueError, match="expected std to be a finite number above 0, got 0"):
        imagenet_train_transform(32, std=(0.2, 0, 0.2))
    with pytest.raises(TypeError, match="expected mean to be a sequence of numbers, got 'abc'"):
        imagenet_train_transform(32, mean="abc")
    with pytest.raises(ValueError, match="expected size of at most resize=64, got 96"):
        imagenet_eval_transform(96, resize=64)
    with pytest.raises(ValueError, match=r"HSVJitter: expected high .* of at least 2, got 1"):
        imagenet_train_transform(96, jitter=(2, 1))
