"""The demo: two optimizers train the same network on clean and on partly wrong digits."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fusedtricks import backends
from fusedtricks._extras import require
from fusedtricks.report import draw_curves
from fusedtricks.train.cases import CASES, build_trainer, summarize
from fusedtricks.train.files import read_checkpoint, write_atomically, write_checkpoint, write_json
from fusedtricks.train.progress import NoProgress, Progress
from fusedtricks.train.settings import Settings
from fusedtricks.train.trainer import DivergedError, Trainer

__all__ = ["Demo", "DemoError"]

_FORMAT = 3


class DemoError(RuntimeError):
    """The run folder does not allow what was asked for."""


class Demo:
    """A run of all four cases, kept in one folder.

    The folder has `checkpoint.pt` while the run is unfinished; at the end `result.json` and
    `curves.png` instead. Use `start` or `resume` to make one.

    Attributes:
        folder: Where the run is kept.
        settings: What it depends on.
        results: Entries of the finished cases in `result.json`.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        for module in ("sklearn", "matplotlib", "rich"):
            require(module)
        self.folder = folder
        self.settings = settings
        self.results: list[dict[str, Any]] = []
        self._trainer_state: dict[str, Any] | None = None
        self._trainer: Trainer | None = None
        self._elapsed_before = 0.0
        self._began = time.monotonic()

    @classmethod
    def start(cls, folder: Path, settings: Settings) -> "Demo":
        """Prepare a new run; the files of a finished one in the same folder are removed.

        Raises:
            DemoError: If the folder has an unfinished run.
            MissingExtraError: If scikit-learn, matplotlib or rich is not installed.
            OSError: If the folder cannot be made.
        """
        demo = cls(folder, settings)
        if demo.checkpoint_path.exists():
            raise DemoError(
                f"{folder} has an unfinished run; continue it with --resume, choose another "
                "--name, or delete the folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        demo.result_path.unlink(missing_ok=True)
        demo.curves_path.unlink(missing_ok=True)
        return demo

    @classmethod
    def resume(cls, folder: Path, given: dict[str, Any]) -> "Demo":
        """Prepare to go on with an unfinished run, with the settings it was started with.

        Args:
            folder: Where the run is kept.
            given: Settings that were asked for again; they must be those of the run.

        Raises:
            DemoError: If there is no unfinished run, its checkpoint is damaged, or it has other
                settings.
            MissingExtraError: If scikit-learn, matplotlib or rich is not installed.
        """
        demo = cls(folder, Settings())
        if not demo.checkpoint_path.exists():
            what = "a finished run" if demo.result_path.exists() else "no run"
            raise DemoError(f"{folder} has {what}, nothing to resume; start without --resume")
        try:
            state = read_checkpoint(demo.checkpoint_path)
        except ValueError as error:
            raise DemoError(str(error)) from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise DemoError(
                f"{demo.checkpoint_path} is no checkpoint of this version's demo; delete it to "
                "start over"
            )
        demo.settings = Settings(**state["settings"])
        for name, value in given.items():
            if value != state["settings"][name]:
                option = "--" + name.replace("_", "-")
                raise DemoError(
                    f"argument {option}: the run in {folder} has {state['settings'][name]}, got "
                    f"{value}; leave {option} out with --resume, or start a run with another --name"
                )
        demo.results = state["results"]
        demo._trainer_state = state["trainer"]
        demo._elapsed_before = state["elapsed_s"]
        return demo

    @property
    def checkpoint_path(self) -> Path:
        """Everything needed to go on; there while the run is unfinished."""
        return self.folder / "checkpoint.pt"

    @property
    def result_path(self) -> Path:
        """The results; there when the run is finished."""
        return self.folder / "result.json"

    @property
    def curves_path(self) -> Path:
        """The learning curves; there when the run is finished."""
        return self.folder / "curves.png"

    @property
    def elapsed_s(self) -> float:
        """Seconds spent on the run so far, by all processes together."""
        return self._elapsed_before + time.monotonic() - self._began

    @property
    def position(self) -> str:
        """Where the run is, in words."""
        data, optimizer = CASES[min(len(self.results), len(CASES) - 1)]
        if self._trainer is None:
            return f"{data} data, {optimizer}"
        batches, n_epochs = self._trainer.batches, self._trainer.epochs
        epoch = min(len(self._trainer.history) + 1, n_epochs)
        return (
            f"{data} data, {optimizer}, epoch {epoch} of {n_epochs}, batch {batches.position} of "
            f"{len(batches)}"
        )

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> bool:
        """Train all cases that are left, and write the results.

        Sets the number of torch's threads. A checkpoint is written after every epoch and when
        asked to stop.

        Args:
            should_stop: Asked after every batch.
            progress: Told about everything. Default: nothing is shown.

        Returns:
            Whether the run is finished; else it stopped, and `resume` goes on with it.

        Raises:
            DivergedError: If a loss is not finite; the run cannot be resumed then.
            OSError: If a file cannot be written.
        """
        torch.set_num_threads(self.settings.threads)
        with progress or NoProgress() as shown:
            self._start_progress(shown)
            for data, optimizer in CASES[len(self.results) :]:
                if not self._run_case(data, optimizer, should_stop, shown):
                    self.save()
                    return False
        self._write_results()
        return True

    def save(self) -> None:
        """Write the checkpoint."""
        trainer = None if self._trainer is None else self._trainer.state_dict()
        state = {
            "format": _FORMAT,
            "settings": self.settings.as_dict(),
            "results": self.results,
            "trainer": trainer,
            "elapsed_s": self.elapsed_s,
        }
        write_checkpoint(self.checkpoint_path, state)

    def _start_progress(self, progress: Progress) -> None:
        per_case = self.settings.epochs * -(-self.settings.train_size // self.settings.batch_size)
        n_done = len(self.results) * per_case
        if self._trainer_state is not None:
            n_done += len(self._trainer_state["step_s"])
        progress.start(len(CASES) * per_case, n_done, self.settings.epochs)

    def _run_case(
        self, data: str, optimizer: str, should_stop: Callable[[], bool], progress: Progress
    ) -> bool:
        trainer = self._trainer = build_trainer(data, optimizer, self.settings)
        if self._trainer_state is not None:
            trainer.load_state_dict(self._trainer_state)
            self._trainer_state = None
        progress.start_case(data, optimizer)

        def on_epoch(record: dict[str, float]) -> None:
            self.save()
            progress.on_epoch(record)

        try:
            is_finished = trainer.run(
                should_stop=should_stop, on_batch=progress.on_batch, on_epoch=on_epoch
            )
        except DivergedError:
            self.checkpoint_path.unlink(missing_ok=True)
            raise
        if is_finished:
            self.results.append(summarize(data, optimizer, trainer))
            self._trainer = None
            progress.finish_case(self.results[-1])
        return is_finished

    def _write_results(self) -> None:
        write_atomically(self.curves_path, lambda file: draw_curves(self.results, file))
        write_json(
            self.result_path,
            {
                "cases": self.results,
                "settings": self.settings.as_dict(),
                "environment": backends.info(),
                "elapsed_s": self.elapsed_s,
            },
        )
        # Last, so that a run without its results still counts as unfinished.
        self.checkpoint_path.unlink(missing_ok=True)
