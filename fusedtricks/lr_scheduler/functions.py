"""Any function as a schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusedtricks.lr_scheduler.schedule import Schedule

__all__ = ["Function", "name_of"]


@dataclass(frozen=True)
class Function(Schedule):
    """Any function of the number of updates, as a factor.

    value(t) = base * function(t).

    Args:
        function: Maps the number of updates done to a factor; always the same for the same number.

    Raises:
        TypeError: If it cannot be called.
    """

    function: Callable[[float], float]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Function: expected function to be callable, got {self.function!r}")

    def _factor(self, t: float) -> float:
        return float(self.function(t))

    def __repr__(self) -> str:
        return f"Function({name_of(self.function)})"


def name_of(function: Callable[..., Any]) -> str:
    """Return a name without an address in memory: the same in the next process."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"
