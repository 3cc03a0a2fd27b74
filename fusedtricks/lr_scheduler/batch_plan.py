"""Which update of a run with growing batches is where, and how large it is."""

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = ["BatchPlan", "Clock", "Run"]

# At how many points of the reference run the sizes to come are looked up, at most.
N_POINTS = 2**16


@dataclass(frozen=True)
class Clock:
    """The time of a run with constant batch size, in its updates.

    Args:
        batch_size: Samples in an update.
        dataset_size: Samples in an epoch.
        epochs: Epochs of the run.
        drop_last: Whether the last batch of an epoch is left out if it is smaller.
    """

    batch_size: int
    dataset_size: int
    epochs: int
    drop_last: bool

    @cached_property
    def updates_per_epoch(self) -> int:
        """Updates of an epoch."""
        whole, rest = divmod(self.dataset_size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def n_updates(self) -> int:
        """Updates of the run."""
        return self.epochs * self.updates_per_epoch

    def time(self, epoch: int, sample: float) -> float:
        """Return the updates, fractions included, done before a sample of an epoch."""
        per_epoch = self.updates_per_epoch
        return epoch * per_epoch + min(sample / self.batch_size, per_epoch)


class Run(NamedTuple):
    """Updates of one epoch with one batch size.

    Attributes:
        first: Number of the first, from 0.
        epoch: Number of the epoch, from 0.
        sample: Samples of the epoch that were used before.
        size: Samples in each update; the last one of the epoch has what is left.
    """

    first: int
    epoch: int
    sample: int
    size: int


class BatchPlan:
    """A run whose batches never shrink, as a list of runs: not an entry for each update.

    The size of an update is the smallest that is wanted then or later, but at least that of the
    update before. Later sizes are looked up at every update of the reference run, or at evenly
    spaced ones if there are more than 65,536.

    Args:
        clock: The reference run.
        wanted: Maps its time to a number of samples, from 1 to those of an epoch.

    Attributes:
        runs: In order, each as long as possible within its epoch.
        epoch_starts: First update of each epoch, and number of all updates.
    """

    def __init__(self, clock: Clock, wanted: Callable[[float], int]) -> None:
        self.clock = clock
        self.runs: list[Run] = []
        self.epoch_starts = [0]
        self._make(wanted)
        self._run_starts = [run.first for run in self.runs]

    @property
    def n_updates(self) -> int:
        """Number of updates."""
        return self.epoch_starts[-1]

    def find(self, update: int) -> tuple[Run, int]:
        """Return the run that an update is in, and the epoch's samples used before the update.

        Updates after the end are full ones of the last run's size.

        Raises:
            ValueError: If `update` is no whole number of at least 0.
        """
        if update != int(update) or update < 0:
            raise ValueError(f"expected update to be a whole number of at least 0, got {update}")
        if update >= self.n_updates:
            return self.runs[-1], 0
        run = self.runs[bisect.bisect_right(self._run_starts, update) - 1]
        return run, run.sample + (int(update) - run.first) * run.size

    def _make(self, wanted: Callable[[float], int]) -> None:
        stride = -(-self.clock.n_updates // N_POINTS)
        to_come = _least_to_come(wanted, range(0, self.clock.n_updates, stride))
        update = size = 0
        for epoch in range(self.clock.epochs):
            sample = 0
            while sample < self.clock.dataset_size:
                time = self.clock.time(epoch, sample)
                point = math.floor(time / stride) + 1
                size = max(size, min([wanted(time), *to_come[point : point + 1]]))
                # Updates that begin up to this point have the same size.
                point = bisect.bisect_right(to_come, size, lo=point) - 1
                n = self._count(epoch, sample, size, point * stride)
                if n == 0:
                    break
                if not self.runs or (epoch, size) != (self.runs[-1].epoch, self.runs[-1].size):
                    self.runs.append(Run(update, epoch, sample, size))
                update += n
                sample += n * size
            self.epoch_starts.append(update)

    def _count(self, epoch: int, sample: int, size: int, time: int) -> int:
        """Return how many updates, one after the other, begin up to a time within this epoch."""
        left = self.clock.dataset_size - sample
        in_epoch = left // size if self.clock.drop_last else -(-left // size)
        in_time = (time - epoch * self.clock.updates_per_epoch) * self.clock.batch_size - sample
        return min(max(in_time // size + 1, 1), in_epoch)


def _least_to_come(wanted: Callable[[float], int], times: range) -> list[int]:
    """Return the smallest size wanted at each time or a later one."""
    sizes = [wanted(time) for time in times]
    return list(itertools.accumulate(reversed(sizes), min))[::-1]
