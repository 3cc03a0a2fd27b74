"""Rows and tables of the GPU benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench import report
from bench.gpu.contenders import LABELS
from bench.gpu.figures import GRAPH, HOST, KERNELS, WHOLE, Measured
from bench.report import Row
from bench.timing import Spread, bandwidth_gb_s, paired_ratio

HEADER = (
    "contender",
    "kernels ms",
    "p20 - p80",
    "GB/s",
    "of copy",
    "ours ahead",
    "graph ms",
    "ours ahead",
    "whole ms",
    "ours ahead",
    "host µs",
    "launches",
    "extra MiB",
)
OVERVIEW_HEADER = (
    "workload, step",
    "baseline",
    "its kernels ms",
    "ours ms",
    "ratio",
    "of copy",
    "its whole ms",
    "ours ms",
    "ratio",
    "its host µs",
    "ours µs",
)


def spread_of(spread: Spread | None, factor: float = 1e3) -> dict[str, float] | None:
    """Return what rows hold of a sample in seconds, None for none; by default in ms."""
    if spread is None:
        return None
    return {
        "median": spread.median * factor,
        "p20": spread.p20 * factor,
        "p80": spread.p80 * factor,
        "rounds": len(spread.values),
    }


def make_rows(
    measured: Measured, names: Sequence[str], *, n_bytes: int, common: Mapping[str, Any]
) -> list[Row]:
    """Turn the figures of a table into rows, one per contender.

    Args:
        measured: The figures.
        names: The contenders, with those that are missing.
        n_bytes: Bytes that a step must move.
        common: Columns that all rows share.

    Returns:
        Rows; `<figure>_ms` are medians with spread, `ours_ahead_<figure>` is the contender's time
        over ours, `share_of_copy` the rate over that of the copy.
    """
    return [_row(measured, name, n_bytes, common) for name in names]


def _row(measured: Measured, name: str, n_bytes: int, common: Mapping[str, Any]) -> Row:
    row: Row = {**common, "contender": name, "label": LABELS.get(name, name)}
    for figure in (KERNELS, GRAPH, WHOLE, HOST):
        spreads = measured.timings.get(figure, {})
        spread, ours = spreads.get(name), spreads.get("ours")
        row[f"{figure}_ms"] = spread_of(spread)
        ratio = paired_ratio(spread, ours) if spread is not None and ours is not None else None
        row[f"ours_ahead_{figure}"] = spread_of(ratio, 1.0)
    kernels = measured.timings.get(KERNELS, {})
    copy = kernels.get(report.STREAM)
    rate = bandwidth_gb_s(n_bytes, kernels[name].median) if name in kernels else None
    copy_rate = bandwidth_gb_s(measured.copy_bytes, copy.median) if copy else None
    launches = measured.launches.get(name)
    row |= {
        "gb_s": rate,
        "copy_gb_s": copy_rate,
        "share_of_copy": rate / copy_rate if rate and copy_rate else None,
        "launches": launches.n_launches if launches else None,
        "kernels": _short_names(launches.counts, 1) if launches else {},
        "kernel_us": _short_names(launches.us, 0.001) if launches else {},
        "extra_bytes": measured.extra_bytes.get(name),
        "reasons": measured.reasons.get(name, {}),
    }
    return row


def _short_names(values: Mapping[str, float], least: float) -> dict[str, float]:
    """Return the largest values under names that fit a line; equal short names are added."""
    short: dict[str, float] = {}
    for name, value in sorted(values.items(), key=lambda item: -item[1])[:25]:
        if value >= least / 1e3:
            key = name.replace("void ", "").replace("at::native::", "")[:100]
            short[key] = round(short.get(key, 0.0) + value, 3)
    return short


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _median(row: Row, key: str, pattern: str = "{:.3f}", factor: float = 1.0) -> str:
    return "-" if row[key] is None else pattern.format(row[key]["median"] * factor)


def _range(row: Row, key: str, pattern: str) -> str:
    if row[key] is None:
        return "-"
    return f"{pattern} - {pattern}".format(row[key]["p20"], row[key]["p80"])


def _ahead(row: Row, figure: str) -> str:
    key = f"ours_ahead_{figure}"
    if row[key] is None or row["contender"] == "ours":
        return "-"
    return f"{_median(row, key, '{:.2f}x')} ({_range(row, key, '{:.2f}')})"


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `HEADER`."""
    extra = row["extra_bytes"]
    return (
        row["label"],
        _median(row, "kernels_ms"),
        _range(row, "kernels_ms", "{:.3f}"),
        _number(row["gb_s"], "{:.0f}"),
        _number(row["share_of_copy"], "{:.0%}"),
        _ahead(row, KERNELS),
        _median(row, "graph_ms"),
        _ahead(row, GRAPH),
        _median(row, "whole_ms"),
        _ahead(row, WHOLE),
        _median(row, "host_ms", "{:.1f}", 1e3),
        _number(row["launches"], "{:g}"),
        "-" if extra is None else f"{extra / 2**20:.1f}",
    )


def table_text(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return the Markdown table of one workload and case, what ours launches, and the gaps."""
    lines = [report.markdown_table(HEADER, [cells(row) for row in rows]), ""]
    for row in rows:
        if row["contender"].startswith("ours") and row["kernel_us"]:
            launched = (
                f"`{name}` {row['kernels'].get(name, 0):g} times, {us:.1f} µs"
                for name, us in row["kernel_us"].items()
            )
            lines.append(f"- {row['label']} runs: {'; '.join(list(launched)[:8])}")
        for figure, reason in row["reasons"].items():
            lines.append(f"- {row['label']}, {figure}: {reason}")
    copy_rate = next((row["copy_gb_s"] for row in rows if row["copy_gb_s"]), None)
    if copy_rate is not None:
        lines.append(f"- device-to-device copy: {copy_rate:.0f} GB/s, read and written")
    return "\n".join([*lines, *(f"- {note}" for note in notes)]).rstrip()


def overview(rows: Sequence[Row]) -> str:
    """Return one line per workload and case: ours beside the baseline."""
    lines = []
    for ours in rows:
        if ours["contender"] != "ours":
            continue
        same = (ours["workload"], ours["case"])
        others = [row for row in rows if (row["workload"], row["case"]) == same]
        base = next((row for row in others if row["contender"] == ours["baseline"]), None)
        if base is None:
            continue
        lines.append(
            (
                f"{ours['workload']}, {ours['title']}",
                base["label"],
                _median(base, "kernels_ms"),
                _median(ours, "kernels_ms"),
                _median(base, "ours_ahead_kernels", "{:.2f}x"),
                _number(ours["share_of_copy"], "{:.0%}"),
                _median(base, "whole_ms"),
                _median(ours, "whole_ms"),
                _median(base, "ours_ahead_whole", "{:.2f}x"),
                _median(base, "host_ms", "{:.1f}", 1e3),
                _median(ours, "host_ms", "{:.1f}", 1e3),
            )
        )
    return report.markdown_table(OVERVIEW_HEADER, lines)
