"""Between the host and a device, without waiting: values that go there, looks at those there."""

import torch
from torch import Tensor

__all__ = ["extremes", "moved"]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; nothing waits on the way from the CPU to a GPU."""
    # On the way back, the CPU would read what has not arrived yet.
    return tensor.to(device, non_blocking=device.type != "cpu")


def extremes(values: Tensor) -> tuple[int | float, int | float] | None:
    """Return the smallest and the largest value, both NaN if one is; None where that would wait.

    It would for values on a GPU. None too for no values, and while torch.compile traces, where
    it would break the graph.
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling() or values.numel() == 0:
        return None
    lowest, highest = values.aminmax()
    return lowest.item(), highest.item()
