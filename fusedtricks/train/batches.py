"""Batches in an order, and with random shifts, that a checkpoint can carry."""

from typing import Any

import torch
from torch import Generator, Tensor

from fusedtricks.data import random_shift

__all__ = ["Batches"]


class Batches:
    """An endless row of augmented batches; every epoch visits every image once, reshuffled.

    All random choices come from one generator of its own, so that two objects with the same
    arguments yield the same batches, and `state_dict` continues in the middle of an epoch.

    Args:
        images: Shape (N, C, H, W), floating point.
        labels: Shape (N,), int64.
        batch_size: Images per batch; the last batch of an epoch has what is left.
        seed: Seed of order and shifts.
        max_shift: Largest shift of an image in pixels, drawn uniformly and separately for both
            directions; what moves in has the value of the image's first pixel. Default 1.

    Attributes:
        position: Number of batches taken in the current epoch.

    Example:
        >>> batches = Batches(torch.zeros(5, 1, 8, 8), torch.arange(5), batch_size=2, seed=0)
        >>> [len(labels) for _ in range(len(batches)) for _, labels in [batches.next()]]
        [2, 2, 1]
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int, max_shift: int = 1
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.max_shift = max_shift
        self.position = 0
        self._generator = Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next images, shape (B, C, H, W), and labels, shape (B,)."""
        if self.position in (0, len(self)):
            self._order = torch.randperm(len(self.images), generator=self._generator)
            self.position = 0
        start = self.position * self.batch_size
        chosen = self._order[start : start + self.batch_size]
        self.position += 1
        images = self.images[chosen]
        background = images[:, :, :1, :1]
        images = random_shift(
            images, max_shift=self.max_shift, fill=background, generator=self._generator
        )
        return images, self.labels[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return what the coming batches depend on, besides the constructor's arguments."""
        return {
            "position": self.position,
            "order": self._order,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the object that `state` is from was."""
        self.position = state["position"]
        self._order = state["order"].clone()
        self._generator.set_state(state["generator"])
