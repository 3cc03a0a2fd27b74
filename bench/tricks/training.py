"""The problem that all tricks are tried on, and the training that they change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from fusedtricks import optim
from fusedtricks.data import Digits, load_digits
from fusedtricks.lr_scheduler import Cosine, Schedule, ScheduledLR
from fusedtricks.nn import SmallResNet
from fusedtricks.targets import Targets

N_CLASSES = 10
TRAIN_SIZE = 600
EPOCHS = 15
BATCH_SIZE = 30
N_UPDATES = EPOCHS * TRAIN_SIZE // BATCH_SIZE

# What others do show the arms lower_lr, higher_lr and no_weight_decay.
LR = 0.1
WEIGHT_DECAY = 5e-3
MOMENTUM = 0.9

Batch = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor | Targets]]


@dataclass(frozen=True)
class Problem:
    """600 training images, some mislabelled, 1,185 test images, and a seed for all the rest.

    Attributes:
        digits: The data.
        seed: Of split, wrong labels, weights and order of the images.
    """

    digits: Digits
    seed: int

    @classmethod
    def make(cls, seed: int, noise: float) -> "Problem":
        """Load the digits; `noise` is the share of wrong training labels."""
        digits = load_digits(seed=seed, noise=noise, test_fraction=0.66, train_size=TRAIN_SIZE)
        return cls(digits, seed)

    @torch.no_grad()
    def error(self, predict: Callable[[Tensor], Tensor]) -> float:
        """Return the percentage of test images whose largest output is not at the label."""
        if isinstance(predict, nn.Module):
            predict.eval()
        wrong = predict(self.digits.test_images).argmax(dim=1) != self.digits.test_labels
        return 100 * wrong.double().mean().item()


def network() -> nn.Module:
    """Return the network that tricks are tried on: 3 blocks, 0.1 M parameters."""
    return SmallResNet(widths=(16, 32, 64), blocks=(1, 1, 1))


def sgd(model: nn.Module, **options: Any) -> Optimizer:
    """Return the optimizer that tricks are tried with."""
    options = {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY} | options
    return optim.SGD(model.parameters(), **options)


def as_they_are(images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the batch unchanged."""
    return images, labels


@dataclass
class Update:
    """What a trick may use in the middle of an update.

    Attributes:
        model: In training mode.
        optimizer: Of all parameters.
        indices: Shape (B,): which training images the batch consists of.
        images: Shape (B, 1, 8, 8), as the model saw them.
        logits: Shape (B, 10).
        targets: What the batch should be classified as.
        number: Updates before this one.
    """

    model: nn.Module
    optimizer: Optimizer
    indices: Tensor
    images: Tensor
    logits: Tensor
    targets: Tensor | Targets
    number: int


def plain_loss(update: Update) -> Tensor:
    """Return the cross entropy."""
    return functional.cross_entropy(update.logits, update.targets)


def loss_of(loss: Callable[[Tensor, Any], Tensor]) -> Callable[[Update], Tensor]:
    """Return `loss(logits, targets)` as `fit` takes it."""
    return lambda update: loss(update.logits, update.targets)


def fit(
    problem: Problem,
    *,
    model: Callable[[], nn.Module] = network,
    prepare: Callable[[nn.Module, Tensor], object] | None = None,
    optimizer: Callable[[nn.Module], Optimizer] = sgd,
    schedule: Schedule | None = None,
    batch: Batch = as_they_are,
    loss: Callable[[Update], Tensor] = plain_loss,
    before_step: Callable[[Update], object] | None = None,
    after_step: Callable[[Update], object] | None = None,
    after_epoch: Callable[[nn.Module, int], object] | None = None,
    n_epochs: int = EPOCHS,
) -> nn.Module:
    """Train a network; everything that a trick does not name is the same for all.

    Args:
        problem: The data and the seed.
        model: Builds the network, from torch's random numbers.
        prepare: Called with the network and the first 100 images before anything else.
        optimizer: Builds the optimizer for a network.
        schedule: Of the learning rate. Default: half a cosine over all updates.
        batch: Changes images and labels, with a generator for what is random.
        loss: Returns what backward is called on.
        before_step: Called between backward and step.
        after_step: Called after each step.
        after_epoch: Called with the network and the number of epochs done; training stops if it
            returns True.
        n_epochs: Passes over the training images.

    Returns:
        The network after the last update.
    """
    torch.manual_seed(problem.seed)
    network = model()
    if prepare is not None:
        prepare(network, problem.digits.train_images[:100])
    updater = optimizer(network)
    scheduler = ScheduledLR(updater, schedule or Cosine(N_UPDATES))
    # The order is a matter of the seed alone, whatever random numbers a trick draws.
    order = Generator().manual_seed(problem.seed)
    noise = Generator().manual_seed(problem.seed + 1)
    number = 0
    for epoch in range(n_epochs):
        network.train()
        for indices in batches_of(len(problem.digits.train_labels), order):
            images, targets = batch(
                problem.digits.train_images[indices], problem.digits.train_labels[indices], noise
            )
            updater.zero_grad()
            update = Update(network, updater, indices, images, network(images), targets, number)
            loss(update).backward()
            if before_step is not None:
                before_step(update)
            updater.step()
            scheduler.step()
            number += 1
            if after_step is not None:
                after_step(update)
        if after_epoch is not None and after_epoch(network, epoch + 1):
            break
    return network


def batches_of(n_images: int, generator: Generator) -> Iterator[Tensor]:
    """Yield the indices of the batches of an epoch, reshuffled."""
    yield from torch.randperm(n_images, generator=generator).split(BATCH_SIZE)
