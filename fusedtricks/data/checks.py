"""Checks of arguments that all tricks on images share."""

import math
import numbers
from collections.abc import Sequence

from torch import Tensor

__all__ = ["check_images", "check_interval", "check_number", "check_pair", "check_whole"]


def check_number(what: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse what is no finite number in [low, high].

    Raises:
        TypeError: If it is no number.
        ValueError: If it is outside, infinite or NaN.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{what}: expected {name} to be a number, got {value!r}")
    if not low <= value <= high or math.isinf(value):
        interval = ("(" if low == -math.inf else "[") + f"{low}, {high}"
        interval += ")" if high == math.inf else "]"
        raise ValueError(f"{what}: expected {name} in {interval}, got {value}")


def check_whole(what: str, name: str, value: int, low: int, high: float = math.inf) -> None:
    """Refuse what is no whole number in [low, high].

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is outside.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{what}: expected {name} to be a whole number, got {value!r}")
    if not low <= value <= high:
        interval = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{what}: expected {name} {interval}, got {value}")


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
    if not isinstance(images, Tensor):
        raise TypeError(f"{what}: expected images to be a tensor, got {type(images).__name__}")
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
