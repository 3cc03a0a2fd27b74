"""Write gpu.json, summary.md and the ends of the logs from the results of the parts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.gpu import goals
from bench.gpu.part import DRY_RUN_NOTE, write_text
from bench.gpu.parts import Part
from bench.gpu.runner import Status, tail_lines

STATUS_HEADER = ("part", "status", "seconds", "remark")
BENCH = "bench"
LOG_BYTES = 200_000
JSON_BYTES = 2_500_000
# What there is in a run's output besides the statuses.
OVERVIEWS = ("Overview", goals.TITLE)


class Summary:
    """The files of a run, rewritten from what is there.

    Args:
        out_dir: Where the files go.
        folder: Where the parts leave their results and logs.
        parts: What the run consists of.
        statuses: What became of the parts so far; filled while they run.
        flags: Options of the run.
    """

    def __init__(
        self,
        out_dir: Path,
        folder: Path,
        parts: Sequence[Part],
        statuses: Mapping[str, Status],
        flags: Sequence[str],
    ):
        self.out_dir, self.folder = out_dir, folder
        self.parts, self.statuses, self.flags = parts, statuses, flags

    @property
    def _is_rehearsal(self) -> bool:
        return "--dry-run" in self.flags

    def write(self) -> None:
        """Write all files."""
        results = {part.name: self._result(part) for part in self.parts}
        text = json.dumps(self._content(results), indent=1)
        if len(text) > JSON_BYTES:
            # Without the rows of the largest part, rather than not at all.
            largest = max(results, key=lambda name: len(json.dumps(results[name]["rows"])))
            results[largest]["rows"] = []
            text = json.dumps(self._content(results), indent=1)
        write_text(self.out_dir / "gpu.json", text + "\n")
        write_text(self.out_dir / "summary.md", self._markdown(results))
        for log in sorted({part.log for part in self.parts}):
            write_text(self.out_dir / f"log-{log}.txt", self._log_text(log))

    def closing_text(self) -> str:
        """Return what ends the output of a run: the overview and the statuses."""
        results = {part.name: self._result(part) for part in self.parts}
        sections = results.get(BENCH, {}).get("sections", [])
        overviews = [text for title, text in sections if title.startswith(OVERVIEWS)]
        statuses = report.text_table(STATUS_HEADER, self._status_cells())
        head = f"{DRY_RUN_NOTE}s in here\n" if self._is_rehearsal else ""
        overviews = [f"\n{text}" for text in overviews]
        return "\n".join([*overviews, "", f"{head}{statuses}", f"results: {self.out_dir}"])

    def _result(self, part: Part) -> dict[str, Any]:
        path = self.folder / f"{part.name}.json"
        empty: dict[str, Any] = {"environment": {}, "rows": [], "sections": []}
        if not path.exists():
            return empty
        return empty | json.loads(path.read_text(encoding="utf-8"))

    def _content(self, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        return {
            "dry_run": self._is_rehearsal,
            "flags": list(self.flags),
            "environment": self._environment(results),
            "parts": [status.as_row() for status in self._known()],
            "goals": goals.evaluate(results.get(BENCH, {}).get("rows", [])),
            "results": results.get(BENCH, {}).get("rows", []),
            "details": {name: item["rows"] for name, item in results.items() if name != BENCH},
        }

    def _environment(self, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        return results.get("environment", {}).get("environment", {})

    def _known(self) -> list[Status]:
        """Return the statuses in the order of the parts, "not run yet" for those to come."""
        waiting = (Status(part.name, "not run yet", is_extra=part.is_extra) for part in self.parts)
        return [self.statuses.get(status.name, status) for status in waiting]

    def _status_cells(self) -> list[tuple[str, ...]]:
        return [
            (status.name, status.status, f"{status.seconds:.1f}", status.reason or "-")
            for status in self._known()
        ]

    def _markdown(self, results: Mapping[str, dict[str, Any]]) -> str:
        device = self._environment(results).get("device", "unknown device")
        blocks = [f"# GPU check: {device}"]
        if self._is_rehearsal:
            blocks.append(f"**{DRY_RUN_NOTE}: every table in here is a rehearsal on the CPU.**")
        cells = [tuple(cell.replace("|", "/") for cell in cells) for cells in self._status_cells()]
        blocks.append(f"## Parts\n\n{report.markdown_table(STATUS_HEADER, cells)}")
        ordered = sorted(self.parts, key=lambda part: part.name not in ("environment", BENCH))
        for part in ordered:
            for title, text in results[part.name]["sections"]:
                blocks.append(f"## {title}\n\n{text}")
        return "\n\n".join(blocks) + "\n"

    def _log_text(self, log: str) -> str:
        """Return the ends of the logs that share a file, equal shares of what it may hold."""
        parts = [part for part in self.parts if part.log == log]
        share = LOG_BYTES // len(parts)
        blocks = []
        for part in parts:
            lines = tail_lines(self.folder / f"{part.name}.log", 5000)
            blocks.append(f"==== {part.name}\n" + "\n".join(lines)[-share:])
        return "\n\n".join(blocks) + "\n"
