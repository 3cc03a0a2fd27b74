"""Data sets small enough to come with their package."""

from fusedtricks.data.digits import Digits, load_digits

__all__ = ["Digits", "load_digits"]
