"""What is done with whole models: averages, ensembles, several tasks, early ends."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, update_bn

from bench.tricks.arm import Arm, Predict
from bench.tricks.training import (
    BATCH_SIZE,
    EPOCHS,
    N_CLASSES,
    TRAIN_SIZE,
    Problem,
    Update,
    fit,
    network,
)
from fusedtricks.lr_scheduler import Constant, Cosine
from fusedtricks.nn import (
    Ensemble,
    HardSharing,
    ModelEMA,
    average_weights,
    soft_sharing_penalty,
)
from fusedtricks.train import EarlyStopping

__all__ = ["ARMS"]

_PER_EPOCH = TRAIN_SIZE // BATCH_SIZE


def _averaged(half_life: float, schedule: object = None) -> Callable[[Problem], nn.Module]:
    def train(problem: Problem) -> nn.Module:
        averages: list[ModelEMA] = []

        def prepare(model: nn.Module, _: Tensor) -> None:
            averages.append(ModelEMA(model, half_life=half_life, warmup=True))

        fit(
            problem,
            prepare=prepare,
            schedule=schedule,
            after_step=lambda update: averages[0].update_parameters(update.model),
        )
        return averages[0]

    return train


def _swa(problem: Problem) -> nn.Module:
    averages: list[AveragedModel] = []

    def after_epoch(model: nn.Module, epoch: int) -> None:
        if epoch == 2 * EPOCHS // 3:
            averages.append(AveragedModel(model))
        if averages:
            averages[0].update_parameters(model)

    fit(problem, schedule=Constant(0.5), after_epoch=after_epoch)
    update_bn(problem.digits.train_images.split(BATCH_SIZE), averages[0])
    return averages[0]


def _of_seeds(problem: Problem, n_models: int) -> list[nn.Module]:
    seeds = [problem.seed + 1000 * index for index in range(n_models)]
    return [fit(Problem(problem.digits, seed)) for seed in seeds]


def _ensemble(problem: Problem) -> Predict:
    return Ensemble(_of_seeds(problem, 3)).eval()


def _soup(problem: Problem) -> Predict:
    model = network()
    model.load_state_dict(average_weights(_of_seeds(problem, 3)))
    update_bn(problem.digits.train_images.split(BATCH_SIZE), model)
    return model


class _TwoHeads(HardSharing):
    """The network with a second head for whether a digit is even; outputs both."""

    def __init__(self) -> None:
        encoder = network()
        width = encoder.fc.in_features
        encoder.fc = nn.Identity()
        super().__init__(
            encoder, {"digit": nn.Linear(width, N_CLASSES), "even": nn.Linear(width, 2)}
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(list(super().forward(images).values()), dim=1)


def _both_tasks(update: Update) -> Tensor:
    digit, even = update.logits.split((N_CLASSES, 2), dim=1)
    return functional.cross_entropy(digit, update.targets) + functional.cross_entropy(
        even, update.targets % 2
    )


def _hard_sharing(problem: Problem) -> Predict:
    model = fit(problem, model=_TwoHeads, loss=_both_tasks).eval()
    return lambda images: model(images)[:, :N_CLASSES]


class _TwoNetworks(nn.Module):
    """Two networks with the same layers but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.digit = network()
        self.even = network()
        self.digit_head, self.even_head = self.digit.fc, nn.Linear(self.even.fc.in_features, 2)
        self.digit.fc = self.even.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        digit = self.digit_head(self.digit(images))
        return torch.cat([digit, self.even_head(self.even(images))], dim=1)


def _soft_loss(update: Update) -> Tensor:
    encoders = (update.model.digit, update.model.even)
    return _both_tasks(update) + 1e-3 * soft_sharing_penalty(encoders)


def _soft_sharing(problem: Problem) -> Predict:
    model = fit(problem, model=_TwoNetworks, loss=_soft_loss).eval()
    return lambda images: model(images)[:, :N_CLASSES]


_N_TRAIN = TRAIN_SIZE * 4 // 5
_FEWER_UPDATES = EPOCHS * _N_TRAIN // BATCH_SIZE


def _part(problem: Problem) -> Problem:
    """Return the problem without a fifth of its training images."""
    digits = problem.digits
    part = dataclasses.replace(
        digits,
        train_images=digits.train_images[:_N_TRAIN],
        train_labels=digits.train_labels[:_N_TRAIN],
    )
    return Problem(part, problem.seed)


def _fewer_images(problem: Problem) -> nn.Module:
    return fit(_part(problem), schedule=Cosine(_FEWER_UPDATES))


def _early_stopping(problem: Problem) -> nn.Module:
    """Hold a fifth of the training images out, with their wrong labels, to stop by."""
    images = problem.digits.train_images[_N_TRAIN:]
    labels = problem.digits.train_labels[_N_TRAIN:]
    stopper = EarlyStopping(patience=3)

    @torch.no_grad()
    def after_epoch(model: nn.Module, epoch: int) -> bool:
        loss = functional.cross_entropy(model.eval()(images), labels).item()
        return stopper.step(loss, model)

    model = fit(_part(problem), schedule=Cosine(_FEWER_UPDATES), after_epoch=after_epoch)
    stopper.restore(model)
    return model


ARMS = [
    Arm("ema", "half-life of one epoch, warmup", _averaged(_PER_EPOCH)),
    Arm(
        "ema_constant_lr",
        "half-life of three epochs, warmup, constant rate",
        _averaged(3 * _PER_EPOCH, Constant()),
        "constant_lr",
    ),
    Arm(
        "swa",
        "half the rate, torch's AveragedModel of the last third",
        _swa,
        "constant_lr_half",
    ),
    Arm("ensemble", "3 networks, probabilities averaged", _ensemble),
    Arm("average_weights", "3 networks of unlike starts: not what it is for", _soup),
    Arm("hard_sharing", "with a second head: even or odd", _hard_sharing),
    Arm("soft_sharing", "1e-3, beside a network for even or odd", _soft_sharing),
    Arm(
        "early_stopping",
        "120 of the 600 images held out, patience of 3 epochs",
        _early_stopping,
        "fewer_images",
    ),
    Arm("fewer_images", "480 of the 600 images, without stopping", _fewer_images),
]
