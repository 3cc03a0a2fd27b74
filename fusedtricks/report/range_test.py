"""A learning-rate range test as a picture."""

from os import PathLike
from typing import IO, Any

from fusedtricks._extras import require
from fusedtricks.report.figure import save_figure

__all__ = ["draw_range_test"]

_DPI = 150

_MARKS = {
    "steepest": {"color": "tab:green", "marker": "o"},
    "minimum_over_10": {"color": "tab:purple", "marker": "s"},
    "minimum": {"color": "tab:red", "marker": "v"},
}


def draw_range_test(result: dict[str, Any], file: str | PathLike[str] | IO[bytes]) -> None:
    """Draw loss over learning rate, on a logarithmic axis, with what it suggests.

    Losses far above those before the minimum are outside of the picture.

    Args:
        result: What `RangeTest.to_dict()` returned, or its JSON read back.
        file: A path, whose ending tells the format, or a file opened for writing bytes, which gets
            a PNG of 1050 x 675 pixels.

    Raises:
        ValueError: If there is no point to draw.
        MissingExtraError: If matplotlib is not installed.
    """
    lrs, smoothed = result["lrs"], result["smoothed"]
    if not lrs:
        raise ValueError(
            "draw_range_test: result has no points, the first loss was not finite; lower start_lr, "
            "or check model and data"
        )
    # A figure without pyplot needs no display and leaves nothing behind.
    figure = require("matplotlib.figure").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(lrs, result["losses"], color="tab:gray", alpha=0.4, linewidth=1, label="loss")
    n_curves = len(result["curves"])
    if n_curves > 1:
        label = f"smoothed, smallest to largest of {n_curves}"
        axes.fill_between(lrs, result["low"], result["high"], alpha=0.2, label=label)
    axes.plot(lrs, smoothed, linewidth=2, label="smoothed")
    _mark(axes, result["suggestions"], lrs, smoothed)
    axes.set_xscale("log")
    _cut_off_divergence(axes, result["losses"], smoothed)
    axes.set(xlabel="learning rate", ylabel="loss", title=f"Range test, ended: {result['reason']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, file, _DPI)


def _mark(axes: Any, suggestions: dict[str, Any], lrs: list[float], smoothed: list[float]) -> None:
    """Put a point on the smoothed curve for every suggestion, and shade the range of one."""
    for name, style in _MARKS.items():
        lr = suggestions[name]
        if lr is not None:
            nearest = min(range(len(lrs)), key=lambda i: abs(lrs[i] / lr - 1))
            label = f"{name}: {lr:.2e}"
            axes.plot([lr], [smoothed[nearest]], linestyle="none", label=label, **style)
    if suggestions["half_to_third"] is not None:
        low, high = suggestions["half_to_third"]
        label = f"half_to_third: {low:.2e} to {high:.2e}"
        axes.axvspan(low, high, color="tab:orange", alpha=0.2, label=label)


def _cut_off_divergence(axes: Any, losses: list[float], smoothed: list[float]) -> None:
    """Leave what is far above the losses before the minimum out, which would flatten the rest."""
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    bottom, top = min(losses), max(losses[: lowest + 1])
    if lowest > 0 and top > bottom:
        axes.set_ylim(bottom - 0.1 * (top - bottom), top + 0.6 * (top - bottom))
