"""The table at the end of the demo."""

from collections.abc import Sequence
from typing import Any

from fusedtricks._extras import require

__all__ = ["format_results", "speed_up"]


def speed_up(cases: Sequence[dict[str, Any]], data: str) -> float | None:
    """Return torch's median step time over ours on one data set, None if a case is missing."""
    times = {case["optimizer"]: case["step_ms"] for case in cases if case["data"] == data}
    if "torch" not in times or "fusedtricks" not in times:
        return None
    return times["torch"] / times["fusedtricks"]


def format_results(cases: Sequence[dict[str, Any]]) -> Any:
    """Lay out the results of the cases as a `rich.table.Table`.

    Args:
        cases: Entries of `result.json`: `data`, `optimizer`, `accuracy` (0 to 1) and `step_ms`
            (median per batch).

    Raises:
        MissingExtraError: If rich is not installed.
    """
    table = require("rich.table").Table()
    table.add_column("data")
    table.add_column("optimizer")
    for heading in ("accuracy (%)", "step (ms, median)", "torch / ours"):
        table.add_column(heading, justify="right")
    for index, case in enumerate(cases):
        ratio = speed_up(cases, case["data"]) if case["optimizer"] == "fusedtricks" else None
        is_last = index + 1 == len(cases) or cases[index + 1]["data"] != case["data"]
        table.add_row(
            case["data"],
            case["optimizer"],
            f"{100 * case['accuracy']:.1f}",
            f"{case['step_ms']:.2f}",
            "" if ratio is None else f"{ratio:.2f}",
            end_section=is_last,
        )
    return table
