"""Is the kernel for batches of images right on a GPU, and how fast is it beside torch's operators?

First a handful of batches against the formula in float64. Then 256 images, mixed, cut, normalised
and put in channels_last: by the kernel, by the chains of bench/bench_batch.py and by torch.compile
of the usual one, in turns. GB/s are the bytes that the kernel moves over each contender's time.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.bench_batch import (
    CHAIN,
    IN_PLACE,
    KERNEL,
    REFERENCE,
    WAYS,
    Job,
    count,
    make_job,
    usual_chain,
)
from bench.contenders import Contender
from bench.gpu import measure, tables
from bench.gpu.figures import Measured, effort_of, measure_kernels, measure_timings
from bench.gpu.part import (
    Deadline,
    NotAvailable,
    Result,
    Row,
    first_line,
    make_parser,
    run_part,
)
from bench.timing import Step
from fusedtricks import _triton
from fusedtricks.data.prepare import prepare_batch

EXAMPLE = "python -m bench.gpu.batch --dry-run"
OURS, OURS_LAST, OURS_CPU_PLAN = "ours", "ours, from channels_last", "ours, plan from the CPU"
COMPILED = "torch.compile"
# Compiling takes about half of this, and the measurement follows.
COMPILE_S = 12.0
HEADER = ("batch", "from", "to", "dtype", "error of the bound", "agrees")
# Shape, whether images come and go in channels_last, and the dtype.
CHECKS = (
    ((16, 3, 224, 224), False, True, torch.float32),
    ((16, 3, 224, 224), True, True, torch.bfloat16),
    ((16, 3, 224, 224), True, False, torch.float16),
    ((5, 3, 33, 47), False, True, torch.bfloat16),
    ((300, 1, 28, 28), False, False, torch.float32),
    ((7, 4, 31, 8), True, False, torch.bfloat16),
    ((1, 3, 1, 2), True, True, torch.float32),
)
TINY_CHECKS = tuple(
    ((2, shape[1], min(shape[2], 6), min(shape[3], 8)), *rest) for shape, *rest in CHECKS
)


def backend_on(device: torch.device) -> str:
    """Return the backend to run: in a rehearsal without Triton's interpreter what stands for it.

    Raises:
        NotAvailable: If the kernel cannot run on the GPU.
    """
    obstacle = _triton.missing_reason or _triton.device_obstacle(device)
    if obstacle and device.type == "cuda":
        raise NotAvailable(obstacle)
    return "reference" if obstacle else "triton"


def with_patches(job: Job) -> Job:
    """Return the job with a patch in every image, a row of it at least, and odd ones unblended."""
    height = job.images.shape[2]
    patch, share = job.plan.hole.clone(), job.plan.own_share.clone()
    patch[:, 0], patch[:, 1], share[1::2] = height - 1, height + 3, 1.0
    return replace(job, plan=replace(job.plan, patch=patch, own_share=share, has_patches=True))


def run_check(check: tuple[tuple[int, ...], bool, bool, torch.dtype], device: torch.device) -> Row:
    """Return how far the kernel is from the formula in float64, in units of what is allowed."""
    shape, comes_last, goes_last, dtype = check
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    row: Row = {
        "batch": " x ".join(map(str, shape)),
        "from": str(formats[comes_last]).removeprefix("torch."),
        "to": str(formats[goes_last]).removeprefix("torch."),
        "dtype": str(dtype).removeprefix("torch."),
        "error": None,
        "agrees": False,
        "remark": "",
    }
    try:
        images = torch.randint(256, shape, dtype=torch.uint8)
        images = images.contiguous(memory_format=formats[comes_last])
        job = with_patches(make_job(images, dtype, tricks=True))
        got = prepare(
            replace(job, images=images.to(device)), backend_on(device), formats[goes_last]
        )
        exact = prepare(replace(job, dtype=torch.float64), "reference", formats[goes_last])
        if not got.is_contiguous(memory_format=formats[goes_last]):
            row["remark"] = "another memory format"
        row["error"] = error_of(got.cpu(), exact, job)
        # Not `error > 1`: NaN must not pass.
        row["agrees"] = row["error"] <= 1 and not row["remark"]
    except NotAvailable:
        raise
    except Exception as error:
        row["remark"] = first_line(error)
    return row


def prepare(job: Job, backend: str, memory_format: torch.memory_format) -> Tensor:
    """Return the images that `prepare_batch` makes."""
    options: dict[str, Any] = {"mean": job.mean, "std": job.std, "dtype": job.dtype}
    options |= {"memory_format": memory_format, "fill": 0.3, "backend": backend}
    return prepare_batch(job.images, None, job.plan, **options)[0]


def error_of(got: Tensor, exact: Tensor, job: Job) -> float:
    """Return the largest error over what a few roundings to float32 and one to the dtype allow."""
    pairs = zip(job.mean, job.std, strict=True)
    largest = torch.tensor([max(m, 1 - m) / s for m, s in pairs], dtype=torch.float64)
    info = torch.finfo(got.dtype)
    rounding = exact.abs().clamp(min=info.smallest_normal) * info.eps / 2
    allowed = 10 * 2.0**-24 * largest[:, None, None] + rounding
    return ((got.double() - exact).abs() / allowed).max().item()


def check_cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    error = row["remark"] or f"{row['error']:.2f}"
    verdict = "yes" if row["agrees"] else "NO"
    return (row["batch"], row["from"], row["to"], row["dtype"], error, verdict)


def steps_of(job: Job) -> dict[str, Step]:
    """Return the contenders' steps; all return the same images."""
    on_cpu = replace(job, plan=job.plan.to("cpu"))
    last = replace(job, images=job.images.contiguous(memory_format=torch.channels_last))
    backend = backend_on(job.images.device)
    kernel = WAYS[KERNEL if backend == "triton" else REFERENCE]
    return {
        OURS: lambda: kernel(job),
        OURS_LAST: lambda: kernel(last),
        OURS_CPU_PLAN: lambda: prepare(on_cpu, backend, torch.channels_last),
        CHAIN: lambda: WAYS[CHAIN](job),
        IN_PLACE: lambda: WAYS[IN_PLACE](job),
    }


class Table:
    """Some contenders for one dtype: what is measured, and what was.

    Args:
        job: What they do.
        steps: The contenders.
        title: What a reader calls it.
        options: Command line.
    """

    def __init__(
        self,
        job: Job,
        steps: Mapping[str, Step],
        title: str,
        options: argparse.Namespace,
    ):
        self.job, self.steps, self.title = job, steps, title
        self.measured, self.notes = Measured(), list[str]()
        self._common = {"device": options.device, "effort": effort_of(options)}
        moved = count(job, KERNEL)
        self._n_bytes = moved["bytes_read"] + moved["bytes_written"]

    def measure(self, *, with_profiler: bool) -> None:
        """Measure all contenders in turns."""
        builders = {
            name: lambda capturable, step=step: Contender(step, [])
            for name, step in self.steps.items()
        }
        if with_profiler:
            measure_kernels(builders, self.measured, copy_bytes=self._n_bytes, **self._common)
        else:
            measure_timings(builders, self.measured, graphs=False, **self._common)

    def add_to(self, result: Result) -> None:
        """Put the table, as far as it is measured, into the result."""
        common = {"workload": self.title, "case": str(self.job.dtype), "baseline": CHAIN}
        names = [*self.steps, *(name for name in self.measured.reasons if name not in self.steps)]
        rows = tables.make_rows(self.measured, names, n_bytes=self._n_bytes, common=common)
        result.add(self.title, tables.table_text(rows, self.notes), rows, show=False)


def make_table(dtype: torch.dtype, options: argparse.Namespace) -> Table:
    """Return the table of all contenders but the compiled one."""
    shape = (2, 3, 8, 8) if options.dry_run else (256, 3, 224, 224)
    images = torch.randint(256, shape, dtype=torch.uint8, device=options.device)
    job = make_job(images, dtype, tricks=True)
    title = f"Batch of {' x '.join(map(str, shape))} bytes to {str(dtype).removeprefix('torch.')}"
    return Table(job, steps_of(job), title, options)


def beside_compiled(table: Table, options: argparse.Namespace, seconds: float) -> Table:
    """Return a table of our kernel and torch.compile of the usual chain, if the time suffices."""
    title = f"torch.compile of the usual chain: {table.title}"
    found = Table(table.job, {OURS: table.steps[OURS]}, title, options)
    if seconds < COMPILE_S and not options.dry_run:
        found.measured.fail(COMPILED, "all", "left out for lack of time")
        return found
    start = time.perf_counter()
    try:
        compiled = torch.compile(usual_chain, backend="eager" if options.dry_run else "inductor")
        compiled(table.job)
        measure.synchronize(options.device)
    except Exception as error:
        found.measured.fail(COMPILED, "all", first_line(error))
        return found
    found.steps = {OURS: table.steps[OURS], COMPILED: lambda: compiled(table.job)}
    found.notes.append(f"the first call compiled took {time.perf_counter() - start:.1f} s")
    return found


def work(options: argparse.Namespace, result: Result) -> str:
    """Check, then measure until the time is up; return which checks disagree."""
    deadline = Deadline(options.seconds)
    title = f"Batches against float64: {backend_on(options.device)}"
    torch.manual_seed(0)
    rows: list[Row] = []
    for check in TINY_CHECKS if options.dry_run else CHECKS:
        rows.append(run_check(check, options.device))
        print(" ".join(check_cells(rows[-1])), flush=True)
        lines = list(map(check_cells, rows))
        result.add(title, report.markdown_table(HEADER, lines), rows, show=False)
    chosen = [make_table(dtype, options) for dtype in (torch.bfloat16, torch.float32)]
    for with_profiler in (False, True):
        for table in chosen:
            if deadline.left > 0:
                table.measure(with_profiler=with_profiler)
                table.add_to(result)
    compiled = beside_compiled(chosen[0], options, deadline.left)
    compiled.measure(with_profiler=True)
    compiled.add_to(result)
    wrong = [f"{row['batch']} {row['dtype']}" for row in rows if not row["agrees"]]
    return f"{len(wrong)} of {len(rows)} disagree: {'; '.join(wrong)}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and measure; return the exit status."""
    return run_part(work, make_parser(__doc__, EXAMPLE), arguments)


if __name__ == "__main__":
    sys.exit(main())
