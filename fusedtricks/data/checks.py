"""Checks of arguments that all tricks on images share."""

import math
import numbers

from torch import Tensor

__all__ = ["check_images", "check_number", "check_whole"]


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


def check_whole(what: str, name: str, value: int, low: int) -> None:
    """Refuse what is no whole number of at least `low`.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{what}: expected {name} to be a whole number of pixels, got {value!r}")
    if value < low:
        raise ValueError(f"{what}: expected {name} of at least {low}, got {value}")


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
