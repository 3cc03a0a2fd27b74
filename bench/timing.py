"""Time several functions side by side, so that drift of the machine hits all of them alike."""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
Step = Callable[[], object]


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which a fraction of the values lies, interpolating linearly.

    Args:
        values: At least one value, in any order.
        fraction: In [0, 1].

    Raises:
        ValueError: If there is no value.
    """
    if not values:
        raise ValueError("percentile: expected at least one value, got none")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Spread:
    """Median and the middle 60 % of a sample.

    Attributes:
        values: The sample, in the order of measurement.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the sample."""
        return percentile(self.values, 0.5)

    @property
    def p20(self) -> float:
        """The value that a fifth of the sample stays below."""
        return percentile(self.values, 0.2)

    @property
    def p80(self) -> float:
        """The value that a fifth of the sample exceeds."""
        return percentile(self.values, 0.8)


def paired_ratio(numerator: Spread, denominator: Spread) -> Spread:
    """Return the ratios of two samples, round by round.

    Both halves of a pair were measured within one round, so a slow phase of the machine cancels.
    """
    pairs = zip(numerator.values, denominator.values, strict=True)
    return Spread(tuple(a / b for a, b in pairs))


def _time_turn(step: Step, n_calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(n_calls):
        step()
    return (clock() - start) / n_calls


def _warm_up(
    steps: Mapping[str, Step], n_calls: int, min_turn_s: float, clock: Clock
) -> dict[str, int]:
    """Call every step a few times and return how many calls make one turn of each."""
    calls = {}
    for name, step in steps.items():
        fastest = min(_time_turn(step, 1, clock) for _ in range(max(n_calls, 1)))
        calls[name] = max(1, math.ceil(min_turn_s / max(fastest, 1e-9)))
    return calls


def interleave(
    steps: Mapping[str, Step],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 1000,
    warmup: int = 3,
    min_turn_s: float = 0.02,
    before: Step | None = None,
    clock: Clock = time.perf_counter,
    on_round: Callable[[float], None] | None = None,
) -> dict[str, Spread]:
    """Measure functions in turns: one turn of each per round, until the time is up.

    Each round starts with the next function, so that none always follows the same one. Short
    functions are called several times per turn. The garbage collector rests meanwhile.

    Args:
        steps: Functions by name.
        seconds: Time budget of all rounds together, warm-up excluded.
        min_rounds: Rounds taken even if the time is up.
        max_rounds: Rounds after which to stop.
        warmup: Calls of each function before the first round.
        min_turn_s: Least duration of a turn, in seconds.
        before: Called off the clock before every turn, which then is one call; say, to empty the
            caches.
        clock: Returns seconds.
        on_round: Called after each round with the fraction done, in [0, 1].

    Returns:
        Seconds per call of each function, one value per round.
    """
    names = list(steps)
    values: dict[str, list[float]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        calls = _warm_up(steps, warmup, 0 if before else min_turn_s, clock)
        start = clock()
        for done in range(max_rounds):
            elapsed = clock() - start
            if done >= min_rounds and elapsed >= seconds:
                break
            first = done % max(len(names), 1)
            for name in names[first:] + names[:first]:
                if before is not None:
                    before()
                values[name].append(_time_turn(steps[name], calls[name], clock))
            if on_round is not None:
                in_time = (clock() - start) / seconds if seconds > 0 else 1.0
                in_rounds = (done + 1) / min_rounds if done + 1 < min_rounds else 1.0
                on_round(min(max(in_time, (done + 1) / max_rounds), in_rounds, 1.0))
    finally:
        if was_enabled:
            gc.enable()
    return {name: Spread(tuple(sample)) for name, sample in values.items()}


def bandwidth_gb_s(n_bytes: float, seconds: float) -> float:
    """Return 10^9 bytes per second."""
    return n_bytes / seconds / 1e9
