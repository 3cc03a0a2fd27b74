"""What a `Monitor` has recorded, as pictures."""

import math
from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from typing import IO, Any

from fusedtricks._extras import require
from fusedtricks.report.figure import save_figure

__all__ = ["draw_histograms", "draw_monitor"]

_DPI = 120
_KINDS = ("activation", "gradient")
# Title -> where the value is in the record of a layer, and whether the axis is logarithmic.
_PANELS = {
    "standard deviation of activations": (("activation", "std"), True),
    "share of activations that are 0": (("activation", "zero"), False),
    "standard deviation of gradients": (("gradient", "std"), True),
    "|change| / |weight| of an update": (("update_ratio",), True),
}
# More layers than this are not named, or drawn as heat maps, unless asked for.
_MAX_NAMED = 12
# Updates over which the heavy line averages the losses: about this many points are left.
_N_SMOOTHED = 100
# Share of the values that a bin needs, in some record, to be seen in a heat map.
_VISIBLE = 0.005


def draw_monitor(state: dict[str, Any], file: str | PathLike[str] | IO[bytes]) -> None:
    """Draw the losses, and four curves per layer over the updates.

    Layers run from dark (first) to bright (last). Where a value is not finite, its curve has a gap.

    Args:
        state: What `Monitor.state_dict()` returned, or its JSON read back.
        file: A path, whose ending tells the format, or a file opened for writing bytes, which gets
            a PNG of 1560 x 840 pixels.

    Raises:
        ValueError: If nothing was recorded, or state is another dict.
        TypeError: If state is no dict.
        MissingExtraError: If matplotlib is not installed.
    """
    _check_state("draw_monitor", state, ("losses", "records"))
    layers = _layers(state)
    if not state["losses"] and not layers:
        raise ValueError("draw_monitor: state has no losses and no records; train first")
    # A figure without pyplot needs no display and leaves nothing behind.
    figure = require("matplotlib.figure").Figure(figsize=(13, 7), layout="constrained")
    grid = figure.subplots(2, 3).flat
    _draw_losses(grid[0], state["losses"])
    colors = _colors(len(layers))
    panels = [(grid[i], *panel) for i, panel in zip((1, 2, 4, 5), _PANELS.items(), strict=True)]
    for axes, title, (keys, is_log) in panels:
        for layer, color in zip(layers, colors, strict=True):
            updates, values = _curve(state["records"], layer, keys)
            if not all(map(math.isnan, values)):
                axes.plot(updates, values, ".-", color=color, linewidth=1)
        if is_log:
            axes.set_yscale("log")
        axes.set(xlabel="updates", title=title)
        axes.grid(alpha=0.3)
    _draw_legend(grid[3], layers, colors)
    save_figure(figure, file, _DPI)


def draw_histograms(
    state: dict[str, Any],
    file: str | PathLike[str] | IO[bytes],
    *,
    kind: str = "activation",
    layers: Sequence[str] | None = None,
) -> None:
    """Draw how the values of each layer are distributed over time, as heat maps.

    A column is one record, a row a bin: powers of two of either sign, 0 in the middle, together
    with all that is too small to be seen. A colour is the share of the values in the bin, on the
    scale of the fullest one but the middle.

    Args:
        state: What `Monitor.state_dict()` returned, or its JSON read back.
        file: A path, whose ending tells the format, or a file opened for writing bytes, which gets
            a PNG.
        kind: "activation" or "gradient". Default "activation".
        layers: Which layers. Default None: up to 12, evenly chosen from all that have values.

    Raises:
        ValueError: If kind is another, a layer has no such values, or state is another dict.
        TypeError: If state is no dict.
        MissingExtraError: If matplotlib is not installed.
    """
    _check_state("draw_histograms", state, ("records", "edges"))
    if kind not in _KINDS:
        raise ValueError(f"draw_histograms: expected kind to be one of {_KINDS}, got {kind!r}")
    known = [layer for layer in _layers(state) if _histograms(state, layer, kind)]
    if layers is None:
        layers = [known[i] for i in _some(len(known))]
    unknown = [layer for layer in layers if layer not in known]
    if unknown or not layers:
        which = repr(unknown[0]) if unknown else "any layer"
        raise ValueError(f"draw_histograms: state has no {kind} of {which}; recorded are {known}")
    n_columns = min(len(layers), 4)
    n_rows = math.ceil(len(layers) / n_columns)
    figure = require("matplotlib.figure").Figure(
        figsize=(3.25 * n_columns, 0.3 + 2.2 * n_rows), layout="constrained"
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        mesh = _draw_heat_map(axes, _histograms(state, layer, kind), state["edges"])
        axes.set_title(layer, fontsize=9, parse_math=False)
        figure.colorbar(mesh, ax=axes).ax.tick_params(labelsize=7)
    for axes in grid.flat[len(layers) :]:
        axes.set_axis_off()
    figure.supxlabel("updates", fontsize="medium")
    figure.supylabel(kind, fontsize="medium")
    save_figure(figure, file, _DPI)


def _check_state(owner: str, state: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(state, dict):
        raise TypeError(
            f"{owner}: expected state to be what Monitor.state_dict() returned, got "
            f"{type(state).__name__}; call monitor.state_dict()"
        )
    for key in keys:
        if key not in state:
            raise ValueError(
                f"{owner}: expected state to be what Monitor.state_dict() returned, got a dict "
                f"without {key!r}; call monitor.state_dict()"
            )


def _draw_losses(axes: Any, losses: Sequence[float | None]) -> None:
    values = [math.nan if loss is None else loss for loss in losses]
    axes.plot(values, color="tab:gray", alpha=0.4, linewidth=1)
    window = max(len(values) // _N_SMOOTHED, 1)
    starts = range(0, len(values), window)
    parts = [values[start : start + window] for start in starts]
    middles = [start + (len(part) - 1) / 2 for start, part in zip(starts, parts, strict=True)]
    axes.plot(middles, [sum(part) / len(part) for part in parts], color="tab:blue", linewidth=2)
    axes.set(xlabel="updates", title="loss")
    axes.grid(alpha=0.3)


def _draw_legend(axes: Any, layers: list[str], colors: list[Any]) -> None:
    axes.set_axis_off()
    shown = _some(len(layers))
    for row, index in enumerate(shown):
        y = 1 - (row + 0.5) / _MAX_NAMED
        axes.plot([0.02, 0.12], [y, y], color=colors[index], linewidth=3)
        axes.text(0.16, y, layers[index], va="center", fontsize=9, parse_math=False)
    title = "layers" if len(shown) == len(layers) else f"layers, {len(shown)} of {len(layers)}"
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title)


def _draw_heat_map(axes: Any, found: list[tuple[int, list[int]]], edges: list[float]) -> Any:
    """Draw histograms, each with its update, as far as there are values; return the mesh."""
    shares = [[count / max(sum(counts), 1) for count in counts] for _, counts in found]
    zero = len(edges) // 2  # the bin in the middle
    magnitudes = range(1, zero + 1)
    largest = [max(max(c[zero - k], c[zero + k]) for c in shares) for k in magnitudes]
    reach = max((k for k in magnitudes if largest[k - 1] > 0), default=1)
    # What is smaller than all that shows is drawn with the zeros: it would fill most of the map.
    low = min((k for k in magnitudes if largest[k - 1] >= _VISIBLE), default=reach)
    rows = [[sum(column[zero - low + 1 : zero + low]) for column in shares]]
    for k in range(low, reach + 1):
        rows.insert(0, [column[zero - k] for column in shares])
        rows.append([column[zero + k] for column in shares])
    n = reach - low + 1
    mesh = axes.pcolormesh(
        _boundaries([update for update, _ in found]),
        [row - 0.5 for row in range(-n, n + 2)],
        rows,
        vmin=0,
        vmax=max(largest) or 1,
    )
    ticks = {0.0: "0"}
    for row in range(n - 1, n // 4, -max(n // 3, 1)) if n > 1 else [0]:
        exponent = round(math.log2(edges[zero + low + row - 1]))
        ticks |= {row + 0.5: f"$2^{{{exponent}}}$", -row - 0.5: f"$-2^{{{exponent}}}$"}
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=7)
    return mesh


def _boundaries(updates: list[int]) -> list[float]:
    """Return the places between updates, and one before and one after all."""
    between = [(a + b) / 2 for a, b in pairwise(updates)]
    if not between:
        return [updates[0] - 0.5, updates[0] + 0.5]
    return [2 * updates[0] - between[0], *between, 2 * updates[-1] - between[-1]]


def _curve(
    records: list[dict[str, Any]], layer: str, keys: tuple[str, ...]
) -> tuple[list[int], list[float]]:
    """Return updates, and the value in the record of the layer, NaN where there is none."""
    updates, values = [], []
    for record in records:
        value: Any = record["layers"].get(layer)
        for key in keys:
            value = None if value is None else value[key]
        updates.append(record["update"])
        values.append(math.nan if value is None else value)
    return updates, values


def _colors(n: int) -> list[Any]:
    """Return n colours from dark to bright; the brightest cannot be seen on white."""
    scale = require("matplotlib").colormaps["viridis"]
    return [scale(0.9 * i / max(n - 1, 1)) for i in range(n)]


def _some(n: int) -> list[int]:
    """Return up to _MAX_NAMED of the numbers below n, the first, the last, and evenly between."""
    if n <= _MAX_NAMED:
        return list(range(n))
    return [round(i * (n - 1) / (_MAX_NAMED - 1)) for i in range(_MAX_NAMED)]


def _histograms(state: dict[str, Any], layer: str, kind: str) -> list[tuple[int, list[int]]]:
    """Return update and histogram of every record in which the layer has one."""
    found = []
    for record in state["records"]:
        statistics = record["layers"].get(layer, {}).get(kind)
        if statistics is not None:
            found.append((record["update"], statistics["histogram"]))
    return found


def _layers(state: dict[str, Any]) -> list[str]:
    """Return the names of all recorded layers, in the order in which they were recorded."""
    return list(dict.fromkeys(name for record in state["records"] for name in record["layers"]))
