"""The four cases of the demo: two data sets, two optimizers."""

from typing import Any

import torch

from fusedtricks.data import load_digits
from fusedtricks.lr_scheduler import Cosine, LinearWarmup, Schedule, ScheduledLR
from fusedtricks.nn import SmallResNet
from fusedtricks.train.batches import Batches
from fusedtricks.train.settings import DATA, LABEL_SMOOTHING, Settings
from fusedtricks.train.steppers import STEPPERS
from fusedtricks.train.trainer import Trainer, percentile, weights_sha256

__all__ = ["CASES", "build_trainer", "lr_schedule", "summarize"]

CASES = [(data, optimizer) for data in DATA for optimizer in STEPPERS]

_WARM_UP = 0.15  # Share of the batches.


def build_trainer(data: str, optimizer: str, settings: Settings) -> Trainer:
    """Build one case of the demo.

    Cases that differ only in `optimizer` start with the same weights and see the same batches.

    Args:
        data: "clean" or "noisy".
        optimizer: "fusedtricks" or "torch".
        settings: What else the case depends on; `threads` is left to the caller.

    Returns:
        A trainer at the start of its first epoch.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    digits = load_digits(seed=settings.seed, noise=DATA[data], train_size=settings.train_size)
    # The initial weights come from torch's global generator, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = SmallResNet()
    stepper = STEPPERS[optimizer](model, settings.lr, settings.weight_decay)
    batches = Batches(
        digits.train_images,
        digits.train_labels,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    n_steps = settings.epochs * len(batches)
    return Trainer(
        model,
        stepper,
        ScheduledLR(stepper.optimizer, lr_schedule(n_steps)),
        batches,
        digits.test_images,
        digits.test_labels,
        epochs=settings.epochs,
        label_smoothing=LABEL_SMOOTHING,
    )


def lr_schedule(n_steps: int) -> Schedule:
    """Return the share of the largest learning rate: a linear warm-up, then half a cosine.

    Args:
        n_steps: Updates of the whole run.
    """
    n_warm_up = max(round(_WARM_UP * n_steps), 1)
    return LinearWarmup(n_warm_up, offset=1).then(Cosine(max(n_steps - n_warm_up, 1)))


def summarize(data: str, optimizer: str, trainer: Trainer) -> dict[str, Any]:
    """Return the entry of a finished case in `result.json`.

    Times are in ms per batch: `step_ms` with `_p10` and `_p90` for clipping, centralizing and
    updating, `train_ms` for everything; `accuracy` (0 to 1) is that after the last epoch.
    """
    return {
        "data": data,
        "optimizer": optimizer,
        "accuracy": trainer.history[-1]["accuracy"],
        "step_ms": 1e3 * percentile(trainer.step_s, 50),
        "step_ms_p10": 1e3 * percentile(trainer.step_s, 10),
        "step_ms_p90": 1e3 * percentile(trainer.step_s, 90),
        "train_ms": 1e3 * percentile(trainer.train_s, 50),
        "label_smoothing": trainer.label_smoothing,
        "n_parameters": sum(param.numel() for param in trainer.model.parameters()),
        "n_tensors": sum(1 for _ in trainer.model.parameters()),
        "weights_sha256": weights_sha256(trainer.model),
        "history": trainer.history,
    }
