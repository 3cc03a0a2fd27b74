"""Means of paired differences, and the intervals that they lie in."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fusedtricks._extras import require

__all__ = ["CONFIDENCE", "Difference", "compare", "mean_and_half_width"]

# 99 % and not 95 %: of 70 tricks that do nothing, measured twice each, 95 % would let seven look as
# if they did something, 99 % one or two.
CONFIDENCE = 0.99


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and the half width of its confidence interval.

    Attributes:
        mean: In the unit of the values.
        half_width: The interval is mean - half_width to mean + half_width.
    """

    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        """What the interval says of errors: "helps", "hurts", "no effect found" or "identical"."""
        if self.mean == self.half_width == 0:
            # Not even by chance: the trick was never in force.
            return "identical"
        if abs(self.mean) <= self.half_width:
            return "no effect found"
        return "helps" if self.mean < 0 else "hurts"


def compare(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return values - baseline, pair by pair: equal positions share a seed.

    Args:
        values: At least 2.
        baseline: As many.

    Raises:
        ValueError: If there are fewer, or the lengths differ.
    """
    if len(values) != len(baseline):
        raise ValueError(
            f"compare: expected pairs, got {len(values)} values and {len(baseline)} of the baseline"
        )
    pairs = zip(values, baseline, strict=True)
    return Difference(*mean_and_half_width([a - b for a, b in pairs]))


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its confidence interval (Student's t).

    Args:
        values: At least 2.

    Raises:
        ValueError: If there are fewer.
    """
    if len(values) < 2:
        raise ValueError(f"expected 2 or more values for an interval, got {len(values)}")
    quantile = require("scipy.stats").t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(quantile) * error
