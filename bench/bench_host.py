"""What does a step cost the host per parameter, when there is next to nothing to compute?

Every parameter has one element, so the time is that of Python, checks and dispatch; with warm
caches, and with cold ones, as a step after a forward and backward pass finds them.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

# Appended, so that an installed fusedtricks comes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import contenders, report
from bench.cases import CASES, Case
from bench.progress import Progress
from bench.timing import interleave, paired_ratio

EXAMPLE = "python bench/bench_host.py --tensors 161 2000 20000 --out bench/results/host-x"
CONTENDERS = ("ours", "torch-fused", "torch-foreach")
SWEPT_BYTES = 512 * 2**20  # more than the last-level cache of most processors
HEADER = ("contender", "µs per parameter", "p20 - p80", "step ms", "speed-up")


def _make_sweeper() -> Callable[[], object]:
    """Return a function that fills the caches with something else."""
    other = torch.ones(SWEPT_BYTES // 4)
    return lambda: other.mul_(1.0)


def measure(
    case: Case,
    n_tensors: int,
    *,
    caches: str,
    n_threads: int,
    seconds: float,
    on_round: Callable[[float], None] | None = None,
) -> list[report.Row]:
    """Measure the whole `optimizer.step()` over tensors of one element, in turns.

    Args:
        case: What to measure.
        n_tensors: Number of parameters.
        caches: "warm" or "cold".
        n_threads: torch threads.
        seconds: Time budget.
        on_round: Called with the fraction done.

    Returns:
        One row per contender, `us` being microseconds per parameter.
    """
    with report.threads(n_threads):
        steps = contenders.build_steps(case, [(1,)] * n_tensors, only=CONTENDERS)
        timings = interleave(
            steps,
            seconds=seconds,
            before=_make_sweeper() if caches == "cold" else None,
            on_round=on_round,
        )
    steps.clear()
    gc.collect()
    baseline = timings[case.baseline]
    return [
        {
            "case": case.name,
            "n_tensors": n_tensors,
            "caches": caches,
            "threads": n_threads,
            "contender": name,
            "rounds": len(spread.values),
            "us": spread.median * 1e6 / n_tensors,
            "us_p20": spread.p20 * 1e6 / n_tensors,
            "us_p80": spread.p80 * 1e6 / n_tensors,
            "median_ms": spread.median * 1e3,
            "speedup": paired_ratio(baseline, spread).median,
        }
        for name, spread in timings.items()
    ]


def cells(row: report.Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    return (
        row["contender"],
        f"{row['us']:.3f}",
        f"{row['us_p20']:.3f} - {row['us_p80']:.3f}",
        f"{row['median_ms']:.3f}",
        f"{row['speedup']:.2f}x",
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = report.make_parser(__doc__.splitlines()[0], EXAMPLE, seconds=5.0)
    add = parser.add_argument
    add("--tensors", nargs="+", type=report.positive, default=[161, 2000, 20000])
    fused = [name for name, case in CASES.items() if case.baseline == "torch-fused"]
    add("--cases", nargs="+", choices=fused, default=["adamw", "adamw-combined"], metavar="NAME")
    add("--caches", nargs="+", choices=("warm", "cold"), default=["warm", "cold"])
    add("--threads", nargs="+", type=report.positive, default=[1])
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[report.Row]:
    """Measure, print and write what the command line asks for; return all rows."""
    options = parse(arguments)
    reason = contenders.why_missing("ours")
    if reason is not None:
        print(f"ours is not measured: {reason}", file=sys.stderr)
    jobs = [
        (CASES[name], n_tensors, caches, n_threads)
        for name in options.cases
        for n_tensors in options.tensors
        for caches in options.caches
        for n_threads in options.threads
    ]
    rows: list[report.Row] = []
    sections = []
    with Progress(len(jobs)) as progress:
        for case, n_tensors, caches, n_threads in jobs:
            title = (
                f"{case.title}, {n_tensors:,} tensors of one element, {caches} caches, "
                f"{n_threads} thread{'s' if n_threads > 1 else ''}"
            )
            progress.begin(title)
            measured = measure(
                case,
                n_tensors,
                caches=caches,
                n_threads=n_threads,
                seconds=options.seconds,
                on_round=progress.at,
            )
            lines = [cells(row) for row in measured]
            print(f"\n{title}\n{report.text_table(HEADER, lines)}", flush=True)
            sections.append((title, report.markdown_table(HEADER, lines)))
            rows += measured
            report.write_results(options.out, rows, sections)
    return rows


if __name__ == "__main__":
    main()
