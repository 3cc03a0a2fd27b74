"""Betas for batches that grow."""

import math
from dataclasses import dataclass

from fusedtricks.lr_scheduler import scaling
from fusedtricks.lr_scheduler.batch_size import BatchSizeSchedule
from fusedtricks.lr_scheduler.parsing import register
from fusedtricks.lr_scheduler.schedule import Schedule

__all__ = ["BatchSizeBeta"]


@register
@dataclass(frozen=True)
class BatchSizeBeta(Schedule):
    """A beta that forgets as much per sample while the batch size grows.

    value(t) = beta^(reference updates that the update takes the place of), `scaling.scale_beta`; a
    value of its own, whatever the optimizer's is. For Adam's betas: the momentum of SGD is part of
    the noise scale, which nothing would make up for.

    Args:
        ramp: The schedule of the batch size.
        beta: That of the reference run, in [0, 1).

    Raises:
        TypeError: If `ramp` is of another type.
        ValueError: If `beta` is out of range.

    Source: see `scaling.scale_beta`.
    """

    is_absolute = True

    ramp: BatchSizeSchedule
    beta: float

    def __post_init__(self) -> None:
        if not isinstance(self.ramp, BatchSizeSchedule):
            raise TypeError(
                f"BatchSizeBeta: expected ramp to be a BatchSizeSchedule, got {self.ramp!r}"
            )
        self._check_numbers("beta", at_least=0)
        if self.beta >= 1:
            raise ValueError(f"BatchSizeBeta: expected beta in [0, 1), got {self.beta}")

    def _value(self, t: float, base: float) -> float:
        return scaling.scale_beta(self.beta, self.ramp.reference_updates(math.floor(t)), 1)

    @property
    def length(self) -> int:
        """Updates of the new run."""
        return self.ramp.length
