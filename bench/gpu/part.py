"""What the parts of the GPU check share: their options, their device, their result files.

A part is a module with a function that measures or checks, fills a `Result` and returns why it
failed, "" if it did not. Its exit status is 0, 1, or `NOT_AVAILABLE` where the machine lacks what
it needs, which is no failure.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
# The exit status of a test that cannot run here, as automake has it.
NOT_AVAILABLE = 77
DRY_RUN_NOTE = "dry-run, no GPU figure"

Row = dict[str, Any]


class NotAvailable(Exception):
    """What the part needs does not exist here; the text says what."""


class Result:
    """The rows and tables of a part, in a file that is rewritten at each addition.

    A part that is killed leaves what it had.

    Args:
        path: JSON file; None writes nothing.
        dry_run: Marks each title as a rehearsal.
    """

    def __init__(self, path: Path | None = None, *, dry_run: bool = False):
        self.path = path
        self.dry_run = dry_run
        self.reason = ""
        self.environment: dict[str, Any] = {}
        self._sections: dict[str, tuple[str, list[Row]]] = {}

    @property
    def rows(self) -> list[Row]:
        """The rows of all sections."""
        return [row for _, rows in self._sections.values() for row in rows]

    def add(self, title: str, text: str, rows: Sequence[Row] = (), *, show: bool = True) -> None:
        """Add a section in Markdown and the rows that it shows, or replace that of this title."""
        if self.dry_run:
            title = f"{title} ({DRY_RUN_NOTE})"
        self._sections[title] = (text, list(rows))
        if show:
            print(f"\n{title}\n{text}", flush=True)
        self.write()

    def write(self) -> None:
        """Write the file in one go, so that a reader never sees half of it."""
        if self.path is None:
            return
        content = {
            "reason": self.reason,
            "environment": self.environment,
            "rows": self.rows,
            "sections": [(title, text) for title, (text, _) in self._sections.items()],
        }
        write_text(self.path, json.dumps(content, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one go."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


class Deadline:
    """A time budget that starts now.

    Args:
        seconds: The budget.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds until the end, 0 after it."""
        return max(0.0, self.seconds - self.elapsed)


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all parts have."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, help="JSON file for the results")
    add("--seconds", type=float, default=150.0, help="time budget (default: %(default)s)")
    add("--quick", action="store_true", help="fewer repetitions")
    add("--dry-run", action="store_true", help="rehearse on the CPU with tiny sizes")
    return parser


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an exception's text."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def run_part(
    work: Callable[[argparse.Namespace, Result], str],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a part; return its exit status.

    Args:
        work: Gets the options, with `device` among them, and the result to fill; returns why the
            part failed, "" if it did not.
        parser: From `make_parser`.
        arguments: Command line. Default: that of the process.
    """
    options = parser.parse_args(arguments)
    options.device = torch.device("cpu" if options.dry_run else "cuda")
    result = Result(options.out, dry_run=options.dry_run)
    try:
        if options.device.type == "cuda" and not torch.cuda.is_available():
            raise NotAvailable("torch sees no CUDA device; rehearse with --dry-run")
        result.reason = work(options, result)
        status = 1 if result.reason else 0
    except NotAvailable as error:
        result.reason, status = str(error), NOT_AVAILABLE
    except Exception as error:
        traceback.print_exc()
        result.reason, status = first_line(error), 1
    result.write()
    if result.reason:
        print(f"{'not available' if status == NOT_AVAILABLE else 'failed'}: {result.reason}")
    sys.stdout.flush()
    return status
