"""Does a step that is replayed from a CUDA graph do what an eager step does?

The learning rate and found_inf are tensors on the device and change between replays, and so do the
gradients. A graph also holds two steps, or outlives eager steps whose gradients lie elsewhere: what
it reads at its replay must be its own.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import inputs, measure, ours
from bench.gpu.contenders import capturable_option
from bench.gpu.part import Deadline, Result, Row, first_line, make_parser, run_part
from bench.workloads import Shape
from tests.cases import CASES, MAIN_CASES, Case

EXAMPLE = "python -m bench.gpu.graphs --dry-run"
SHAPES: tuple[Shape, ...] = ((16, 3, 3, 3), (257, 129), (1009,), (2, 20011), ())
TINY_SHAPES: tuple[Shape, ...] = ((4, 3, 3, 3), (7, 9), (33,), ())
LR_FACTORS = (1.0, 0.5, 2.0, 0.1, 1.5)
# Rounds before which eager steps are taken, and the one that found_inf skips.
AFTER_OTHERS = (1, 3)
SKIPPED = 2
# `measure.capture` takes these before it captures.
N_BEFORE = 3
GRAPHS = ONE_STEP, TWO_STEPS, OTHERS_BETWEEN = "one step", "two steps", "others between"
HEADER = ("case", "dtype", "graph", "equal", "largest ulps", "remark")


class Run:
    """An optimizer whose steps are replayed from a graph, or taken where it would be replayed.

    Args:
        case: Which.
        dtype: Of the parameters; 16-bit ones have masters.
        device: Where they are.
        backend: What takes the steps.
    """

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device, backend: str):
        self.device, self._base_lr = device, case.kwargs["lr"]
        self._shapes = SHAPES if device.type == "cuda" else TINY_SHAPES
        self.parameters = inputs.make_parameters(self._values(0), dtype, device)
        inputs.set_grads(self.parameters, self._values(1))
        # Those that a graph reads.
        self._grads = [parameter.grad for parameter in self.parameters]
        self._lr = torch.tensor(self._base_lr, device=device)
        options: dict[str, Any] = case.kwargs | {"lr": self._lr}
        options |= capturable_option(case.cls, True)
        options |= {"clip_grad_norm": 30.0, "centralize_grad": True}
        options |= {"master_weights": dtype != torch.float32, "backend": backend}
        self.optimizer = case.cls(self.parameters, **options)
        self.optimizer.found_inf = self._flag = torch.zeros((), device=device)

    def _values(self, seed: int) -> list[Tensor]:
        return inputs.make_values(self._shapes, seed)

    def prepare(self, n_steps: int, *, captured: bool) -> Callable[[], None]:
        """Take the steps before a capture; return what takes `n_steps` with the same gradients."""
        if captured and self.device.type == "cuda":
            return measure.capture(self.optimizer.step, n_steps)
        for _ in range(N_BEFORE):
            self.optimizer.step()

        def take_steps() -> None:
            for parameter, grad in zip(self.parameters, self._grads, strict=True):
                parameter.grad = grad
            for _ in range(n_steps):
                self.optimizer.step()

        return take_steps

    def run(self, replay: Callable[[], None], *, others_between: bool) -> None:
        """Replay for each of `LR_FACTORS`, with other gradients each."""
        for nth, factor in enumerate(LR_FACTORS):
            self._lr.fill_(self._base_lr * factor)
            if others_between and nth in AFTER_OTHERS:
                self._flag.zero_()
                self._take_others(100 + nth)
            self._flag.fill_(float(nth == SKIPPED))
            for grad, value in zip(self._grads, self._values(2 + nth), strict=True):
                grad.copy_(value)
            replay()
        measure.synchronize(self.device)

    def _take_others(self, seed: int) -> None:
        """Take eager steps whose gradients lie elsewhere, one of them without a gradient of all."""
        for nth in range(3):
            for parameter, value in zip(
                self.parameters, self._values(seed + 10 * nth), strict=True
            ):
                parameter.grad = value.to(parameter.device, parameter.dtype)
            if nth == 1:
                self.parameters[1].grad = None
            self.optimizer.step()
            measure.synchronize(self.device)
        scribble(self.device)


def scribble(device: torch.device) -> None:
    """Overwrite memory that was freed, the page-locked too: it may be anyone's by now."""
    junk = []
    for power in range(9, 21):
        for _ in range(8):
            junk.append(torch.full((2**power,), 0xA5, dtype=torch.uint8, device=device))
            if device.type == "cuda":
                junk.append(torch.full((2**power,), 0xA5, dtype=torch.uint8).pin_memory())
    measure.synchronize(device)


def compare_case(case: Case, dtype: torch.dtype, graph: str, options: argparse.Namespace) -> Row:
    """Return whether replays and eager steps end with equal parameters."""
    row: Row = {
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "graph": graph,
        "backend": options.backend,
        "equal": False,
        "largest_ulps": None,
        "remark": "",
    }
    try:
        ends = []
        for captured in (False, True):
            run = Run(case, dtype, options.device, ours.name_on(options.backend, options.device))
            replay = run.prepare(2 if graph == TWO_STEPS else 1, captured=captured)
            run.run(replay, others_between=graph == OTHERS_BETWEEN)
            ends.append([parameter.detach().cpu() for parameter in run.parameters])
        eager, replayed = ends
        row["equal"] = all(map(torch.equal, eager, replayed))
        if not all(tensor.isfinite().all() for tensor in eager):
            row |= {"equal": False, "remark": "not finite"}
        if dtype == torch.float32:
            ulps = map(inputs.ulp_distance, eager, replayed)
            row["largest_ulps"] = max(distance.max().item() for distance in ulps)
    except Exception as error:
        row["remark"] = first_line(error)
    return row


def all_jobs(options: argparse.Namespace) -> list[tuple[Case, torch.dtype, str]]:
    """Return what is compared."""
    # Triton's interpreter is slow.
    main = MAIN_CASES[::3] if options.dry_run and options.backend == "triton" else MAIN_CASES
    jobs = [(case, torch.float32, OTHERS_BETWEEN) for case in main]
    jobs += [(case, torch.float32, ONE_STEP) for case in (main if options.dry_run else CASES)]
    jobs += [(case, torch.bfloat16, ONE_STEP) for case in main]
    return jobs + [(case, torch.float32, TWO_STEPS) for case in main]


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    ulps = "-" if row["largest_ulps"] is None else str(row["largest_ulps"])
    equal = "yes" if row["equal"] else "NO"
    return (row["case"], row["dtype"], row["graph"], equal, ulps, row["remark"])


def work(options: argparse.Namespace, result: Result) -> str:
    """Compare all cases; return which differ."""
    ours.chosen(options)
    torch.set_num_threads(1)
    deadline, jobs = Deadline(options.seconds), all_jobs(options)
    rows: list[Row] = []
    title = f"Replay against eager: {options.backend}"
    for case, dtype, graph in jobs:
        if deadline.left == 0:
            break
        rows.append(compare_case(case, dtype, graph, options))
        print(" ".join(cells(rows[-1])), flush=True)
        table = report.markdown_table(HEADER, list(map(cells, rows)))
        done = f"{len(rows)} of {len(jobs)} comparisons were made"
        result.add(title, f"{done}\n\n{table}", rows, show=False)
    wrong = [f"{row['case']} {row['dtype']} {row['graph']}" for row in rows if not row["equal"]]
    return f"{len(wrong)} of {len(rows)} differ: {'; '.join(wrong[:5])}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return the exit status."""
    return run_part(work, ours.add_option(make_parser(__doc__, EXAMPLE)), arguments)


if __name__ == "__main__":
    sys.exit(main())
