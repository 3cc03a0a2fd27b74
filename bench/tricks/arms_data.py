"""What is done to images and labels of a batch."""

from collections.abc import Callable
from functools import partial

from torch import Generator, Tensor, nn

from bench.tricks.arm import Arm
from bench.tricks.training import Problem, fit, loss_of
from fusedtricks.data import (
    Chain,
    CutMix,
    Cutout,
    MixUp,
    OneOf,
    add_noise,
    random_affine,
    random_flip,
    random_shift,
)
from fusedtricks.losses import CrossEntropyLoss

__all__ = ["ARMS"]

_ImageOp = Callable[..., Tensor]


def _with(name: str, settings: str, trick: Callable, label_smoothing: float = 0.0) -> Arm:
    """Return the arm of a batch trick."""

    def batch(images: Tensor, labels: Tensor, generator: Generator):
        return trick(images, labels, generator=generator)

    loss = loss_of(CrossEntropyLoss(label_smoothing=label_smoothing))
    return Arm(name, settings, partial(fit, batch=batch, loss=loss))


def _on_images(name: str, settings: str, op: _ImageOp) -> Arm:
    """Return the arm of what changes images only."""

    def batch(images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        return op(images, generator=generator), labels

    return Arm(name, settings, partial(fit, batch=batch))


def _shift(images: Tensor, *, generator: Generator) -> Tensor:
    # What moves in is as dark as the image's first pixel.
    background = images[:, :, :1, :1]
    return random_shift(images, max_shift=1, fill=background, generator=generator)


def _unscaled(problem: Problem) -> nn.Module:
    """Train on pixels from 0 to 16; the test images change alike."""
    model = fit(problem, batch=lambda images, labels, _: (_pixels(images), labels))
    return nn.Sequential(_Lambda(_pixels), model)


def _pixels(images: Tensor) -> Tensor:
    # Mean and deviation of the digits; what counts is that inputs are neither centred nor small.
    return 6.0 * images + 4.9


class _Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


# Images scaled to deviation 1; their background is at -0.8.
_BACKGROUND = -0.8

ARMS = [
    _with("mixup", "alpha=0.2, one lambda per batch", MixUp(0.2)),
    _with("mixup_strong", "alpha=1, one lambda per batch", MixUp(1.0)),
    _with("mixup_per_sample", "alpha=1, one lambda per sample", MixUp(1.0, per_sample=True)),
    _with("mixup_label_smoothing", "alpha=1, label_smoothing=0.1", MixUp(1.0), 0.1),
    _with("cutmix", "alpha=1", CutMix(1.0)),
    _with("mixup_or_cutmix", "alpha=1, one of the two per batch", OneOf([MixUp(1.0), CutMix(1.0)])),
    _with("cutout", "3x3 of 8x8 pixels", Cutout(3, fill=_BACKGROUND)),
    _with("mixup_cutout", "alpha=1 and 3x3 pixels", Chain(MixUp(1.0), Cutout(3, fill=_BACKGROUND))),
    _on_images("flips", "left to right, half of the images", partial(random_flip, probability=0.5)),
    _on_images("shifts", "up to 1 pixel", _shift),
    _on_images(
        "rotations", "up to 15 degrees", partial(random_affine, degrees=15, fill=_BACKGROUND)
    ),
    _on_images("scales", "0.8 to 1.2", partial(random_affine, scale=(0.8, 1.2), fill=_BACKGROUND)),
    _on_images("noise", "std=0.3", partial(add_noise, std=0.3)),
    Arm("raw_inputs", "pixels from 0 to 16, neither centred nor scaled", _unscaled),
]
