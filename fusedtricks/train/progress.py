"""How far a demo is: a bar on a terminal, a few lines elsewhere, or nothing."""

import sys
import time
from typing import Any, Protocol

from fusedtricks._extras import require

__all__ = ["BarProgress", "LineProgress", "NoProgress", "Progress", "make_progress"]


class Progress(Protocol):
    """What a demo tells while it runs; a context manager."""

    def __enter__(self) -> "Progress":
        """Start showing."""

    def __exit__(self, *error: object) -> None:
        """Stop showing."""

    def start(self, n_batches: int, n_done: int, epochs: int) -> None:
        """Tell the length of the whole demo in batches, and what an earlier process did of it."""

    def start_case(self, data: str, optimizer: str) -> None:
        """Tell which case runs now."""

    def on_batch(self, loss: float) -> None:
        """Count a batch."""

    def on_epoch(self, record: dict[str, float]) -> None:
        """Show a record of `Trainer.history`."""

    def finish_case(self, result: dict[str, Any]) -> None:
        """Show the result of a case."""


class NoProgress:
    """Shows nothing."""

    def __enter__(self) -> "NoProgress":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, n_batches: int, n_done: int, epochs: int) -> None:
        """Keep what the lines are made of."""
        self.n_batches, self.n_done, self.epochs = n_batches, n_done, epochs
        self.n_before = n_done
        self.began = time.monotonic()

    def start_case(self, data: str, optimizer: str) -> None:
        """Keep what the lines are made of."""
        self.case = f"{data}, {optimizer}"

    def on_batch(self, loss: float) -> None:
        """Count a batch."""
        self.n_done += 1

    def on_epoch(self, record: dict[str, float]) -> None:
        """Show nothing."""

    def finish_case(self, result: dict[str, Any]) -> None:
        """Show nothing."""


class LineProgress(NoProgress):
    """Prints about four lines per case."""

    def on_epoch(self, record: dict[str, float]) -> None:
        """Print a line after the first epoch and about every fourth part of the epochs."""
        epoch = record["epoch"]
        if epoch not in (1, self.epochs) and epoch % -(-self.epochs // 4):
            return
        spent = time.monotonic() - self.began
        left = spent / max(self.n_done - self.n_before, 1) * (self.n_batches - self.n_done)
        print(
            f"{self.case}: epoch {epoch} of {self.epochs}, loss {record['loss']:.4f}, accuracy "
            f"{100 * record['accuracy']:.1f} %, {_minutes(left)} left",
            flush=True,
        )


class BarProgress(NoProgress):
    """Draws one bar for the whole demo, and prints a line per finished case."""

    def __init__(self) -> None:
        rich = require("rich.progress")
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[numbers]}"),
            rich.TimeRemainingColumn(elapsed_when_finished=True),
            speed_estimate_period=120,
        )
        self._accuracy = ""

    def __enter__(self) -> "BarProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def start(self, n_batches: int, n_done: int, epochs: int) -> None:
        """Draw the bar."""
        super().start(n_batches, n_done, epochs)
        self._task = self._bar.add_task("", total=n_batches, completed=n_done, numbers="")

    def start_case(self, data: str, optimizer: str) -> None:
        """Name the case before the bar."""
        super().start_case(data, optimizer)
        self._accuracy = ""
        self._describe(1)

    def on_batch(self, loss: float) -> None:
        """Move the bar."""
        super().on_batch(loss)
        numbers = f"loss {loss:.3f}{self._accuracy}"
        self._bar.update(self._task, completed=self.n_done, numbers=numbers)

    def on_epoch(self, record: dict[str, float]) -> None:
        """Show epoch and accuracy beside the bar."""
        self._accuracy = f", accuracy {100 * record['accuracy']:.1f} %"
        self._describe(min(int(record["epoch"]) + 1, self.epochs))

    def finish_case(self, result: dict[str, Any]) -> None:
        """Print a line above the bar."""
        self._bar.console.print(
            f"{self.case}: accuracy {100 * result['accuracy']:.1f} %, step "
            f"{result['step_ms']:.2f} ms",
            highlight=False,
        )

    def _describe(self, epoch: int) -> None:
        self._bar.update(self._task, description=f"{self.case}, epoch {epoch}/{self.epochs}")


def make_progress(*, quiet: bool) -> Progress:
    """Return what suits standard output.

    Raises:
        MissingExtraError: If it is a terminal and rich is not installed.
    """
    if quiet:
        return NoProgress()
    return BarProgress() if sys.stdout.isatty() else LineProgress()


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
