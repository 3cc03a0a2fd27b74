"""Checks of arguments that all tricks on images share."""

import math
from collections.abc import Sequence

from torch import Tensor

from fusedtricks._checks import check_number, check_tensor

__all__ = ["check_images", "check_interval", "check_pair", "checked_normalisation"]


def check_pair(what: str, name: str, pair: Sequence[float]) -> None:
    """Refuse what is not two of something.

    Raises:
        TypeError: If it is no sequence of two.
    """
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise TypeError(
            f"{what}: expected {name} to be two numbers, the smallest and the largest, got {pair!r}"
        )


def check_interval(what: str, name: str, interval: Sequence[float], high: float = math.inf) -> None:
    """Refuse what are not two numbers with 0 < smallest <= largest <= high.

    Raises:
        TypeError: If it is no sequence of two numbers.
        ValueError: If they are out of range or order.
    """
    check_pair(what, name, interval)
    smallest, largest = interval
    check_number(what, name, smallest, low=0, high=high)
    check_number(what, name, largest, low=smallest, high=high)
    if smallest == 0:
        raise ValueError(f"{what}: expected {name} above 0, got {interval}")


def check_images(what: str, images: Tensor, *, any_dtype: bool = False) -> None:
    """Refuse what is no batch of images.

    Args:
        what: Who asks.
        images: Shape (N, C, H, W), floating point.
        any_dtype: Whether integers will do too.

    Raises:
        TypeError: If it is no tensor of such a dtype.
        ValueError: If the shape does not fit.
    """
    check_tensor(what, "images", images)
    if images.ndim != 4:
        raise ValueError(
            f"{what}: expected images of shape (N, C, H, W), got {list(images.shape)}; a single "
            "image is images[None]"
        )
    if not any_dtype and not images.is_floating_point():
        raise TypeError(
            f"{what}: expected images of a floating point dtype, got {images.dtype}; for bytes, "
            "images.float() / 255"
        )


def checked_normalisation(
    what: str, mean: Sequence[float], std: Sequence[float], n_channels: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel as tuples of floats.

    Raises:
        TypeError: If they are no sequences of numbers.
        ValueError: If their numbers differ, or are not `n_channels`; one is infinite or NaN; or a
            std is not above 0.
    """
    for name, values, above in (("mean", mean, -math.inf), ("std", std, 0)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TypeError(f"{what}: expected {name} to be a sequence of numbers, got {values!r}")
        for value in values:
            check_number(what, name, value, above=above)
    if len(mean) != len(std) or n_channels not in (None, len(mean)):
        wanted = "as many values of mean as of std"
        if n_channels is not None:
            wanted = f"{n_channels} values of mean and of std"
        raise ValueError(f"{what}: expected {wanted}, got {len(mean)} and {len(std)}")
    return tuple(map(float, mean)), tuple(map(float, std))
