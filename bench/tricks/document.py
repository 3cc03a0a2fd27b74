"""Write the measured effects into the tables of docs/tricks.md, and draw docs/images/tricks.png.

The last cell of a row names, in backticks, what was measured; what follows a name, up to a
semicolon, is replaced by the baseline, if it is not the common one, and the figures. The first
figure is with 40 % wrong labels, the second without.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import report
from bench.tricks.arm import BASE
from bench.tricks.summary import draw, effect

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "bench" / "results" / "epyc-zen4-4-cores" / "tricks.json"
PAGE = ROOT / "docs" / "tricks.md"
PICTURE = ROOT / "docs" / "images" / "tricks.png"

# A name that is no baseline, and what was written after it before.
_ENTRY = re.compile(r"(?<!\(beside )`(\w+)`(?: \(beside `\w+`\))?(?: [+-]\d[^;|]*)?")


def effects(rows: Sequence[report.Row]) -> dict[str, str]:
    """Return what was measured of each trick: with wrong labels, then without."""
    texts: dict[str, list[str]] = {}
    beside: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: -row["noise"]):
        if "difference" in row:
            texts.setdefault(row["trick"], []).append(effect(row))
            is_common = row["baseline"] == BASE
            beside[row["trick"]] = "" if is_common else f"(beside `{row['baseline']}`) "
    return {trick: beside[trick] + " / ".join(parts) for trick, parts in texts.items()}


def fill_line(line: str, known: Mapping[str, str]) -> str:
    """Return a line of the page with the figures of the measurement in its last cell.

    Raises:
        KeyError: If it names what was not measured.
    """
    if not line.startswith("| ") or not line.rstrip().endswith("|"):
        return line
    *cells, last, end = line.split("|")
    filled = _ENTRY.sub(lambda match: f"`{match[1]}` {known[match[1]]}", last.rstrip())
    return "|".join([*cells, f"{filled} ", end])


def fill(page: str, known: Mapping[str, str]) -> str:
    """Return the page with all figures."""
    return "\n".join(fill_line(line, known) for line in page.split("\n"))


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the page and draw the picture.

    Returns:
        Exit code 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m bench.tricks.document",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    if not arguments.results.is_file():
        parser.error(f"argument --results: no file {arguments.results}; run python -m bench.tricks")
    rows = json.loads(arguments.results.read_text(encoding="utf-8"))["results"]
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(fill(page, effects(rows)), encoding="utf-8")
    draw(rows, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
