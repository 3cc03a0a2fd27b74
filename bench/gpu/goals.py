"""The goal of the Triton backend: from 25 million parameters on, 95 % of the CUDA backend's speed.

The figure is the kernels' time, the CUDA backend's over Triton's of the same turns: 1 is as fast,
above 1 is faster.
"""

from collections.abc import Sequence

from bench import report
from bench.gpu.part import Row

TITLE = "Triton beside CUDA"
LEAST_PARAMETERS = 25_000_000
GOAL = 0.95
MET, MISSED, NOT_MEASURED, NO_GOAL = "met", "missed", "not measured", "none"
FIGURES = ("kernels", "graph", "whole", "host")
HEADER = (
    "workload, step",
    "parameters",
    "CUDA kernels ms",
    "Triton ms",
    "CUDA / Triton",
    "p20 - p80",
    "goal",
    "graph",
    "whole",
    "host µs",
    "Triton µs",
    "launches",
    "Triton",
)


def _inverse(ratio: dict[str, float] | None) -> dict[str, float] | None:
    """Return the spread of the inverse."""
    if ratio is None:
        return None
    return {"median": 1 / ratio["median"], "p20": 1 / ratio["p80"], "p80": 1 / ratio["p20"]}


def _verdict(n_parameters: int, ratio: dict[str, float] | None) -> str:
    if n_parameters < LEAST_PARAMETERS:
        return NO_GOAL
    if ratio is None:
        return NOT_MEASURED
    return MET if ratio["median"] >= GOAL else MISSED


def evaluate(rows: Sequence[Row]) -> list[Row]:
    """Return what became of the goal, for each table that both backends belong to.

    Args:
        rows: Those of `bench.gpu.tables.make_rows`.
    """
    cuda = {(row["workload"], row["case"]): row for row in rows if row["contender"] == "ours"}
    found = []
    for row in rows:
        if row["contender"] != "ours-triton":
            continue
        ours = cuda.get((row["workload"], row["case"]), {})
        speeds = {figure: _inverse(row[f"ours_ahead_{figure}"]) for figure in FIGURES}
        found.append(
            {
                **{key: row[key] for key in ("workload", "case", "title", "n_parameters")},
                **{f"speed_{figure}": speed for figure, speed in speeds.items()},
                "cuda_kernels_ms": ours.get("kernels_ms"),
                "triton_kernels_ms": row["kernels_ms"],
                "cuda_host_ms": ours.get("host_ms"),
                "triton_host_ms": row["host_ms"],
                "cuda_launches": ours.get("launches"),
                "triton_launches": row["launches"],
                "goal": GOAL,
                "verdict": _verdict(row["n_parameters"], speeds["kernels"]),
                "reasons": row["reasons"],
            }
        )
    return found


def _median(spread: dict[str, float] | None, pattern: str, factor: float = 1.0) -> str:
    return "-" if spread is None else pattern.format(spread["median"] * factor)


def _cells(row: Row) -> tuple[str, ...]:
    speed = row["speed_kernels"]
    launches = (row["cuda_launches"], row["triton_launches"])
    return (
        f"{row['workload']}, {row['title']}",
        f"{row['n_parameters']:,}",
        _median(row["cuda_kernels_ms"], "{:.3f}"),
        _median(row["triton_kernels_ms"], "{:.3f}"),
        _median(speed, "{:.3f}"),
        "-" if speed is None else f"{speed['p20']:.3f} - {speed['p80']:.3f}",
        row["verdict"],
        _median(row["speed_graph"], "{:.2f}"),
        _median(row["speed_whole"], "{:.2f}"),
        _median(row["cuda_host_ms"], "{:.1f}", 1e3),
        _median(row["triton_host_ms"], "{:.1f}", 1e3),
        *("-" if count is None else f"{count:g}" for count in launches),
    )


def summary_line(found: Sequence[Row]) -> str:
    """Return in how many tables the goal was met, missed and not measured."""
    verdicts = [row["verdict"] for row in found if row["verdict"] != NO_GOAL]
    if not verdicts:
        return f"no table of {LEAST_PARAMETERS / 1e6:.0f} M parameters or more"
    counts = [f"{verdict} in {verdicts.count(verdict)}" for verdict in (MET, MISSED, NOT_MEASURED)]
    return (
        f"goal, CUDA / Triton >= {GOAL} from {LEAST_PARAMETERS / 1e6:.0f} M parameters on: "
        f"{', '.join(counts)} of {len(verdicts)} tables"
    )


def text(found: Sequence[Row]) -> str:
    """Return the verdicts as Markdown, and why figures are missing."""
    lines = [summary_line(found), "", report.markdown_table(HEADER, list(map(_cells, found)))]
    reasons: dict[str, list[str]] = {}
    for row in found:
        for figure, reason in row["reasons"].items():
            reasons.setdefault(f"{figure}: {reason}", []).append(row["workload"])
    lines += [f"- {reason} ({len(of)} tables)" for reason, of in reasons.items()]
    return "\n".join(lines)
