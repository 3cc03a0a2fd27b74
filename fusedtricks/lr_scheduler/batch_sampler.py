"""Batches of a data loader whose size follows a schedule."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fusedtricks.lr_scheduler.batch_size import BatchSizeSchedule

__all__ = ["BatchSizeSampler"]


class BatchSizeSampler(Sampler[list[int]]):
    """The `batch_sampler` of a DataLoader for a run with growing batches.

    Iterating once gives what is left of one epoch, the next time the next epoch. Every epoch has
    every sample once, reshuffled; drop_last of `ramp` leaves the last ones out.

    With `micro_batch`, an update's batch comes in parts, one after the other, for accumulated
    gradients; `is_update_end` tells which is the last of an update. Parts can differ in size, since
    the last batch of an epoch can be smaller. The gradient of a batch is that of the sum of the
    samples' losses, divided by the samples of the whole update, in every part alike::

        for epoch in range(sampler.epoch, ramp.epochs):
            for index, (images, labels) in enumerate(DataLoader(data, batch_sampler=sampler)):
                losses = cross_entropy(model(images), labels, reduction="sum")
                (losses / ramp.batch_size_at(scheduler.last_epoch)).backward()
                if sampler.is_update_end(index):
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()

    With several processes, each has its part of the same batches, so that their number changes
    neither schedule nor order. Where gradients are averaged over processes afterwards, as in
    DistributedDataParallel, multiply the losses by `num_replicas`.

    Args:
        ramp: The schedule of the batch size.
        shuffle: Whether the order is a random one. Default True.
        seed: Integer that the order of every epoch depends on, besides the epoch. Default 0.
        micro_batch: Samples at a time and process. Default: the whole batch.
        rank: Number of this process. Default 0.
        num_replicas: Number of processes; divides all batch sizes. Default 1.

    Attributes:
        update: Updates whose batches were yielded in full.

    Raises:
        ValueError: If an argument is out of range, or batches cannot be divided as asked for.
    """

    def __init__(
        self,
        ramp: BatchSizeSchedule,
        *,
        shuffle: bool = True,
        seed: int = 0,
        micro_batch: int | None = None,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        if not isinstance(ramp, BatchSizeSchedule):
            raise TypeError(
                f"BatchSizeSampler: expected ramp to be a BatchSizeSchedule, got {ramp!r}"
            )
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"BatchSizeSampler: expected rank from 0 to num_replicas - 1 = {num_replicas - 1}, "
                f"got {rank}"
            )
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(
                f"BatchSizeSampler: expected micro_batch of at least 1, got {micro_batch}"
            )
        self.ramp = ramp
        self.shuffle = shuffle
        self.seed = seed
        self.micro_batch = micro_batch
        self.rank = rank
        self.num_replicas = num_replicas
        self._check_sizes()
        self._go_to(0)

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0, that the next batch belongs to."""
        return self.ramp.position(self.update)[0]

    def __len__(self) -> int:
        """Return the number of batches, or parts, of the present iteration or the coming one."""
        return sum(self._n_parts(update) for update in self._rest_of_epoch(self._first))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one batch, or part, after the other, up to the end of the epoch.

        Raises:
            ValueError: If all epochs are over.
        """
        if self.update >= self.ramp.n_updates:
            raise ValueError(
                f"BatchSizeSampler: all {self.ramp.epochs} epochs are over; make ramp with more"
            )
        self._first = self.update
        updates = self._rest_of_epoch(self.update)
        self._ends = {n - 1 for n in itertools.accumulate(map(self._n_parts, updates))}
        return self._batches(updates)

    def is_update_end(self, index: int) -> bool:
        """Return whether an update's batch is complete.

        Args:
            index: Number of the batch, or part, in the last iteration begun, from 0.
        """
        return index in self._ends

    def state_dict(self, update: int | None = None) -> dict[str, Any]:
        """Return where the next update begins, and what the order of samples depends on.

        Args:
            update: Updates done, `scheduler.last_epoch`. Default: those whose batches were yielded,
                which are more if the DataLoader has workers, because these fetch ahead.
        """
        return {"update": self.update if update is None else int(update), **self._order_settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the saved update, also with another micro_batch, rank or num_replicas.

        Raises:
            ValueError: If the state is from other batches, or another order. Nothing has changed
                then.
        """
        for name, value in self._order_settings().items():
            if state[name] != value:
                raise ValueError(
                    f"BatchSizeSampler: the checkpoint has {name}={state[name]}, this sampler "
                    f"{value}; make both the same, to get every sample once"
                )
        self._go_to(state["update"])

    def _order_settings(self) -> dict[str, Any]:
        return {"ramp": repr(self.ramp), "shuffle": self.shuffle, "seed": self.seed}

    def _go_to(self, update: int) -> None:
        self.update = update
        self._first = update  # of the iteration
        self._ends: set[int] = set()

    def _rest_of_epoch(self, update: int) -> range:
        epoch = self.ramp.position(update)[0]
        if epoch == self.ramp.epochs:
            return range(0)
        return range(update, self.ramp.updates_in_epoch(epoch).stop)

    def _batches(self, updates: range) -> Iterator[list[int]]:
        order = self._order(self.ramp.position(updates.start)[0])
        for update in updates:
            sample = self.ramp.position(update)[1]
            n = self.ramp.batch_size_at(update) // self.num_replicas
            start = sample + self.rank * n
            parts = order[start : start + n].split(self.micro_batch or n)
            for index, part in enumerate(parts):
                if index == len(parts) - 1:
                    self.update = update + 1
                yield part.tolist()
        self._first = self.update

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.ramp.dataset_size)
        # From both, so that no epoch of one seed is one of another.
        seed = random.Random(f"{self.seed} {epoch}").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(self.ramp.dataset_size, generator=generator)

    def _n_parts(self, update: int) -> int:
        if self.micro_batch is None:
            return 1
        return self.ramp.accumulation(update, self.micro_batch * self.num_replicas)

    def _check_sizes(self) -> None:
        for update, _ in self.ramp.stages:
            self._n_parts(update)
        last = [self.ramp.updates_in_epoch(epoch)[-1] for epoch in range(self.ramp.epochs)]
        for update in [*(first for first, _ in self.ramp.stages), *last]:
            size = self.ramp.batch_size_at(update)
            if size % self.num_replicas:
                raise ValueError(
                    f"BatchSizeSampler: expected num_replicas to divide the {size} samples of "
                    f"update {update}, got {self.num_replicas}; make ramp with multiple="
                    f"{self.num_replicas}, and drop_last=True if an epoch's last batch is smaller"
                )
