"""How long does one whole optimizer step take, ours against torch's ways of doing the same?

As a script, all contenders of a case are measured in turns and compared in one table. Under
pytest-benchmark (`pytest bench/bench_step.py`), one group per question.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

# Appended, so that an installed fusedtricks comes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import contenders, report, streaming
from bench.cases import (
    CASES,
    Case,
    cases_for,
    composed_traffic,
    needed_traffic,
    traffic_table,
)
from bench.progress import Progress
from bench.timing import interleave
from bench.workloads import WORKLOADS, n_parameters

EXAMPLE = "python bench/bench_step.py --workloads resnet50 --threads 1 4 --out bench/results/cpu-x"


def measure(
    workload: str,
    case: Case,
    *,
    n_threads: int,
    seconds: float,
    only: tuple[str, ...] | None = None,
    on_round: Callable[[float], None] | None = None,
) -> list[report.Row]:
    """Measure the contenders of one case in turns.

    Args:
        workload: Key of `WORKLOADS`.
        case: The case.
        n_threads: torch threads.
        seconds: Time budget.
        only: Contenders to keep. Default: all.
        on_round: Called with the fraction done.

    Returns:
        Rows of `report.timing_rows`.
    """
    shapes = WORKLOADS[workload]()
    size = n_parameters(shapes)
    traffic = needed_traffic(case)
    with report.threads(n_threads):
        steps = contenders.build_steps(case, shapes, only=only)
        limit_bytes = 0
        if streaming.why_missing() is None:
            counts = streaming.stream_counts(case)
            steps[report.STREAM], limit_bytes = streaming.build_stream(size, *counts)
        timings = interleave(steps, seconds=seconds, on_round=on_round)
    # Gigabytes of the next case must not come on top of these.
    steps.clear()
    gc.collect()
    common = {
        "workload": workload,
        "case": case.name,
        "threads": n_threads,
        "n_tensors": len(shapes),
        "n_parameters": size,
        "bytes_per_parameter": traffic.total,
        "composed_bytes_per_parameter": composed_traffic(case).total,
        "baseline": case.baseline,
    }
    return report.timing_rows(
        timings,
        baseline=case.baseline,
        n_bytes=traffic.total * size,
        limit_bytes=limit_bytes,
        common=common,
    )


def measure_often(
    n_passes: int, *arguments: object, on_round: Callable[[float], None], **options: object
) -> list[report.Row]:
    """Call `measure` several times; return the rows of the pass with the fastest streaming loop.

    On a shared machine others may take half the memory bandwidth for minutes. The streaming loop
    tells when, and favours no contender.
    """
    passes = []
    for nth in range(n_passes):
        passes.append(
            measure(
                *arguments,
                on_round=lambda fraction, nth=nth: on_round((nth + fraction) / n_passes),
                **options,
            )
        )
    return max(passes, key=report.streaming_rate)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = report.make_parser(__doc__.splitlines()[0], EXAMPLE, seconds=10.0)
    add = parser.add_argument
    default = ["resnet50", "vit_b_16", "gpt2_small", "small_2000", "one_64m"]
    add("--workloads", nargs="+", choices=sorted(WORKLOADS), default=default, metavar="NAME")
    add("--cases", nargs="+", choices=sorted(CASES), metavar="NAME", help="default: by workload")
    add("--contenders", nargs="+", choices=sorted(contenders.BUILDERS), metavar="NAME")
    add("--threads", nargs="+", type=report.positive, default=[torch.get_num_threads()])
    add(
        "--passes",
        type=report.positive,
        default=1,
        help="measure each table this often, keep the pass with the fastest streaming loop",
    )
    add("--list", action="store_true", help="print workloads, cases and bytes per parameter")
    return parser.parse_args(arguments)


def print_list() -> None:
    """Print what can be measured."""
    for name, make in WORKLOADS.items():
        shapes = make()
        print(f"{name:<12} {len(shapes):>5} tensors {n_parameters(shapes):>12,} parameters")
    print(f"\nbytes per parameter\n{traffic_table()}")


def warn_missing() -> None:
    """Say on standard error which contenders cannot run, and why."""
    for name, reason in (
        ("ours", contenders.why_missing("ours")),
        (report.STREAM, streaming.why_missing()),
    ):
        if reason is not None:
            print(f"{name} is not measured: {reason}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> list[report.Row]:
    """Measure, print and write what the command line asks for; return all rows."""
    options = parse(arguments)
    if options.list:
        print_list()
        return []
    warn_missing()
    jobs = [
        (workload, CASES[name], n_threads)
        for workload in options.workloads
        for name in options.cases or cases_for(workload)
        for n_threads in options.threads
    ]
    only = tuple(options.contenders) if options.contenders else None
    rows: list[report.Row] = []
    sections = []
    with Progress(len(jobs)) as progress:
        for workload, case, n_threads in jobs:
            title = f"{workload}, {case.title}, {n_threads} thread{'s' if n_threads > 1 else ''}"
            progress.begin(title)
            measured = measure_often(
                options.passes,
                workload,
                case,
                n_threads=n_threads,
                seconds=options.seconds,
                only=only,
                on_round=progress.at,
            )
            cells = [report.timing_cells(row) for row in measured]
            note = report.limit_note(measured)
            table = report.text_table(report.TIMING_HEADER, cells)
            print(f"\n{title}\n{table}\n{note}", flush=True)
            table = report.markdown_table(report.TIMING_HEADER, cells)
            sections.append((title, f"{table}\n\n{note}".rstrip()))
            rows += measured
            # After every table, so that an interrupted run leaves what it has.
            report.write_results(options.out, rows, sections)
    return rows


@pytest.mark.parametrize("contender", sorted(contenders.BUILDERS))
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
@pytest.mark.parametrize("workload", ["resnet50", "small_2000"])
def test_step(benchmark, workload: str, case: Case, contender: str):
    """Time one contender; the groups put those that answer one question together."""
    if contender not in case.contenders or case.name not in cases_for(workload):
        pytest.skip(f"{contender} does not take part in {case.name} on {workload}")
    reason = contenders.why_missing(contender)
    if reason is not None:
        pytest.skip(reason)
    step = contenders.BUILDERS[contender](case, WORKLOADS[workload]()).step
    benchmark.group = f"{workload}: {case.title}"
    benchmark.pedantic(step, rounds=20, warmup_rounds=3)


if __name__ == "__main__":
    main()
