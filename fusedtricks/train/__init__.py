"""Training: batches, the trainer, checkpoints, and the demo that compares two optimizers."""

from fusedtricks.train.batches import Batches
from fusedtricks.train.steppers import STEPPERS, FusedStepper, Stepper, TorchStepper
from fusedtricks.train.trainer import Trainer

__all__ = ["STEPPERS", "Batches", "FusedStepper", "Stepper", "TorchStepper", "Trainer"]
