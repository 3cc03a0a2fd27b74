"""A trick as it is measured: what it is called, how it was set, and a training run with it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bench.tricks.training import Problem

__all__ = ["BASE", "Arm", "Predict"]

Predict = Callable[[Tensor], Tensor]
BASE = "base"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Identifier, as the documentation refers to it.
        settings: What differs from the baseline, with its numbers.
        train: Returns what maps images, shape (N, 1, 8, 8), to something whose largest element per
            row is the class, shape (N, 10).
        baseline: The arm that it is compared with.
    """

    name: str
    settings: str
    train: Callable[[Problem], Predict]
    baseline: str = BASE
