"""Parameters and gradients for the checks: equal values on any device, in awkward layouts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.workloads import Shape

# Empty, scalar, prime, odd rows, a convolution, rows and vectors longer than a work item of any
# backend (at most 16 K elements).
SHAPES: tuple[Shape, ...] = (
    (0,),
    (),
    (1,),
    (17,),
    (1009,),
    (2, 0),
    (7, 13),
    (1, 9),
    (300, 3),
    (4, 3, 3, 3),
    (2, 20011),
    (33331,),
)


def dense(value: Tensor) -> Tensor:
    """Return a copy of the value in its own memory order."""
    return value.clone()


def unaligned(value: Tensor) -> Tensor:
    """Return the value one element behind a 16-byte boundary."""
    base = torch.empty(value.numel() + 1, dtype=value.dtype, device=value.device)
    return base[1:].view(value.shape).copy_(value)


def channels_last(value: Tensor) -> Tensor:
    """Return the value in the memory order of channels_last; dense if it has not 4 dims."""
    return value.clone(memory_format=torch.channels_last) if value.ndim == 4 else value.clone()


def transposed(value: Tensor) -> Tensor:
    """Return the value with its last two dimensions swapped in memory."""
    return (
        value.mT.clone(memory_format=torch.contiguous_format).mT
        if value.ndim >= 2
        else value.clone()
    )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": dense,
    "unaligned": unaligned,
    "channels_last": channels_last,
    "transposed": transposed,
}


def make_values(shapes: Sequence[Shape], seed: int) -> list[Tensor]:
    """Return float64 values of about 1 on the CPU, equal for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def make_parameters(
    values: Sequence[Tensor], dtype: torch.dtype, device: torch.device, layout: str = "dense"
) -> list[Tensor]:
    """Return leaf tensors with these values, rounded to `dtype`."""
    place = LAYOUTS[layout]
    return [place(value.to(device, dtype)).detach().requires_grad_() for value in values]


def set_grads(
    parameters: Sequence[Tensor], values: Sequence[Tensor], layout: str = "dense"
) -> None:
    """Give gradients with these values; the tensors of earlier ones are used again."""
    place = LAYOUTS[layout]
    for parameter, value in zip(parameters, values, strict=True):
        if parameter.grad is None:
            parameter.grad = place(value.to(parameter.device, parameter.dtype))
        else:
            with torch.no_grad():
                parameter.grad.copy_(value)


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return how many float32 numbers lie between two, element by element.

    Args:
        a: float32 on the CPU.
        b: The same shape and dtype.
    """

    def position(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32).long()
        # Negative numbers count backwards from zero.
        return torch.where(bits < 0, -(bits + 2**31), bits)

    return (position(a) - position(b)).abs()


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return ||got - expected|| / ||expected|| over all tensors, float64 on the CPU."""
    apart = torch.cat([(a - b).flatten() for a, b in zip(got, expected, strict=True)])
    return (apart.norm() / torch.cat([b.flatten() for b in expected]).norm()).item()
