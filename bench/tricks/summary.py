"""Result rows of the tricks, as a table and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import report
from bench.tricks.arm import BASE, Arm
from bench.tricks.statistics import CONFIDENCE, compare, mean_and_half_width
from fusedtricks._extras import require

__all__ = ["draw", "effect", "markdown", "summarize"]

_HEADER = ("trick", "error %", "difference", "beside", "", "settings")
_COLORS = {"helps": "tab:green", "hurts": "tab:red"}


def summarize(
    arms: Sequence[Arm], errors: Mapping[tuple[str, float, int], float]
) -> list[report.Row]:
    """Return a row for every arm and share of noise.

    Args:
        arms: What was measured; baselines included.
        errors: Test error in percent by arm, noise and seed.
    """
    by_case: dict[tuple[str, float], list[float]] = {}
    for (name, noise, _), error in sorted(errors.items()):
        by_case.setdefault((name, noise), []).append(error)
    rows = []
    for noise in sorted({noise for _, noise in by_case}, reverse=True):
        for arm in arms:
            values = by_case[arm.name, noise]
            mean, half_width = mean_and_half_width(values)
            row = {
                "trick": arm.name,
                "settings": arm.settings,
                "baseline": arm.baseline,
                "noise": noise,
                "errors": values,
                "mean": mean,
                "half_width": half_width,
            }
            if arm.name != arm.baseline:
                difference = compare(values, by_case[arm.baseline, noise])
                row["difference"] = difference.mean
                row["difference_half_width"] = difference.half_width
                row["verdict"] = difference.verdict
            rows.append(row)
    return rows


def effect(row: report.Row) -> str:
    """Return what a row says of its trick, such as `-3.1 +- 1.2, helps`."""
    # Without wrong labels, errors are small, and so are their differences.
    digits = 1 if row["noise"] else 2
    width = f"{row['difference_half_width']:.{digits}f}"
    return f"{row['difference']:+.{digits}f} ± {width}, {row['verdict']}"


def markdown(rows: Sequence[report.Row], noise: float) -> str:
    """Return the rows of one share of noise as a Markdown table.

    Differences are in points of test error, negative where the trick helps, beside the arm named.
    """
    cells = []
    for row in rows:
        if row["noise"] == noise:
            has_baseline = row["trick"] != row["baseline"]
            difference, _, verdict = effect(row).partition(", ") if has_baseline else ("", "", "")
            error = f"{row['mean']:.1f} ± {row['half_width']:.1f}"
            beside = row["baseline"] if has_baseline else ""
            cells.append((row["trick"], error, difference, beside, verdict, row["settings"]))
    return report.markdown_table(_HEADER, cells)


def draw(rows: Sequence[report.Row], file: Path) -> None:
    """Draw the differences to the common baseline with their intervals, one panel per noise."""
    noises = sorted({row["noise"] for row in rows}, reverse=True)
    shown = [row for row in rows if row["baseline"] == BASE and row["trick"] != BASE]
    first = sorted((row for row in shown if row["noise"] == noises[0]), key=_difference)
    names = [row["trick"] for row in first]
    figure = require("matplotlib.figure").Figure(
        figsize=(9, 1.5 + 0.19 * len(names)), layout="constrained"
    )
    panels = figure.subplots(1, len(noises), sharey=True, squeeze=False)[0]
    for axes, noise in zip(panels, noises, strict=True):
        for row in shown:
            if row["noise"] == noise:
                axes.errorbar(
                    row["difference"],
                    names.index(row["trick"]),
                    xerr=row["difference_half_width"],
                    fmt="o",
                    markersize=4,
                    color=_COLORS.get(row["verdict"], "tab:gray"),
                )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), names, fontsize="small")
        # A few points are of interest; what hurts by more than 20 leaves the picture.
        axes.set_xlim(min(map(_low, shown)) - 1 if noise else -3, 20 if noise else 6)
        axes.set_ylim(-1, len(names))
        axes.set_title(f"{noise:.0%} wrong labels")
        axes.set_xlabel(f"points of test error beside none, {CONFIDENCE:.0%} interval")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def _difference(row: report.Row) -> float:
    return row["difference"]


def _low(row: report.Row) -> float:
    return row["difference"] - row["difference_half_width"]
