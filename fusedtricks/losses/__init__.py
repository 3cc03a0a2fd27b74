"""Losses that know what was done to their targets."""

from fusedtricks.losses.distillation import DistillationLoss, distillation_loss
from fusedtricks.losses.flooding import Flooding
from fusedtricks.losses.penalties import ConfidencePenalty, confidence_penalty, darc1_penalty
from fusedtricks.losses.sigmoid_loss import BinaryCrossEntropyLoss, binary_cross_entropy
from fusedtricks.losses.softmax_loss import (
    CrossEntropyLoss,
    cross_entropy,
    smallest_cross_entropy,
)
from fusedtricks.losses.teacher_cache import TeacherCache
from fusedtricks.targets import Targets, as_targets

__all__ = [
    "BinaryCrossEntropyLoss",
    "ConfidencePenalty",
    "CrossEntropyLoss",
    "DistillationLoss",
    "Flooding",
    "Targets",
    "TeacherCache",
    "as_targets",
    "binary_cross_entropy",
    "confidence_penalty",
    "cross_entropy",
    "darc1_penalty",
    "distillation_loss",
    "smallest_cross_entropy",
]
