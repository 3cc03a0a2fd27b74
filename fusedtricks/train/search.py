"""Two steps of a hyper-parameter search that Optuna leaves to its user: borders, and refining."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from fusedtricks._checks import check_number, check_whole
from fusedtricks._extras import require

if TYPE_CHECKING:
    import optuna

__all__ = ["OnBorder", "best_on_border", "refine"]

# Share of a step by which rounding may have moved a value off the grid.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class OnBorder:
    """A parameter whose best value lies at the border of what was searched.

    Attributes:
        name: Name of the parameter.
        value: Its best value.
        low: Smallest value that was searched.
        high: Largest one.
        side: "low" or "high".
        message: A sentence that says so, and what to do.
    """

    name: str
    value: float
    low: float
    high: float
    side: str
    message: str


def best_on_border(study: "optuna.Study", *, margin: float = 0.05) -> list[OnBorder]:
    """Return the parameters of the best trial that lie at the border of what was searched.

    With u(x) = x, or log(x) where the search is on a logarithmic scale, x does so if
    place = (u(x) - u(low)) / (u(high) - u(low)) is at most `margin`, or at least 1 - margin: better
    values may lie outside. `low` and `high` are those of all trials, since a study may go on with
    other ranges. Categories have no border, nor do ranges of one or two values.

    Args:
        study: An Optuna study with one objective.
        margin: Share of the range, from either end, in [0, 0.5). Default 0.05.

    Returns:
        One entry per parameter, in the order in which the best trial drew them.

    Raises:
        ValueError: If margin is out of range, or the study has several objectives or no trial with
            a finite value.
        TypeError: If study is no Optuna study, or margin no number.
        MissingExtraError: If Optuna is not installed.

    Example:
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        >>> study.optimize(lambda t: -t.suggest_float("lr", 1e-5, 1e-1, log=True), n_trials=50)
        >>> print(best_on_border(study)[0].message)
        The best lr, 0.0821, is at the upper border of 1e-05 to 0.1: search larger values too, ...

    Source: the notes of the course CS231n, "Neural Networks Part 3": careful with best values on
        the border.
    """
    check_number("best_on_border", "margin", margin)
    if not 0 <= margin < 0.5:
        raise ValueError(f"best_on_border: expected margin in [0, 0.5), got {margin}")
    trials, (best, *_) = _trials("best_on_border", study)
    found = []
    for name, value in best.params.items():
        searched = _Range.of(_distributions(trials, name))
        if searched is None or not searched.has_inside:
            continue
        place = searched.place(value)
        if margin < place < 1 - margin:
            continue
        side, border, where = ("high", "upper", "larger")
        if place < 0.5:
            side, border, where = ("low", "lower", "smaller")
        message = (
            f"The best {name}, {_shown(value)}, is at the {border} border of "
            f"{_shown(searched.low)} to {_shown(searched.high)}: search {where} values too, unless "
            "there are none."
        )
        found.append(OnBorder(name, value, searched.low, searched.high, side, message))
    return found


def refine(
    study: "optuna.Study", *, shrink: float = 0.5, n_best: int = 5
) -> dict[str, "optuna.distributions.BaseDistribution"]:
    """Return narrower ranges around the best trials, for the next, finer stage of a search.

    On the scale of the search, linear or logarithmic, a range becomes `shrink` times as wide as
    that of the last trial, or as wide as the values of the best trials need, and lies around the
    middle of those; at a border it is moved inside. So no good trial is cut off, and a parameter
    that does not matter stays wide. A range never grows beyond what was searched: see
    `best_on_border` first. Integers and steps are rounded outwards; categories stay as they are.

    Args:
        study: An Optuna study with one objective.
        shrink: New width over old width, in (0, 1). Default 0.5.
        n_best: How many of the best trials to keep inside, at least 1. Default 5.

    Returns:
        Name -> Optuna distribution, for `study.ask(fixed_distributions=...)`.

    Raises:
        ValueError: If an argument is out of range, or the study has several objectives or no trial
            with a finite value.
        TypeError: If study is no Optuna study, shrink no number, or n_best no whole number.
        MissingExtraError: If Optuna is not installed.

    Example:
        >>> ranges = refine(study)
        >>> fine = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        >>> for _ in range(20):
        ...     trial = fine.ask(fixed_distributions=ranges)
        ...     fine.tell(trial, train(**trial.params))

    Source: the notes of the course CS231n, "Neural Networks Part 3": stage the search from coarse
        to fine; Bergstra & Bengio 2012, "Random Search for Hyper-Parameter Optimization", for
        drawing at random from the ranges.
    """
    check_number("refine", "shrink", shrink)
    if not 0 < shrink < 1:
        raise ValueError(f"refine: expected shrink in (0, 1), got {shrink}")
    check_whole("refine", "n_best", n_best, 1)
    trials, ranked = _trials("refine", study)
    best = ranked[:n_best]
    refined = {}
    for name in dict.fromkeys(name for trial in best for name in trial.params):
        searched = _Range.of(_distributions(trials, name))
        if searched is None:
            refined[name] = _distributions(trials, name)[-1]
            continue
        values = [trial.params[name] for trial in best if name in trial.params]
        refined[name] = searched.around(values, shrink)
    return refined


@dataclass(frozen=True)
class _Range:
    """What was searched for a number.

    Attributes:
        last: The distribution of the last trial that has it.
        low: Smallest lower end in all trials.
        high: Largest upper end in all trials.
    """

    last: Any
    low: float
    high: float

    @classmethod
    def of(cls, distributions: list[Any]) -> "_Range | None":
        """Return the range that they are together, None for categories."""
        last = distributions[-1]
        if not hasattr(last, "low"):
            return None
        return cls(last, min(d.low for d in distributions), max(d.high for d in distributions))

    @property
    def has_inside(self) -> bool:
        """Whether there are values between the ends."""
        return self._n_steps > 1 if self.last.step is not None else self.low < self.high

    @property
    def _n_steps(self) -> int:
        return math.floor((self.high - self.low) / self.last.step + _TOLERANCE)

    def place(self, value: float) -> float:
        """Return where a value is, on the scale of the search: 0 is `low`, 1 is `high`."""
        low, high = self._to_scale(self.low), self._to_scale(self.high)
        return (self._to_scale(value) - low) / (high - low)

    def around(self, values: Sequence[float], shrink: float) -> Any:
        """Return a narrower distribution that has all the values inside."""
        values = [min(max(value, self.low), self.high) for value in values]
        inside = [self._to_scale(value) for value in values]
        width = shrink * (self._to_scale(self.last.high) - self._to_scale(self.last.low))
        start = (min(inside) + max(inside) - width) / 2
        start = min(start, self._to_scale(self.high) - width)
        start = max(start, self._to_scale(self.low))
        low, high = self._from_scale(start), self._from_scale(start + width)
        # The values may need more, and logarithms are not exact.
        low, high = max(min(low, *values), self.low), min(max(high, *values), self.high)
        if self.last.step is not None:
            low, high = self._on_grid(low, high)
        return type(self.last)(low, high, log=self.last.log, step=self.last.step)

    def _on_grid(self, low: float, high: float) -> tuple[float, float]:
        """Return the ends rounded outwards to whole steps from `self.low`."""
        step = self.last.step
        first = math.floor((low - self.low) / step + _TOLERANCE)
        last = min(math.ceil((high - self.low) / step - _TOLERANCE), self._n_steps)
        # In decimals, as Optuna reckons: sums of floats may lie a little beside the grid, and then
        # it cuts off the last step.
        start, width = Decimal(str(self.low)), Decimal(str(step))
        kind = type(self.low)
        return kind(start + first * width), kind(start + last * width)

    def _to_scale(self, value: float) -> float:
        return math.log(value) if self.last.log else value

    def _from_scale(self, value: float) -> float:
        return math.exp(value) if self.last.log else value


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _distributions(trials: list[Any], name: str) -> list[Any]:
    return [trial.distributions[name] for trial in trials if name in trial.distributions]


def _trials(owner: str, study: Any) -> tuple[list[Any], list[Any]]:
    """Return all trials, and those that finished with finite values, best first."""
    optuna = require("optuna")
    if not isinstance(study, optuna.Study):
        raise TypeError(f"{owner}: expected an optuna.Study, got {type(study).__name__}")
    if len(study.directions) != 1:
        raise ValueError(
            f"{owner}: expected a study with one objective, got {len(study.directions)}; several "
            "have no single best trial"
        )
    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    finite = [trial for trial in complete if math.isfinite(trial.value)]
    if not finite:
        raise ValueError(
            f"{owner}: expected a study with a finished trial of finite value, got "
            f"{len(trials)} trials without one; run study.optimize first"
        )
    is_falling = study.direction == optuna.study.StudyDirection.MINIMIZE
    return trials, sorted(finite, key=lambda trial: trial.value if is_falling else -trial.value)
