"""Handwritten digits: scikit-learn's 1,797 images of 8x8 pixels, split, scaled, and mislabelled."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fusedtricks._checks import check_number, check_whole
from fusedtricks._extras import require

__all__ = ["N_CLASSES", "Digits", "load_digits"]

N_CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """A train and a test set of digits, as `load_digits` makes them.

    Attributes:
        train_images: Shape (N, 1, 8, 8), float32, mean 0 and standard deviation 1 over the whole
            training part of the split.
        train_labels: Shape (N,), int64, 0 to 9; the ones to train with, wrong ones included.
        train_true_labels: Shape (N,), int64; equal to `train_labels` without noise.
        test_images: Shape (M, 1, 8, 8), float32, scaled with the numbers of the training part.
        test_labels: Shape (M,), int64; never wrong.
        train_indices: Shape (N,), int64; which images of scikit-learn's set these are.
        test_indices: Shape (M,), int64.
    """

    train_images: Tensor
    train_labels: Tensor
    train_true_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    train_indices: Tensor
    test_indices: Tensor


def load_digits(
    *,
    seed: int = 0,
    noise: float = 0.0,
    test_fraction: float = 0.2,
    train_size: int | None = None,
) -> Digits:
    """Load the digits with a stratified split, and any share of wrong training labels.

    Everything depends on the arguments only: the split on `seed` and `test_fraction`; which labels
    are wrong, and how, on `seed`, `noise` and `train_size`.

    Args:
        seed: Seed of the split and of the wrong labels, 0 to 2**63 - 1. Default 0.
        noise: Share of training labels that are wrong, in [0, 1]: exactly round(noise * N) of
            them, each another class drawn uniformly from the 9 others. Default 0.
        test_fraction: Share of every class that goes to the test set, in (0, 1). Default 0.2.
        train_size: Number of training images to keep, at least 1. Default None: all.

    Returns:
        The two sets. Training images come in a random order of classes.

    Raises:
        ValueError: If an argument is out of range, or test_fraction leaves one of the sets empty.
        TypeError: If an argument is of another kind.
        MissingExtraError: If scikit-learn is not installed.

    Example:
        >>> digits = load_digits(noise=0.4)
        >>> digits.train_images.shape, digits.test_images.shape
        (torch.Size([1438, 1, 8, 8]), torch.Size([359, 1, 8, 8]))
        >>> (digits.train_labels != digits.train_true_labels).sum()
        tensor(575)

    Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; the copy
        that scikit-learn carries.
    """
    check_whole("load_digits", "seed", seed, low=0, high=2**63 - 1)
    check_number("load_digits", "noise", noise, low=0, high=1)
    check_number("load_digits", "test_fraction", test_fraction, low=0, high=1)
    if not 0 < test_fraction < 1:
        raise ValueError(f"load_digits: expected test_fraction in (0, 1), got {test_fraction}")
    images, labels = _load()
    generator = Generator().manual_seed(int(seed))
    train, test = _split(labels, test_fraction, generator)
    for name, indices, remedy in (("training", train, "smaller"), ("test", test, "larger")):
        if len(indices) == 0:
            raise ValueError(
                f"load_digits: test_fraction={test_fraction} leaves no {name} images; take a "
                f"{remedy} one"
            )
    std, mean = torch.std_mean(images[train], correction=0)
    images = (images - mean) / std
    if train_size is not None:
        check_whole("load_digits", "train_size", train_size, low=1, high=len(train))
        train = train[:train_size]
    return Digits(
        images[train],
        _mislabel(labels[train], noise, generator),
        labels[train],
        images[test],
        labels[test],
        train,
        test,
    )


def _load() -> tuple[Tensor, Tensor]:
    """Return images, shape (1797, 1, 8, 8), float32, 0 to 16, and labels, shape (1797,), int64."""
    bunch = require("sklearn.datasets").load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    return images, torch.tensor(bunch.target, dtype=torch.int64)


def _split(labels: Tensor, test_fraction: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the shuffled indices of both sets; every class gives the same share to the test."""
    train, test = [], []
    for label in range(N_CLASSES):
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        n_test = round(test_fraction * len(members))
        test.append(members[:n_test])
        train.append(members[n_test:])
    return tuple(
        indices[torch.randperm(len(indices), generator=generator)]
        for indices in (torch.cat(train), torch.cat(test))
    )


def _mislabel(labels: Tensor, noise: float, generator: Generator) -> Tensor:
    """Return a copy of `labels`, shape (N,), with round(noise * N) of them wrong."""
    chosen = torch.randperm(len(labels), generator=generator)[: round(noise * len(labels))]
    # Adding 1 to 9 modulo 10 never gives the true class back.
    offsets = torch.randint(1, N_CLASSES, (len(chosen),), generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + offsets) % N_CLASSES
    return noisy
