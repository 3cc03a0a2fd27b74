"""A progress display with the time left: a bar where rich is installed, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, TextIO

try:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
except ImportError:
    RichProgress = None

LINE_EVERY_S = 5.0


def format_duration(seconds: float) -> str:
    """Return a duration as a reader says it, such as `1 min 20 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


class Progress:
    """Report how far a run of equal units is, on standard error.

    Args:
        n_units: Number of units, such as tables to measure.
        stream: Where to write. Default: standard error.

    Example:
        >>> with Progress(2) as progress:  # doctest: +SKIP
        ...     progress.begin("first")
        ...     progress.at(0.5)
    """

    def __init__(self, n_units: int, stream: TextIO | None = None):
        self.n_units = max(n_units, 1)
        self.stream = stream or sys.stderr
        self.n_begun = 0
        self.label = ""
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        """Start the display."""
        if RichProgress is not None and self.stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=Console(file=self.stream), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the display."""
        if self._bar is not None:
            self._bar.stop()

    def begin(self, label: str) -> None:
        """Start the next unit."""
        self.n_begun += 1
        self.label = label
        self._show(0.0, force=True)

    def at(self, fraction: float) -> None:
        """Report the fraction of the current unit that is done, in [0, 1]."""
        self._show(fraction, force=False)

    def _show(self, fraction: float, *, force: bool) -> None:
        done = (max(self.n_begun - 1, 0) + fraction) / self.n_units
        description = f"[{self.n_begun}/{self.n_units}] {self.label}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=description)
            return
        now = time.monotonic()
        if not force and now - self._last_line < LINE_EVERY_S:
            return
        self._last_line = now
        left = "unknown"
        if done > 0:
            left = format_duration((now - self._start) * (1 - done) / done)
        print(f"{description}: {done:4.0%}, time left {left}", file=self.stream, flush=True)
