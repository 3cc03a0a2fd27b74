"""`fusedtricks schedule`: values, text, and errors."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fusedtricks import cli
from fusedtricks.lr_scheduler import Cosine, parse
from fusedtricks.lr_scheduler.parsing import KINDS
from fusedtricks.report.schedule_text import chart

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

EXPRESSIONS = [
    "LinearWarmup(5) * Step(30, 0.1)",
    "LinearWarmup(7, 0.2, 1).then(InverseSqrt(7))",
    "WarmUpRestarts(20, 2, 0.3, 5, 0.5)",
    "Cosine(45).with_warmup('20ba', 'inside').between(low=0.01)",
]


def run(capsys, *arguments: object) -> str:
    assert cli.main(["schedule", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def table(output: str) -> list[list[float]]:
    """Return the rows of the table, which is the last paragraph."""
    rows = output.strip().split("\n\n")[-1].splitlines()[1:]
    return [[float(cell) for cell in row.split()] for row in rows]


# Values. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_table_holds_the_values_of_preview(expression, capsys):
    rows = table(run(capsys, expression, "--steps", 61, "--lr", 0.04, "--rows", 61))
    expected = parse(expression).preview(61, 0.04)
    assert [update for update, _ in rows] == list(range(61))
    assert [value for _, value in rows] == pytest.approx(expected, rel=1e-5)


def test_rows_are_spread_from_the_first_to_the_last_update(capsys):
    rows = table(run(capsys, "Linear(100)", "--rows", 4))
    assert rows == [[0, 1], [33, 0.67], [66, 0.34], [99, 0.01]]
    assert table(run(capsys, "Linear(100)", "--rows", 1)) == [[0, 1]]
    assert len(table(run(capsys, "Linear(3)", "--rows", 50))) == 3


def test_several_schedules_have_a_column_each(capsys):
    output = run(capsys, *EXPRESSIONS[:2], "--steps", 30, "--rows", 30)
    rows = table(output)
    for column, expression in enumerate(EXPRESSIONS[:2], start=1):
        expected = parse(expression).preview(30)
        assert [row[column] for row in rows] == pytest.approx(expected, rel=1e-5)
        assert f"{column}  {expression}\n30 updates" in output


def test_epochs_have_a_column_when_their_length_is_known(capsys):
    output = run(capsys, "Cosine('3ep')", "--steps-per-epoch", 4, "--rows", 12)
    assert [row[:2] for row in table(output)] == [[t, t / 4] for t in range(12)]
    output = run(capsys, "Cosine(3)", "--unit", "epoch", "--steps-per-epoch", 4, "--rows", 12)
    assert [row[2] for row in table(output)] == pytest.approx(Cosine(12).preview(12), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "n_steps"),
    [
        (["Cosine(37)"], 37),
        (["Cosine(37)", "Linear(52)", "Constant()"], 52),
        (["Step(30)"], 100),
        (["Cosine('0.5dur')"], 100),
        (["Cosine('5ep')", "--steps-per-epoch", "7"], 35),
        (["Cosine('5ep')", "--steps-per-epoch", "7", "--epochs", "2"], 14),
        (["Cosine(37)", "--steps", "9"], 9),
        (["Piecewise([], [1])"], 100),
    ],
)
def test_how_many_updates_are_shown(arguments, n_steps, capsys):
    result = json.loads(run(capsys, *arguments, "--json"))
    assert result["steps"] == n_steps
    assert {len(entry["values"]) for entry in result["schedules"]} == {n_steps}


def test_json_has_the_exact_values(capsys):
    output = run(capsys, *EXPRESSIONS, "Cosine('0.5dur')", "--steps", 60, "--lr", 0.3, "--json")
    result = json.loads(output)
    assert (result["lr"], result["steps_per_epoch"]) == (0.3, None)
    for entry, expression in zip(
        result["schedules"], [*EXPRESSIONS, "Cosine('0.5dur')"], strict=True
    ):
        schedule = parse(expression).resolve(total_steps=60)
        assert entry["expression"] == expression
        assert entry["length"] == schedule.length
        assert entry["values"] == schedule.preview(60, 0.3)
        assert parse(entry["resolved"]) == schedule


# Text. --------------------------------------------------------------------------------------------


def test_the_list_names_every_kind_with_its_arguments(capsys):
    output = run(capsys, "--list")
    for name in KINDS:
        assert re.search(rf"^{name}\(", output, re.MULTILINE), name
    assert "\nOneCycle(total, pct_start=0.3, start=0.04, peak=1.0, " in output
    assert "    Half a cosine: value(t) = base * (end + (1 - end) * (1 + cos(" in output
    assert "    value(t) = low + (high - low) * schedule(t, 1)." in output
    for name in ("Sequence", "a.then", "a.with_warmup", "a.between"):
        assert f"\n{name}(" in output


def bars(values: list[float]) -> list[str]:
    """Return the chart without labels and horizontal axis."""
    return [re.split("[|│]", line)[1] for line in chart(values)[:-1]]


def test_bars_are_as_high_as_the_values(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert bars([0.0, 0.5, 1.0, 1e-6]) == ["  █"] * 4 + [" ██"] * 3 + [" ██▁"]
    assert bars([0.9, 1.0, 0.95])[-1] == " ██"  # from 0.9, not from 0
    assert bars([2.0] * 500) == ["█" * 64] * 8
    assert bars([2.0, 2.0 + 1e-15]) == ["██"] * 8  # rounding is no shape
    assert bars([0.0, 0.0]) == [""] * 8
    # A peak is seen, however narrow.
    assert bars([1.0] + [0.0] * 999 + [1.0])[0] == "█" + " " * 62 + "█"


def test_the_axes_are_labelled():
    lines = chart([0.25 * t for t in range(201)])
    assert lines[0].startswith("50 ")
    assert lines[-2].startswith(" 0 ")
    assert lines[-1].split() == ["0", "200"]
    assert len(lines[-1]) == len(lines[-2])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_output_fits_the_encoding_of_the_terminal(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["schedule", "Cosine(30) # \N{SNOWMAN}"]) == 0
    terminal.flush()
    text = terminal.buffer.getvalue().decode(encoding)
    assert text.isascii() == (encoding != "utf-8")
    assert ("█" if encoding == "utf-8" else "#####") in text


def test_an_ascii_shell():
    command = [sys.executable, "-m", "fusedtricks", "schedule", "Cosine(30)"]
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"\n0 |###" in process.stdout
    assert process.stdout.isascii()


def test_help_from_a_shell():
    command = [sys.executable, "-m", "fusedtricks", "schedule", "--help"]
    output = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    examples = re.findall(r"^  (fusedtricks schedule .*?)(?: \||$)", output.stdout, re.MULTILINE)
    assert len(examples) >= 5
    for example in examples:
        arguments = [a for a in shlex.split(example)[1:] if a not in ("--plot", "compare.png")]
        assert cli.main(arguments) == 0


# Errors. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "argument EXPRESSION: expected at least one, such as"),
        (["Cosinus(100)"], "argument EXPRESSION: schedule: unknown 'Cosinus'; there are"),
        (["Cosine("], "argument EXPRESSION: schedule 'Cosine(' is no expression"),
        (["Cosine"], "argument EXPRESSION: schedule: expected calls of"),
        (["Cosine(1/0)"], "schedule 'Cosine(1/0)': division by zero"),
        (["Cosine(-1)"], "argument EXPRESSION: Cosine: expected total above 0, got -1"),
        (["Cosine(9, gamma=2)"], "argument EXPRESSION: schedule 'Cosine(9, gamma=2)': "),
        (["(" * 3000 + "1" + ")" * 3000], "argument EXPRESSION: schedule"),
        (["Constant(1e308) * Constant(1e308)"], "Constant(1e308): its values are too large"),
        (["Exponential(1e9)"], "argument EXPRESSION: Exponential(1e9): "),
        (["Constant().then(Step(3))"], "Constant(factor=1.0) has no end"),
        (["Cosine('5ep')"], "total='5ep' needs steps_per_epoch, got None; give --steps-per-epoch"),
        (
            ["Cosine(5)", "--unit", "epoch"],
            "argument --unit: counts epochs; give --steps-per-epoch",
        ),
        (
            ["Cosine(5)", "--epochs", "9"],
            "argument --epochs: counts epochs; give --steps-per-epoch",
        ),
        (["Cosine(5)", "--steps", "0"], "argument --steps: expected 1 to 10000000 updates, got 0"),
        (["Cosine(1e9)"], "argument --steps: expected 1 to 10000000 updates, got 1e+09"),
        (["Cosine(5)", "--rows", "0"], "argument --rows: expected at least 1, got 0"),
        (
            ["Cosine(5)", "--lr", "-1"],
            "argument --lr: expected a finite number, at least 0, got -1",
        ),
        (["Cosine(5)", "--lr", "nan"], "argument --lr: expected a finite number, at least 0"),
        (["Cosine(5)", "--steps-per-epoch", "0"], "argument --steps-per-epoch: expected a finite"),
        (["Cosine(5)", "--steps", "2", "--epochs", "2"], "--epochs: not allowed with argument"),
        (["Cosine(5)", "--list"], "argument EXPRESSION: not allowed with argument --list"),
        (["Cosine(5)", "--plot", "curve"], "argument --plot: expected a file name such as curve."),
        (
            ["Cosine(5)", "--plot", "x.nothing"],
            "argument --plot: Format 'nothing' is not supported",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["schedule", *arguments])
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_far_too_many_epochs(capsys):
    with pytest.raises(SystemExit):
        cli.main(["schedule", "Step(5)", "--epochs", "1e308", "--steps-per-epoch", "1e308"])
    assert "argument --epochs: expected 1 to 10000000 updates" in capsys.readouterr().err


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch proof')",
        "open('proof', 'w')",
        "Cosine(100).__class__",
        "Cosine(100).plot(3, 'proof')",
        "Cosine.__init__.__globals__",
        "Cosine((lambda: 9)())",
        "[Cosine(n) for n in (9,)]",
        'f\'{open("proof", "w")}\'',
        "Cosine(proof := 9)",
        "exec",
    ],
)
def test_nothing_but_schedules_is_evaluated(expression, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["schedule", expression])
    assert exit_info.value.code == 2
    assert "argument EXPRESSION: schedule" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_pictures_need_an_extra(tmp_path, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(capsys, "Cosine(9)")
    assert cli.main(["schedule", "Cosine(9)", "--plot", str(tmp_path / "a.png")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("fusedtricks schedule: error: matplotlib is needed here")
    assert "pip install 'fusedtricks[demo]'" in captured.err
    assert captured.out == ""


def test_a_picture_that_cannot_be_written(tmp_path, capsys):
    path = tmp_path / "missing" / "a.png"
    assert cli.main(["schedule", "Cosine(9)", "--plot", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_what_reads_the_output_may_stop():
    command = f"{sys.executable} -m fusedtricks schedule --list | head -1"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("BatchSizeBeta(")
