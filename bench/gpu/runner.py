"""Run parts as processes with time limits, and keep what became of each."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.gpu.part import NOT_AVAILABLE, ROOT, Deadline
from bench.gpu.parts import Part, left_for_later

OK, FAILED, TIMED_OUT, MISSING, SKIPPED = "ok", "failed", "timed out", "not available", "skipped"
# What timeout(1) ends with: its own status, or that of a process it had to kill.
TIMEOUT_STATUSES = (124, 137)
KILL_AFTER_S = 10
# Less is not worth the start of a process that imports torch.
LEAST_S = 8.0
# A part that paces itself gets this share of its limit: it has to start and to end, too.
PACED_SHARE = 0.85
SHOWN_LINES = 15


@dataclass
class Status:
    """What became of a part."""

    name: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    is_extra: bool = False

    @property
    def is_failure(self) -> bool:
        """Whether the whole check fails with it."""
        if self.status == FAILED:
            return True
        return self.status in (TIMED_OUT, SKIPPED) and not self.is_extra

    def as_row(self) -> dict[str, object]:
        """Return what the JSON holds."""
        return asdict(self)


class Runner:
    """Runs parts one stage after the other, those of a stage at the same time.

    Args:
        folder: Existing folder for results and logs, `<part>.json` and `<part>.log`.
        deadline: Of all parts together.
        options: Options for every part.
        on_done: Called after each part.
        scale: Factor on the parts' limits.
    """

    def __init__(
        self,
        folder: Path,
        deadline: Deadline,
        *,
        options: list[str],
        on_done: Callable[[], None] = lambda: None,
        scale: float = 1.0,
    ):
        self.folder = folder
        self.deadline = deadline
        self.options = options
        self.on_done = on_done
        self.scale = scale
        self.statuses: dict[str, Status] = {}
        self._parts: tuple[Part, ...] = ()
        self._running: set[subprocess.Popen] = set()
        self._stopped = ""
        self._lock = threading.Lock()

    def run(self, parts: tuple[Part, ...]) -> list[Status]:
        """Run the parts; return what became of them, in their order."""
        self._parts = parts
        for stage in sorted({part.stage for part in parts}):
            threads = [
                threading.Thread(target=self._run_and_report, args=(part,))
                for part in parts
                if part.stage == stage
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return [self.statuses[part.name] for part in parts]

    def stop(self, reason: str) -> None:
        """End what runs and start nothing more."""
        self._stopped = reason
        for process in list(self._running):
            process.terminate()

    def _say(self, text: str) -> None:
        elapsed, left = self.deadline.elapsed, self.deadline.left
        # In one piece: several threads speak.
        sys.stdout.write(f"[{elapsed:4.0f} s, {left:4.0f} s left] {text}\n")
        sys.stdout.flush()

    def _run_and_report(self, part: Part) -> None:
        try:
            status = self._run(part)
        except Exception as error:
            status = Status(part.name, FAILED, 0.0, f"{type(error).__name__}: {error}")
        status.is_extra = part.is_extra
        with self._lock:
            self.statuses[part.name] = status
            reason = f": {status.reason}" if status.reason else ""
            self._say(f"{part.name}: {status.status} after {status.seconds:.1f} s{reason}")
            if status.status in (FAILED, TIMED_OUT):
                for line in tail_lines(self.folder / f"{part.name}.log", SHOWN_LINES):
                    print(f"    {line}")
            self.on_done()

    def _obstacle(self, part: Part) -> str:
        """Return why a part is not started, empty if it is."""
        if self._stopped:
            return self._stopped
        for name in part.needs:
            if name in self.statuses and self.statuses[name].status != OK:
                return f"{name} did not succeed"
        if self._limit(part) < min(LEAST_S, part.limit_s * self.scale):
            return "no time left"
        return ""

    def _limit(self, part: Part) -> float:
        """Return the most seconds of a part: its own, less what later stages need."""
        left = self.deadline.left
        reserved = left_for_later(self._parts, part.stage) * self.scale
        usable = max(left - reserved, part.least_s * self.scale)
        return min(part.limit_s * self.scale, usable, left)

    def _run(self, part: Part) -> Status:
        obstacle = self._obstacle(part)
        if obstacle:
            return Status(part.name, SKIPPED, 0.0, obstacle)
        limit = self._limit(part)
        self._say(f"{part.name}: starts, {limit:.0f} s at most")
        start = time.monotonic()
        code = self._wait(part, limit)
        seconds = time.monotonic() - start
        if code in TIMEOUT_STATUSES and seconds >= limit - 1:
            return Status(part.name, TIMED_OUT, seconds, f"stopped after {limit:.0f} s")
        if self._stopped and code != 0:
            return Status(part.name, FAILED, seconds, self._stopped)
        known = {0: OK, NOT_AVAILABLE: MISSING}
        return Status(part.name, known.get(code, FAILED), seconds, self._reason(part, code))

    def _wait(self, part: Part, limit: float) -> int:
        paced = ["--out", str(self.folder / f"{part.name}.json")]
        paced += ["--seconds", f"{limit * PACED_SHARE:.0f}", *self.options]
        command = part.command(paced)
        # INT, at which pytest still reports; timeout(1) ends the whole group of the process.
        if shutil.which("timeout"):
            limits = ["timeout", "--signal=INT", f"--kill-after={KILL_AFTER_S}", f"{limit:.0f}"]
            command = [*limits, *command]
        with open(self.folder / f"{part.name}.log", "w", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=part_environment()
            )
            self._running.add(process)
            try:
                return process.wait()
            finally:
                self._running.discard(process)

    def _reason(self, part: Part, code: int) -> str:
        """Return the reason that a part printed last, or its exit status."""
        for line in reversed(tail_lines(self.folder / f"{part.name}.log", SHOWN_LINES)):
            for start in ("failed: ", "not available: "):
                if line.startswith(start):
                    return line.removeprefix(start)
        return "" if code == 0 else f"exit status {code}; see log-{part.log}.txt"


def part_environment() -> dict[str, str]:
    """Return the environment variables of the parts."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        # Many parts at a time: threads that wait for each other's processor cost more than they
        # give.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Silences the profiler's own lines.
        "KINETO_LOG_LEVEL": "99",
        # As torch sets them where CUDA graphs and the profiler meet: the profiler's library stays.
        "DISABLE_CUPTI_LAZY_REINIT": "1",
        "TEARDOWN_CUPTI": "0",
    }


def tail_lines(path: Path, n_lines: int) -> list[str]:
    """Return the last lines of a file, none if it is not there."""
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:]
