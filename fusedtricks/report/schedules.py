"""Schedules as a picture."""

import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import IO, Any

from fusedtricks._extras import require
from fusedtricks.report.figure import save_figure

__all__ = ["draw_schedules"]

_DPI = 120
_WIDTH = 840
_HEIGHT = 480
_LINE_HEIGHT = 20
_TITLE_COLUMNS = 72
_LABEL_COLUMNS = 100
# Different from curve to curve, so that one which lies on another shows.
_DASHES = ("-", "--", ":")
_N_COLORS = 10


def draw_schedules(
    curves: Mapping[str, Sequence[float]],
    file: str | PathLike[str] | IO[bytes] | None = None,
    *,
    xlabel: str = "updates",
    ylabel: str = "value",
    title: str | None = None,
) -> Any:
    """Draw values over the number of updates done.

    Args:
        curves: Name of each curve -> its value for every update, from 0 on.
        file: A path, whose ending tells the format, or a file opened for writing bytes, which gets
            a PNG. The picture is 840 pixels wide and 480 high, and 20 higher for each line of the
            legend, which there is with several curves, and for each line of the title after the
            first. Default: nowhere.
        xlabel: Text below the horizontal axis. Default "updates".
        ylabel: Text beside the vertical axis. Default "value".
        title: Text above; wrapped if it is long. Default: the name of the curve, if there is one.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there is no curve, or one has no value.
        MissingExtraError: If matplotlib is not installed.
    """
    empty = [name for name, values in curves.items() if len(values) == 0]
    if not curves or empty:
        raise ValueError(
            f"draw_schedules: expected at least one curve, and values in each, got "
            f"{'none for ' + repr(empty[0]) if empty else 'no curve'}"
        )
    if title is None:
        title = next(iter(curves)) if len(curves) == 1 else ""
    title = textwrap.fill(title, _TITLE_COLUMNS, break_on_hyphens=False)
    labels = []
    if len(curves) > 1:
        labels = [textwrap.fill(name, _LABEL_COLUMNS, break_on_hyphens=False) for name in curves]
    n_lines = title.count("\n") + sum(label.count("\n") + 1 for label in labels)
    # A figure without pyplot needs no display and leaves nothing behind.
    figure = require("matplotlib.figure").Figure(
        figsize=(_WIDTH / _DPI, (_HEIGHT + _LINE_HEIGHT * n_lines) / _DPI),
        dpi=_DPI,
        layout="constrained",
    )
    axes = figure.subplots()
    for index, values in enumerate(curves.values()):
        style = {"color": f"C{index % _N_COLORS}", "linestyle": _DASHES[index % len(_DASHES)]}
        # A single value is no line.
        axes.plot(range(len(values)), values, marker="o" if len(values) == 1 else None, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True))
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    _show_zero(axes)
    if labels:
        _add_legend(figure, axes, labels)
    if file is not None:
        save_figure(figure, file, _DPI)
    return figure


def _show_zero(axes: Any) -> None:
    """Begin the vertical axis at 0, unless that would flatten curves that stay far above it."""
    low, high = axes.dataLim.intervaly
    is_flat = high - low < 1e-6 * high
    if high > 0 and low >= 0 and (low <= 0.5 * high or is_flat):
        axes.set_ylim(-0.03 * high, 1.05 * high)


def _add_legend(figure: Any, axes: Any, labels: list[str]) -> None:
    # Below the axes: nothing is hidden, however long the expressions are.
    numbers = [str(index) for index in range(len(labels))]
    legend = figure.legend(axes.lines, numbers, loc="outside lower left", fontsize=8, frameon=False)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        # Set afterwards: matplotlib leaves out labels that begin with "_".
        text.set_parse_math(False)
        text.set_text(label)
