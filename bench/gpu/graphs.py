"""Does a step that is replayed from a CUDA graph do what an eager step does?

The learning rate is a tensor on the device and changes between replays, and so do the gradients.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import inputs, measure
from bench.gpu.contenders import capturable_option
from bench.gpu.part import Result, Row, first_line, make_parser, run_part
from bench.workloads import Shape
from tests.cases import CASES, MAIN_CASES, Case

EXAMPLE = "python -m bench.gpu.graphs --dry-run"
SHAPES: tuple[Shape, ...] = ((16, 3, 3, 3), (257, 129), (1009,), (2, 20011), ())
LR_FACTORS = (1.0, 0.5, 2.0, 0.1, 1.5)
# `measure.capture` takes these before it captures.
N_BEFORE = 3
HEADER = ("case", "dtype", "equal", "largest ulps", "remark")


def build(
    case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor, torch.optim.Optimizer]:
    """Return parameters with gradients, the learning rate and the optimizer."""
    parameters = inputs.make_parameters(inputs.make_values(SHAPES, 0), dtype, device)
    inputs.set_grads(parameters, inputs.make_values(SHAPES, 1))
    lr = torch.tensor(case.kwargs["lr"], device=device)
    options: dict[str, Any] = case.kwargs | {"lr": lr} | capturable_option(case.cls, True)
    options |= {"clip_grad_norm": 30.0, "centralize_grad": True}
    options["master_weights"] = dtype != torch.float32
    options["backend"] = "cuda" if device.type == "cuda" else "auto"
    return parameters, lr, case.cls(parameters, **options)


def run_steps(
    parameters: Sequence[Tensor], lr: Tensor, base_lr: float, step: Callable[[], object]
) -> None:
    """Take a step for each of `LR_FACTORS`, with other gradients each."""
    for nth, factor in enumerate(LR_FACTORS):
        lr.fill_(base_lr * factor)
        inputs.set_grads(parameters, inputs.make_values(SHAPES, 2 + nth))
        step()


def compare_case(case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    """Return whether replays and eager steps end with equal parameters."""
    row: Row = {
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "equal": False,
        "largest_ulps": None,
        "remark": "",
    }
    try:
        ends = []
        for captured in (False, True):
            parameters, lr, optimizer = build(case, dtype, device)
            step = optimizer.step
            if captured and device.type == "cuda":
                step = measure.capture(optimizer.step, 1)
            else:
                for _ in range(N_BEFORE):
                    optimizer.step()
            run_steps(parameters, lr, case.kwargs["lr"], step)
            measure.synchronize(device)
            ends.append([parameter.detach().cpu() for parameter in parameters])
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


def work(options: argparse.Namespace, result: Result) -> str:
    """Compare all cases; return which differ."""
    torch.set_num_threads(1)
    cases = MAIN_CASES if options.dry_run else CASES
    jobs = [(case, torch.float32) for case in cases]
    jobs += [(case, torch.bfloat16) for case in MAIN_CASES]
    rows = [compare_case(case, dtype, options.device) for case, dtype in jobs]
    cells = [
        (
            row["case"],
            row["dtype"],
            "yes" if row["equal"] else "NO",
            "-" if row["largest_ulps"] is None else str(row["largest_ulps"]),
            row["remark"],
        )
        for row in rows
    ]
    result.add("Replay against eager", report.markdown_table(HEADER, cells), rows)
    wrong = [f"{row['case']} {row['dtype']}" for row in rows if not row["equal"]]
    return f"{len(wrong)} of {len(rows)} differ: {'; '.join(wrong[:5])}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return the exit status."""
    return run_part(work, make_parser(__doc__, EXAMPLE), arguments)


if __name__ == "__main__":
    sys.exit(main())
