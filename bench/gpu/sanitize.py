"""Steps of every optimizer over awkward shapes, checked against the reference in float64.

Small enough to run under compute-sanitizer: every launch of our kernels with every dtype, layout
and transform occurs at least once. Torch's own kernels do as little as possible.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.gpu import inputs, ours
from bench.gpu.part import Deadline, Result, Row, first_line, make_parser, run_part
from bench.workloads import Shape
from fusedtricks import optim

EXAMPLE = "python -m bench.gpu.sanitize --dry-run"
MAX_NORM = 20.0
_SGD = {"lr": 0.04, "momentum": 0.83, "weight_decay": 0.19}
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("AdamW", {"lr": 0.03, "betas": (0.81, 0.93), "eps": 2e-3, "weight_decay": 0.13}),
    "Adam-amsgrad-l2": (
        "Adam",
        {
            "lr": 0.03,
            "betas": (0.81, 0.93),
            "eps": 2e-3,
            "weight_decay": 0.17,
            "amsgrad": True,
        },
    ),
    "SGD-nesterov": ("SGD", _SGD | {"nesterov": True}),
    "SGDW": ("SGDW", _SGD),
    "RMSprop-centered": (
        "RMSprop",
        {"lr": 0.02, "alpha": 0.87, "eps": 3e-2, "centered": True, "momentum": 0.79},
    ),
    "Adagrad": (
        "Adagrad",
        {"lr": 0.06, "lr_decay": 0.11, "initial_accumulator_value": 0.29, "eps": 4e-3},
    ),
}
# ||p - reference|| / ||reference|| after the steps: a few roundings of the dtype that holds the
# parameters and states, float32 for masters.
TOLERANCE = {
    torch.float32: 2e-6,
    torch.float64: 1e-13,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}
HEADER = ("optimizer", "dtype", "layout", "error", "tolerance", "agrees")


@dataclass(frozen=True)
class Check:
    """One optimizer on one list of parameters."""

    optimizer: str
    dtype: torch.dtype
    layout: str = "dense"
    grad_layout: str = ""
    masters: bool = False
    plain: bool = False
    n_copies: int = 1

    @property
    def title(self) -> str:
        """Dtype and options, as a reader says them."""
        name = str(self.dtype).removeprefix("torch.")
        parts = [name, "masters" * self.masters, "no transform" * self.plain]
        return ", ".join(filter(None, [*parts, "many tensors" * (self.n_copies > 1)]))


def all_checks() -> list[Check]:
    """Return what is checked."""
    checks = []
    for name in OPTIMIZERS:
        checks += [
            Check(name, torch.float32),
            Check(name, torch.bfloat16, masters=True),
            # In fp16 alone, the variance of the centered variant rounds below 0, as torch's does.
            Check(name, torch.float16, masters=name == "RMSprop-centered"),
            Check(name, torch.float64),
        ]
    checks += [
        Check("AdamW", torch.float32, plain=True),
        Check("AdamW", torch.bfloat16),
        Check("AdamW", torch.float16, masters=True, layout="unaligned"),
        # More tensors than one launch's arguments hold.
        Check("AdamW", torch.float32, n_copies=60),
        Check("SGD-nesterov", torch.bfloat16, masters=True, n_copies=60),
    ]
    for layout in ("unaligned", "channels_last", "transposed"):
        checks += [
            Check("AdamW", torch.float32, layout),
            Check("SGD-nesterov", torch.bfloat16, layout, masters=True),
        ]
    return [*checks, Check("AdamW", torch.float32, grad_layout="transposed")]


def take_steps(
    check: Check,
    values: Sequence[Tensor],
    grads: Sequence[Sequence[Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    """Return the parameters (masters where there are some) after the steps, float64, on the CPU."""
    class_name, options = OPTIMIZERS[check.optimizer]
    is_reference = backend == "reference"
    layout = "dense" if is_reference else check.layout
    grad_layout = layout if is_reference else check.grad_layout or layout
    parameters = inputs.make_parameters(values, dtype, device, layout)
    extras: dict[str, Any] = {} if check.plain else {"centralize_grad": True}
    if not check.plain:
        extras["clip_grad_norm"] = MAX_NORM
    if check.masters and not is_reference:
        extras["master_weights"] = True
    optimizer = getattr(optim, class_name)(parameters, **options, **extras, backend=backend)
    for of_step in grads:
        inputs.set_grads(parameters, of_step, grad_layout)
        optimizer.step()
    kept = parameters
    if check.masters and not is_reference:
        kept = [optimizer.state[p]["master_param"] for p in parameters]
        for parameter, master in zip(parameters, kept, strict=True):
            if not torch.equal(parameter.detach().cpu(), master.cpu().to(dtype)):
                raise AssertionError("a parameter is not its master, rounded")
    return [p.detach().cpu().double() for p in kept]


def run_check(check: Check, backend: str, *, device: torch.device, n_steps: int) -> Row:
    """Take steps on the device and in the reference; return how far they are apart."""
    is_slow = backend == "triton" and device.type == "cpu"
    n_copies = min(check.n_copies, 2) if is_slow else check.n_copies
    shapes = inputs.SHAPES[:-2] if is_slow or n_copies > 1 else inputs.SHAPES
    values = _rounded(check.dtype, shapes, 0) * n_copies
    grads = [_rounded(check.dtype, shapes, 1 + nth) * n_copies for nth in range(n_steps)]
    tolerance = TOLERANCE[torch.float32 if check.masters else check.dtype]
    row: Row = {
        "optimizer": check.optimizer,
        "dtype": check.title,
        "layout": f"{check.layout}, gradient {check.grad_layout or check.layout}",
        "error": None,
        "tolerance": tolerance,
        "agrees": False,
        "remark": "",
    }
    try:
        got = take_steps(check, values, grads, device=device, dtype=check.dtype, backend=backend)
        expected = take_steps(
            check,
            values,
            grads,
            device=torch.device("cpu"),
            dtype=torch.float64,
            backend="reference",
        )
        row["error"] = inputs.relative_error(got, expected)
        # Not `error > tolerance`: NaN must not pass.
        row["agrees"] = row["error"] <= tolerance
    except Exception as error:
        row["remark"] = first_line(error)
    return row


def _rounded(dtype: torch.dtype, shapes: Sequence[Shape], seed: int) -> list[Tensor]:
    """Return values that `dtype` holds exactly, so that the reference starts from the same."""
    return [value.to(dtype).double() for value in inputs.make_values(shapes, seed)]


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    error = row["remark"] if row["error"] is None else f"{row['error']:.1e}"
    verdict = "yes" if row["agrees"] else "NO"
    told = (row["optimizer"], row["dtype"], row["layout"])
    return (*told, error, f"{row['tolerance']:.0e}", verdict)


def work(options: argparse.Namespace, result: Result) -> str:
    """Run all checks; return which disagree."""
    # The tensors are small: on many threads the reference waits for its threads only.
    torch.set_num_threads(1)
    backend = ours.chosen(options)
    deadline, checks = Deadline(options.seconds), all_checks()
    rows: list[Row] = []
    for check in checks:
        if deadline.left == 0:
            break
        row = run_check(check, backend, device=options.device, n_steps=options.steps)
        print(" ".join(cells(row)), flush=True)
        rows.append(row)
    title = f"Steps against the float64 reference: {options.backend}"
    done = f"{len(rows)} of {len(checks)} checks were run"
    table = report.markdown_table(HEADER, list(map(cells, rows)))
    result.add(title, f"{done}\n\n{table}", rows)
    wrong = [
        f"{row['optimizer']} {row['dtype']} {row['layout']}" for row in rows if not row["agrees"]
    ]
    return f"{len(wrong)} of {len(rows)} disagree: {'; '.join(wrong[:5])}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check; return the exit status."""
    parser = ours.add_option(make_parser(__doc__, EXAMPLE))
    parser.add_argument("--steps", type=report.positive, default=2)
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
