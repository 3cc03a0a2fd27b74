"""Batches in an order, and with random shifts, that a checkpoint can carry."""

from typing import Any

import torch
from torch import Generator, Tensor

from fusedtricks._checks import check_tensor, check_whole
from fusedtricks.data import random_shift

__all__ = ["Batches"]

_KEYS = ("position", "order", "generator")


class Batches:
    """An endless row of augmented batches; every epoch visits every image once, reshuffled.

    All random choices come from one generator of its own, so that two objects with the same
    arguments yield the same batches, and `state_dict` continues in the middle of an epoch.

    Args:
        images: Shape (N, C, H, W), floating point, N at least 1.
        labels: Shape (N,), int64.
        batch_size: Images per batch, at least 1; the last batch of an epoch has what is left.
        seed: Seed of order and shifts.
        max_shift: Largest shift of an image in pixels, drawn uniformly and separately for both
            directions; what moves in has the value of the image's first pixel. Default 1.

    Attributes:
        position: Number of batches taken in the current epoch.

    Raises:
        ValueError: If there are no images, or not as many labels, or a number is out of range.
        TypeError: If an argument is of another kind.

    Example:
        >>> batches = Batches(torch.zeros(5, 1, 8, 8), torch.arange(5), batch_size=2, seed=0)
        >>> [len(labels) for _ in range(len(batches)) for _, labels in [batches.next()]]
        [2, 2, 1]
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int, max_shift: int = 1
    ) -> None:
        check_tensor("Batches", "images", images)
        check_tensor("Batches", "labels", labels)
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(
                "Batches: expected images of shape (N, C, H, W), N at least 1, got "
                f"{list(images.shape)}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"Batches: expected labels of shape [{len(images)}], one for each image, got "
                f"{list(labels.shape)}"
            )
        check_whole("Batches", "batch_size", batch_size, 1)
        check_whole("Batches", "max_shift", max_shift, 0)
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
        """Continue where the object that `state` is from was.

        Raises:
            ValueError, TypeError, RuntimeError: If it is no such state, or that of another number
                of images. Nothing has changed then.
        """
        missing = [name for name in _KEYS if name not in state]
        if missing:
            raise ValueError(
                "load_state_dict: expected what Batches.state_dict() returned, got no "
                f"{missing[0]!r}"
            )
        position, order = state["position"], state["order"]
        check_whole("load_state_dict", "position", position, 0, len(self))
        check_tensor("load_state_dict", "order", order)
        n = len(self.images) if position > 0 or order.numel() > 0 else 0
        if not order.sort().values.equal(torch.arange(n, device=order.device)):
            raise ValueError(
                f"load_state_dict: expected order to have the numbers from 0 to {n - 1} once each, "
                f"got shape {list(order.shape)}; make Batches of the images that the state is of"
            )
        # Before the rest: it refuses what is no state of a generator.
        self._generator.set_state(state["generator"])
        self.position = position
        self._order = order.clone()
