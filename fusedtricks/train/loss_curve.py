"""A loss curve, made comparable: its levels, and what noise explains."""

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["LossCurve"]

# A curve is cut into so many stretches, whose medians are its levels: enough to see a flat start.
_N_STRETCHES = 20
# A difference of levels has to be so many standard errors: then pure noise seems to fall in at most
# 1 curve of 50 with up to 20 values, and 1 of 400 with 60 or more.
_SIGNIFICANT = 5.0
# Share of its start by which the loss has to fall to count as training at all.
_FLAT = 0.02


@dataclass(frozen=True)
class LossCurve:
    """A curve of finite values, made comparable.

    Attributes:
        start: Its first value, or first level if noise explains the difference.
        levels: Medians of stretches of equal length.
        noise: Standard deviation of a value around the trend.
        error: Standard error of a level.
    """

    start: float
    levels: list[float]
    noise: float
    error: float

    @classmethod
    def of(cls, values: list[float]) -> "LossCurve":
        """Return the curve of at least four finite values."""
        n = len(values)
        n_stretches = min(n, _N_STRETCHES)
        cuts = [i * n // n_stretches for i in range(n_stretches + 1)]
        levels = [statistics.median(values[a:b]) for a, b in pairwise(cuts)]
        noise = _noise(values)
        # The standard error of a median is sqrt(pi / 2) of that of a mean. Values that hang
        # together, such as running means, hide it; their levels still show it.
        share = math.sqrt(math.pi / 2 * n_stretches / n)
        error = max(share * noise, _noise(levels))
        is_noise = abs(values[0] - levels[0]) <= _SIGNIFICANT * error / share
        return cls(levels[0] if is_noise else values[0], levels, noise, error)

    @property
    def end(self) -> float:
        """Last level."""
        return self.levels[-1]

    @property
    def best(self) -> float:
        """Lowest level."""
        return min(self.levels)

    @property
    def fall(self) -> float:
        """How far it fell below its start."""
        return self.start - self.best

    @property
    def is_flat(self) -> bool:
        """Whether it does not fall, or too little to count as training."""
        return not self.is_clear(self.fall) or self.fall <= _FLAT * abs(self.start)

    @property
    def explained(self) -> float:
        """The largest difference of two levels that noise explains."""
        return _SIGNIFICANT * self.error

    def is_clear(self, difference: float) -> bool:
        """Return whether noise does not explain a difference of two levels."""
        return difference > self.explained

    def at(self, share: float) -> float:
        """Return the level after a share of the run."""
        return self.levels[min(int(share * len(self.levels)), len(self.levels) - 1)]


def _noise(values: list[float]) -> float:
    """Estimate the standard deviation around the trend, from second differences."""
    bends = [abs(values[i + 1] - 2 * values[i] + values[i - 1]) for i in range(1, len(values) - 1)]
    return 1.4826 * statistics.median(bends) / math.sqrt(6)
