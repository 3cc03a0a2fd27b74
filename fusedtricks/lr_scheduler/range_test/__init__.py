"""The learning-rate range test."""

from fusedtricks.lr_scheduler.range_test.result import Curve, RangeTest, Suggestions, suggest
from fusedtricks.lr_scheduler.range_test.trial import lr_range_test

__all__ = ["Curve", "RangeTest", "Suggestions", "lr_range_test", "suggest"]
