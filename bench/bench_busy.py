"""How much slower does a step get while another load keeps every core busy?

The same interleaved measurement twice, alone and next to one spinning process per core. A step
that splits its work once waits for the slowest thread once; one that does so for every tensor
waits each time.
"""

import argparse
import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

# Appended, so that an installed fusedtricks comes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import contenders, report
from bench.cases import CASES, Case
from bench.progress import Progress
from bench.timing import Spread, interleave
from bench.workloads import WORKLOADS, Shape

EXAMPLE = "python bench/bench_busy.py --seconds 20 --out bench/results/busy-x"
HEADER = ("contender", "idle ms", "busy ms", "busy p20 - p80", "busy / idle")


def spin(started: "multiprocessing.synchronize.Semaphore") -> None:
    """Keep one core busy until the process is terminated."""
    started.release()
    value = 1
    while True:
        value = value * 5 % 1_000_003


@contextmanager
def busy_cores(n_processes: int) -> Iterator[None]:
    """Run the body next to spinning processes."""
    # Spawned: a fork would copy torch's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    started = context.Semaphore(0)
    load = [context.Process(target=spin, args=(started,), daemon=True) for _ in range(n_processes)]
    try:
        for process in load:
            process.start()
        for _ in load:
            started.acquire()
        yield
    finally:
        for process in load:
            process.terminate()
        for process in load:
            process.join()


def measure(
    case: Case,
    shapes: list[Shape],
    *,
    n_threads: int,
    n_busy: int,
    seconds: float,
    progress: Progress,
) -> dict[str, tuple[Spread, Spread]]:
    """Return each contender's timings, alone and next to the load."""
    with report.threads(n_threads):
        steps = contenders.build_steps(case, shapes, only=("ours", "torch-fused"))
        progress.begin("idle")
        idle = interleave(steps, seconds=seconds, on_round=progress.at)
        with busy_cores(n_busy):
            progress.begin("busy")
            busy = interleave(steps, seconds=seconds, on_round=progress.at)
    steps.clear()
    gc.collect()
    return {name: (idle[name], busy[name]) for name in idle}


def compare(name: str, idle: Spread, busy: Spread) -> report.Row:
    """Return the columns of one contender."""
    return {
        "contender": name,
        "rounds_idle": len(idle.values),
        "rounds_busy": len(busy.values),
        "idle_ms": idle.median * 1e3,
        "busy_ms": busy.median * 1e3,
        "busy_p20_ms": busy.p20 * 1e3,
        "busy_p80_ms": busy.p80 * 1e3,
        "busy_over_idle": busy.median / idle.median,
    }


def cells(row: report.Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    spread = f"{row['busy_p20_ms']:.2f} - {row['busy_p80_ms']:.2f}"
    times = (f"{row['idle_ms']:.2f}", f"{row['busy_ms']:.2f}", spread)
    return (row["contender"], *times, f"{row['busy_over_idle']:.2f}x")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = report.make_parser(__doc__.splitlines()[0], EXAMPLE, seconds=15.0)
    add = parser.add_argument
    add("--workload", choices=sorted(WORKLOADS), default="resnet50", metavar="NAME")
    fused = [name for name, case in CASES.items() if case.baseline == "torch-fused"]
    add("--case", choices=fused, default="adamw", metavar="NAME")
    add("--threads", type=report.positive, default=torch.get_num_threads())
    add("--busy", type=report.positive, default=os.cpu_count(), help="spinning processes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[report.Row]:
    """Measure, print and write what the command line asks for; return all rows."""
    options = parse(arguments)
    reason = contenders.why_missing("ours")
    if reason is not None:
        print(f"ours is not measured: {reason}", file=sys.stderr)
    case = CASES[options.case]
    with Progress(2) as progress:
        timings = measure(
            case,
            WORKLOADS[options.workload](),
            n_threads=options.threads,
            n_busy=options.busy,
            seconds=options.seconds,
            progress=progress,
        )
    rows = [
        {"workload": options.workload, "case": case.name, "threads": options.threads}
        | {"busy_processes": options.busy}
        | compare(name, idle, busy)
        for name, (idle, busy) in timings.items()
    ]
    lines = [cells(row) for row in rows]
    load = f"{options.threads} threads, {options.busy} busy processes"
    title = f"{options.workload}, {case.title}, {load}"
    print(f"\n{title}\n{report.text_table(HEADER, lines)}")
    report.write_results(options.out, rows, [(title, report.markdown_table(HEADER, lines))])
    return rows


if __name__ == "__main__":
    main()
