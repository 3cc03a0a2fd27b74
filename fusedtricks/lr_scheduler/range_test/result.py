"""What a learning-rate range test found, and which learning rates that suggests."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import IO, Any

__all__ = ["Curve", "RangeTest", "Suggestions", "suggest"]

_FEWEST_POINTS = 5


@dataclass(frozen=True)
class Curve:
    """One repetition.

    Attributes:
        lrs: Learning rate of the group with the largest one, per update.
        losses: Loss of every update, measured before its step; finite.
        smoothed: Bias-corrected exponential moving average of `losses`.
        reason: Why it ended: "end", "diverged" or "not finite".
        stop_lr: Learning rate of the update at which it stopped, None for "end". The loss of a
            stop is among `losses` if it is finite.
        skipped: Indices of updates whose step the scaler or the optimizer left out because a
            gradient was not finite.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    reason: str
    stop_lr: float | None
    skipped: list[int]


@dataclass(frozen=True)
class Suggestions:
    """Learning rates for the group with the largest one; see `RangeTest.suggestion_for_groups`.

    Attributes:
        steepest: Where the smoothed loss falls fastest per factor of learning rate.
        minimum: Where the smoothed loss is smallest: about the largest usable one, too large to
            train with.
        minimum_over_10: minimum / 10.
        half_to_third: The pair (minimum / 3, minimum / 2).
        message: Why all of them are None, or why to trust them less; else empty.
    """

    steepest: float | None = None
    minimum: float | None = None
    minimum_over_10: float | None = None
    half_to_third: tuple[float, float] | None = None
    message: str = ""


def suggest(lrs: Sequence[float], smoothed: Sequence[float]) -> Suggestions:
    """Read the suggestions off a smoothed curve.

    The slope is the central difference of the loss over the natural logarithm of the learning rate,
    (s[i+1] - s[i-1]) / (log lr[i+1] - log lr[i-1]), as the curve looks on a logarithmic axis; a
    slope over the learning rate itself would be 1/lr times that, and point at smaller ones. It is
    searched up to the minimum, and not in the first tenth of the points, which are averages of
    few losses.

    Args:
        lrs: Increasing, positive.
        smoothed: One loss per learning rate.

    Returns:
        All None, with a message, for fewer than 5 points or if no loss is below the first one.

    Source: Gugger 2018, "How Do You Find A Good Learning Rate" (minimum / 10; leaves out the first
        10 points); Smith 2017, section 3.3 (the loss over the learning rate tells the bounds).
    """
    n = len(smoothed)
    if n == 0:
        return Suggestions(
            message="no suggestion: the first loss was not finite, in half of the repetitions or "
            "more; check model and data, or lower start_lr"
        )
    if n < _FEWEST_POINTS:
        return Suggestions(
            message=f"no suggestion: the curve has {n} points, at least {_FEWEST_POINTS} are "
            "needed; lower start_lr, or raise n_updates"
        )
    lowest = min(range(n), key=smoothed.__getitem__)
    if lowest == 0:
        return Suggestions(
            message="no suggestion: the loss never fell below its first value; lower start_lr, or "
            "average more batches (repeats, accumulate)"
        )
    first = min(max(n // 10, 1), lowest)
    logs = [math.log(lr) for lr in lrs]

    def slope(i: int) -> float:
        before, after = i - 1, min(i + 1, n - 1)
        return (smoothed[after] - smoothed[before]) / (logs[after] - logs[before])

    minimum = lrs[lowest]
    message = ""
    if lowest == n - 1:
        message = "the loss was still falling at the last learning rate; raise end_lr"
    return Suggestions(
        lrs[min(range(first, lowest + 1), key=slope)],
        minimum,
        minimum / 10,
        (minimum / 3, minimum / 2),
        message,
    )


@dataclass(frozen=True)
class RangeTest:
    """The result of `lr_range_test`.

    With several repetitions, `losses` and `smoothed` are medians. They end where half of the
    repetitions or more have stopped; a stopped one counts as an infinite loss before that.

    Attributes:
        lrs: Learning rate of the group with the largest one, per update.
        losses: Loss per update.
        smoothed: Smoothed loss per update.
        low: Smallest smoothed loss among the repetitions that were still running, per update.
        high: Largest smoothed loss among them.
        reason: Why the curve ended: "end", "diverged" or "not finite".
        curves: The repetitions.
        ratios: Learning rate of every parameter group over the largest one.
        suggestions: What the smoothed curve suggests.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    low: list[float]
    high: list[float]
    reason: str
    curves: list[Curve]
    ratios: list[float]
    suggestions: Suggestions

    @classmethod
    def from_curves(cls, curves: Sequence[Curve], ratios: Sequence[float]) -> "RangeTest":
        """Combine repetitions, at least one, that had the same learning rates.

        Args:
            curves: The repetitions.
            ratios: See the class.
        """
        # The median of k numbers is infinite once so many curves have ended.
        by_length = sorted(curves, key=lambda curve: len(curve.losses))
        last = by_length[(len(curves) - 1) // 2]
        n = len(last.losses)
        smoothed = [_median([curve.smoothed for curve in curves], i) for i in range(n)]
        bands = [[c.smoothed[i] for c in curves if i < len(c.smoothed)] for i in range(n)]
        return cls(
            lrs=list(last.lrs),
            losses=[_median([curve.losses for curve in curves], i) for i in range(n)],
            smoothed=smoothed,
            low=[min(band) for band in bands],
            high=[max(band) for band in bands],
            reason=last.reason,
            curves=list(curves),
            ratios=list(ratios),
            suggestions=suggest(last.lrs, smoothed),
        )

    def suggestion_for_groups(self, lr: float | None) -> list[float]:
        """Return the learning rate of every parameter group when the largest one is `lr`.

        Raises:
            ValueError: For None, a suggestion that could not be made.

        Example:
            >>> lrs = result.suggestion_for_groups(result.suggestions.steepest)
            >>> for group, lr in zip(optimizer.param_groups, lrs):
            ...     group["lr"] = lr
        """
        if lr is None:
            raise ValueError(
                "suggestion_for_groups: expected a learning rate, got None: "
                f"{self.suggestions.message}"
            )
        return [lr * ratio for ratio in self.ratios]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts, lists, numbers and strings."""
        return asdict(self)

    def to_json(self) -> str:
        """Return `to_dict()` as JSON; all numbers are finite."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def plot(self, file: str | PathLike[str] | IO[bytes]) -> None:
        """Draw the curve, its band and the suggestions.

        Args:
            file: A path, whose ending tells the format, or a file opened for writing bytes, which
                gets a PNG.

        Raises:
            ValueError: If there is nothing to draw.
            MissingExtraError: If matplotlib is not installed.
        """
        from fusedtricks.report.range_test import draw_range_test

        draw_range_test(self.to_dict(), file)


def _median(columns: Sequence[Sequence[float]], i: int) -> float:
    return statistics.median(column[i] if i < len(column) else math.inf for column in columns)
