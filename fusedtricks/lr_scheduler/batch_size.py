"""Schedules that increase the batch size where a schedule would decay the learning rate."""

import dataclasses
import itertools
import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from fusedtricks.lr_scheduler import scaling
from fusedtricks.lr_scheduler.batch_plan import BatchPlan, Clock, Run
from fusedtricks.lr_scheduler.parsing import register
from fusedtricks.lr_scheduler.schedule import Schedule
from fusedtricks.lr_scheduler.times import Units, as_number

__all__ = ["BatchSizeSchedule"]


@register
@dataclass(frozen=True)
class BatchSizeSchedule(Schedule):
    """A learning-rate schedule turned into growing batches with the same noise scale.

    The schedule is for a reference run whose updates have `batch_size` samples. The new run has as
    many epochs, fewer updates, and at each of them the noise scale lr * N / (B * (1 - momentum)) of
    the reference run at that sample of that epoch::

        value(t) = base * f * B / batch_size * (1 - used) / (1 - reference)
        B_exact  = batch_size * lr_scale * (1 - reference) / (1 - used) / f

    with the reference run's factor f there, `momentum` = (reference, used), and B = B_exact rounded
    to a `multiple`, at most `max_batch_size` and at most the data. The learning rate therefore
    stays at lr_scale times the base while B grows, and takes over what rounding and limit leave.

    B never shrinks. Where a larger f is still to come, in a warm-up or before a restart, B is the
    one for the largest f to come, and the learning rate rises and falls. A warm-up belongs into
    `schedule`.

    With drop_last=False the last batch of an epoch can be smaller. In the reference run that one
    keeps its learning rate. Here it takes the place of the reference updates that are left in the
    epoch: in the value, their number times batch_size replaces B. So without growth
    (max_batch_size=batch_size) the value is exactly that of `schedule`.

    The noise scale is an approximation for batches much smaller than the data, and for an optimizer
    whose step is proportional to the gradient.

    As a `Schedule`, this is the factor of the learning rate as a function of the updates of the new
    run. Times in `schedule` are those of the reference run. After the end it keeps what the
    reference run's factor is at its own end, with the last B.

    Args:
        schedule: Relative schedule of the reference run, with factors of at least 0.
        batch_size: Samples in its updates, of all processes and micro-batches together.
        dataset_size: Samples in an epoch, at least `batch_size`.
        epochs: Epochs of both runs.
        max_batch_size: Where B stops growing, and the learning rate decays. Default: dataset_size.
        multiple: B is a multiple of this; of processes times micro-batch. Default 1.
        lr_scale: How much larger the first learning rate is, and with it B. Default 1.
        momentum: Pair of that of the reference run and that used, to make B larger by
            (1 - reference) / (1 - used). Default None: the same.
        drop_last: Whether both runs leave out a last batch that is smaller. Default False.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, or the schedule is absolute.

    Example:
        >>> decay = Piecewise(["60ep", "120ep"], [1, 0.2, 0.04])
        >>> ramp = BatchSizeSchedule(decay, 128, 50_000, 180)
        >>> ramp.stages, ramp.n_updates, ramp.n_reference_updates
        ([(0, 128), (23460, 640), (28200, 3200)], 29160, 70380)

    Source: Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size", for batches
        that grow in steps, lr_scale, momentum and the limit.
    """

    schedule: Schedule
    batch_size: int
    dataset_size: int
    epochs: int
    _: KW_ONLY
    max_batch_size: int | None = None
    multiple: int = 1
    lr_scale: float = 1.0
    momentum: tuple[float, float] | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"BatchSizeSchedule: expected schedule to be a Schedule, got {self.schedule!r}"
            )
        if self.schedule.is_absolute:
            raise ValueError(
                f"BatchSizeSchedule: expected a relative schedule, got {self.schedule!r}; batch "
                "sizes cannot depend on the optimizer's learning rate, so leave out between(...)"
            )
        for name in ("batch_size", "dataset_size", "epochs", "multiple", "max_batch_size"):
            if getattr(self, name) is not None or name != "max_batch_size":
                self._check_count(name)
        self._check_numbers("lr_scale", above=0)
        self._check_momentum()
        self._set("drop_last", bool(self.drop_last))
        if self.batch_size > self.dataset_size:
            raise ValueError(
                "BatchSizeSchedule: expected batch_size of at most "
                f"dataset_size={self.dataset_size}, got {self.batch_size}"
            )
        if self._limit == 0:
            raise ValueError(
                "BatchSizeSchedule: expected multiple of at most max_batch_size="
                f"{self.max_batch_size} and dataset_size={self.dataset_size}, got {self.multiple}"
            )
        _ = self._reference  # A time that cannot be resolved fails here.

    def _check_count(self, name: str) -> None:
        number = as_number("BatchSizeSchedule", name, getattr(self, name))
        if number < 1 or number != int(number):
            raise ValueError(
                f"BatchSizeSchedule: expected {name} to be a whole number of at least 1, got "
                f"{number}"
            )
        self._set(name, int(number))

    def _check_momentum(self) -> None:
        if self.momentum is None:
            return
        if isinstance(self.momentum, str) or not hasattr(self.momentum, "__iter__"):
            raise TypeError(
                "BatchSizeSchedule: expected momentum to be a pair (reference, used) or None, got "
                f"{self.momentum!r}"
            )
        pair = tuple(as_number("BatchSizeSchedule", "momentum", each) for each in self.momentum)
        if len(pair) != 2 or not all(0 <= each < 1 for each in pair):
            raise ValueError(
                "BatchSizeSchedule: expected momentum to be a pair (reference, used) of numbers in "
                f"[0, 1), got {pair}"
            )
        self._set("momentum", pair)

    # The reference run. --------------------------------------------------------------------------

    @property
    def n_reference_updates(self) -> int:
        """Updates of the reference run."""
        return self._clock.n_updates

    @cached_property
    def _clock(self) -> Clock:
        return Clock(self.batch_size, self.dataset_size, self.epochs, self.drop_last)

    @cached_property
    def _reference(self) -> Schedule:
        return self.schedule._resolve(Units(self._clock.updates_per_epoch, self._clock.n_updates))

    def _reference_factor(self, time: float) -> float:
        factor = self._reference(time)
        if not 0 <= factor < math.inf:
            raise ValueError(
                f"BatchSizeSchedule: expected factors of at least 0, got {factor} after {time} "
                f"updates of {self.schedule!r}"
            )
        return factor

    def _resolve(self, units: Units) -> "BatchSizeSchedule":
        if units.unit == "epoch":
            raise ValueError(
                "BatchSizeSchedule: epochs have fewer and fewer updates, so that unit='epoch' "
                "cannot count its time; write times in schedule as '30ep', and leave out unit"
            )
        return self

    # The new run. --------------------------------------------------------------------------------

    @property
    def n_updates(self) -> int:
        """Updates of the new run."""
        return self._plan.n_updates

    @property
    def length(self) -> int:
        """Updates of the new run."""
        return self.n_updates

    @property
    def ends_at(self) -> int:
        """Updates of the new run."""
        return self.n_updates

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Pairs of an update and the B from there on, smaller last batches left out."""
        groups = itertools.groupby(self._plan.runs, key=lambda run: run.size)
        return [(next(runs).first, size) for size, runs in groups]

    def batch_size_at(self, update: int) -> int:
        """Return the samples of the update that comes after `update` others, B after the end.

        Raises:
            ValueError: If `update` is no whole number of at least 0.
        """
        return self._samples(*self._plan.find(update))

    def updates_in_epoch(self, epoch: int) -> range:
        """Return the numbers, from 0, of the updates of an epoch, from 0.

        Raises:
            ValueError: If there is no such epoch.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"expected epoch from 0 to {self.epochs - 1}, got {epoch}")
        return range(*self._plan.epoch_starts[epoch : epoch + 2])

    def position(self, update: int) -> tuple[int, int]:
        """Return the epoch of an update, and how many of its samples the updates before have used.

        Raises:
            ValueError: If `update` is no whole number of at least 0.
        """
        run, sample = self._plan.find(update)
        return (run.epoch, sample) if update < self.n_updates else (self.epochs, 0)

    def epoch_at(self, update: int) -> float:
        """Return the epochs done after `update` updates, with the share of the one begun."""
        epoch, sample = self.position(update)
        return epoch + sample / self.dataset_size

    def reference_updates(self, update: int) -> float:
        """Return how many reference updates an update takes the place of.

        B / batch_size; for a smaller last batch, as many as are left in the epoch of the reference
        run, if that is less.
        """
        return self._replaced(*self._plan.find(update))

    def accumulation(self, update: int, micro_batch: int) -> int:
        """Return how many micro-batches make an update; that of a smaller last batch rounded up.

        Args:
            update: Updates done.
            micro_batch: Samples of a micro-batch, of all processes together.

        Raises:
            ValueError: If micro-batches do not make up B.
        """
        run, sample = self._plan.find(update)
        if micro_batch < 1:
            raise ValueError(f"accumulation: expected micro_batch of at least 1, got {micro_batch}")
        if run.size % micro_batch:
            raise ValueError(
                f"accumulation: expected micro_batch to divide the batch size {run.size} of update "
                f"{update}, got {micro_batch}; make the schedule with multiple={micro_batch}"
            )
        return -(-self._samples(run, sample) // micro_batch)

    def noise_scale(self, update: int, lr: float) -> float:
        """Return lr * factor * N / (batch * (1 - momentum)) of an update.

        Args:
            update: Updates done.
            lr: The optimizer's own learning rate.

        Returns:
            `scaling.noise_scale` for N >> B, without momentum if `momentum` is None.
        """
        used = self.momentum[1] if self.momentum else 0.0
        batch = self.batch_size_at(update)
        return scaling.noise_scale(lr * self(update), batch, self.dataset_size, used, exact=False)

    def beta_schedule(self, beta: float) -> Schedule:
        """Return the schedule of a beta that keeps its memory in samples constant.

        Args:
            beta: That of the reference run, in [0, 1).

        Example:
            >>> ScheduledLR(adamw, ramp, beta2=ramp.beta_schedule(0.999))
        """
        from fusedtricks.lr_scheduler.batch_size_beta import BatchSizeBeta

        return BatchSizeBeta(self, beta)

    def _factor(self, t: float) -> float:
        update = math.floor(t)
        run, sample = self._plan.find(update)
        if update >= self.n_updates:
            time = self.n_reference_updates
        else:
            time = self._clock.time(run.epoch, sample + (t - update) * run.size)
        replaced = self._replaced(run, sample)
        return self._reference_factor(time) * replaced / self._growth_by_momentum

    @property
    def _growth_by_momentum(self) -> float:
        reference, used = self.momentum or (0.0, 0.0)
        return (1.0 - reference) / (1.0 - used)

    def _samples(self, run: Run, sample: int) -> int:
        return min(run.size, self.dataset_size - sample)

    def _replaced(self, run: Run, sample: int) -> float:
        of_full_batch = run.size / self.batch_size
        if self._samples(run, sample) == run.size:
            return of_full_batch
        return min(of_full_batch, self._clock.updates_per_epoch - sample / self.batch_size)

    # Its plan. -----------------------------------------------------------------------------------

    @cached_property
    def _plan(self) -> BatchPlan:
        return BatchPlan(self._clock, self._wanted)

    def _wanted(self, time: float) -> int:
        factor = self._reference_factor(time)
        size = self.batch_size * self.lr_scale * self._growth_by_momentum
        if size >= factor * self._limit:
            return self._limit
        multiples = math.floor(size / factor / self.multiple + 0.5)
        return min(max(multiples, 1) * self.multiple, self._limit)

    @property
    def _limit(self) -> int:
        limit = min(self.max_batch_size or self.dataset_size, self.dataset_size)
        return limit // self.multiple * self.multiple

    def __getstate__(self) -> dict[str, Any]:
        # Not what can be computed again, which is large.
        return {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
