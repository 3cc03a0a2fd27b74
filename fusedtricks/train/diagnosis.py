"""Telling from the shape of a loss curve what is wrong with a run."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusedtricks._checks import check_whole
from fusedtricks.train.loss_curve import LossCurve

__all__ = ["Finding", "diagnose"]

# Fewest training losses, and fewest validation losses: there is one per epoch.
_FEWEST = 8
_FEWEST_VAL = 4
# Chance level is log K for balanced classes, and lower for others.
_CHANCE = 0.9
# A run has diverged if it ends so far above its start, as a share of it ...
_RISE = 0.1
# ... or has lost so much of what it had gained.
_LOST = 0.25
# A slow start: the first tenth of the fall, or what noise explains if that is more, takes twice the
# time that it takes on a straight line. An exponential decay is faster than the line.
_ONSET_FALL = 0.1
_ONSET_TIME = 2.0
# Not converged: the mean of the last quarter is still so much of the fall below that of the quarter
# before. An exponential decay does that if the run is shorter than about three time constants, with
# 5 % of the fall left to gain.
_STILL_FALLING = 0.08
# Validation shares so little of the fall of the training loss that it has learned nothing.
_SHARED = 0.1
# Prechelt's GL_5: the validation loss is more than 5 % above its minimum.
_GENERALIZATION_LOSS = 5.0
# Standard deviation of the noise over the fall, above which a curve is hard to read.
_NOISY = 0.25


@dataclass(frozen=True)
class Finding:
    """Something that the curves of a run show.

    Attributes:
        kind: "diverged", "not training", "slow start", "not converged", "overfitting",
            "not generalizing", "too noisy" or "fine".
        message: A sentence that says what was seen.
        advice: What to try.
        numbers: What that is based on, by name.
    """

    kind: str
    message: str
    advice: str
    numbers: dict[str, float]


def diagnose(
    losses: Iterable[float | None],
    *,
    val_losses: Iterable[float | None] | None = None,
    n_classes: int | None = None,
) -> list[Finding]:
    """Name the known shape that a loss curve has.

    The curve is cut into 20 stretches (fewer if it is shorter), whose medians are compared, so that
    losses of single batches can be used as well as those of epochs. The noise is estimated from
    second differences, 1.4826 * median|l[i + 1] - 2 l[i] + l[i - 1]| / sqrt(6), which a trend does
    not change, and again from those of the levels. All thresholds are constants of this module,
    with their reasons.

    Give it unsmoothed losses of batches, or losses of epochs: running means look less noisy than
    they are. The levels show that, unless the means reach over more than a stretch.

    It is a first look, not a proof: a decaying learning rate alone makes a curve fall at its end.

    Args:
        losses: Training losses in order, of all batches or all epochs, at least 8. None stands for
            a loss that is not finite, as in `Monitor.losses()`.
        val_losses: Validation losses over the same run, at least 4, in other intervals if need be.
            Default None.
        n_classes: K, if the loss is a cross-entropy in nats over K classes: log K is the loss of a
            guess, by which a run that does not train is told from one that has nothing left to
            learn. Default None.

    Returns:
        The findings, worst first. A run that has diverged or does not train has no other, nor
        has one without a clear fall that is too noisy; one without any is "fine".

    Raises:
        ValueError: If there are too few losses, or n_classes is below 2.
        TypeError: If n_classes is no whole number.

    Example:
        >>> losses = [2.3] * 30 + [2.3 * 0.9**i for i in range(70)]
        >>> [finding.kind for finding in diagnose(losses, n_classes=10)]
        ['slow start']

    Source: Wang, "Different Elements in Training Convolutional Neural Networks" (lecture): the
        curves of a bug, a slow start, and a run that has not converged; Prechelt 1998, "Early
        Stopping - But When?", section 2, GL.
    """
    if n_classes is not None:
        check_whole("diagnose", "n_classes", n_classes, 2)
    values = _numbers("losses", losses, _FEWEST, "take the losses of batches instead of epochs")
    val_values = None
    if val_losses is not None:
        remedy = "evaluate more often, or leave val_losses out"
        val_values = _numbers("val_losses", val_losses, _FEWEST_VAL, remedy)
    for name, numbers in (("training", values), ("validation", val_values or [])):
        if not all(map(math.isfinite, numbers)):
            return [_not_finite(name, numbers)]
    curve = LossCurve.of(values)
    severe = _diverged(curve)
    if severe is None and curve.is_flat:
        severe = _too_noisy(curve) or _not_training(curve, n_classes)
    if severe is not None:
        return [severe]
    found = []
    if val_values is not None:
        val = LossCurve.of(val_values)
        found.append(_overfitting(curve, val) or _not_generalizing(curve, val))
    if not curve.is_flat:
        found += [_slow_start(curve), _not_converged(curve), _too_noisy(curve)]
    return [finding for finding in found if finding is not None] or [_fine(curve)]


def _numbers(name: str, losses: Iterable[float | None], fewest: int, remedy: str) -> list[float]:
    values = [math.nan if loss is None else float(loss) for loss in losses]
    if len(values) < fewest:
        raise ValueError(
            f"diagnose: expected at least {fewest} {name}, got {len(values)}; train longer, or "
            + remedy
        )
    return values


def _not_finite(name: str, values: Sequence[float]) -> Finding:
    first = next(i for i, value in enumerate(values) if not math.isfinite(value))
    return Finding(
        "diverged",
        f"The {name} loss is inf or NaN from value {first} of {len(values)} on.",
        "Lower the learning rate, warm it up, or clip gradients; with float16 use a GradScaler. If "
        "it happens at once, look for a division by 0, a logarithm of 0, or NaN in the data.",
        {"first": first},
    )


def _diverged(curve: LossCurve) -> Finding | None:
    rise = curve.end - curve.start
    lost = curve.end - curve.best
    numbers = {"start": curve.start, "best": curve.best, "end": curve.end}
    advice = "Lower the learning rate, warm it up, or clip gradients."
    if curve.is_clear(rise) and rise > _RISE * abs(curve.start):
        message = f"The loss rose from {curve.start:.3g} to {curve.end:.3g}."
        return Finding("diverged", message, advice, numbers)
    if not curve.is_flat and curve.is_clear(lost) and lost > _LOST * curve.fall:
        message = (
            f"The loss fell from {curve.start:.3g} to {curve.best:.3g} and rose again to "
            f"{curve.end:.3g}: {lost / curve.fall:.0%} of the gain is lost."
        )
        return Finding("diverged", message, advice, numbers)
    return None


def _not_training(curve: LossCurve, n_classes: int | None) -> Finding | None:
    level = statistics.median(curve.levels)
    numbers = {"level": level}
    message = f"The loss stays at {level:.3g}."
    if n_classes is not None:
        chance = math.log(n_classes)
        if level < _CHANCE * chance:
            return None
        numbers["chance"] = chance
        message = f"The loss stays at {level:.3g}; a guess has log({n_classes}) = {chance:.3g}."
    return Finding(
        "not training",
        message,
        "Look for a bug: does the optimizer have the model's parameters, do they get gradients, do "
        "labels belong to their images? Can the model learn 20 samples by heart? If so, raise the "
        "learning rate by factors of 10, or lower it if the losses jump.",
        numbers,
    )


def _slow_start(curve: LossCurve) -> Finding | None:
    first_part = max(_ONSET_FALL * curve.fall, curve.explained)
    onset = next(i for i, level in enumerate(curve.levels) if curve.start - level >= first_part)
    share = onset / len(curve.levels)
    if share < _ONSET_TIME * first_part / curve.fall:
        return None
    return Finding(
        "slow start",
        f"For {share:.0%} of the run the loss stayed near its start, {curve.start:.3g}, before it "
        "fell.",
        "Check the initialisation: do activations keep their scale from layer to layer (Monitor)? "
        "Use normalisation, or He initialisation with ReLU. A long warm-up looks the same.",
        {"onset": share, "start": curve.start},
    )


def _not_converged(curve: LossCurve) -> Finding | None:
    n = len(curve.levels) // 4
    gain = statistics.mean(curve.levels[-2 * n : -n]) - statistics.mean(curve.levels[-n:])
    # The means of n levels have 1 / sqrt(n) of the error of one.
    if not curve.is_clear(math.sqrt(n) * gain) or gain < _STILL_FALLING * curve.fall:
        return None
    return Finding(
        "not converged",
        f"The loss still falls: from the third quarter of the run to the last by "
        f"{gain / curve.fall:.0%} of the whole fall.",
        "Train longer, or raise the learning rate. If the rate is decayed to 0, the loss falls "
        "because of that: compare with a longer schedule.",
        {"gain": gain, "fall": curve.fall, "end": curve.end},
    )


def _overfitting(curve: LossCurve, val: LossCurve) -> Finding | None:
    rise = val.end - val.best
    # The share of the minimum is meaningless for losses that go below 0.
    scale = val.best if val.best > 0 else val.fall
    loss = 100 * rise / scale if scale > 0 else math.inf
    best_at = val.levels.index(val.best) / len(val.levels)
    is_learning = not curve.is_clear(curve.end - curve.at(best_at))
    if not val.is_clear(rise) or loss <= _GENERALIZATION_LOSS or not is_learning:
        return None
    return Finding(
        "overfitting",
        f"The validation loss rose from {val.best:.3g}, after {best_at:.0%} of the run, to "
        f"{val.end:.3g}, while the training loss did not.",
        "Stop there (EarlyStopping), augment the data, or regularise more: weight decay, dropout, "
        "label smoothing, a smaller model.",
        {"generalization_loss": loss, "best": val.best, "end": val.end, "best_at": best_at},
    )


def _not_generalizing(curve: LossCurve, val: LossCurve) -> Finding | None:
    level = statistics.median(val.levels)
    # One that is flat, but low, has fallen before it was looked at for the first time.
    if curve.is_flat or not val.is_flat or curve.start - level > _SHARED * curve.fall:
        return None
    return Finding(
        "not generalizing",
        f"The training loss fell from {curve.start:.3g} to {curve.best:.3g}, but the validation "
        f"loss stays at {level:.3g}.",
        "Look for a bug: do the validation labels belong to their images, are those prepared as in "
        "training, is the model in evaluation mode, with the weights that were trained?",
        {"level": level, "start": curve.start, "best": curve.best},
    )


def _too_noisy(curve: LossCurve) -> Finding | None:
    # In a flat curve, noise as large as that may hide a fall.
    scale, name = (abs(curve.start), "level") if curve.is_flat else (curve.fall, "fall")
    if curve.noise <= _NOISY * scale:
        return None
    return Finding(
        "too noisy",
        f"The noise of the losses, {curve.noise:.2g}, is large beside their {name}, {scale:.2g}.",
        "Average the losses over more batches to see more. If they really jump, lower the learning "
        "rate or take larger batches.",
        {"noise": curve.noise, name: scale},
    )


def _fine(curve: LossCurve) -> Finding:
    return Finding(
        "fine",
        f"The loss went from {curve.start:.3g} to {curve.end:.3g}, without any known fault.",
        "Compare with a larger learning rate, or a larger model.",
        {"start": curve.start, "best": curve.best, "end": curve.end},
    )
