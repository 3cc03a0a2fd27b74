"""How far a range test is: a bar on a terminal, a function of the caller, or nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fusedtricks._extras import MissingExtraError, require

__all__ = ["OnUpdate", "reporting"]

# Called with updates done, updates at most, learning rate and loss.
OnUpdate = Callable[[int, int, float, float], None]


@contextmanager
def reporting(progress: bool | OnUpdate) -> Iterator[OnUpdate]:
    """Give the function to call after every update.

    Args:
        progress: True draws a bar with the time left if standard error is a terminal, rich is
            installed, and this is the first of all processes; False shows nothing; a function is
            given back as it is.
    """
    if callable(progress):
        yield progress
    elif progress and sys.stderr.isatty() and _is_first_process():
        with _bar() as on_update:
            yield on_update
    else:
        yield _nothing


def _nothing(done: int, total: int, lr: float, loss: float) -> None:
    pass


def _is_first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )


@contextmanager
def _bar() -> Iterator[OnUpdate]:
    try:
        rich, console = require("rich.progress"), require("rich.console")
    except MissingExtraError:
        yield _nothing
        return
    with rich.Progress(
        rich.TextColumn("learning-rate range test"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TextColumn("{task.fields[numbers]}"),
        rich.TimeRemainingColumn(elapsed_when_finished=True),
        console=console.Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=None, numbers="")

        def on_update(done: int, total: int, lr: float, loss: float) -> None:
            numbers = f"lr {lr:.1e}, loss {loss:.3g}"
            bar.update(task, completed=done, total=total, numbers=numbers)

        yield on_update
