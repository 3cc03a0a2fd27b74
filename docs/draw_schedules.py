"""Draws the pictures of docs/schedules.md: one of each kind of schedule, of all, of batch sizes."""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fusedtricks._extras import require
from fusedtricks.lr_scheduler import BatchSizeSchedule, Step, parse
from fusedtricks.lr_scheduler.parsing import KINDS
from fusedtricks.report.schedules import draw_schedules

FOLDER = Path(__file__).parent / "images" / "schedules"
OVERVIEW = "overview"
BATCH_SIZES = "batch_sizes"
BATCH_SIZE_RUNS: dict[str, dict[str, int]] = {
    "decaying rate": {"max_batch_size": 128},
    "growing batch": {},
    "first one, then the other": {"max_batch_size": 640},
}
_N_COLUMNS = 4
# A line drawing needs no more, and takes a fifth of the bytes.
_N_COLORS = 64


@dataclass(frozen=True)
class Picture:
    """What the picture of a kind of schedule shows.

    Args:
        expressions: The curves.
        n: Number of updates.
        base: The optimizer's own value.
    """

    expressions: tuple[str, ...]
    n: int = 100
    base: float = 1.0

    def curves(self) -> dict[str, list[float]]:
        """Return the values of each expression."""
        return {text: parse(text).preview(self.n, self.base) for text in self.expressions}


PICTURES: dict[str, Picture] = {
    "Constant": Picture(("Constant()", "Constant(0.5)")),
    "Step": Picture(("Step(30, 0.1)", "Step(20, 0.5)")),
    "Piecewise": Picture(("Piecewise([50, 80], [1, 0.3, 0.1])",)),
    "Exponential": Picture(("Exponential(0.95)", "Exponential(0.5, every=30)")),
    "Linear": Picture(("Linear(80)", "Linear(80, 0.2, 0.7)")),
    "Polynomial": Picture(("Polynomial(80, 2)", "Polynomial(80, 0.5)", "Polynomial(80, 2, 0.2)")),
    "InverseSqrt": Picture(("InverseSqrt()", "InverseSqrt(10)")),
    "Cosine": Picture(("Cosine(90)", "Cosine(90, 0.1)")),
    "LinearWarmup": Picture(
        ("LinearWarmup(10)", "LinearWarmup(10, offset=1)", "LinearWarmup(10, 0.5)"), n=16
    ),
    "ConstantWarmup": Picture(("ConstantWarmup(10, 0.1)",), n=31),
    "GradualWarmup": Picture(("GradualWarmup(10, k=8)",), n=31),
    "WarmupStableDecay": Picture(
        tuple(f"WarmupStableDecay(90, 10, 30, '{s}')" for s in ("linear", "cosine", "sqrt"))
    ),
    "Cyclic": Picture(
        (
            "Cyclic(20)",
            "Cyclic(20, mode='triangular2', window='hann')",
            "Cyclic(10, 30, 'exp_range', 0.98, 'welch')",
        ),
        n=121,
    ),
    "OneCycle": Picture(
        ("OneCycle(100)", "OneCycle(100, anneal_strategy='linear', three_phase=True)")
    ),
    "WarmRestarts": Picture(("WarmRestarts(15, 2)", "WarmRestarts(20, end=0.1, gamma=0.7)")),
    "WarmUpRestarts": Picture(
        ("WarmUpRestarts(250, 2, 0.1, 50)", "WarmUpRestarts(200, 1, 0.1, 20, 0.5)"),
        n=1000,
        base=0.001,
    ),
    "NormalizedDecay": Picture(("NormalizedDecay(15, 2)",), base=0.025),
    "Product": Picture(("LinearWarmup(10) * Step(30, 0.3)", "Cosine(100) * Step(30, 0.3)")),
    "Sequence": Picture(
        ("LinearWarmup(10).then(InverseSqrt(10))", "Linear(20, 1, 0.5).then(Cosine(60), 30)")
    ),
    "Inside": Picture(
        (
            "Cosine(100).with_warmup(20, 'inside')",
            "Cosine(100).with_warmup(20, 'before')",
            "LinearWarmup(20) * Cosine(100)",
        ),
        n=121,
    ),
    "BatchSizeSchedule": Picture(
        (
            "BatchSizeSchedule(Step('30ep', 0.2), 128, 4000, 90)",
            "BatchSizeSchedule(Step('30ep', 0.2), 128, 4000, 90, max_batch_size=512)",
        ),
        n=1440,
    ),
    "BatchSizeBeta": Picture(
        ("BatchSizeBeta(BatchSizeSchedule(Step('30ep', 0.2), 128, 4000, 90), 0.99)",), n=1230
    ),
    "Between": Picture(("Cosine(90).between(0.2, 0.8)", "Cyclic(15).between(0.1, 0.4)")),
}


def draw_picture(name: str, folder: Path) -> None:
    """Draw one kind of schedule into a file of the folder."""
    picture = PICTURES[name]
    file = io.BytesIO()
    title = None if len(picture.expressions) == 1 else name
    draw_schedules(picture.curves(), file, title=title)
    _write_small(file, folder / f"{name}.png")


def draw_overview(folder: Path) -> None:
    """Draw all kinds into one picture."""
    n_rows = -(-len(PICTURES) // _N_COLUMNS)
    figure = require("matplotlib.figure").Figure(figsize=(10, 1.6 * n_rows), layout="constrained")
    grid = list(figure.subplots(n_rows, _N_COLUMNS).flat)
    for axes, (name, picture) in zip(grid, PICTURES.items(), strict=False):
        for values in picture.curves().values():
            axes.plot(values)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(bottom=-0.03 * axes.dataLim.y1)
        axes.set(xticks=[], yticks=[])
    for axes in grid[len(PICTURES) :]:
        axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    _write_small(file, folder / f"{OVERVIEW}.png")


def draw_batch_sizes(folder: Path) -> None:
    """Draw learning rate and batch size over the epochs, for three runs with one noise scale."""
    figure = require("matplotlib.figure").Figure(figsize=(9, 3.6), layout="constrained")
    rates, sizes = figure.subplots(1, 2)
    for (label, options), style in zip(BATCH_SIZE_RUNS.items(), ("-", "--", ":"), strict=True):
        ramp = BatchSizeSchedule(Step("30ep", 0.2), 128, 50_000, 90, drop_last=True, **options)
        updates = range(0, ramp.n_updates, 20)
        epochs = [ramp.epoch_at(update) for update in updates]
        label = f"{label}: {ramp.n_updates:,} updates"
        rates.plot(epochs, [ramp(update) for update in updates], style, label=label)
        sizes.plot(epochs, [ramp.batch_size_at(update) for update in updates], style, label=label)
    rates.set(xlabel="epoch", ylabel="factor of the learning rate", yscale="log")
    sizes.set(xlabel="epoch", ylabel="samples in an update", yscale="log")
    for axes in (rates, sizes):
        axes.grid(alpha=0.3)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    _write_small(file, folder / f"{BATCH_SIZES}.png")


def _write_small(file: io.BytesIO, path: Path) -> None:
    image = Image.open(file).convert("RGB")
    image.quantize(_N_COLORS, dither=0).save(path, optimize=True)


def missing(folder: Path) -> list[str]:
    """Return a line for each schedule of the library, and each picture, that is not there."""
    undrawn = [name for name in KINDS if name not in PICTURES]
    absent = [
        name
        for name in [*PICTURES, OVERVIEW, BATCH_SIZES]
        if not (folder / f"{name}.png").is_file()
    ]
    return [f"{name} is not in PICTURES of {Path(__file__).name}" for name in undrawn] + [
        f"{folder / name}.png does not exist" for name in absent
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw or check the pictures.

    Returns:
        Exit code: 0 for success, 1 if a picture is missing.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python docs/draw_schedules.py\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder of the pictures (docs/images/schedules)"
    )
    parser.add_argument(
        "--check", action="store_true", help="draw nothing; fail if a picture is missing"
    )
    arguments = parser.parse_args(argv)
    if not arguments.check:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            draw_picture(name, arguments.out)
        draw_overview(arguments.out)
        draw_batch_sizes(arguments.out)
    lines = missing(arguments.out)
    for line in lines:
        print(f"draw_schedules: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
