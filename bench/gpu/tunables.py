"""Which settings of the CUDA backend are fastest? One is changed at a time, around its default.

The figure is the kernel time of our combined AdamW step. A setting's ratio is the default's time
over its own, both taken in turns, so that above 1 is faster.
"""

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench import report
from bench.gpu import contenders, measure
from bench.gpu.cases import CASES, held_bytes, shapes_of
from bench.gpu.figures import release, settle
from bench.gpu.part import Deadline, NotAvailable, Result, Row, first_line, make_parser, run_part
from bench.timing import Spread, paired_ratio
from bench.workloads import n_parameters
from fusedtricks import ops

EXAMPLE = "python -m bench.gpu.tunables --dry-run"
CASE = CASES["adamw-combined"]
WORKLOADS = ("resnet50", "one_g")
# Values to try; of names that are not here, half and double the default.
VALUES: dict[str, tuple[int, ...]] = {
    "update_item": (2048, 4096, 8192, 16384, 32768),
    "statistics_item": (4096, 8192, 16384, 32768, 65536),
    "blocks_per_sm": (0, 1, 2, 4, 8, 16),
    "backward": (0, 1),
    "table_bytes": (4096, 16384, 32764),
    # Matters to tensors of more than 2^30 elements only.
    "record_elements": (),
}
HEADER = ("workload", "setting", "kernels ms", "p20 - p80", "times the default's speed", "remark")
Settings = dict[str, int]


class Rehearsal:
    """Stands in for the extension's functions where they do not exist."""

    def __init__(self):
        self._values = {"update_item": 8192, "backward": 1, "new_setting": 6}

    def cuda_tunables(self) -> Settings:
        """Return all settings."""
        return dict(self._values)

    def set_cuda_tunables(self, **changes: int) -> None:
        """Change some settings."""
        self._values |= changes


def interface(options: argparse.Namespace) -> Any:
    """Return what has the two functions.

    Raises:
        NotAvailable: If the extension has none.
    """
    if options.dry_run:
        return Rehearsal()
    if not hasattr(ops.native, "cuda_tunables"):
        raise NotAvailable("the extension has no cuda_tunables()")
    return ops.native


def candidates(defaults: Mapping[str, int]) -> list[Settings]:
    """Return the changes to try, each of one setting."""
    changes = []
    for name, default in defaults.items():
        around = (default // 2, default * 2) if default > 1 else (0, 1)
        for value in VALUES.get(name, around):
            if value != default:
                changes.append({name: value})
    return changes


def label(change: Settings) -> str:
    """Return a change as a reader says it."""
    return ", ".join(f"{name}={value}" for name, value in change.items()) or "default"


class Sweep:
    """Times one workload under different settings.

    Args:
        workload: Its name.
        native: Has the two functions.
        options: Command line.
    """

    def __init__(self, workload: str, native: Any, options: argparse.Namespace):
        self.workload, self.native, self.device = workload, native, options.device
        self.n_rounds = 1 if options.dry_run else 2 if options.quick else 3
        self.n_profiled = 1 if options.dry_run else 4
        self.defaults = native.cuda_tunables()
        self.shapes = shapes_of(workload, tiny=options.dry_run)
        self.rows: list[Row] = []

    def _time_once(self, change: Settings) -> float:
        """Return seconds per step; a new optimizer each time, for it may keep what it planned."""
        # An optimizer may wait for the collector, with gigabytes.
        gc.collect()
        self.native.set_cuda_tunables(**self.defaults | change)
        step = contenders.build("ours", CASE, self.shapes, device=self.device).step
        for _ in range(2):
            step()
        return measure.profile(step, self.n_profiled, self.device).seconds

    def try_change(self, change: Settings) -> Row:
        """Return the row of a change, timed in turns with the default."""
        row: Row = {"workload": self.workload, "change": change, "ms": None, "speedup": None}
        try:
            ours: list[float] = []
            default: list[float] = []
            for _ in range(self.n_rounds):
                default.append(self._time_once({}))
                ours.append(self._time_once(change))
            spread = Spread(tuple(ours))
            row["ms"] = [spread.median * 1e3, spread.p20 * 1e3, spread.p80 * 1e3]
            row["speedup"] = paired_ratio(Spread(tuple(default)), spread).median
        except (RuntimeError, ValueError, TypeError) as error:
            row["remark"] = first_line(error)
        finally:
            self.native.set_cuda_tunables(**self.defaults)
        self.rows.append(row)
        return row

    def best_together(self) -> Settings:
        """Return the fastest value of each setting, those that gain at least 1 % alone."""
        best: dict[str, tuple[float, int]] = {}
        for row in self.rows:
            if row["speedup"] and row["speedup"] > 1.01:
                for name, value in row["change"].items():
                    best[name] = max(best.get(name, (0.0, 0)), (row["speedup"], value))
        return {name: value for name, (_, value) in best.items()}


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    name = label(row["change"])
    if row["ms"] is None:
        return (row["workload"], name, "-", "-", "-", row.get("remark", ""))
    median, p20, p80 = row["ms"]
    times = (f"{median:.4f}", f"{p20:.4f} - {p80:.4f}", f"{row['speedup']:.3f}")
    return (row["workload"], name, *times, row.get("remark", ""))


def fits(sweep: Sweep) -> bool:
    """Return whether the workload fits into the device's memory."""
    if sweep.device.type != "cuda":
        return True
    return n_parameters(sweep.shapes) * held_bytes(CASE) < 0.8 * torch.cuda.mem_get_info()[0]


def work(options: argparse.Namespace, result: Result) -> str:
    """Try the changes until the time is up; the first settings of both workloads come first."""
    settle()
    deadline = Deadline(options.seconds)
    native = interface(options)
    defaults = native.cuda_tunables()
    rows: list[Row] = []
    for nth, workload in enumerate(WORKLOADS):
        sweep = Sweep(workload, native, options)
        # An equal share of what is left for each workload.
        until = deadline.elapsed + deadline.left / (len(WORKLOADS) - nth)
        changes: list[Settings] = [{}, *candidates(defaults)] if fits(sweep) else []
        for change in changes:
            if deadline.elapsed > until:
                print(f"{workload}: no time left for {label(change)} and what follows")
                break
            print(" ".join(cells(sweep.try_change(change))), flush=True)
        if len(best := sweep.best_together()) > 1 and deadline.left > 0:
            sweep.try_change(best)
        rows += sweep.rows
        del sweep
        release(options.device)
        table = report.markdown_table(HEADER, [cells(row) for row in rows])
        result.add("Settings of the CUDA backend", f"default: {defaults}\n\n{table}", rows)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Try; return the exit status."""
    return run_part(work, make_parser(__doc__, EXAMPLE), arguments)


if __name__ == "__main__":
    sys.exit(main())
