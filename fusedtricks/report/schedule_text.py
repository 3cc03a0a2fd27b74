"""Schedules as text: a table, a chart that any terminal can show, and a list of what there is."""

import inspect
import itertools
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Curve", "chart", "format_curves", "list_schedules"]

_CHART_COLUMNS = 64
_CHART_ROWS = 8
# From empty to full.
_UNICODE_LEVELS = " ▁▂▃▄▅▆▇█"
_ASCII_LEVELS = " .:#"


@dataclass
class Curve:
    """An expression and what became of it.

    Args:
        expression: As it was written.
        schedule: What it describes.
        values: The schedule's value for every update, from 0 on.
    """

    expression: str
    schedule: Any
    values: Sequence[float] = ()


def format_curves(curves: Sequence[Curve], n_rows: int, steps_per_epoch: float | None) -> str:
    """Lay out curves of the same number of updates: a chart of each, and one table.

    Args:
        curves: At least one.
        n_rows: Largest number of rows of the table.
        steps_per_epoch: For the column "epoch", which is left out for None.
    """
    parts = []
    for index, curve in enumerate(curves, start=1):
        heading = _printable(curve.expression)
        if len(curves) > 1:
            heading = f"{index}  {heading}"
        parts.append("\n".join([heading, _summary(curve), "", *chart(curve.values)]))
    return "\n\n".join([*parts, _table(curves, n_rows, steps_per_epoch)])


def _summary(curve: Curve) -> str:
    values, length = curve.values, curve.schedule.length
    smallest, largest = min(values), max(values)
    return (
        f"{len(values)} updates{'' if length is None else f' (length {_number(length)})'}; "
        f"largest value {_number(largest)} at update {values.index(largest)}, "
        f"smallest {_number(smallest)} at {values.index(smallest)}"
    )


def chart(values: Sequence[float]) -> list[str]:
    """Return lines of bars, each as high as the largest of its updates, with the ends of the axes.

    Blocks where standard output can show them, ASCII elsewhere.
    """
    levels, axis = _levels()
    n_columns = min(len(values), _CHART_COLUMNS)
    edges = [index * len(values) // n_columns for index in range(n_columns + 1)]
    tops = [max(values[a:b]) for a, b in itertools.pairwise(edges)]
    low, high = min(tops), max(tops)
    # From 0, unless that would flatten bars that differ.
    if 0 <= low <= high / 2 or _number(low) == _number(high):
        low = min(low, 0.0)
    per_row = len(levels) - 1
    scale = _CHART_ROWS * per_row / (high - low) if high > low else 0.0
    # Whatever is above the bottom can be seen.
    heights = [max(round((top - low) * scale), int(top > low)) for top in tops]
    width = max(len(_number(low)), len(_number(high)))
    lines = []
    for row in reversed(range(_CHART_ROWS)):
        label = {_CHART_ROWS - 1: _number(high), 0: _number(low)}.get(row, "")
        cells = (min(max(height - row * per_row, 0), per_row) for height in heights)
        lines.append(f"{label:>{width}} {axis}{''.join(levels[cell] for cell in cells)}".rstrip())
    last = str(len(values) - 1)
    ends = "0" if len(values) == 1 else f"0{last:>{max(n_columns - 1, len(last) + 1)}}"
    return [*lines, f"{'':>{width}}  {ends}"]


def _levels() -> tuple[str, str]:
    if _printable(_UNICODE_LEVELS) == _UNICODE_LEVELS:
        return _UNICODE_LEVELS, "│"
    return _ASCII_LEVELS, "|"


def _printable(text: str) -> str:
    """Return a text with what standard output cannot show as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _table(curves: Sequence[Curve], n_rows: int, steps_per_epoch: float | None) -> str:
    n_steps = len(curves[0].values)
    n_rows = min(n_rows, n_steps)
    updates = [round(row * (n_steps - 1) / max(n_rows - 1, 1)) for row in range(n_rows)]
    columns = [["update", *map(str, updates)]]
    if steps_per_epoch is not None:
        columns.append(["epoch", *(f"{t / steps_per_epoch:.4g}" for t in updates)])
    for index, curve in enumerate(curves, start=1):
        heading = "value" if len(curves) == 1 else str(index)
        columns.append([heading, *(_number(curve.values[t]) for t in updates)])
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    )


def _number(value: float) -> str:
    return f"{value:.6g}"


def list_schedules() -> str:
    """Return name, arguments and formula of everything that an expression can contain."""
    from fusedtricks.lr_scheduler import Schedule
    from fusedtricks.lr_scheduler.parsing import KINDS

    methods = {name: getattr(Schedule, name) for name in ("then", "with_warmup", "between")}
    lines = [_describe(name, kind) for name, kind in sorted(KINDS.items())]
    lines.append(f"a * b\n    {_summary_of(Schedule.__mul__)[0]}")
    lines += [_describe(f"a.{name}", method) for name, method in methods.items()]
    return "\n".join(lines)


def _describe(name: str, kind: Any) -> str:
    signature = inspect.signature(kind)
    arguments = [
        argument.replace(annotation=argument.empty)
        for argument in signature.parameters.values()
        if argument.name != "self"
    ]
    signature = signature.replace(parameters=arguments, return_annotation=signature.empty)
    return "\n    ".join([f"{name}{signature}", *_summary_of(kind)])


def _summary_of(kind: Any) -> list[str]:
    """Return the first line of a docstring, and the paragraph with the formula if it has none."""
    first, *others = inspect.getdoc(kind).partition("\n\nArgs:")[0].split("\n\n")
    lines = [first]
    if "value(t) =" not in first:
        formulas = (other for other in others if "value(t) =" in other)
        lines += textwrap.dedent(next(formulas, "")).splitlines()
    return lines
