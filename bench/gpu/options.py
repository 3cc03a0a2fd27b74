"""Every optimizer with every option and dtype, beside the reference in float64.

Clipping by norm and by value, centralization, a loss scale and found_inf on the device, and steps
that must be skipped, on every case of tests/cases.py. Compared are the parameters (the masters
where there are some), the gradient norm and the count of skipped steps.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import inputs, ours
from bench.gpu.part import Deadline, Result, Row, first_line, make_parser, run_part
from bench.gpu.sanitize import TOLERANCE
from bench.workloads import Shape
from tests.cases import CASES, MAIN_CASES, Case

EXAMPLE = "python -m bench.gpu.options --dry-run"
SHAPES: tuple[Shape, ...] = ((0,), (), (17,), (7, 13), (1, 9), (4, 3, 3, 3), (2, 20011), (33331,))
TINY_SHAPES: tuple[Shape, ...] = ((0,), (), (17,), (7, 13), (4, 3, 3, 3))
N_STEPS = 4
# A power of two, which scales 16-bit gradients without rounding.
SCALE = 64.0
_COMBINED = {"clip_grad_norm": 20.0, "clip_grad_value": 0.9, "centralize_grad": True}
# Relative to the reference's: sums of squares of float32 values, added in float64.
NORM_TOLERANCE = 2e-6
HEADER = ("case", "dtype", "options", "largest error", "tolerance", "norm", "agrees")


@dataclass(frozen=True)
class Options:
    """What is done to the gradients.

    Attributes:
        title: What a reader calls it.
        kwargs: Arguments of the optimizer.
        is_scaled: With grad_scale and found_inf, tensors on the device, as a GradScaler sets them.
        nonfinite_step: The step in which a gradient holds an infinity and a NaN.
        found_step: The step in which found_inf is not 0.
    """

    title: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    is_scaled: bool = False
    nonfinite_step: int | None = None
    found_step: int | None = None


PLAIN = Options("plain")
SCALED = Options("all, scaled", _COMBINED | {"skip_nonfinite": True}, is_scaled=True)
SKIPPING = Options("skipped steps", SCALED.kwargs, True, nonfinite_step=1, found_step=2)
SINGLE = tuple(Options(name, {name: value}) for name, value in _COMBINED.items())


@dataclass(frozen=True)
class Check:
    """One case with one dtype and one set of options."""

    case: Case
    dtype: torch.dtype
    options: Options
    masters: bool = False

    @property
    def dtype_title(self) -> str:
        """What a reader calls the dtype."""
        return str(self.dtype).removeprefix("torch.") + ", masters" * self.masters


def all_checks(cases: Sequence[Case]) -> list[Check]:
    """Return what is checked, the most important first."""
    half = (torch.bfloat16, torch.float16)
    checks = [Check(case, torch.float32, o) for o in (SCALED, PLAIN) for case in cases]
    checks += [Check(case, dtype, SCALED, masters=True) for dtype in half for case in cases]
    checks += [Check(case, torch.float32, SKIPPING) for case in cases]
    # In fp16 alone, the variance of the centered RMSprop rounds below 0, as torch's does.
    checks += [Check(case, dtype, SCALED) for dtype in half for case in MAIN_CASES]
    checks += [Check(case, torch.float64, SCALED) for case in cases]
    checks += [Check(case, torch.float32, o) for o in SINGLE for case in cases]
    return checks + [Check(case, torch.float64, PLAIN) for case in cases]


@dataclass
class Outcome:
    """What steps end with, float64 on the CPU."""

    parameters: list[Tensor]
    norms: list[float]
    n_skipped: int


def take_steps(
    check: Check, device: torch.device, backend: str, shapes: Sequence[Shape]
) -> Outcome:
    """Take the steps of a check; those of the backend "reference" are in float64."""
    is_reference = backend == "reference"
    options, dtype = check.options, torch.float64 if is_reference else check.dtype
    kwargs = check.case.kwargs | options.kwargs | {"backend": backend}
    has_masters = check.masters and not is_reference
    values = [value.to(check.dtype).double() for value in inputs.make_values(shapes, 0)]
    parameters = inputs.make_parameters(values, dtype, device)
    optimizer = check.case.cls(parameters, **kwargs, master_weights=has_masters)
    if options.is_scaled:
        optimizer.grad_scale = torch.tensor(SCALE, device=device)
        optimizer.found_inf = torch.zeros((), device=device)
    norms, others = [], []
    for nth in range(N_STEPS):
        # At other addresses than those before, which stay taken.
        others += [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        inputs.set_grads(parameters, _grads(check, shapes, nth))
        if options.is_scaled:
            optimizer.found_inf.fill_(float(nth == options.found_step))
        optimizer.step()
        # A step that found_inf skips need not look at the gradients.
        if options.kwargs.get("clip_grad_norm") and nth != options.found_step:
            norms.append(float(optimizer.grad_norm))
    kept = [optimizer.state[p]["master_param"] for p in parameters] if has_masters else parameters
    return Outcome([p.detach().cpu().double() for p in kept], norms, int(optimizer.skipped_steps))


def _grads(check: Check, shapes: Sequence[Shape], nth: int) -> list[Tensor]:
    """Return the gradients of a step, of values that the dtype holds."""
    scale = SCALE if check.options.is_scaled else 1.0
    grads = inputs.make_values(shapes, 1 + nth)
    grads = [(grad * scale).to(check.dtype).double() for grad in grads]
    if nth == check.options.nonfinite_step:
        grads[-1].view(-1)[-1] = float("inf")
        grads[-2].view(-1)[0] = float("nan")
    return grads


def norm_error(got: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of the norms that are finite."""
    pairs = [(a, b) for a, b in zip(got, expected, strict=True) if torch.tensor(b).isfinite()]
    if any(not torch.tensor(a).isfinite() for a, _ in pairs):
        return float("inf")
    return max((abs(a - b) / b for a, b in pairs), default=0.0)


def run_check(check: Check, device: torch.device, backend: str) -> Row:
    """Return how far the backend is from the reference."""
    row: Row = {
        "case": check.case.name,
        "dtype": check.dtype_title,
        "options": check.options.title,
        "error": None,
        "tolerance": TOLERANCE[torch.float32 if check.masters else check.dtype],
        "norm_error": None,
        "agrees": False,
        "remark": "",
    }
    shapes = SHAPES if device.type == "cuda" else TINY_SHAPES
    try:
        got = take_steps(check, device, backend, shapes)
        expected = take_steps(check, torch.device("cpu"), "reference", shapes)
        row["error"] = inputs.relative_error(got.parameters, expected.parameters)
        row["norm_error"] = norm_error(got.norms, expected.norms)
        if got.n_skipped != expected.n_skipped:
            row["remark"] = f"{got.n_skipped} steps skipped, expected {expected.n_skipped}"
        # Not `error > tolerance`: NaN must not pass.
        is_close = row["error"] <= row["tolerance"] and row["norm_error"] <= NORM_TOLERANCE
        row["agrees"] = is_close and not row["remark"]
    except Exception as error:
        row["remark"] = first_line(error)
    return row


def _run_in_worker(index: int, dry_run: bool, backend: str) -> Row:
    """Run the check of this number in a process of a pool."""
    torch.set_num_threads(1)
    check = all_checks(MAIN_CASES if dry_run else CASES)[index]
    return run_check(check, torch.device("cpu" if dry_run else "cuda"), backend)


def run_all(options: argparse.Namespace, n_checks: int) -> Iterator[Row]:
    """Yield rows as they come."""
    backend = ours.chosen(options)
    if options.workers == 1:
        for index in range(n_checks):
            yield _run_in_worker(index, options.dry_run, backend)
        return
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        jobs = [pool.submit(_run_in_worker, n, options.dry_run, backend) for n in range(n_checks)]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def summarize(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Return the cells of `HEADER`: a line per case and dtype, the worst of its options."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["case"], row["dtype"]), []).append(row)
    cells = []
    for (case, dtype), found in sorted(lines.items()):
        wrong = [f"{row['options']} {row['remark']}".strip() for row in found if not row["agrees"]]
        errors = [row["error"] for row in found if row["error"] is not None]
        norms = [row["norm_error"] for row in found if row["norm_error"] is not None]
        cells.append(
            (
                case,
                dtype,
                str(len(found)),
                f"{max(errors):.1e}" if errors else "-",
                f"{found[0]['tolerance']:.0e}",
                f"{max(norms):.1e}" if norms else "-",
                f"NO: {'; '.join(wrong)}" if wrong else "yes",
            )
        )
    return cells


def work(options: argparse.Namespace, result: Result) -> str:
    """Run all checks that the time suffices for; return which disagree."""
    deadline = Deadline(options.seconds)
    n_checks = len(all_checks(MAIN_CASES if options.dry_run else CASES))
    rows: list[Row] = []
    problems: list[str] = []

    def add(*, show: bool) -> None:
        table = report.markdown_table(HEADER, summarize(rows))
        title = f"Optimizers and options against the float64 reference: {options.backend}"
        text = "\n\n".join([f"{len(rows)} of {n_checks} checks were run", *problems, table])
        result.add(title, text, rows, show=show)

    try:
        for row in run_all(options, n_checks):
            rows.append(row)
            if not row["agrees"]:
                print(row, flush=True)
            if len(rows) % 20 == 0:
                add(show=False)
            if deadline.left == 0:
                break
    except BrokenProcessPool as error:
        problems.append(f"a process died: {first_line(error)}")
    add(show=True)
    wrong = [" ".join((row["case"], row["dtype"], row["options"])) for row in rows]
    wrong = [name for name, row in zip(wrong, rows, strict=True) if not row["agrees"]]
    if wrong:
        problems.append(f"{len(wrong)} of {len(rows)} disagree: {'; '.join(wrong[:5])}")
    return "; ".join(problems)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check; return the exit status."""
    parser = ours.add_option(make_parser(__doc__, EXAMPLE))
    parser.add_argument("--workers", type=report.positive, default=1, help="processes")
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
