"""Checks of arguments: errors that name who asks, the argument, the value and what is expected."""

import math
import numbers
from typing import Any

from torch import Tensor, nn

__all__ = ["check_bool", "check_module", "check_number", "check_tensor", "check_whole"]


def check_number(
    what: str,
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> None:
    """Refuse what is no finite number in [low, high], or not above `above`.

    Raises:
        TypeError: If it is no number; numbers of NumPy are some, True is none.
        ValueError: If it is outside, infinite or NaN.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{what}: expected {name} to be a number, got {value!r}")
    # Not math.isfinite, which torch.compile cannot trace for a number that varies.
    if -math.inf < value < math.inf and low <= value <= high and value > above:
        return
    if high < math.inf:
        begin = f"({above}" if above > low else f"[{low}"
        raise ValueError(f"{what}: expected {name} in {begin}, {high}], got {value}")
    bound = f" above {above}" if above > low else f" of at least {low}" if low > -math.inf else ""
    raise ValueError(f"{what}: expected {name} to be a finite number{bound}, got {value}")


def check_whole(what: str, name: str, value: Any, low: int, high: float = math.inf) -> None:
    """Refuse what is no whole number in [low, high].

    Raises:
        TypeError: If it is no integer; those of NumPy are some, True is none.
        ValueError: If it is outside.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{what}: expected {name} to be a whole number, got {value!r}")
    if not low <= value <= high:
        interval = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{what}: expected {name} {interval}, got {value}")


def check_bool(what: str, name: str, value: Any) -> None:
    """Refuse what is neither True nor False, such as "no", which would count as True.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{what}: expected {name} to be True or False, got {value!r}")


def check_module(what: str, name: str, value: Any) -> None:
    """Refuse what is no module.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"{what}: expected {name} to be a Module, got {type(value).__name__}")


def check_tensor(what: str, name: str, value: Any) -> None:
    """Refuse what is no tensor.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{what}: expected {name} to be a tensor, got {type(value).__name__}")
