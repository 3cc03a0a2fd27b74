"""The command line: arguments, errors, optional packages, and `info`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusedtricks import _extras, cli
from fusedtricks.train.cases import CASES

OPTIONS = ["--epochs", "2", "--train-size", "64", "--batch-size", "16", "--threads", "1"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}


# Bad arguments. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1, got 0; for example --epochs 12"),
        (["--epochs", "two"], "argument --epochs: invalid int value: 'two'"),
        (["--batch-size", "1"], "--batch-size: expected 2 to the number of training images, 1438"),
        (["--batch-size", "65", "--train-size", "64"], "training images, 64, got 65"),
        (["--lr", "0"], "--lr: expected a finite number above 0, got 0.0"),
        (["--lr", "nan"], "--lr: expected a finite number above 0, got nan"),
        (["--weight-decay", "-1"], "--weight-decay: expected a finite number, at least 0, got -1"),
        (["--weight-decay", "inf"], "--weight-decay: expected a finite number, at least 0"),
        (["--seed", "-1"], "--seed: expected 0 to 2**63 - 1, got -1"),
        (["--threads", "0"], "--threads: expected 1 to 256, got 0"),
        (["--train-size", "9"], "--train-size: expected 10 to 1438, got 9"),
        (["--name", "a/b"], "--name: expected the name of a folder, got 'a/b'; use --out"),
        (["--name", ".."], "--name: expected the name of a folder, got '..'"),
        (["--name", ""], "--name: expected the name of a folder, got ''"),
    ],
)
def test_bad_arguments_name_the_argument_and_write_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["demo", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_out_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", *OPTIONS, "--out", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fusedtricks demo: error: ")
    assert str(tmp_path / "file") in error


# Optional packages and the other commands. --------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "package"),
    [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")],
)
def test_a_missing_package_names_the_extra(module, package, tmp_path, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.partition(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["demo", *OPTIONS, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"{package} is needed here" in error
    assert "pip install 'fusedtricks[demo]'" in error
    assert list(tmp_path.iterdir()) == []


def test_require_returns_the_module_it_names():
    assert _extras.require("sklearn.datasets") is sys.modules["sklearn.datasets"]


def test_the_package_imports_without_optional_packages():
    code = (
        "import sys, fusedtricks, fusedtricks.cli, fusedtricks.train.demo\n"
        "print(sorted({'sklearn', 'matplotlib', 'rich'} & sys.modules.keys()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_info_as_json_and_as_text(capsys):
    assert cli.main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["backends"]["reference"]["available"] is True
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for name in info["backends"]:
        assert f"  {name}" in text


@pytest.mark.parametrize("command", [[], ["demo"], ["info"]])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*command, "--help"])
    assert exit_info.value.code == 0
    assert "example:\n  fusedtricks " in capsys.readouterr().out


def test_cases_pair_both_optimizers():
    for data in ("clean", "noisy"):
        assert [name for case, name in CASES if case == data] == ["fusedtricks", "torch"]
