"""The comparison of the tricks: its arithmetic, its training, its page."""

import json

import pytest
import torch

from bench.tricks import __main__ as command
from bench.tricks import document
from bench.tricks.arm import BASE, Arm
from bench.tricks.arms import ARMS
from bench.tricks.statistics import Difference, compare, mean_and_half_width
from bench.tricks.summary import draw, effect, markdown, summarize
from bench.tricks.training import N_UPDATES, Problem, fit


def test_interval_of_three_values():
    # Student's t for 99 % and 2 degrees of freedom is 9.925; the deviation of 1, 2, 6 is sqrt(7).
    mean, half_width = mean_and_half_width([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3)
    assert half_width == pytest.approx(9.9248 * (7 / 3) ** 0.5, rel=1e-4)


def test_differences_are_those_of_equal_seeds():
    values, baseline = [10.0, 20.0, 31.0], [12.0, 22.0, 32.0]
    difference = compare(values, baseline)
    # -2, -2 and -1: mean -5/3, deviation sqrt(1/3).
    assert difference.mean == pytest.approx(-5 / 3)
    assert difference.half_width == pytest.approx(9.9248 / 3, rel=1e-4)
    assert compare(values[:2], baseline[:2]) == Difference(-2.0, 0.0)


@pytest.mark.parametrize(
    "mean, half_width, verdict",
    [
        (-1.0, 0.9, "helps"),
        (1.0, 0.9, "hurts"),
        (-1.0, 1.1, "no effect found"),
        (0.0, 0.0, "identical"),
        (0.0, 0.1, "no effect found"),
    ],
)
def test_verdicts(mean, half_width, verdict):
    assert Difference(mean, half_width).verdict == verdict


@pytest.mark.parametrize(
    "values, baseline, message",
    [([1.0], [1.0], "expected 2 or more values"), ([1.0, 2.0], [1.0], "expected pairs, got 2")],
)
def test_too_few_values(values, baseline, message):
    with pytest.raises(ValueError, match=message):
        compare(values, baseline)


@pytest.fixture
def rows():
    arms = [Arm(BASE, "none", fit), Arm("better", "x=1", fit), Arm("child", "x=2", fit, "better")]
    errors = {
        (arm.name, noise, seed): 20 * noise + 5 - shift + seed
        for arm, shift in zip(arms, (0.0, 2.0, 2.0), strict=True)
        for noise in (0.4, 0.0)
        for seed in range(3)
    }
    return summarize(arms, errors)


def test_rows_compare_with_their_baseline(rows):
    assert [(row["trick"], row["noise"]) for row in rows] == [
        (name, noise) for noise in (0.4, 0.0) for name in (BASE, "better", "child")
    ]
    base, better, child = rows[:3]
    assert base["errors"] == [13.0, 14.0, 15.0] and "difference" not in base
    assert (better["difference"], better["verdict"]) == (pytest.approx(-2), "helps")
    assert (child["difference"], child["verdict"]) == (pytest.approx(0), "identical")
    assert effect(better) == "-2.0 ± 0.0, helps"


def test_table_and_picture(rows, tmp_path):
    table = markdown(rows, 0.4)
    assert "| better | 12.0 ± 5.7 | -2.0 ± 0.0 | base | helps | x=1 |" in table
    assert "| child | 12.0 ± 5.7 | +0.0 ± 0.0 | better | identical | x=2 |" in table
    draw(rows, tmp_path / "tricks.png")
    assert (tmp_path / "tricks.png").read_bytes()[1:4] == b"PNG"


def test_the_page_is_filled_by_name(rows):
    known = document.effects(rows)
    line = "| 1 | a trick | `better`; `child` (beside `old`) -9.9 ± 1.0, helps; no more |"
    filled = "| 1 | a trick | `better` -2.0 ± 0.0, helps / -2.00 ± 0.00, helps; `child` "
    filled += "(beside `better`) +0.0 ± 0.0, identical / +0.00 ± 0.00, identical; no more |"
    assert document.fill(f"# Title\n{line}\ntext", known) == f"# Title\n{filled}\ntext"
    assert document.fill(filled, known) == filled
    with pytest.raises(KeyError, match="unknown"):
        document.fill("| 1 | a trick | `unknown` |", known)


def test_training_depends_on_the_seed_alone():
    problem = Problem.make(3, 0.4)
    assert (len(problem.digits.train_labels), len(problem.digits.test_labels)) == (600, 1185)
    steps = []
    found = [
        problem.error(
            fit(problem, n_epochs=2, after_step=lambda update: steps.append(update.number))
        )
        for _ in range(2)
    ]
    assert found[0] == found[1] < 85
    assert steps == [*range(40), *range(40)] and N_UPDATES == 300


def test_tricks_see_the_same_images_in_the_same_order():
    problem = Problem.make(3, 0.4)

    def indices(**options):
        seen = []
        fit(problem, n_epochs=1, after_step=lambda update: seen.append(update.indices), **options)
        return torch.cat(seen)

    def noisy(images, labels, generator):
        torch.rand(7)
        return images + torch.rand(images.shape, generator=generator), labels

    assert indices().equal(indices(batch=noisy))


def test_the_error_is_the_share_of_wrong_classes():
    problem = Problem.make(3, 0.0)
    labels = problem.digits.test_labels
    outputs = torch.nn.functional.one_hot(labels).float()
    outputs[:79] = outputs[:79].roll(1, dims=1)
    assert problem.error(lambda images: outputs) == pytest.approx(100 * 79 / len(labels))


def test_every_arm_is_described_and_has_a_measured_baseline():
    for name, arm in ARMS.items():
        assert name == arm.name and arm.settings
        assert arm.baseline in ARMS


@pytest.mark.parametrize(
    "run, arguments, message",
    [
        (command.main, ["--noise", "3"], "--noise: expected shares in [0, 1], got 3.0"),
        (command.main, ["--seeds", "1"], "--seeds: expected 2 or more"),
        (document.main, ["--results", "no.json"], "--results: no file no.json"),
    ],
)
def test_wrong_arguments(run, arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(arguments)
    assert message in capsys.readouterr().err


def test_command(tmp_path, capsys):
    arguments = ["--tricks", "cutout", "--seeds", "2", "--noise", "0.4", "--workers", "2"]
    assert command.main([*arguments, "--out", str(tmp_path / "tricks")]) == 0
    assert "40% wrong labels" in capsys.readouterr().out
    results = json.loads((tmp_path / "tricks.json").read_text(encoding="utf-8"))["results"]
    assert [row["trick"] for row in results] == [BASE, "cutout"]
    assert all(len(row["errors"]) == 2 for row in results)
    assert command.main(["--list"]) == 0
    assert "3x3 of 8x8 pixels" in capsys.readouterr().out
