"""Compile-time values of kernels that are no numbers.

Triton takes any hashable object as a constexpr and gives its attributes, but treats tuples in its
own way, which differs between versions: so they are wrapped, and indexed by functions.
"""

from dataclasses import dataclass
from typing import Any

import triton


@dataclass(frozen=True)
class Choices:
    """Some values, in the order of their names: equal sets share a compiled kernel."""

    values: tuple[Any, ...]

    @classmethod
    def of(cls, values: Any) -> "Choices":
        """Return the choices among `values`, each once."""
        return cls(tuple(sorted(set(values), key=str)))


@triton.constexpr_function
def n_choices(choices):
    """Return the number of values."""
    return len(choices.values)


@triton.constexpr_function
def choice(choices, index):
    """Return the value at an index."""
    return choices.values[index]


@triton.constexpr_function
def size_of(dtype):
    """Return the bytes of an element."""
    return dtype.primitive_bitwidth // 8
