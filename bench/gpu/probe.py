"""Takes steps with the Triton backend on the real workloads, or replays them from graphs.

The benchmark runs both in processes of their own first: an error on the device ends all work of its
process there, and the other contenders' too. What they compile is in Triton's cache then.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.gpu import contenders, figures, graphs, measure
from bench.gpu.cases import CASES, shapes_of
from bench.gpu.part import ROOT, NotAvailable, Result, make_parser, run_part

EXAMPLE = "python -m bench.gpu.probe --dry-run"
CONTENDER = "ours-triton"
STEPS = (*(("resnet50", name) for name in CASES), ("small_2000", "adamw-combined"))
GRAPHS = (("resnet50", "adamw-combined"), ("resnet50", "adamw"), ("small_2000", "adamw"))


def try_in_process(seconds: float, *flags: str) -> str:
    """Probe in another process; return why that failed, empty if it did not."""
    command = [sys.executable, "-m", "bench.gpu.probe", *flags]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a trial took more than {seconds:.0f} s"
    print(done.stdout, flush=True)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("failed", "not avail"))]
    return f"a trial {(lines or [f'ended with status {done.returncode}'])[-1]}"


def try_both(dry_run: bool, seconds: float) -> tuple[str, str]:
    """Probe steps and graphs at the same time; return why each failed."""
    flags = ["--dry-run"] * dry_run
    with ThreadPoolExecutor(2) as pool:
        steps = pool.submit(try_in_process, seconds, *flags)
        replays = pool.submit(try_in_process, seconds, *flags, "--graphs")
        return steps.result(), replays.result()


def probe(workload: str, case_name: str, options: argparse.Namespace) -> None:
    """Take two steps, eager or replayed.

    Raises:
        RuntimeError: If they end with values that are not finite, or the device reports an error.
    """
    device = options.device
    shapes = shapes_of(workload, tiny=options.dry_run)
    case = CASES[case_name]
    contender = contenders.build(CONTENDER, case, shapes, device=device, capturable=options.graphs)
    step = contender.step
    if options.graphs and device.type == "cuda":
        step = measure.capture(step, 2)
        graphs.scribble(device)
    for _ in range(2):
        step()
    measure.synchronize(device)
    if not all(parameter.isfinite().all() for parameter in contender.parameters):
        raise RuntimeError(f"{workload}, {case_name}: not finite after two steps")
    print(f"{workload}, {case_name}: fine", flush=True)


def work(options: argparse.Namespace, result: Result) -> str:
    """Take two steps of each case; an exception tells why that failed."""
    reason = contenders.why_missing(CONTENDER, options.device)
    if reason:
        raise NotAvailable(reason)
    for workload, case_name in GRAPHS if options.graphs else STEPS:
        probe(workload, case_name, options)
        figures.release(options.device)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe; return the exit status."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--graphs", action="store_true", help="replay the steps from a graph")
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
