"""How many bytes does it take to prepare a batch of images for a network?

Each way from uint8 images to normalised, mixed, cut ones in channels_last is run under a
TorchDispatchMode that adds up the bytes of the tensors that each operator reads and writes; on meta
tensors, so that large batches take no memory. The kernel is counted by the same rule, the bytes of
partners twice. Then the ways that a CPU can run are timed in turns: the kernel is for GPUs, see
bench/gpu/batch.py.
"""

import argparse
import gc
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Appended, so that an installed fusedtricks comes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import report
from bench.progress import Progress
from bench.timing import Spread, interleave, paired_ratio
from fusedtricks._extras import require
from fusedtricks.data import prepare_op
from fusedtricks.data.plan import BatchPlan, inside_boxes
from fusedtricks.data.prepare import prepare_batch

EXAMPLE = "python bench/bench_batch.py --seconds 5 --out bench/results/batch-x"
HEADER = (
    "way",
    "operators",
    "MB read",
    "MB written",
    "bytes per element",
    "of the kernel's",
    "CPU ms",
    "p20 - p80",
    "speed-up",
)
# dtype of the result, and whether there are tricks.
CASES = ((torch.float32, True), (torch.bfloat16, True), (torch.float32, False))
CHAIN, IN_PLACE, REFERENCE, KERNEL = "usual chain", "in place", "reference", "kernel"


@dataclass(frozen=True)
class Job:
    """A batch and what is to be done with it.

    Attributes:
        images: Shape (N, C, H, W), uint8.
        plan: On the same device; None only normalises.
        mean: Of each channel, in [0, 1].
        std: Of each channel.
        dtype: Of the result.
    """

    images: Tensor
    plan: BatchPlan | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype

    def channel_values(self, values: Sequence[float], factor: float = 1.0) -> Tensor:
        """Return one value for each channel, shape (C, 1, 1), float32."""
        tensor = torch.tensor([factor * value for value in values], device="cpu")
        return tensor.to(self.images.device, non_blocking=True)[:, None, None]

    def hole_mask(self) -> Tensor:
        """Return where the holes are, shape (N, 1, H, W)."""
        rows, columns = inside_boxes(self.plan.hole, *self.images.shape[2:])
        return rows[:, None, :, None] & columns[:, None, None, :]


def usual_chain(job: Job) -> Tensor:
    """Prepare a batch as it is usually written: every step returns a new tensor."""
    x = job.images.float() / 255
    x = (x - job.channel_values(job.mean)) / job.channel_values(job.std)
    if job.plan is not None:
        share = job.plan.own_share[:, None, None, None]
        x = share * x + (1 - share) * x[job.plan.partner]
        x = x.masked_fill(job.hole_mask(), 0.0)
    return x.to(job.dtype).contiguous(memory_format=torch.channels_last)


def in_place_chain(job: Job) -> Tensor:
    """Prepare a batch with as few passes as torch's operators allow, as timm's loader does."""
    x = job.images.to(torch.float32, memory_format=torch.channels_last)
    x.sub_(job.channel_values(job.mean, 255)).div_(job.channel_values(job.std, 255))
    if job.plan is not None:
        x = torch.lerp(x[job.plan.partner], x, job.plan.own_share[:, None, None, None])
        x.masked_fill_(job.hole_mask(), 0.0)
    return x.to(job.dtype)


def by_reference(job: Job) -> Tensor:
    """Prepare a batch by `prepare_batch` without the kernel."""
    options = {"mean": job.mean, "std": job.std, "dtype": job.dtype}
    return prepare_batch(job.images, None, job.plan, **options, backend="reference")[0]


def by_kernel(job: Job) -> Tensor:
    """Prepare a batch by the kernel's op, which on meta tensors computes nothing."""
    return prepare_op.run(job.images, job.plan, job.mean, job.std, 0.0, job.dtype, True)


WAYS: dict[str, Callable[[Job], Tensor]] = {
    CHAIN: usual_chain,
    IN_PLACE: in_place_chain,
    REFERENCE: by_reference,
    KERNEL: by_kernel,
}


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operators read and write, views and allocations left out."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = self.n_operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name, schema = func.overloadpacket.__name__, func._schema
        is_view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if is_view or name.startswith("empty") or not isinstance(result, Tensor):
            return result
        self.n_operators += 1
        for argument, value in zip(schema.arguments, args, strict=False):
            is_written = bool(argument.alias_info and argument.alias_info.is_write)
            n_bytes = sum(map(touched_bytes, value if isinstance(value, list) else [value]))
            self.written += n_bytes * is_written
            self.read += n_bytes * (not is_written or name not in ("copy_", "fill_", "zero_"))
        if not any(r.alias_info for r in schema.returns):
            self.written += touched_bytes(result)
        return result


def touched_bytes(value: Any) -> int:
    """Return the bytes of a tensor, repeated elements once; 0 for anything else."""
    if not isinstance(value, Tensor):
        return 0
    sizes = zip(value.shape, value.stride(), strict=True)
    return value.element_size() * math.prod(n if step != 0 else min(n, 1) for n, step in sizes)


def count(job: Job, way: str) -> report.Row:
    """Return what a way reads and writes."""
    plan = None if job.plan is None else job.plan.to("meta")
    without_data = replace(job, images=job.images.to("meta"), plan=plan)
    with Traffic() as traffic:
        WAYS[way](without_data)
    # All images are read again as partners; the second time mostly from the cache.
    again = job.images.nbytes if way == KERNEL and job.plan is not None and job.plan.is_mixed else 0
    read = traffic.read + again
    return {
        "way": way,
        "operators": traffic.n_operators,
        "bytes_read": read,
        "bytes_written": traffic.written,
        "bytes_per_element": (read + traffic.written) / job.images.numel(),
    }


def make_job(images: Tensor, dtype: torch.dtype, *, tricks: bool) -> Job:
    """Return a job that blends all images and cuts a quarter out of each, or only normalises."""
    n_images, n_channels, height, width = images.shape
    mean, std = (0.485, 0.456, 0.406, 0.5)[:n_channels], (0.229, 0.224, 0.225, 0.25)[:n_channels]
    if not tricks:
        return Job(images, None, mean, std, dtype)
    top, left = (torch.randint(n // 2 + 1, (n_images,)) for n in (height, width))
    hole = torch.stack([top, top + height // 2, left, left + width // 2], 1)
    share, partner = torch.rand(n_images), torch.randperm(n_images)
    # As mixup and cutout draw it: without patches.
    plan = BatchPlan(partner, share, torch.zeros_like(hole), hole, has_patches=False)
    return Job(images, plan.to(images.device), mean, std, dtype)


def make_jobs(n_images: int, side: int) -> dict[tuple[str, str, str], Job]:
    """Return the jobs by batch, tricks and dtype."""
    images = torch.randint(256, (n_images, 3, side, side), dtype=torch.uint8)
    batches = {f"{n_images} images of 3 x {side} x {side}": images}
    batches["1,797 digits of 1 x 8 x 8"] = digits()
    jobs = {}
    for batch, images in batches.items():
        for dtype, tricks in CASES:
            done = "mixup, cutout and normalisation" if tricks else "normalisation"
            key = (batch, done, str(dtype).removeprefix("torch."))
            jobs[key] = make_job(images, dtype, tricks=tricks)
    return jobs


def digits() -> Tensor:
    """Return scikit-learn's handwritten digits, shape (1797, 1, 8, 8), uint8."""
    images = torch.tensor(require("sklearn.datasets").load_digits().images)
    return (images * 15.9375).to(torch.uint8)[:, None]


def compare_results(job: Job) -> None:
    """Raise if the ways that can run here disagree on a part of the batch."""
    part = replace(job, images=job.images[:4])
    if job.plan is not None:
        of_four = {name: getattr(job.plan, name)[:4] for name in ("own_share", "patch", "hole")}
        reversed_order = torch.arange(4, device=job.images.device).flip(0)
        part = replace(part, plan=replace(job.plan, partner=reversed_order, **of_four))
    expected = usual_chain(part).float()
    tolerance = 1e-5 if job.dtype == torch.float32 else 2e-2
    for way in (IN_PLACE, REFERENCE):
        got = WAYS[way](part).float()
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, msg=way)


def times(spread: Spread | None) -> dict[str, float | None]:
    """Return the columns of a time, None for one that was not taken."""
    if spread is None:
        return {"median_ms": None, "p20_ms": None, "p80_ms": None}
    names = ("median", "p20", "p80")
    return {f"{name}_ms": getattr(spread, name) * 1e3 for name in names}


def cells(row: report.Row, measured: dict[str, tuple[report.Row, Any]]) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    (kernel, _), (_, chain) = measured[KERNEL], measured[CHAIN]
    timed = ("not run on a GPU", "", "")
    if row["median_ms"] is not None:
        timed = (
            f"{row['median_ms']:.2f}",
            f"{row['p20_ms']:.2f} - {row['p80_ms']:.2f}",
            f"{paired_ratio(chain, measured[row['way']][1]).median:.2f}x",
        )
    return (
        row["way"],
        str(row["operators"]),
        f"{row['bytes_read'] / 1e6:.2f}",
        f"{row['bytes_written'] / 1e6:.2f}",
        f"{row['bytes_per_element']:.2f}",
        f"{row['bytes_per_element'] / kernel['bytes_per_element']:.1f}x",
        *timed,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = report.make_parser(__doc__.splitlines()[0], EXAMPLE, seconds=10.0)
    add = parser.add_argument
    add("--images", type=report.positive, default=256, help="of 3 x SIDE x SIDE (%(default)s)")
    add("--side", type=report.positive, default=224, help="pixels (%(default)s)")
    add("--threads", type=report.positive, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def measure(job: Job, seconds: float, progress: Progress) -> dict[str, tuple[report.Row, Any]]:
    """Return the counts and the times of each way; the kernel has no time on a CPU."""
    compare_results(job)
    counts = {way: count(job, way) for way in WAYS}
    steps = {way: (lambda run=WAYS[way]: run(job)) for way in (CHAIN, IN_PLACE, REFERENCE)}
    spreads = interleave(steps, seconds=seconds, warmup=1, on_round=progress.at)
    gc.collect()
    return {way: (row, spreads.get(way)) for way, row in counts.items()}


def main(arguments: Sequence[str] | None = None) -> list[report.Row]:
    """Count, measure, print and write what the command line asks for; return all rows."""
    options = parse(arguments)
    torch.manual_seed(0)
    jobs = make_jobs(options.images, options.side)
    rows: list[report.Row] = []
    sections: list[tuple[str, str]] = []
    with Progress(len(jobs)) as progress, report.threads(options.threads):
        for (batch, tricks, dtype), job in jobs.items():
            title = f"{batch}, {tricks}, to {dtype}; CPU threads: {options.threads}"
            progress.begin(title)
            measured = measure(job, options.seconds, progress)
            lines = []
            for row, spread in measured.values():
                row |= {"batch": batch, "tricks": tricks, "dtype": dtype}
                row |= {"threads": options.threads} | times(spread)
                lines.append(cells(row, measured))
                rows.append(row)
            print(f"\n{title}\n{report.text_table(HEADER, lines)}", flush=True)
            sections.append((title, report.markdown_table(HEADER, lines)))
    report.write_results(options.out, rows, sections)
    return rows


if __name__ == "__main__":
    main()
