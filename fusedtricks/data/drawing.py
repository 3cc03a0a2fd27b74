"""Random numbers from a generator, on the generator's device."""

import torch
from torch import Generator, Tensor

from fusedtricks._host import moved

__all__ = ["device_of", "uniform"]


def device_of(generator: Generator | None) -> torch.device:
    """Return where numbers are drawn: the generator's device, or the CPU without one.

    A few numbers per image are drawn on the CPU for images on any device, so that a seed means
    the same everywhere.

    Raises:
        TypeError: If it is no generator.
    """
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(
            f"expected generator to be a torch.Generator or None, got {generator!r}; from a seed, "
            "torch.Generator().manual_seed(42)"
        )
    return torch.device("cpu") if generator is None else generator.device


def uniform(
    shape: tuple[int, ...],
    low: float,
    high: float,
    *,
    generator: Generator | None,
    device: torch.device,
) -> Tensor:
    """Return float32 numbers from [low, high) on a device."""
    drawn = torch.rand(shape, generator=generator, device=device_of(generator), dtype=torch.float32)
    return moved(low + (high - low) * drawn, device)
