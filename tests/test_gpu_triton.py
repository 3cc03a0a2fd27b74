"""The parts of the GPU check for the Triton backend, rehearsed in Triton's interpreter."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import (
    bench_gpu,
    cases,
    contenders,
    first_step,
    goals,
    graphs,
    host,
    options,
    ours,
    probe,
    run_tests,
    sanitize,
)
from bench.gpu.part import NOT_AVAILABLE, ROOT, NotAvailable
from fusedtricks import _triton
from tests.cases import MAIN_CASES
from tests.test_gpu_check import OF_TRITON, read_json, run_script

CPU = torch.device("cpu")
ADAMW = MAIN_CASES[0]


def lacks_triton() -> str:
    """Return why the Triton kernels cannot be rehearsed, empty if they can."""
    driver = (ROOT / "kernels" / "driver.py").is_file()
    return _triton.missing_reason or ("" if driver else "no kernels beside this checkout")


needs_triton = pytest.mark.skipif(bool(lacks_triton()), reason=lacks_triton() or "-")


def run_module(module: str, *arguments: str, code: int = 0) -> str:
    """Run a part in Triton's interpreter; return its output."""
    command = [sys.executable, "-m", f"bench.gpu.{module}", "--dry-run", *arguments]
    variables = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_dry_run_of_the_parts_for_triton(tmp_path):
    chosen = [*OF_TRITON, "agreement", "first-step"]
    done = run_script(str(tmp_path), "--dry-run", "--parts", *chosen, interpret=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_json(tmp_path)
    assert {part["name"]: part["status"] for part in found["parts"]} == dict.fromkeys(chosen, "ok")
    details = found["details"]
    for name in ("steps-triton", "options-triton"):
        assert len(details[name]) > 30 and all(row["agrees"] for row in details[name]), name
    assert all(row["equal"] for row in details["graphs-triton"])
    assert {row["graph"] for row in details["graphs-triton"]} == set(graphs.GRAPHS)
    pairs = {tuple(row["backends"]) for row in details["agreement"]}
    assert pairs == {("cpu", "reference"), ("cpu", "triton"), ("reference", "triton")}
    assert [row["tool"] for row in details["memcheck-triton"]] == ["memcheck"]
    runs = [(row["contender"], row["cache"]) for row in details["first-step"]]
    assert runs == [*first_step.RUNS] * len(first_step.MEASURED_CASES)
    assert all(row["first_s"] > 0 for row in details["first-step"])
    assert "tests collected" in (tmp_path / "log-triton.txt").read_text()


@needs_triton
def test_dry_run_of_the_measurements_with_triton(tmp_path):
    results = []
    for module, more in (
        ("bench_gpu", ["--workloads", "small_2000", "--cases", "adamw"]),
        ("host", ["--tables", "1"]),
    ):
        out = tmp_path / f"{module}.json"
        command = [sys.executable, "-m", f"bench.gpu.{module}", "--dry-run", "--out", str(out)]
        variables = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *more], env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads(out.read_text()))
    measured, of_host = results
    triton = next(row for row in measured["rows"] if row["contender"] == "ours-triton")
    assert triton["kernels_ms"] and triton["whole_ms"] and triton["host_ms"]
    assert "no graphs on a CPU" in triton["reasons"]["graph"]
    times = [row["host_us"] for row in of_host["rows"] if row["contender"] == "ours-triton"]
    assert len(times) == len(host.CHANGES)


# The goal. ----------------------------------------------------------------------------------------


def rows_of(workload: str, n_parameters: int, ratio: float | None) -> list[dict]:
    """Return the two rows of a table in which Triton takes `ratio` times the time of CUDA."""
    spread = None if ratio is None else {"median": ratio, "p20": ratio / 2, "p80": ratio * 2}
    common = {"workload": workload, "case": "adamw", "title": "AdamW", "reasons": {}}
    common |= {"n_parameters": n_parameters, "host_ms": None, "launches": 3}
    ahead = dict.fromkeys([f"ours_ahead_{figure}" for figure in goals.FIGURES])
    cuda = {"contender": "ours", "kernels_ms": {"median": 2.0}}
    triton = {"contender": "ours-triton", "kernels_ms": spread}
    return [common | ahead | cuda, common | ahead | triton | {"ours_ahead_kernels": spread}]


def test_the_goal_is_met_missed_or_not_measured():
    rows = [
        *rows_of("fast", 25_000_000, 0.8),
        *rows_of("just", 10**9, 1 / 0.95 - 1e-9),
        *rows_of("slow", 10**8, 1.06),
        *rows_of("absent", 10**8, None),
        *rows_of("small", 24_999_999, 3.0),
    ]
    found = {row["workload"]: row for row in goals.evaluate(rows)}
    assert {name: row["verdict"] for name, row in found.items()} == {
        "fast": "met",
        "just": "met",
        "slow": "missed",
        "absent": "not measured",
        "small": "none",
    }
    assert found["fast"]["speed_kernels"] == {"median": 1.25, "p20": 0.625, "p80": 2.5}
    text = goals.text(list(found.values()))
    assert "met in 2, missed in 1, not measured in 1 of 4 tables" in text
    assert "| fast, AdamW | 25,000,000 | 2.000 | 0.800 | 1.250 | 0.625 - 2.500 | met |" in text
    assert goals.evaluate(rows_of("x", 1, 1.0)[:1]) == []
    assert "no table" in goals.text([])
    json.dumps(list(found.values()))


def test_every_large_workload_and_every_algorithm_is_measured_for_the_goal():
    tables = [
        (workload, cases.CASES[case])
        for workload, case in cases.TABLES
        if workload != "small_2000" and "ours-triton" in cases.CASES[case].contenders
    ]
    assert {case.algorithm for _, case in tables} == {"AdamW", "SGD", "RMSprop", "Adagrad"}
    assert {workload for workload, _ in tables} == {"resnet50", "one_g", "gpt2_small", "vit_b_16"}


# What fails. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "replays", "graph_reason"), [("boom", "", None), ("", "bang", "RuntimeError: bang")]
)
def test_what_fails_in_a_process_of_its_own_is_left_out(
    steps, replays, graph_reason, monkeypatch, tmp_path
):
    monkeypatch.setattr(contenders, "why_missing", lambda name, device: "")
    monkeypatch.setattr(ours, "name_on", lambda backend, device: "auto")
    monkeypatch.setattr(probe, "try_both", lambda dry_run, seconds: (steps, replays))
    out = tmp_path / "r.json"
    chosen = ["--workloads", "small_2000", "--cases", "adamw", "--out", str(out)]
    assert bench_gpu.main(["--dry-run", *chosen]) == 1
    found = json.loads(out.read_text())
    assert found["reason"].endswith(steps or replays)
    rows = {row["contender"]: row for row in found["rows"]}
    assert rows["ours"]["kernels_ms"] and rows["torch-fused"]["kernels_ms"]
    assert (rows["ours-triton"]["kernels_ms"] is None) == bool(steps)
    reasons = rows["ours-triton"]["reasons"]
    assert reasons.get("all") == (steps or None)
    assert reasons.get("graph") == graph_reason
    assert rows["ours"]["reasons"] == {"graph": "no graphs on a CPU"}


def test_a_trial_that_fails_hangs_or_dies_has_a_reason(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "a trial not available: " in probe.try_in_process(60, "--dry-run")
    assert probe.try_in_process(0.01, "--dry-run") == "a trial took more than 0 s"
    monkeypatch.setattr(sys, "executable", "false")
    assert probe.try_in_process(60) == "a trial ended with status 1"


def test_without_triton_its_parts_are_not_available(monkeypatch, capsys):
    monkeypatch.setattr(ours, "missing", lambda backend, device: "no Triton here")
    arguments = ["--dry-run", "--backend", "triton"]
    for part in (sanitize, options, graphs, run_tests):
        assert part.main(arguments) == NOT_AVAILABLE
    assert first_step.main(["--dry-run"]) == NOT_AVAILABLE
    assert capsys.readouterr().out.count("no Triton here") == 5
    with pytest.raises(NotAvailable, match="no Triton here"):
        ours.chosen(SimpleNamespace(backend="triton", device=CPU))


def test_missing_knows_devices_and_backends():
    assert ours.missing("cpu", CPU) == "" and ours.missing("reference", CPU) == ""
    assert ours.missing("no-such", CPU) == "no such backend"
    assert ours.name_on("cuda", CPU) == "auto" and ours.name_on("triton", CPU) == "triton"
    assert ours.name_on("cuda", torch.device("cuda")) == "cuda"
    if not torch.cuda.is_available():
        assert ours.missing("cuda", CPU)


# The suites. --------------------------------------------------------------------------------------


PLUGIN_PROBE = """
import torch
from bench.gpu import triton_plugin
from fusedtricks import backends
triton_plugin.pytest_configure(None)
p = torch.zeros(1)
print([backends.find_library(b, p, p, False)[0] for b in ("auto", "cpu", "cuda")])
for name in ("auto", "cpu", "cuda", "reference"):
    backends.check(name)
"""


@needs_triton
@pytest.mark.parametrize("interprets", [True, False])
def test_the_plugin_makes_triton_stand_for_all_others(interprets):
    variables = os.environ | {"TRITON_INTERPRET": str(int(interprets)), "PYTHONPATH": str(ROOT)}
    variables["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, "-c", PLUGIN_PROBE],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if interprets:
        assert done.stdout.strip() == str(["fusedtricks_triton"] * 3), done.stderr
    else:
        assert "UsageError: no Triton kernels for the tests" in done.stderr


def test_commands_for_triton(tmp_path):
    xml = tmp_path / "x.xml"
    command = run_tests.pytest_command("device", ["f"], xml, backend="triton", dry_run=False)
    assert "bench.gpu.triton_plugin" in command and "-k" in command
    command = run_tests.pytest_command("device", ["f"], xml, dry_run=False)
    assert "bench.gpu.triton_plugin" not in command and "-k" not in command
    assert "tests/test_backends.py" not in run_tests.files_of("generic", "triton")
    assert "tests/test_amp.py" in run_tests.files_of("generic", "triton")


def test_every_test_file_has_its_suite():
    files = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    named = {*run_tests.WITHOUT_DEVICE, *run_tests.TRICK_TESTS}
    assert named <= files, f"there is no {named - files}"
    assert set(run_tests.files_of("tricks")).isdisjoint(run_tests.files_of("generic"))
