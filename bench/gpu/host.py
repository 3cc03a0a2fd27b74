"""How long is the host busy with a step, and what is uploaded, when this or that has changed?

Between two steps nothing changes, or the gradients lie at new addresses, or at the other one of two
places, or the learning rate is another number. The time is that until `step()` returns, of an idle
device; beside it the whole step, and the copies to the device that one step takes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import contenders, measure, tables
from bench.gpu.cases import CASES, Case, shapes_of
from bench.gpu.figures import Effort, effort_of, settle
from bench.gpu.part import Deadline, Result, Row, first_line, make_parser, run_part
from bench.timing import Spread, Step, interleave
from bench.workloads import Shape

EXAMPLE = "python -m bench.gpu.host --dry-run"
NAMES = ("ours", "ours-triton", "torch-fused", "torch-foreach")
# The most important first.
TABLES = (
    ("resnet50", "adamw-combined"),
    ("resnet50", "adamw"),
    ("small_2000", "adamw-combined"),
    ("small_2000", "adamw"),
)
STEADY, NEW_GRADS, TWO_PLACES, NEW_LR = "steady", "new gradients", "two places", "new lr"
CHANGES = (STEADY, NEW_GRADS, NEW_LR, TWO_PLACES)
# Elements between the places of gradients: 16 bytes of any dtype.
STRIDE = 8
# Different places before they repeat; more than any cache of tables could hold.
N_PLACES = 512
# Share of the time after which no further table is begun.
TIMES_SHARE = 0.6
HEADER = ("contender", "changed", "host µs", "p20 - p80", "whole µs", "p20 - p80", "uploads")


class Subject:
    """A contender whose optimizer and gradients can be changed between steps.

    Args:
        name: Key of `bench.gpu.contenders.LABELS`.
        case: The step.
        shapes: Of the parameters.
        device: Of the parameters.
    """

    def __init__(self, name: str, case: Case, shapes: Sequence[Shape], device: torch.device):
        built = contenders.build(name, case, shapes, device=device)
        self.step, self._parameters = built.step, built.parameters
        self._group = built.optimizer.param_groups[0]
        self._lr = self._group["lr"]
        self._n_changes = 0
        self._grads = [parameter.grad for parameter in self._parameters]
        self._places = []
        begin = 0
        for grad in self._grads:
            self._places.append((begin, grad.shape, grad.stride()))
            begin += -(-grad.numel() // STRIDE) * STRIDE
        n_elements = begin + N_PLACES * STRIDE
        self._memory = torch.randn(n_elements, device=device).to(self._grads[0].dtype)

    def change(self, what: str) -> None:
        """Change something before the next step."""
        self._n_changes += 1
        if what == NEW_LR:
            self._group["lr"] = self._lr * (1 + 1e-6 * self._n_changes)
        elif what == NEW_GRADS:
            self._give(self._place(self._n_changes % N_PLACES))
        elif what == TWO_PLACES:
            self._give(self._place(0) if self._n_changes % 2 else self._grads)

    def reset(self) -> None:
        """Undo the changes."""
        self._give(self._grads)
        self._group["lr"] = self._lr

    def _give(self, grads: Sequence[Tensor]) -> None:
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad

    def _place(self, number: int) -> list[Tensor]:
        """Return gradients that begin `number` strides further than those of place 0."""
        return [
            self._memory.as_strided(shape, strides, begin + number * STRIDE)
            for begin, shape, strides in self._places
        ]


def count_uploads(subject: Subject, what: str, device: torch.device, n_steps: int) -> float | None:
    """Return the copies to the device per step, None if the profiler saw nothing."""

    def changed_step() -> None:
        subject.change(what)
        subject.step()

    try:
        launches = measure.profile(changed_step, n_steps, device)
    except (RuntimeError, ValueError, KeyError) as error:
        print(f"no uploads counted: {first_line(error)}")
        return None
    return sum(n for name, n in launches.counts.items() if "HtoD" in name)


def time_change(
    subjects: dict[str, Subject], what: str, device: torch.device, effort: Effort
) -> dict[str, dict[str, Spread]]:
    """Return the times to `step()`'s return, and to the device's end, by contender."""

    def before() -> None:
        for subject in subjects.values():
            subject.change(what)
        measure.synchronize(device)

    steps: dict[str, Step] = {name: subject.step for name, subject in subjects.items()}
    rounds: dict[str, Any] = {
        "seconds": effort.seconds,
        "min_rounds": effort.min_rounds,
        "max_rounds": effort.max_rounds,
        "warmup": 2,
        "before": before,
    }
    return {
        "host_us": interleave(steps, clock=time.perf_counter, **rounds),
        "whole_us": interleave(steps, clock=measure.host_clock(device), **rounds),
    }


class Table:
    """One workload and case, its subjects and rows.

    Args:
        workload: Key of `shapes_of`.
        case_name: Key of `CASES`.
        options: Command line.
    """

    def __init__(self, workload: str, case_name: str, options: argparse.Namespace):
        self.case, self.device, self.effort = CASES[case_name], options.device, effort_of(options)
        self.title = f"Host: {workload}, {self.case.title}"
        self.rows: list[Row] = []
        self._common = {"workload": workload, "case": case_name}
        self.subjects: dict[str, Subject] = {}
        self.notes: list[str] = []
        self.problems: list[str] = []
        shapes = shapes_of(workload, tiny=options.dry_run)
        for name in NAMES:
            self._build(name, shapes)

    def _build(self, name: str, shapes: Sequence[Shape]) -> None:
        missing = contenders.why_missing(name, self.device)
        try:
            if missing:
                raise RuntimeError(missing)
            subject = Subject(name, self.case, shapes, self.device)
            for what in (*CHANGES, STEADY):
                subject.change(what)
                subject.step()
            measure.synchronize(self.device)
            self.subjects[name] = subject
        except Exception as error:
            reason = missing or first_line(error)
            self.notes.append(f"{contenders.LABELS[name]}: {reason}")
            if name in contenders.BACKENDS and not missing:
                self.problems.append(f"{name}: {reason}")

    def time(self, what: str) -> None:
        """Add the times of one kind of change."""
        times = time_change(self.subjects, what, self.device, self.effort)
        for name, subject in self.subjects.items():
            subject.reset()
            spreads = {key: tables.spread_of(found[name], 1e6) for key, found in times.items()}
            row: Row = {**self._common, "contender": name, "changed": what, **spreads}
            self.rows.append(row | {"uploads": None})

    def count_uploads(self) -> None:
        """Add the uploads of all rows."""
        for row in self.rows:
            subject = self.subjects[row["contender"]]
            n_steps = self.effort.n_profiled
            row["uploads"] = count_uploads(subject, row["changed"], self.device, n_steps)
            subject.reset()

    def add_to(self, result: Result, *, show: bool = True) -> None:
        """Put the rows, as far as they are measured, into the result."""
        rows = sorted(self.rows, key=lambda row: NAMES.index(row["contender"]))
        table = report.markdown_table(HEADER, list(map(cells, rows)))
        notes = "\n".join(f"- {note}" for note in self.notes)
        result.add(self.title, f"{table}\n\n{notes}".rstrip(), rows, show=show)


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    times = []
    for key in ("host_us", "whole_us"):
        found = row[key]
        times += [f"{found['median']:.1f}", f"{found['p20']:.1f} - {found['p80']:.1f}"]
    uploads = "-" if row["uploads"] is None else f"{row['uploads']:g}"
    return (contenders.LABELS[row["contender"]], row["changed"], *times, uploads)


def attempt(table: Table, action: Callable[[], None]) -> bool:
    """Run a part of a table's measurement; keep why it broke off."""
    try:
        action()
    except Exception as error:
        table.problems.append(first_line(error))
        table.notes.append(f"broke off: {first_line(error)}")
        return False
    return True


def work(options: argparse.Namespace, result: Result) -> str:
    """Time the tables until the time is up, then count uploads; return what broke."""
    settle()
    deadline = Deadline(options.seconds)
    measured: list[Table] = []
    for nth, (workload, case_name) in enumerate(TABLES[: options.tables]):
        if deadline.elapsed > TIMES_SHARE * deadline.seconds:
            rest = "\n".join(f"- {', '.join(names)}" for names in TABLES[nth:])
            result.add("Host: left out for lack of time", rest)
            break
        table = Table(workload, case_name, options)
        all(attempt(table, partial(table.time, what)) for what in CHANGES)
        table.add_to(result, show=False)
        measured.append(table)
    # The profiler may slow down what is timed after it.
    for table in measured:
        if deadline.left > 0:
            attempt(table, table.count_uploads)
        table.add_to(result)
    problems = [problem for table in measured for problem in table.problems]
    return f"{len(problems)} problems; the first: {problems[0]}" if problems else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit status."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--tables", type=report.positive, help="how many (default: all)")
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
