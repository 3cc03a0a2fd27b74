"""docs/tricks.md: every trick has its row, every name can be imported, every test exists."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from bench.tricks import document
from bench.tricks.arms import ARMS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tricks.md").read_text(encoding="utf-8")
HEADER = [
    "#", "trick", "where", "formula", "source", "golden value", "helps, hurts", "measured",
]  # fmt: skip
# Rows of other libraries' names, where these may be missing.
OPTIONAL = {"torchvision", "timm", "kornia", "optuna"}


def cells(line):
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


ROWS = [
    dict(zip(HEADER, cells(line), strict=True)) for line in PAGE.split("\n") if line[:2] == "| "
]
ROWS = [row for row in ROWS if row["#"] not in ("#", "---")]
NAMES = sorted(
    {name for row in ROWS for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", row["where"])}
)
TESTS = sorted(
    {test for row in ROWS for test in re.findall(r"`(tests/\S+::\w+)`", row["golden value"])}
)


def test_every_row_of_the_lectures_is_there_once():
    numbers = [row["#"] for row in ROWS if row["#"] != "+"]
    assert numbers == [*map(str, range(1, 29)), "28b", *map(str, range(29, 49))]


@pytest.mark.parametrize("name", NAMES)
def test_names_can_be_imported(name):
    parts = name.split(".")
    for n_parts in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n_parts]))
            break
        except ModuleNotFoundError as error:
            if error.name in OPTIONAL:
                pytest.skip(f"{error.name} is not installed")
    for part in parts[n_parts:]:
        found = getattr(found, part)
    assert found.__doc__ or parts[0] != "fusedtricks"


@pytest.mark.parametrize("test", TESTS)
def test_golden_tests_exist(test):
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_rows_are_complete():
    for row in ROWS:
        empty = [column for column in HEADER if not row[column]]
        assert not empty, f"row {row['#']}, {row['trick']}: nothing in {empty}"


# What tricks return, the data, and the demo's own parts.
NO_TRICKS = {
    "data": {"Digits", "load_digits"},
    "nn": {"ShiftConsistency"},
    "train": {
        *("Finding", "OnBorder"),
        *("STEPPERS", "Batches", "FusedStepper", "Stepper", "TorchStepper", "Trainer"),
    },
}


@pytest.mark.parametrize("package", ["losses", "data", "nn", "train"])
def test_every_trick_has_a_row(package):
    public = importlib.import_module(f"fusedtricks.{package}").__all__
    without = {name for name in public if f"fusedtricks.{package}.{name}" not in NAMES}
    assert without == NO_TRICKS.get(package, set())


def test_measured_figures_are_those_of_the_results():
    rows = json.loads(document.RESULTS.read_text(encoding="utf-8"))["results"]
    assert document.fill(PAGE, document.effects(rows)) == PAGE
    assert {row["trick"] for row in rows} == set(ARMS), "measure again: python -m bench.tricks"
    assert {row["settings"] for row in rows} == {arm.settings for arm in ARMS.values()}
    assert all(len(row["errors"]) >= 10 for row in rows)
    # What is the same as its baseline, bit for bit, was never in force.
    assert not [row["trick"] for row in rows if row.get("verdict") == "identical"]


def test_everything_measured_is_in_the_table():
    named = {name for row in ROWS for name in re.findall(r"(?<!beside )`(\w+)`", row["measured"])}
    assert named == {name for name, arm in ARMS.items() if name != arm.baseline}
