"""How long does the first step of a process take, with an empty and with a filled Triton cache?

Each time is of a process of its own: the first step, which compiles or loads the kernels, and a
later one. torch imports Triton when the optimizer is constructed; that is not part of the first
step. The CUDA backend, compiled beforehand, stands beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import report
from bench.gpu import contenders, measure
from bench.gpu.cases import CASES, shapes_of
from bench.gpu.part import ROOT, Deadline, NotAvailable, Result, Row, make_parser, run_part

EXAMPLE = "python -m bench.gpu.first_step --dry-run"
WORKLOAD = "resnet50"
MEASURED_CASES = ("adamw-combined", "adamw")
EMPTY, FILLED, NONE = "empty", "filled", "none"
# Contender and its cache, in this order: an empty cache is filled then.
RUNS = (("ours-triton", EMPTY), ("ours-triton", FILLED), ("ours", NONE))
HEADER = ("step", "contender", "cache", "first step s", "later step ms", "compiled")
MARK = "first-step: "


def take_steps(name: str, case_name: str, *, dry_run: bool) -> Row:
    """Return the times of a contender's steps in this process, which has taken none before."""
    device = torch.device("cpu" if dry_run else "cuda")
    case, shapes = CASES[case_name], shapes_of(WORKLOAD, tiny=dry_run)
    contender = contenders.build(name, case, shapes, device=device)
    measure.synchronize(device)
    start = time.perf_counter()
    contender.step()
    measure.synchronize(device)
    first = time.perf_counter()
    n_later = 2 if dry_run else 20
    for _ in range(n_later):
        contender.step()
    measure.synchronize(device)
    later = (time.perf_counter() - first) / n_later
    return {"first_s": first - start, "later_ms": later * 1e3}


def run_one(
    name: str, case_name: str, cache: Path, seconds: float, options: argparse.Namespace
) -> Row:
    """Take the steps in a process of its own; return its times, or the reason for none."""
    command = [sys.executable, "-m", "bench.gpu.first_step", "--one", name, case_name]
    command += ["--dry-run"] * options.dry_run
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"took more than {seconds:.0f} s"}
    marked = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not marked:
        print(done.stdout, flush=True)
        lines = done.stdout.strip().splitlines() or ["no output"]
        return {"reason": f"status {done.returncode}: {lines[-1][:200]}"}
    return json.loads(marked[-1].removeprefix(MARK))


def n_compiled(cache: Path) -> int:
    """Return how many kernels a Triton cache holds."""
    # NVIDIA's machine code, or AMD's.
    return sum(path.suffix in (".cubin", ".hsaco") for path in cache.rglob("*"))


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    head = (CASES[row["case"]].title, contenders.LABELS[row["contender"]], row["cache"])
    if "reason" in row:
        return (*head, "-", "-", row["reason"])
    times = (f"{row['first_s']:.2f}", f"{row['later_ms']:.2f}")
    return (*head, *times, "-" if row["compiled"] is None else str(row["compiled"]))


def work(options: argparse.Namespace, result: Result) -> str:
    """Run the processes until the time is up; return which failed."""
    if options.one:
        row = take_steps(*options.one, dry_run=options.dry_run)
        print(MARK + json.dumps(row))
        return ""
    device, deadline = options.device, Deadline(options.seconds)
    missing = contenders.why_missing("ours-triton", device)
    if missing:
        raise NotAvailable(missing)
    rows: list[Row] = []
    for case_name in MEASURED_CASES:
        with tempfile.TemporaryDirectory(prefix="triton-cache-") as folder:
            for name, cache in RUNS:
                reason = contenders.why_missing(name, device)
                reason = reason or ("" if deadline.left > 1 else "left out for lack of time")
                head: Row = {"case": case_name, "contender": name, "cache": cache}
                before = n_compiled(Path(folder))
                found = (
                    {"reason": reason}
                    if reason
                    else run_one(name, case_name, Path(folder), deadline.left, options)
                )
                compiled = None if cache == NONE else n_compiled(Path(folder)) - before
                rows.append(head | found | {"compiled": compiled})
                table = report.markdown_table(HEADER, list(map(cells, rows)))
                result.add("First step of a process", table, rows, show=False)
    print(table, flush=True)
    failed = [row for row in rows if row.get("reason", "").startswith("status")]
    return f"{len(failed)} failed; the first: {failed[0]['reason']}" if failed else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit status."""
    parser = make_parser(__doc__, EXAMPLE)
    one = "take the steps in this process and print their times"
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "CASE"), help=one)
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
