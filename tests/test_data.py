"""The digits: split, scaling and wrong labels."""

import pytest
import torch

from fusedtricks.data import load_digits

N_IMAGES = 1797


def test_the_split_uses_every_image_once():
    digits = load_digits(seed=3)
    indices = torch.cat([digits.train_indices, digits.test_indices])
    assert indices.sort().values.equal(torch.arange(N_IMAGES))


def test_the_split_gives_every_class_the_same_share():
    digits = load_digits(seed=3, test_fraction=0.2)
    n_test = torch.bincount(digits.test_labels, minlength=10)
    n_train = torch.bincount(digits.train_labels, minlength=10)
    assert (n_test - 0.2 * (n_train + n_test)).abs().max() <= 0.5


def test_images_and_labels_belong_together():
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    digits = load_digits(seed=3)
    for indices, images, labels in (
        (digits.train_indices, digits.train_images, digits.train_true_labels),
        (digits.test_indices, digits.test_images, digits.test_labels),
    ):
        assert labels.equal(torch.tensor(bunch.target)[indices])
        raw = torch.tensor(bunch.images)[indices].unsqueeze(1)
        # Scaling is affine, so it leaves the correlation at 1.
        pair = torch.stack([raw.flatten(), images.flatten().double()])
        assert torch.corrcoef(pair)[0, 1] > 1 - 1e-9


def test_shapes_and_dtypes():
    digits = load_digits(train_size=100)
    assert digits.train_images.shape == (100, 1, 8, 8)
    assert digits.train_images.dtype == digits.test_images.dtype == torch.float32
    assert digits.train_labels.shape == digits.train_true_labels.shape == (100,)
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64
    assert digits.test_images.shape == (len(digits.test_labels), 1, 8, 8)


def test_scaling_uses_the_training_part_only():
    digits = load_digits(seed=3)
    std, mean = torch.std_mean(digits.train_images, correction=0)
    assert abs(mean) < 1e-5
    assert abs(std - 1) < 1e-5
    # Numbers of another set never fit to the last digit.
    assert abs(digits.test_images.mean()) > 1e-5


def test_a_smaller_training_set_is_a_part_of_the_whole_one():
    whole, part = load_digits(seed=3), load_digits(seed=3, train_size=50)
    assert part.train_images.equal(whole.train_images[:50])
    assert part.test_images.equal(whole.test_images)
    assert len(part.train_labels.unique()) == 10


def test_the_seed_decides_everything():
    first, again, other = (load_digits(seed=seed, noise=0.4) for seed in (7, 7, 8))
    for name in vars(first):
        assert getattr(first, name).equal(getattr(again, name)), name
    assert not first.train_indices.equal(other.train_indices)
    assert not first.test_indices.sort().values.equal(other.test_indices.sort().values)


@pytest.mark.parametrize("train_size", [None, 333])
@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_exactly_the_wanted_share_of_training_labels_is_wrong(noise, train_size):
    clean = load_digits(seed=5, train_size=train_size)
    noisy = load_digits(seed=5, noise=noise, train_size=train_size)
    wrong = noisy.train_labels != noisy.train_true_labels
    assert wrong.sum() == round(noise * len(wrong))
    assert noisy.train_true_labels.equal(clean.train_labels)
    assert noisy.train_images.equal(clean.train_images)
    assert noisy.test_labels.equal(clean.test_labels)
    assert 0 <= noisy.train_labels.min() <= noisy.train_labels.max() <= 9


def test_wrong_labels_are_spread_over_the_nine_other_classes():
    noisy = load_digits(seed=5, noise=1.0)
    offsets = (noisy.train_labels - noisy.train_true_labels) % 10
    counts = torch.bincount(offsets, minlength=10)
    assert counts[0] == 0
    expected = len(offsets) / 9
    # Chi-squared with 8 degrees of freedom exceeds 26.1 once in a thousand.
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 26.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -0.1}, r"expected noise in \[0, 1\], got -0.1"),
        ({"noise": float("nan")}, r"expected noise in \[0, 1\], got nan"),
        ({"test_fraction": 0.0}, r"expected test_fraction in \(0, 1\), got 0.0"),
        ({"train_size": 0}, "expected train_size from 1 to 1438, got 0"),
        ({"test_fraction": 0.999}, "test_fraction=0.999 leaves no training images; take a smaller"),
        ({"test_fraction": 0.001}, "test_fraction=0.001 leaves no test images; take a larger one"),
        ({"seed": -1}, "load_digits: expected seed from 0 to 9223372036854775807, got -1"),
        ({"seed": 2**63}, "expected seed from 0 to 9223372036854775807, got 9223372036854775808"),
        ({"train_size": 1439}, "expected train_size from 1 to 1438, got 1439"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_digits(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("noise", True, "a number"),
        ("noise", "a", "a number"),
        ("test_fraction", None, "a number"),
        ("seed", 1.5, "a whole number"),
        ("seed", True, "a whole number"),
        ("train_size", 10.5, "a whole number"),
    ],
)
def test_arguments_of_another_kind(name, value, kind):
    message = f"load_digits: expected {name} to be {kind}, got {value!r}"
    with pytest.raises(TypeError, match=message):
        load_digits(**{name: value})
