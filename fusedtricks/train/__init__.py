"""Training: batches, the trainer, checkpoints, the demo, and what is watched while it runs."""

from fusedtricks.train.batches import Batches
from fusedtricks.train.diagnosis import Finding, diagnose
from fusedtricks.train.early_stopping import EarlyStopping
from fusedtricks.train.monitor import Monitor
from fusedtricks.train.search import OnBorder, best_on_border, refine
from fusedtricks.train.steppers import STEPPERS, FusedStepper, Stepper, TorchStepper
from fusedtricks.train.trainer import Trainer

__all__ = [
    "STEPPERS",
    "Batches",
    "EarlyStopping",
    "Finding",
    "FusedStepper",
    "Monitor",
    "OnBorder",
    "Stepper",
    "TorchStepper",
    "Trainer",
    "best_on_border",
    "diagnose",
    "refine",
]
