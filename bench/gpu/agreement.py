"""How far apart are our backends on equal inputs, each pair? In float32 units in the last place.

Every case of tests/cases.py takes steps on the CPU backend and on the device's backends, once as
it is and once with clipping and centralization.
"""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import inputs, ours
from bench.gpu.part import Deadline, NotAvailable, Result, Row, first_line, make_parser, run_part
from bench.workloads import Shape
from tests.cases import CASES, MAIN_CASES, Case

EXAMPLE = "python -m bench.gpu.agreement --dry-run"
SHAPES: tuple[Shape, ...] = ((64, 3, 7, 7), (257, 129), (1009,), (2, 40009), (33331,), ())
TINY_SHAPES: tuple[Shape, ...] = ((8, 3, 3, 3), (17, 9), (109,), ())
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
    "backends",
    "1 step: largest ulps",
    "mean",
    "10 steps: largest ulps",
    "mean",
    "largest difference / largest value",
    "agrees",
)


# Parameters at each checkpoint, or the reason why there are none.
Ends = list[list[Tensor]] | str


def backends_here(device: torch.device) -> list[tuple[str, torch.device]]:
    """Return the backends to compare and where they run, Triton last: it might end the others.

    Raises:
        NotAvailable: If there is none beside the CPU's.
    """
    cpu = torch.device("cpu")
    if ours.missing("cpu", cpu):
        raise NotAvailable(f"no CPU backend to compare with: {ours.missing('cpu', cpu)}")
    others = ("reference", "triton") if device.type == "cpu" else ours.BACKENDS
    found = [(name, device) for name in others if not ours.missing(name, device)]
    if not found:
        raise NotAvailable(f"no backend for the device: {ours.missing('cuda', device)}")
    return [("cpu", cpu), *found]


def parameters_after(
    case: Case, transforms: dict[str, Any], backend: str, device: torch.device, *, tiny: bool
) -> list[list[Tensor]]:
    """Return the parameters on the CPU at each of `CHECKPOINTS`."""
    shapes = TINY_SHAPES if tiny else SHAPES
    # Away from zero, where a unit in the last place is as small as one likes.
    values = [value + 2 * torch.where(value < 0, -1, 1) for value in inputs.make_values(shapes, 0)]
    parameters = inputs.make_parameters(values, torch.float32, device)
    optimizer = case.cls(parameters, **case.kwargs, **transforms, backend=backend)
    kept = []
    for step in range(1, max(CHECKPOINTS) + 1):
        inputs.set_grads(parameters, inputs.make_values(shapes, step))
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


def compare_ends(case: str, title: str, ends: Mapping[str, Ends]) -> list[Row]:
    """Return a row for each pair of backends."""
    rows = []
    for first, second in itertools.combinations(ends, 2):
        row: Row = {"case": case, "transforms": title, "backends": [first, second]}
        broken = [f"{name}: {ends[name]}" for name in (first, second) if type(ends[name]) is str]
        if broken:
            row |= {"agrees": False, "error": "; ".join(broken)}
        else:
            for steps, a, b in zip(CHECKPOINTS, ends[first], ends[second], strict=True):
                row[f"after_{steps}"] = compare(a, b)
            row["agrees"] = row[f"after_{CHECKPOINTS[-1]}"]["relative"] <= TOLERANCE
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
    pair = " - ".join(row["backends"])
    return (row["case"], row["transforms"], pair, *values, relative, verdict)


def work(options: argparse.Namespace, result: Result) -> str:
    """Compare all cases; return which disagree."""
    torch.set_num_threads(1)
    cases = MAIN_CASES if options.dry_run else CASES
    deadline = Deadline(options.seconds)
    found: dict[tuple[str, str], dict[str, Ends]] = {}
    rows: list[Row] = []
    for backend, device in backends_here(options.device):
        for case, title in itertools.product(cases, TRANSFORMS):
            if deadline.left == 0:
                break
            ends: Ends
            try:
                transforms = TRANSFORMS[title]
                ends = parameters_after(case, transforms, backend, device, tiny=options.dry_run)
            except Exception as error:
                ends = first_line(error)
            found.setdefault((case.name, title), {})[backend] = ends
        rows = [row for key, ends in found.items() for row in compare_ends(*key, ends)]
        table = report.markdown_table(HEADER, [cells(row) for row in rows])
        counts = Counter(name for ends in found.values() for name in ends)
        done = ", ".join(f"{name} {count}" for name, count in counts.items())
        result.add("Agreement of the backends", f"runs: {done}\n\n{table}", rows)
    wrong = [" ".join((row["case"], row["transforms"], *row["backends"])) for row in rows]
    wrong = [name for name, row in zip(wrong, rows, strict=True) if not row["agrees"]]
    return f"{len(wrong)} of {len(rows)} disagree: {'; '.join(wrong[:5])}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return the exit status."""
    return run_part(work, make_parser(__doc__, EXAMPLE), arguments)


if __name__ == "__main__":
    sys.exit(main())
