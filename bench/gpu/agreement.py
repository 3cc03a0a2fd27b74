"""How far apart are the backends on equal inputs? In float32 units in the last place.

Every case of tests/cases.py takes steps on the CPU backend and on the device's backends, once as
it is and once with clipping and centralization.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import inputs
from bench.gpu.contenders import backend_missing
from bench.gpu.part import NotAvailable, Result, Row, first_line, make_parser, run_part
from bench.workloads import Shape
from tests.cases import CASES, MAIN_CASES, Case

EXAMPLE = "python -m bench.gpu.agreement --dry-run"
SHAPES: tuple[Shape, ...] = ((64, 3, 7, 7), (257, 129), (1009,), (2, 40009), (33331,), ())
CHECKPOINTS = (1, 10)
TRANSFORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip, centralize": {"clip_grad_norm": 30.0, "centralize_grad": True},
}
# Largest difference over the largest parameter: 10 steps of a few roundings each.
TOLERANCE = 1e-5
HEADER = (
    "case",
    "transforms",
    "backend",
    "1 step: largest ulps",
    "mean",
    "10 steps: largest ulps",
    "mean",
    "largest difference / largest value",
    "agrees",
)


def backends_here(device: torch.device) -> list[tuple[str, torch.device]]:
    """Return the backends to compare with the CPU's, and where they run.

    Raises:
        NotAvailable: If there is none.
    """
    if device.type == "cpu":
        return [("reference", device)]
    found = [(name, device) for name in ("cuda", "triton") if not backend_missing(name)]
    if not found:
        raise NotAvailable(f"no backend for the device: {backend_missing('cuda')}")
    return found


def parameters_after(
    case: Case, transforms: dict[str, Any], backend: str, device: torch.device
) -> list[list[Tensor]]:
    """Return the parameters on the CPU at each of `CHECKPOINTS`."""
    # Away from zero, where a unit in the last place is as small as one likes.
    values = [value + 2 * torch.where(value < 0, -1, 1) for value in inputs.make_values(SHAPES, 0)]
    parameters = inputs.make_parameters(values, torch.float32, device)
    optimizer = case.cls(parameters, **case.kwargs, **transforms, backend=backend)
    kept = []
    for step in range(1, max(CHECKPOINTS) + 1):
        inputs.set_grads(parameters, inputs.make_values(SHAPES, step))
        optimizer.step()
        if step in CHECKPOINTS:
            kept.append([parameter.detach().cpu().clone() for parameter in parameters])
    return kept


def compare(expected: Sequence[Tensor], got: Sequence[Tensor]) -> dict[str, float]:
    """Return the largest and the mean distance in ulps, and the largest relative to the values."""
    a = torch.cat([tensor.flatten() for tensor in expected])
    b = torch.cat([tensor.flatten() for tensor in got])
    ulps = inputs.ulp_distance(a, b)
    return {
        "largest_ulps": ulps.max().item(),
        "mean_ulps": ulps.double().mean().item(),
        "unequal": (ulps != 0).double().mean().item(),
        "relative": ((a - b).abs().max() / a.abs().max()).item(),
    }


def compare_case(case: Case, device: torch.device) -> list[Row]:
    """Return one row per transform and backend."""
    rows = []
    for title, transforms in TRANSFORMS.items():
        expected = parameters_after(case, transforms, "cpu", torch.device("cpu"))
        for backend, where in backends_here(device):
            row: Row = {"case": case.name, "transforms": title, "backend": backend}
            try:
                got = parameters_after(case, transforms, backend, where)
                for steps, a, b in zip(CHECKPOINTS, expected, got, strict=True):
                    row[f"after_{steps}"] = compare(a, b)
                row["agrees"] = row[f"after_{CHECKPOINTS[-1]}"]["relative"] <= TOLERANCE
            except Exception as error:
                row |= {"agrees": False, "error": first_line(error)}
            rows.append(row)
    return rows


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    values = []
    for steps in CHECKPOINTS:
        found = row.get(f"after_{steps}")
        values += [f"{found['largest_ulps']}", f"{found['mean_ulps']:.3f}"] if found else ["-"] * 2
    last = row.get(f"after_{CHECKPOINTS[-1]}")
    relative = f"{last['relative']:.1e}" if last else row.get("error", "-")
    verdict = "yes" if row["agrees"] else "NO"
    return (row["case"], row["transforms"], row["backend"], *values, relative, verdict)


def work(options: argparse.Namespace, result: Result) -> str:
    """Compare all cases; return which disagree."""
    if backend_missing("cpu"):
        raise NotAvailable(f"no CPU backend to compare with: {backend_missing('cpu')}")
    torch.set_num_threads(1)
    rows = []
    for case in MAIN_CASES if options.dry_run else CASES:
        rows += compare_case(case, options.device)
    table = report.markdown_table(HEADER, [cells(row) for row in rows])
    result.add("Agreement with the CPU backend", table, rows)
    wrong = [f"{row['case']} ({row['transforms']})" for row in rows if not row["agrees"]]
    return f"{len(wrong)} of {len(rows)} disagree: {'; '.join(wrong[:5])}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return the exit status."""
    return run_part(work, make_parser(__doc__, EXAMPLE), arguments)


if __name__ == "__main__":
    sys.exit(main())
