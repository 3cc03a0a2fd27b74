"""Run bench.gpu.sanitize under the tools of compute-sanitizer, all at the same time."""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from bench import report
from bench.gpu import ours
from bench.gpu.environment import find_tool
from bench.gpu.part import ROOT, NotAvailable, Result, Row, make_parser, run_part

EXAMPLE = "python -m bench.gpu.sanitizer --tools racecheck --dry-run"
ERROR_STATUS = 86
# torch probes for symbols that a driver may lack; that is no error of ours. Our launches are
# checked by themselves.
OPTIONS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--report-api-errors", "no"),
    "racecheck": (),
    "synccheck": (),
    "initcheck": (),
}
# Share of the time after which no further step is begun.
STEPS_SHARE = 0.75
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")
UNSUPPORTED = ("Device not supported", "not supported on this", "Failed to initialize")
UNKNOWN_OPTION = ("unrecognised option", "unrecognized option", "unknown option")
HEADER = ("tool", "status", "errors", "what it says")
OK, FAILED, MISSING = "ok", "failed", "not available"


@dataclass(frozen=True)
class Verdict:
    """What a tool found.

    Attributes:
        status: `OK`, `FAILED` or `MISSING`.
        errors: How many it counted, None if it did not say.
        said: Its summary, or why there is none.
    """

    status: str
    errors: int | None
    said: str


def sanitizer_command(
    path: str, tool: str, seconds: float, *, backend: str = "cuda", bare: bool = False
) -> list[str]:
    """Return the command line.

    Args:
        path: Of compute-sanitizer.
        tool: Its tool.
        seconds: Time limit.
        backend: Whose kernels.
        bare: Leave out everything that a version may not know.
    """
    limit = ["timeout", "--kill-after=5", f"{seconds:.0f}"] if shutil.which("timeout") else []
    command = [*limit, path, "--tool", tool]
    if not bare:
        command += ["--error-exitcode", str(ERROR_STATUS), "--print-limit", "30", *OPTIONS[tool]]
    steps = ["-m", "bench.gpu.sanitize", "--steps", "2", "--backend", backend]
    steps += ["--seconds", f"{seconds * STEPS_SHARE:.0f}"]
    return [*command, sys.executable, *steps]


def judge(output: str, status: int) -> Verdict:
    """Return what the output and the exit status of a run mean."""
    found = SUMMARY.findall(output)
    lines = output.strip().splitlines() or ["nothing"]
    if not found or any(text in output for text in UNSUPPORTED):
        said = [line for line in lines if line.startswith("=========")] or lines
        is_missing = status == 0 or any(text in output for text in UNSUPPORTED)
        reason = f"status {status}, no summary; it said: {said[-1].strip('= ')[:200]}"
        return Verdict(MISSING if is_missing else FAILED, None, reason)
    n_errors = int(found[-1])
    said = [line for line in lines if "SUMMARY" in line][-1].strip("= ")
    if n_errors:
        return Verdict(FAILED, n_errors, said)
    if status != 0:
        return Verdict(FAILED, 0, f"no error, but the steps ended with status {status}")
    return Verdict(OK, 0, said)


def run_tool(command: list[str], tool: str) -> tuple[str, int]:
    """Run a command, show its output as it comes; return output and status."""
    # Every tensor in an allocation of its own, so that a stray access does not hit a neighbour's.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            lines.append(line)
            print(f"{tool}: {line}", end="", flush=True)
    return "".join(lines), process.returncode


def check_with(path: str, tool: str, seconds: float, backend: str = "cuda") -> Verdict:
    """Run one tool; return what it found."""
    command = partial(sanitizer_command, path, tool, seconds, backend=backend)
    output, status = run_tool(command(), tool)
    if any(text in output.lower() for text in UNKNOWN_OPTION):
        output, status = run_tool(command(bare=True), tool)
    return judge(output, status)


def add_table(result: Result, verdicts: dict[str, Verdict], backend: str) -> None:
    """Put what is known so far into the result."""
    cells = [
        (tool, found.status, "-" if found.errors is None else str(found.errors), found.said)
        for tool, found in verdicts.items()
    ]
    rows: list[Row] = [
        {"tool": tool, "backend": backend, **vars(found)} for tool, found in verdicts.items()
    ]
    result.add(f"compute-sanitizer: {backend}", report.markdown_table(HEADER, cells), rows)


def rehearse(options: argparse.Namespace, result: Result) -> str:
    """Check that there is something to run, and say how it would be."""
    script = ROOT / "bench" / "gpu" / "sanitize.py"
    ast.parse(script.read_text(encoding="utf-8"), str(script))
    verdicts = {}
    for tool in options.tools:
        command = sanitizer_command(
            "compute-sanitizer", tool, options.seconds, backend=options.backend
        )
        verdicts[tool] = Verdict("not run", None, " ".join(command))
    add_table(result, verdicts, options.backend)
    return ""


def work(options: argparse.Namespace, result: Result) -> str:
    """Run the tools; return what they found."""
    if options.dry_run:
        return rehearse(options, result)
    ours.chosen(options)
    path = find_tool("compute-sanitizer")
    if path is None:
        raise NotAvailable("compute-sanitizer is not installed")
    verdicts: dict[str, Verdict] = {}
    with ThreadPoolExecutor(len(options.tools)) as pool:
        jobs = {
            pool.submit(check_with, path, tool, options.seconds, options.backend): tool
            for tool in options.tools
        }
        for job in as_completed(jobs):
            verdicts[jobs[job]] = job.result()
            add_table(result, verdicts, options.backend)
    if all(found.status == MISSING for found in verdicts.values()):
        raise NotAvailable(next(iter(verdicts.values())).said)
    failed = [f"{tool}: {found.said}" for tool, found in verdicts.items() if found.status == FAILED]
    return "; ".join(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    parser = ours.add_option(make_parser(__doc__, EXAMPLE))
    parser.add_argument("--tools", nargs="+", choices=sorted(OPTIONS), default=list(OPTIONS))
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
