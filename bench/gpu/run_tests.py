"""Run the tests on the device: those that need one, or suites with their tensors on it.

`--suite device` runs DEVICE_TESTS. With FUSEDTRICKS_TEST_DEVICE=cuda, `--suite tricks` runs
TRICK_TESTS, of losses, data and layers, and `--suite generic` all others, but those that have
nothing to do with a device. With `--backend triton`, Triton kernels stand for the compiled ones.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.gpu import ours
from bench.gpu.part import ROOT, NotAvailable, Result, Row, make_parser, run_part

EXAMPLE = "python -m bench.gpu.run_tests --suite generic --dry-run"
VARIABLE = "FUSEDTRICKS_TEST_DEVICE"
DEVICE_TESTS = ("tests/test_cuda_device.py", "tests/test_device.py")
TRICK_TESTS = (
    "test_averaged_tensors",
    "test_averaging",
    "test_averaging_in_training",
    "test_batch_op",
    "test_batch_plan",
    "test_batch_preparation",
    "test_batch_tricks",
    "test_binary_cross_entropy",
    "test_blur_pool",
    "test_blurpool_surgery",
    "test_colour",
    "test_cutout",
    "test_distillation",
    "test_dropout_schedule",
    "test_ensemble",
    "test_fixup",
    "test_flooding",
    "test_image_ops",
    "test_image_randomness",
    "test_loss_penalties",
    "test_losses",
    "test_lsuv",
    "test_lsuv_layers",
    "test_mixing",
    "test_monitor",
    "test_monitor_layers",
    "test_multi_task",
    "test_orthogonal",
    "test_orthogonal_decay",
    "test_prepare_batch",
    "test_random_affine",
    "test_resnet",
    "test_scheduled_dropout",
    "test_shake",
    "test_shake_resnet",
    "test_targets",
    "test_teacher_cache",
    "test_torch_tricks",
    "test_tricks_together",
    "test_zero_gamma",
)
# Nothing in them depends on the device, or they measure, train for long or start this check.
WITHOUT_DEVICE = (
    "test_batch_code",
    "test_batch_exactness",
    "test_batch_kernel",
    "test_batch_sampler",
    "test_batch_size",
    "test_batch_size_equivalence",
    "test_batch_size_schedule",
    "test_bench",
    "test_bench_batch",
    "test_bench_tricks",
    "test_build",
    "test_cli",
    "test_cli_schedule",
    "test_compile",
    "test_cuda_code",
    "test_cuda_device",
    "test_cuda_kernels",
    "test_cuda_shim",
    "test_data",
    "test_demo",
    "test_device",
    "test_diagnosis",
    "test_diagnosis_runs",
    "test_early_stopping",
    "test_gpu_check",
    "test_gpu_measurements",
    "test_gpu_parts",
    "test_gpu_triton",
    "test_monitor_pictures",
    "test_monitor_runs",
    "test_pipelines",
    "test_planted_faults",
    "test_range_test",
    "test_range_test_data",
    "test_range_test_restores",
    "test_range_test_result",
    "test_scaling",
    "test_schedule_algebra",
    "test_schedule_arguments",
    "test_schedule_docstrings",
    "test_schedule_formulas",
    "test_schedule_pictures",
    "test_schedule_regressions",
    "test_schedule_times",
    "test_schedule_twins",
    "test_schedule_values",
    "test_search",
    "test_search_errors",
    "test_shift_consistency",
    "test_trainer",
    "test_trick_docstrings",
    "test_tricks_table",
    "test_work_list",
)
# What asks for backends by name.
WITHOUT_TRITON = ("test_backends", "test_errors", "test_work_list")
# Every dtype is a kernel to compile, and bench.gpu.options has them all. The other tests expect the
# names of the compiled ops, or that backend="triton" is refused.
DESELECTED = (
    "torch.float64",
    "test_sweep_is_skipped_when_nothing_needs_it",
    "test_the_gradients_are_swept_once",
    "test_wrong_extras_are_refused",
)
TRITON_SELECTION = ("-k", " and ".join(f"not {name}" for name in DESELECTED))
TRITON_PLUGIN = ("-p", "bench.gpu.triton_plugin")
N_WORKERS = {"device": 5, "generic": 6, "tricks": 4}
# A kernel that hangs takes its worker with it, not the run.
TEST_TIMEOUT_S = 60
HEADER = ("suite", "tests", "passed", "failed", "errors", "skipped", "seconds")
NO_TESTS_COLLECTED = 5


def files_of(suite: str, backend: str = "cuda") -> list[str]:
    """Return the test files of a suite.

    Raises:
        NotAvailable: If they are not there, or do not know about devices.
    """
    if suite == "device":
        return list(DEVICE_TESTS)
    if suite == "tricks":
        return [f"tests/{name}.py" for name in TRICK_TESTS]
    sources = sorted((ROOT / "tests").glob("*.py"))
    without = WITHOUT_DEVICE + TRICK_TESTS + (WITHOUT_TRITON if backend == "triton" else ())
    others = [path for path in sources if path.stem not in without]
    if not any(VARIABLE in path.read_text(encoding="utf-8") for path in others):
        raise NotAvailable(f"no file in tests/ reads {VARIABLE}")
    return [f"tests/{path.name}" for path in others if path.name.startswith("test_")]


def pytest_command(
    suite: str, files: Sequence[str], xml: Path, *, backend: str = "cuda", dry_run: bool
) -> list[str]:
    """Return the command line; plugins are used where they are installed."""
    command = [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider"]
    if backend == "triton":
        command += [*TRITON_PLUGIN, *TRITON_SELECTION]
    if dry_run:
        return [*command, "--collect-only", *files]
    command += [f"--junit-xml={xml}", "--durations=10"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(N_WORKERS[suite])]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += [f"--timeout={TEST_TIMEOUT_S}", "--timeout-method=thread"]
    return [*command, *files]


def read_report(xml: Path, suite: str) -> Row:
    """Return counts and failures of a junit file."""
    row: Row = {"suite": suite, "tests": 0, "failed": 0, "errors": 0, "skipped": 0, "seconds": 0.0}
    row["failures"] = []
    for found in ElementTree.parse(xml).getroot().iter("testsuite"):
        row["tests"] += int(found.get("tests", 0))
        row["failed"] += int(found.get("failures", 0))
        row["errors"] += int(found.get("errors", 0))
        row["skipped"] += int(found.get("skipped", 0))
        row["seconds"] += float(found.get("time", 0))
        for case in found.iter("testcase"):
            for problem in (*case.findall("failure"), *case.findall("error")):
                lines = (problem.get("message") or "").strip().splitlines() or [""]
                name = f"{case.get('classname')}::{case.get('name')}"
                row["failures"].append({"test": name, "message": lines[0][:300]})
    row["passed"] = row["tests"] - row["failed"] - row["errors"] - row["skipped"]
    return row


def report_text(row: Row, *, most: int = 40) -> str:
    """Return the table of a run and its failures."""
    cells = [f"{row[key]:.0f}" if key == "seconds" else str(row[key]) for key in HEADER]
    lines = [report.markdown_table(HEADER, [cells]), ""]
    lines += [f"- `{item['test']}`: {item['message']}" for item in row["failures"][:most]]
    if len(row["failures"]) > most:
        lines.append(f"- and {len(row['failures']) - most} more")
    return "\n".join(lines).rstrip()


def work(options: argparse.Namespace, result: Result) -> str:
    """Run a suite; return what went wrong."""
    ours.chosen(options)
    files = files_of(options.suite, options.backend)
    title = f"{options.suite}, {options.backend}"
    # At a time limit the signal reaches pytest as well, which then still reports.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    # The plugin lets Triton stand for the other backends, which is enough.
    environment = os.environ | {"FUSEDTRICKS_TEST_TRITON": "0"}
    if options.suite != "device":
        environment[VARIABLE] = options.device.type
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "junit.xml"
        command = pytest_command(
            options.suite, files, xml, backend=options.backend, dry_run=options.dry_run
        )
        print(" ".join(command), flush=True)
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if options.dry_run:
            result.add(f"Tests: {title}", f"only collected, status {done.returncode}")
        elif xml.exists():
            row = read_report(xml, title)
            result.add(f"Tests: {title}", report_text(row), [row])
    if done.returncode == 0:
        return ""
    if done.returncode == NO_TESTS_COLLECTED:
        raise NotAvailable("pytest found no test")
    return f"pytest ended with status {done.returncode}; see the log"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    parser = ours.add_option(make_parser(__doc__, EXAMPLE))
    parser.add_argument("--suite", choices=sorted(N_WORKERS), default="device")
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
