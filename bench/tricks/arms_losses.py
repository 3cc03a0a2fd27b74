"""Losses and teachers."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from bench.tricks.arm import Arm, Predict
from bench.tricks.training import N_CLASSES, Problem, Update, fit, loss_of
from fusedtricks.losses import (
    BinaryCrossEntropyLoss,
    ConfidencePenalty,
    CrossEntropyLoss,
    DistillationLoss,
    Flooding,
    TeacherCache,
    cross_entropy,
    darc1_penalty,
)

__all__ = ["ARMS"]


def _with(name: str, settings: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Arm:
    return Arm(name, settings, partial(fit, loss=loss_of(loss)))


def _flooded(level: float) -> Callable[[Problem], nn.Module]:
    def train(problem: Problem) -> nn.Module:
        flooding = Flooding(level)
        return fit(
            problem, loss=lambda update: flooding(cross_entropy(update.logits, update.targets))
        )

    return train


def _darc1(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) + 0.01 * darc1_penalty(logits)


def _distilled(problem: Problem) -> Predict:
    # Another seed: a teacher that began as its student does would hardly differ from it.
    teacher = fit(Problem(problem.digits, problem.seed + 1000))
    cache = TeacherCache(teacher, len(problem.digits.train_labels), N_CLASSES)
    loss = DistillationLoss(CrossEntropyLoss(), temperature=4.0)

    def of_update(update: Update) -> Tensor:
        teacher_logits = cache(update.images, update.indices, update.targets)
        return loss(update.logits, teacher_logits, update.targets)

    return fit(problem, loss=of_update)


ARMS = [
    _with("label_smoothing", "label_smoothing=0.1", CrossEntropyLoss(label_smoothing=0.1)),
    _with("label_smoothing_strong", "label_smoothing=0.4", CrossEntropyLoss(label_smoothing=0.4)),
    _with("confidence_penalty", "beta=0.1", ConfidencePenalty(CrossEntropyLoss(), beta=0.1)),
    _with("confidence_penalty_strong", "beta=1", ConfidencePenalty(CrossEntropyLoss(), beta=1.0)),
    _with(
        "bce", "binary cross-entropy, summed over classes", BinaryCrossEntropyLoss(sum_classes=True)
    ),
    _with("darc1", "0.01 * darc1_penalty", _darc1),
    Arm("flooding_low", "level=0.3", _flooded(0.3)),
    Arm("flooding_high", "level=1", _flooded(1.0)),
    Arm(
        "distillation",
        "T=4, both weights 1; the teacher is the same network trained before on the same labels",
        _distilled,
    ),
]
