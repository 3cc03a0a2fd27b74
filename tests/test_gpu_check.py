"""The GPU check, rehearsed without a GPU: its parts, its failures, its arithmetic."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import (
    cases,
    check,
    environment,
    host,
    parts,
    runner,
    sanitizer,
    tunables,
)
from bench.gpu.part import DRY_RUN_NOTE, NOT_AVAILABLE, ROOT
from bench.gpu.parts import PARTS, Part, left_for_later

SCRIPT = ROOT / "bench" / "gpu_check.sh"
CPU = torch.device("cpu")
MODULES = sorted({part.arguments[1] for part in PARTS} | {"bench.gpu.probe"})
SHOWN = [part for part in PARTS if part.by_default]
OF_TRITON = [part.name for part in SHOWN if "triton" in part.arguments]
# The sanitizer is only described in a rehearsal.
NEEDS_TRITON = {"first-step", *OF_TRITON} - {"memcheck-triton"}


def run_script(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess:
    """Run bench/gpu_check.sh with this interpreter, with Triton's interpreter or without."""
    command = ["bash", str(SCRIPT), *arguments]
    variables = os.environ | {"PYTHON": sys.executable, "TRITON_INTERPRET": str(int(interpret))}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def read_json(folder: Path) -> dict:
    return json.loads((folder / "gpu.json").read_text())


def test_dry_run(tmp_path):
    done = run_script(str(tmp_path), "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_json(tmp_path)
    assert found["dry_run"] is True
    assert [part["name"] for part in found["parts"]] == [part.name for part in SHOWN]
    statuses = {part["name"]: part["status"] for part in found["parts"]}
    for name, status in statuses.items():
        if not name.startswith("tests-"):
            assert status == ("not available" if name in NEEDS_TRITON else "ok"), name
    measured = {(row["workload"], row["case"], row["contender"]) for row in found["results"]}
    assert measured == {
        (workload, case, contender)
        for workload, case in cases.TABLES
        for contender in cases.CASES[case].contenders
    }
    for row in found["results"]:
        if row["contender"] != "ours-triton":
            assert row["kernels_ms"] and row["whole_ms"] and row["host_ms"] and row["launches"]
    details = found["details"]
    assert len(details["steps"]) > 30 and all(row["agrees"] for row in details["steps"])
    assert len(details["options"]) > 60 and all(row["agrees"] for row in details["options"])
    pairs = [row["backends"] for row in details["agreement"]]
    assert pairs == [["cpu", "reference"]] * 12 and all(r["agrees"] for r in details["agreement"])
    assert details["graphs"] and all(row["equal"] for row in details["graphs"])
    assert {row["changed"] for row in details["host"]} == set(host.CHANGES)
    assert {row["contender"] for row in details["host"]} == set(host.NAMES) - {"ours-triton"}
    assert [row["tool"] for row in details["sanitizer"]] == list(sanitizer.OPTIONS)
    assert {row["case"] for row in details["compiled"]} == {"adamw-combined", "adamw"}
    assert all("reason" not in row for row in details["compiled"]), details["compiled"]
    assert {row["workload"] for row in details["tunables"]} == set(tunables.WORKLOADS)
    tables = {(row["workload"], row["case"]) for row in found["goals"]}
    assert tables == set(cases.TABLES)
    check_files(tmp_path)


def check_files(folder: Path) -> None:
    """Check what the machine that the GPU is in lets through, and the summary."""
    files = list(folder.iterdir())
    assert len(files) <= 8
    assert sum(file.stat().st_size for file in files) < 4 * 2**20
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert all(set(file.name) <= allowed for file in files)
    summary = (folder / "summary.md").read_text()
    assert DRY_RUN_NOTE in summary.splitlines()[2]
    for part in SHOWN:
        assert f"| {part.name} |" in summary
    titles = [line for line in summary.splitlines() if line.startswith("## ")]
    for workload, case in cases.TABLES:
        assert f"## {workload}: {cases.CASES[case].title} ({DRY_RUN_NOTE})" in titles
    for start in (
        "Environment",
        "Overview",
        "Build",
        "Triton beside CUDA",
        "Steps against",
        "Optimizers and options",
        "Agreement",
        "Host: resnet50",
        "Replay",
        "compute-sanitizer",
        "torch.compile",
        "Settings",
    ):
        assert any(title.startswith(f"## {start}") for title in titles), start
    assert all(DRY_RUN_NOTE in title for title in titles if title != "## Parts")


def test_the_script_is_sound():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    done = run_script("--help")
    assert done.returncode == 0
    assert all(text in done.stdout for text in ("OUT_DIR", "--dry-run", "--quick", "example:"))
    assert run_script().returncode == 2
    missing = os.environ | {"PYTHON": "no-such-python"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "x"], env=missing, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no-such-python" in done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_parts_have_help_with_an_example(module, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text and module in text and "--dry-run" in text


def test_every_module_is_small_and_without_a_gpu_says_so(tmp_path, capsys):
    for file in (ROOT / "bench" / "gpu").glob("*.py"):
        assert len(file.read_text().splitlines()) < 300, file
    if not torch.cuda.is_available():
        assert environment.main(["--out", str(tmp_path / "e.json")]) == NOT_AVAILABLE
        assert "no CUDA device" in json.loads((tmp_path / "e.json").read_text())["reason"]


# The runner. --------------------------------------------------------------------------------------


def python(code: str) -> tuple[str, str]:
    return ("-c", code)


GOOD = python("print('fine')")
BAD = python("print('failed: a reason'); raise SystemExit(1)")
LONG = python("import time; print('begins', flush=True); time.sleep(60)")
MISSING = python(f"print('not available: no tool'); raise SystemExit({NOT_AVAILABLE})")


def statuses(folder: Path) -> dict[str, str]:
    return {part["name"]: part["status"] for part in read_json(folder)["parts"]}


def test_a_failing_part_fails_the_check_and_the_others_run(tmp_path, capsys):
    chosen = (
        Part("first", GOOD, 20, 0, needs=()),
        Part("bad", BAD, 20, 1, needs=()),
        Part("absent", MISSING, 20, 1, needs=()),
        Part("after", GOOD, 20, 2, needs=("first",)),
        Part("needs-bad", GOOD, 20, 2, needs=("bad",)),
    )
    assert check.main([str(tmp_path)], chosen) == 1
    assert statuses(tmp_path) == {
        "first": "ok",
        "bad": "failed",
        "absent": "not available",
        "after": "ok",
        "needs-bad": "skipped",
    }
    output = capsys.readouterr().out
    assert "bad: failed after" in output and "a reason" in output
    assert "| bad | failed |" in (tmp_path / "summary.md").read_text()
    assert "failed: a reason" in (tmp_path / "log-parts.txt").read_text()
    only_fine = ["--parts", "first", "absent", "after"]
    assert check.main([str(tmp_path), *only_fine], chosen) == 0
    assert list(statuses(tmp_path)) == ["first", "absent", "after"]


@pytest.mark.parametrize(("is_extra", "status"), [(False, 1), (True, 0)])
def test_a_part_that_takes_too_long_is_stopped(tmp_path, is_extra, status):
    long = Part("long", LONG, 1, 0, needs=(), is_extra=is_extra)
    assert check.main([str(tmp_path)], (long, Part("next", GOOD, 20, 1, needs=()))) == status
    assert statuses(tmp_path) == {"long": "timed out", "next": "ok"}
    assert "begins" in (tmp_path / "log-parts.txt").read_text()


def test_without_time_nothing_starts(tmp_path):
    chosen = (
        Part("must", GOOD, 20, 0, needs=()),
        Part("may", GOOD, 20, 0, needs=(), is_extra=True),
    )
    assert check.main([str(tmp_path), "--budget", "1"], chosen) == 1
    assert set(statuses(tmp_path).values()) == {"skipped"}
    assert check.main([str(tmp_path), "--budget", "1", "--skip", "must"], chosen) == 0


def test_files_are_there_while_parts_run_and_a_signal_ends_them(tmp_path):
    chosen = (Part("quick", GOOD, 20, 0, needs=()), Part("long", LONG, 50, 1, needs=()))
    seen = {}

    def interrupt() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and not seen:
            if (tmp_path / "gpu.json").exists():
                seen.update(statuses(tmp_path))
            time.sleep(0.1)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert check.main([str(tmp_path)], chosen) == 1
    thread.join()
    assert seen == {"quick": "ok", "long": "not run yet"}
    assert statuses(tmp_path) == {"quick": "ok", "long": "failed"}


def test_quick_leaves_parts_out_and_some_run_only_when_named():
    def chosen(*arguments: str) -> list[str]:
        options = check.parse(["x", *arguments], PARTS)
        return [part.name for part in check.chosen_parts(options, PARTS)]

    assert "compiled" not in chosen("--quick") and "bench" in chosen("--quick")
    assert "generic-triton" not in chosen() and "compiled" in chosen()
    assert chosen("--parts", "generic-triton", "compiled") == ["compiled", "generic-triton"]


def test_stages_and_needs_fit_together():
    stages = {part.name: part.stage for part in PARTS}
    for part in PARTS:
        assert all(stages[name] < part.stage for name in part.needs)
    assert check.BUDGET_S + runner.KILL_AFTER_S <= 480
    measuring = ("bench", "host", "first-step", "compiled", "tunables")
    alone = [part.stage for part in PARTS if part.name in measuring]
    assert len(alone) == 5 and all(list(stages.values()).count(stage) == 1 for stage in alone)
    assert parts.PARTS[-1].is_extra
    # The build at its slowest still leaves time for what is not extra.
    assert left_for_later(PARTS, stages["build"]) <= check.BUDGET_S - 200


def test_a_part_leaves_time_for_those_after_it(tmp_path, capsys):
    chosen = (
        Part("greedy", LONG, 50, 0, needs=()),
        Part("beside", GOOD, 50, 0, needs=(), least_s=5),
        Part("later", GOOD, 50, 1, needs=(), least_s=20),
        Part("last", GOOD, 50, 2, needs=(), least_s=10),
    )
    assert left_for_later(chosen, 0) == 30 and left_for_later(chosen, 1) == 10
    assert left_for_later(chosen, 2) == 0
    assert check.main([str(tmp_path), "--budget", "40"], chosen) == 1
    assert statuses(tmp_path) == {
        "greedy": "timed out",
        "beside": "ok",
        "later": "ok",
        "last": "ok",
    }
    output = capsys.readouterr().out
    assert "greedy: starts, 10 s at most" in output and "beside: starts, 10 s at most" in output
