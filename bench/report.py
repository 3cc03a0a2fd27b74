"""What every benchmark script shares: rows, tables, the machine's description, result files."""

import argparse
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .timing import Spread, bandwidth_gb_s, paired_ratio

Row = dict[str, Any]
STREAM = "streaming limit"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parent
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" (modified)" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that a result depends on."""
    try:
        load = os.getloadavg()[0]
    except OSError:
        load = None
    return {
        "device": _cpu_model(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load_average_1min": load,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


@contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """Run the body with a number of torch threads, then restore the former one."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timing_rows(
    timings: Mapping[str, Spread],
    *,
    baseline: str,
    n_bytes: int,
    limit_bytes: int,
    common: Mapping[str, Any],
) -> list[Row]:
    """Turn the timings of one interleaved measurement into result rows.

    Args:
        timings: Seconds per step by contender; may hold `STREAM`.
        baseline: The contender that speed-ups refer to; they are None where it is missing.
        n_bytes: Bytes that one step must move.
        limit_bytes: Bytes that one streaming step moves.
        common: Columns that all rows share.

    Returns:
        One row per contender; times in ms, `speedup` > 1 where it is faster than the baseline.
    """
    limit = timings.get(STREAM)
    rows = []
    for contender, spread in timings.items():
        moved = limit_bytes if contender == STREAM else n_bytes
        rate = bandwidth_gb_s(moved, spread.median)
        row: Row = {
            **common,
            "contender": contender,
            "rounds": len(spread.values),
            "median_ms": spread.median * 1e3,
            "p20_ms": spread.p20 * 1e3,
            "p80_ms": spread.p80 * 1e3,
            "speedup": None,
            "gb_s": rate,
            "share_of_limit": None,
        }
        if baseline in timings and contender != STREAM:
            ratio = paired_ratio(timings[baseline], spread)
            row |= {"speedup": ratio.median, "speedup_p20": ratio.p20, "speedup_p80": ratio.p80}
        if limit is not None:
            row["share_of_limit"] = rate / bandwidth_gb_s(limit_bytes, limit.median)
        rows.append(row)
    return rows


def streaming_rate(rows: Sequence[Row]) -> float:
    """Return the GB/s of the streaming loop among rows of `timing_rows`, 0 without one."""
    return max((row["gb_s"] for row in rows if row["contender"] == STREAM), default=0.0)


TIMING_HEADER = ("contender", "median ms", "p20 - p80", "speed-up", "GB/s", "of limit")


def timing_cells(row: Row) -> tuple[str, ...]:
    """Return the cells of `TIMING_HEADER` for a row of `timing_rows`."""
    speedup, share = row["speedup"], row["share_of_limit"]
    return (
        row["contender"],
        f"{row['median_ms']:.3f}",
        f"{row['p20_ms']:.3f} - {row['p80_ms']:.3f}",
        "" if speedup is None else f"{speedup:.2f}x",
        f"{row['gb_s']:.1f}",
        "" if share is None else f"{share:.0%}",
    )


def limit_note(rows: Sequence[Row]) -> str:
    """Return a warning if a contender beat the streaming loop, which then is no limit, or ""."""
    shares = [row["share_of_limit"] or 0.0 for row in rows if row["contender"] != STREAM]
    # 2 % is the spread of the medians of two equal loops.
    if max(shares, default=0.0) <= 1.02:
        return ""
    return f"Note: a contender was faster than the {STREAM}; read the last column with care."


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned plain text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def positive(text: str) -> int:
    """Parse a command-line integer that must be at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {value}")
    return value


def make_parser(description: str, example: str, *, seconds: float) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts have.

    Args:
        description: What the script measures.
        example: A command line.
        seconds: Default time budget of one table.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=seconds, help="time per table (default: %(default)s)")
    add("--out", type=Path, help="write OUT.json and OUT.md; the folder must exist")
    return parser


def write_results(out: Path | None, rows: list[Row], sections: Sequence[tuple[str, str]]) -> None:
    """Write a run's JSON and Markdown files.

    Args:
        out: Path without suffix; None writes nothing.
        rows: Result rows.
        sections: Title and Markdown body of each part of the summary.
    """
    if out is None:
        return
    machine = environment()
    payload = json.dumps({"environment": machine, "results": rows}, indent=1)
    # Not with_suffix: it would cut a name such as cpu-v0.1.
    out.with_name(out.name + ".json").write_text(payload + "\n", encoding="utf-8")
    facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in machine.items())
    parts = [f"# {out.name}", facts, *(f"## {title}\n\n{body}" for title, body in sections)]
    out.with_name(out.name + ".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
