"""How long does a step take on a GPU, ours against torch's ways of doing the same?

Per contender: the sum of its kernels' durations (torch.profiler), the replay from a CUDA graph
(events), the whole step (events and host, queue drained), the host's time to return from `step()`,
launches, and the peak memory of a step. All contenders take turns. "ours ahead" is the contender's
time over ours, pair by pair, with p20 and p80; "of copy" is the rate of the bytes that a step must
move over the rate of a device-to-device copy in the same turns.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import torch

from bench.contenders import Contender
from bench.gpu import contenders, goals, probe, tables
from bench.gpu.cases import (
    CASES,
    TABLES,
    Case,
    composed_bytes,
    held_bytes,
    needed_bytes,
    shapes_of,
)
from bench.gpu.environment import smi_facts
from bench.gpu.figures import (
    FULL,
    HURRIED,
    Builder,
    Effort,
    Measured,
    effort_of,
    measure_kernels,
    measure_timings,
    settle,
)
from bench.gpu.part import Deadline, Result, Row, first_line, make_parser, run_part
from bench.workloads import n_parameters

EXAMPLE = "python -m bench.gpu.bench_gpu --dry-run"
MOST_COPIED_BYTES = 4 * 2**30
LEAST_COPIED_BYTES = 2**30
# Share of the time for what is measured without the profiler.
TIMINGS_SHARE = 0.45
# Share of the free memory that contenders may hold; their temporaries need the rest.
USABLE = 0.75
# Share of the time for the first steps of the Triton backend, which compile.
PROBE_SHARE = 0.3


def fitting(names: Sequence[str], held: int, device: torch.device) -> tuple[list[str], list[str]]:
    """Split contenders into those that fit into the device's memory together and the others.

    Args:
        names: Contenders, the most important first.
        held: Bytes that each holds.
        device: The device.
    """
    if device.type != "cuda":
        return list(names), []
    free = torch.cuda.mem_get_info(device)[0] * USABLE - LEAST_COPIED_BYTES
    n_fitting = max(0, min(len(names), int(free // max(held, 1))))
    return list(names[:n_fitting]), list(names[n_fitting:])


def notes_of(workload: str, case: Case, size: int, device: torch.device) -> list[str]:
    """Return what a reader of the table must know."""
    notes = [
        f"{size:,} parameters; a step must move {needed_bytes(case)} bytes per parameter, torch's "
        f"fused composition moves {composed_bytes(case)}"
    ]
    if device.type != "cuda":
        return notes
    l2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    if size * held_bytes(case) < 2 * l2:
        notes.append(f"all of it fits into the L2 cache of {l2 / 2**20:.0f} MiB: not a memory rate")
    return notes


class Table:
    """One workload and case: what is measured, and what was.

    Args:
        workload: Key of `shapes_of`.
        case_name: Key of `CASES`.
        options: Command line.
    """

    def __init__(self, workload: str, case_name: str, options: argparse.Namespace):
        self.workload, self.case = workload, CASES[case_name]
        self.device, self._effort = options.device, effort_of(options)
        # Set where the time would not suffice for all tables at the usual effort.
        self.is_hurried = False
        self.shapes = shapes_of(workload, tiny=options.dry_run)
        self.size = n_parameters(self.shapes)
        self.measured = Measured()
        self.problems: list[str] = []
        # Contenders that must not run, or not be captured, and why.
        self.left_out: dict[str, str] = {}
        self.without_graphs: dict[str, str] = {}
        self._least_copied = 2**20 if options.dry_run else LEAST_COPIED_BYTES

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return f"{self.workload}: {self.case.title}"

    @property
    def effort(self) -> Effort:
        """How often to measure."""
        return HURRIED if self.is_hurried and self._effort is FULL else self._effort

    def _builders(self) -> dict[str, Builder]:
        """Return the contenders that can run here; keep why the others cannot."""
        present = []
        for name in self.case.contenders:
            reason = self.left_out.get(name) or contenders.why_missing(name, self.device)
            if reason:
                self.measured.fail(name, "all", reason)
            else:
                present.append(name)
        present, too_large = fitting(present, self.size * held_bytes(self.case), self.device)
        for name in too_large:
            self.measured.fail(name, "all", "not enough memory for it beside the others")
        return {name: partial(self._build, name) for name in present}

    def _build(self, name: str, capturable: bool) -> Contender:
        if capturable and name in self.without_graphs:
            raise RuntimeError(self.without_graphs[name])
        build = contenders.build
        return build(name, self.case, self.shapes, device=self.device, capturable=capturable)

    def measure_timings(self) -> None:
        """Measure what needs no profiler."""
        measure_timings(self._builders(), self.measured, device=self.device, effort=self.effort)

    def measure_kernels(self) -> None:
        """Measure by the profiler."""
        n_bytes = self.size * needed_bytes(self.case)
        measure_kernels(
            self._builders(),
            self.measured,
            device=self.device,
            effort=self.effort,
            copy_bytes=min(max(n_bytes, self._least_copied), MOST_COPIED_BYTES),
        )

    def rows(self) -> list[Row]:
        """Return a row for each contender."""
        common = {
            "workload": self.workload,
            "case": self.case.name,
            "title": self.case.title,
            "n_tensors": len(self.shapes),
            "n_parameters": self.size,
            "bytes_per_parameter": needed_bytes(self.case),
            "composed_bytes_per_parameter": composed_bytes(self.case),
            "baseline": self.case.baseline,
        }
        n_bytes = self.size * needed_bytes(self.case)
        return tables.make_rows(self.measured, self.case.contenders, n_bytes=n_bytes, common=common)

    def add_to(self, result: Result, *, show: bool) -> None:
        """Put the table, as far as it is measured, into the result."""
        rows = self.rows()
        notes = notes_of(self.workload, self.case, self.size, self.device)
        notes += [f"broke off: {problem}" for problem in self.problems]
        result.add(self.title, tables.table_text(rows, notes), rows, show=show)
        add_overviews(result)


def add_overviews(result: Result) -> None:
    """Put what a reader wants first into the result, from the rows that it has."""
    rows = result.rows
    result.add("Overview", tables.overview(rows), show=False)
    result.add(goals.TITLE, goals.text(goals.evaluate(rows)), show=False)


def leave_out_triton(chosen: Sequence[Table], options: argparse.Namespace) -> None:
    """Leave the Triton backend out, or its graphs, if they fail in a process of their own."""
    name = probe.CONTENDER
    if contenders.why_missing(name, options.device):
        return
    steps, graphs = probe.try_both(options.dry_run, options.seconds * PROBE_SHARE)
    for table in chosen:
        table.left_out |= {name: steps} if steps else {}
        table.without_graphs |= {name: graphs} if graphs else {}


def run_pass(
    chosen: Sequence[Table],
    measure: Callable[[Table], None],
    deadline: Deadline,
    done: Callable[[Table], None],
) -> list[str]:
    """Measure tables in order of importance until the time is up; return those left out."""
    for nth, table in enumerate(chosen):
        usual = deadline.elapsed / max(nth, 1)
        if deadline.left < usual or deadline.left == 0:
            return [left.title for left in chosen[nth:]]
        table.is_hurried = deadline.left < usual * (len(chosen) - nth)
        try:
            measure(table)
        except Exception as error:
            # The other tables may still work; this one keeps what it has.
            traceback.print_exc()
            table.problems.append(first_line(error))
        print(f"{nth + 1}/{len(chosen)} {table.title}: {deadline.left:.0f} s left", flush=True)
        done(table)
    return []


def work(options: argparse.Namespace, result: Result) -> str:
    """Measure all tables without the profiler, then with it."""
    settle()
    chosen = [
        Table(workload, case, options)
        for workload, case in TABLES
        if workload in (options.workloads or [workload]) and case in (options.cases or [case])
    ]
    whole = Deadline(options.seconds)
    add_overviews(result)
    leave_out_triton(chosen, options)
    left_out = {}
    for name, measure, seconds in (
        ("graph, whole step, host", Table.measure_timings, whole.left * TIMINGS_SHARE),
        ("kernels", Table.measure_kernels, whole.seconds),
    ):
        deadline = Deadline(min(seconds, whole.left))
        show = measure is Table.measure_kernels
        done = partial(Table.add_to, result=result, show=show)
        left_out[name] = run_pass(chosen, measure, deadline, done)
    if options.device.type == "cuda":
        facts = "\n".join(f"- {name}: {value}" for name, value in smi_facts().items())
        result.add("GPU right after the measurements", facts)
    lines = [f"- {name}: {', '.join(titles)}" for name, titles in left_out.items() if titles]
    if lines:
        result.add("Left out for lack of time", "\n".join(lines))
    broken = []
    # What a machine lacks is no failure of the Triton backend.
    lacks_triton = contenders.why_missing(probe.CONTENDER, options.device) != ""
    for table in chosen:
        broken += [*table.problems, *table.without_graphs.values()]
        for name in ["ours"] if lacks_triton else contenders.BACKENDS:
            broken += filter(None, [table.measured.reasons.get(name, {}).get("all")])
    return f"{len(broken)} problems; the first: {broken[0]}" if broken else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit status."""
    parser = make_parser(__doc__, EXAMPLE)
    workloads = sorted({workload for workload, _ in TABLES})
    parser.add_argument("--workloads", nargs="+", choices=workloads, metavar="NAME")
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), metavar="NAME")
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
