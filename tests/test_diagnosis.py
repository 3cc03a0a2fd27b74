"""Diagnosing runs: synthetic curves of every shape."""

import json
import math
import random
from dataclasses import asdict

import pytest
import torch

from fusedtricks.train.diagnosis import diagnose

LENGTHS = [8, 11, 20, 97, 1000]


def kinds(losses, **arguments) -> list[str]:
    return [finding.kind for finding in diagnose(losses, **arguments)]


def curve(n, shape, noise=0.003, seed=0) -> list[float]:
    """Return shape(t) for n times t from 0 to 1, with noise."""
    numbers = random.Random(seed)
    return [shape(i / (n - 1)) + numbers.gauss(0, noise) for i in range(n)]


def decay(time_constant):
    return lambda t: 0.3 + 2 * math.exp(-t / time_constant)


# Shapes. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("n_classes", [10, None])
def test_fine(n, n_classes):
    losses = curve(n, decay(0.12))
    (finding,) = diagnose(losses, val_losses=curve(n, decay(0.1), seed=1), n_classes=n_classes)
    assert finding.kind == "fine"
    assert finding.numbers["best"] <= finding.numbers["end"] < finding.numbers["start"]
    assert finding.numbers["end"] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("noise", [0.0, 0.001, 0.3])
def test_not_training(n, noise):
    losses = curve(n, lambda t: math.log(13), noise)
    (finding,) = diagnose(losses, n_classes=13)
    assert finding.kind == "not training"
    assert finding.numbers["chance"] == pytest.approx(2.5649493574615367, rel=1e-12)
    assert f"stays at {finding.numbers['level']:.3g}; a guess has log(13) = 2.56" in finding.message
    assert kinds(losses) == ["not training"]
    # The same curve is far below a guess among a thousand classes: nothing is left to learn.
    assert kinds(losses, n_classes=1000) == ["fine"]
    assert kinds(losses, n_classes=2) == ["not training"]
    # 1 % less is no training either, 5 % is.
    assert kinds(curve(n, lambda t: 2.56 * (1 - 0.01 * t), 0), n_classes=13) == ["not training"]
    assert "not training" not in kinds(curve(n, lambda t: 2.56 * (1 - 0.05 * t), 0), n_classes=13)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_losses_that_are_not_finite(n, bad):
    losses = curve(n, decay(0.12))
    losses[6:] = [bad] * (n - 6)
    for found in (diagnose(losses), diagnose(curve(n, decay(0.1)), val_losses=losses)):
        (finding,) = found
        assert (finding.kind, finding.numbers) == ("diverged", {"first": 6})
        assert f"from value 6 of {n} on" in finding.message
    assert "The training loss" in diagnose(losses)[0].message
    assert "The validation loss" in finding.message


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "shape",
    [
        lambda t: 2.3 + 3 * t,
        lambda t: 2.3 * math.exp(20 * t),
        lambda t: 2.3 if t == 0 else 9.0,  # at once
        lambda t: 2.3 - 2 * t if t < 0.5 else 4.0,
        lambda t: 2.3 - 4 * t if t < 0.5 else 1.1,  # only a part of the gain is lost
        lambda t: -1.0 + 3 * t,
    ],
)
def test_diverged(n, shape):
    (finding,) = diagnose(curve(n, shape, 0.001))
    assert finding.kind == "diverged"
    assert "learning rate" in finding.advice
    numbers = finding.numbers
    assert numbers["end"] > numbers["best"] and numbers["start"] == pytest.approx(shape(0), rel=0.7)


def test_a_small_loss_of_what_was_gained_is_no_divergence():
    assert kinds(curve(97, lambda t: 2.3 - 8 * t if t < 0.25 else 0.3 + 0.4 * t)) == ["fine"]


def test_what_hardly_moves_does_not_diverge():
    assert kinds([2.31 - 0.002 * min(i, 12 - i) for i in range(12)]) == ["not training"]


def test_a_bump_is_no_divergence():
    def shape(t):
        return decay(0.1)(t) + (3 if 0.3 < t < 0.4 else 0)

    for n in (20, 97, 1000):
        assert kinds(curve(n, shape)) == ["fine"]


@pytest.mark.parametrize("n", [11, 20, 97, 200, 1000])
@pytest.mark.parametrize("flat", [0.35, 0.6])
def test_slow_start(n, flat):
    losses = curve(n, lambda t: 2.3 - 2 * (1 - math.exp(-max(t - flat, 0) / 0.08)))
    found = diagnose(losses, n_classes=10)
    assert found[0].kind == "slow start"
    assert found[0].numbers["onset"] == pytest.approx(flat, abs=0.13 if n < 20 else 0.06)
    assert found[0].numbers["start"] == pytest.approx(2.3, abs=0.01)


def late_fall(t):
    """Fall by 2 along a line, from 35 % of the run on."""
    return 2.3 - 2 * max(t - 0.35, 0) / 0.65


@pytest.mark.parametrize("noise", [0.15, 0.18])
def test_a_slow_start_with_noise_in_which_a_tenth_of_the_fall_is_lost(noise):
    # A level has an error of at least a quarter of the noise: five of them are about 0.2.
    found = [diagnose(curve(400, late_fall, noise, seed)) for seed in range(40)]
    assert all(each[0].kind == "slow start" for each in found)
    onsets = [each[0].numbers["onset"] for each in found]
    assert 0.35 <= min(onsets) <= max(onsets) <= 0.55
    steady = [kinds(curve(400, lambda t: 2.3 - 2 * t, noise, seed)) for seed in range(40)]
    assert not any("slow start" in each for each in steady)


@pytest.mark.parametrize("n", LENGTHS)
def test_steady_runs_have_no_slow_start(n):
    for shape in (lambda t: 2.3 - 2 * t, decay(0.5), decay(0.05)):
        assert "slow start" not in kinds(curve(n, shape))


@pytest.mark.parametrize("n", LENGTHS)
def test_not_converged(n):
    for shape in (lambda t: 2.3 - 2 * t, decay(0.5), decay(1.5)):
        (finding,) = diagnose(curve(n, shape, 0.001), n_classes=10)
        assert finding.kind == "not converged"
        assert finding.numbers["gain"] > 0.08 * finding.numbers["fall"]
    # A line falls by a quarter of its length from the middle of one quarter to that of the next.
    (finding,) = diagnose([5 - i / 200 for i in range(400)])
    assert finding.numbers["gain"] == pytest.approx(0.5, rel=0.01)
    assert "by 26% of the whole fall" in finding.message


@pytest.mark.parametrize("n", [20, 97, 1000])
def test_overfitting(n):
    losses = curve(n, decay(0.12))
    for n_val in (8, 15, 400):
        val_losses = curve(n_val, lambda t: decay(0.1)(t) + max(t - 0.4, 0), seed=2)
        (finding,) = diagnose(losses, val_losses=val_losses, n_classes=10)
        assert finding.kind == "overfitting"
        numbers = finding.numbers
        expected = 100 * (numbers["end"] / numbers["best"] - 1)  # GL of Prechelt
        assert numbers["generalization_loss"] == pytest.approx(expected, rel=1e-9)
        assert numbers["best_at"] == pytest.approx(0.4, abs=0.15)
    # A rise of 3 % is less than GL_5 takes for one.
    small = curve(n, lambda t: 1.0 + 0.5 * math.exp(-t / 0.08) + 0.03 * max(t - 0.6, 0) / 0.4, 0)
    assert kinds(losses, val_losses=small) == ["fine"]
    # A rise together with the training loss is no overfitting.
    both = curve(n, lambda t: decay(0.1)(t) + 0.8 * max(t - 0.5, 0))
    assert kinds(both, val_losses=both) == ["fine"]


def test_overfitting_from_the_very_beginning_and_below_zero():
    losses = curve(97, decay(0.12))
    assert kinds(losses, val_losses=[1 + 0.1 * i for i in range(9)]) == ["overfitting"]
    below = curve(97, lambda t: -1 - 2 * t if t < 0.5 else -2 + 0.5 * (t - 0.5), 0.001)
    # Beside the fall of 1, the rise is 24 % on average over the last stretch.
    (finding,) = diagnose(losses, val_losses=below)
    assert finding.numbers["generalization_loss"] == pytest.approx(24, rel=0.1)
    flat = curve(97, lambda t: max(-1 - 2 * t, -2) + 0.03 * t, 0.0001)
    assert kinds(losses, val_losses=flat) == ["fine"]
    rising = [-2 + 0.1 * i for i in range(9)]
    (finding,) = diagnose(losses, val_losses=rising)
    assert finding.kind == "overfitting" and finding.numbers["generalization_loss"] == math.inf


def test_too_noisy():
    def shape(t):
        return 2.3 - 1.6 * min(8 * t, 1)

    for n in (400, 1000):
        (finding,) = diagnose(curve(n, shape, 0.8))
        assert finding.kind == "too noisy"
        assert finding.numbers["noise"] == pytest.approx(0.8, rel=0.2)
        assert 1 < finding.numbers["fall"] < 2.2
        assert kinds(curve(n, shape, 0.2)) == ["fine"]
    # The noise hides whether it falls.
    (finding,) = diagnose(curve(40, shape, 0.8), n_classes=10)
    assert finding.kind == "too noisy" and finding.numbers["level"] > 1


def test_noise_is_rarely_taken_for_something_else():
    flat = [kinds(curve(60, lambda t: 2.3, 0.3, seed)) for seed in range(300)]
    fine = [kinds(curve(60, decay(0.12), 0.1, seed)) for seed in range(300)]
    assert flat.count(["not training"]) >= 294 and fine.count(["fine"]) >= 294


def running_mean(losses, decay) -> list[float]:
    means = losses[:1]
    for loss in losses[1:]:
        means.append(decay * means[-1] + (1 - decay) * loss)
    return means


def test_running_means_of_noise_rarely_seem_to_be_something():
    smooth = [running_mean(curve(1000, lambda t: 2.3, 0.3, seed), 0.9) for seed in range(200)]
    found = [kinds(losses, n_classes=10) for losses in smooth]
    assert ["diverged"] not in found and found.count(["not training"]) >= 170
    # What is there is still seen.
    for shape, kind in ((decay(0.12), "fine"), (lambda t: 2.3 + 3 * t, "diverged")):
        assert kinds(running_mean(curve(1000, shape, 0.1), 0.9)) == [kind]


@pytest.mark.parametrize("n_val", [4, 7, 10, 400])
def test_not_generalizing(n_val):
    losses = curve(97, lambda t: 2.3 - 2 * (1 - math.exp(-t / 0.12)))
    for noise, n_classes in ((0, 10), (0.02, None)):
        flat = curve(n_val, lambda t: 2.3, noise, seed=3)
        (finding,) = diagnose(losses, val_losses=flat, n_classes=n_classes)
        assert finding.kind == "not generalizing"
        assert finding.numbers["level"] == pytest.approx(2.3, abs=0.05)
        assert "fell from 2.3 to" in finding.message and "stays at 2." in finding.message
    # By hand: a tenth of the fall of 2 is 0.2.
    assert kinds(losses, val_losses=[2.13] * n_val) == ["not generalizing"]
    # All was learned before the first evaluation, or it still improves.
    assert kinds(losses, val_losses=[2.07] * n_val) == ["fine"]
    assert kinds(losses, val_losses=[5 - i / n_val for i in range(n_val)]) == ["fine"]
    # Nothing was learned at all.
    assert kinds([2.3] * 8, val_losses=[2.3] * n_val) == ["not training"]


def test_several_findings_come_worst_first():
    losses = curve(200, lambda t: 2.3 - 4 * max(t - 0.5, 0))
    val_losses = curve(20, lambda t: 1 + t, 0)
    assert kinds(losses, val_losses=val_losses) == ["overfitting", "slow start", "not converged"]


def test_findings_are_data():
    for finding in diagnose(
        [2.0 - 0.1 * i for i in range(9)], val_losses=[1.0 + i for i in range(9)]
    ):
        assert json.loads(json.dumps(asdict(finding))) == asdict(finding)
        assert finding.message.endswith(".") and finding.advice.endswith(".")
    tensors = torch.linspace(2, 1, 9)
    assert kinds(tensors) == kinds(list(tensors)) == kinds(tensors.tolist()) == ["not converged"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"losses": [1.0] * 7}, "expected at least 8 losses, got 7; train longer"),
        (
            {"losses": [1.0] * 8, "val_losses": [1.0] * 3},
            "expected at least 4 val_losses, got 3; train longer, or evaluate more often, or leave",
        ),
        ({"losses": [1.0] * 8, "n_classes": 1}, "expected n_classes of at least 2, got 1"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match="diagnose: " + text):
        diagnose(**arguments)


@pytest.mark.parametrize("bad", ["10", 10.0, [10], True])
def test_n_classes_is_an_int(bad):
    with pytest.raises(TypeError, match="diagnose: expected n_classes to be a whole number, got"):
        diagnose([1.0] * 8, n_classes=bad)
