"""The check for a machine with an NVIDIA GPU: build, test, sanitize, measure, in 8 minutes.

Every part runs even if another fails, but what needs the build is left out where there is none.
OUT_DIR gets gpu.json, summary.md and the ends of the logs; JSON and summary are rewritten after
every part, so that a run that is cut off leaves what it had. The exit status is 0 if no part
failed.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.part import Deadline
from bench.gpu.parts import PARTS, Part
from bench.gpu.runner import Runner
from bench.gpu.summary import Summary

EXAMPLE = "bench/gpu_check.sh /tmp/gpu-check --dry-run"
BUDGET_S = 465.0
# A rehearsal may share its processors with other tests.
DRY_RUN_SCALE = 4.0


def parse(arguments: Sequence[str] | None, parts: tuple[Part, ...]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu_check.sh",
        description=__doc__,
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in parts]
    add = parser.add_argument
    add("out_dir", type=Path, metavar="OUT_DIR", help="folder for the results; made if missing")
    add("--dry-run", action="store_true", help="rehearse on the CPU; needs no GPU")
    add("--quick", action="store_true", help="fewer repetitions, for a second run")
    only = f"only these of: {', '.join(names)}"
    add("--parts", nargs="+", choices=names, metavar="PART", help=only)
    add("--skip", nargs="+", choices=names, default=[], metavar="PART", help="all but these")
    add("--budget", type=float, default=BUDGET_S, help="seconds (default: %(default)s)")
    return parser.parse_args(arguments)


def chosen_parts(options: argparse.Namespace, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the parts that the command line asks for."""
    return tuple(
        part
        for part in parts
        if (part.name in options.parts if options.parts else _is_default(part, options.quick))
        and part.name not in options.skip
    )


def _is_default(part: Part, quick: bool) -> bool:
    return part.by_default and (part.in_quick or not quick)


def main(arguments: Sequence[str] | None = None, parts: tuple[Part, ...] = PARTS) -> int:
    """Run the check; return its exit status.

    Args:
        arguments: Command line. Default: that of the process.
        parts: What to run. Default: everything.
    """
    options = parse(arguments, parts)
    out_dir = options.out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    chosen = chosen_parts(options, parts)
    scale = DRY_RUN_SCALE if options.dry_run else 1.0
    flags = ["--dry-run"] * options.dry_run + ["--quick"] * options.quick
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        folder = Path(name)
        deadline = Deadline(options.budget * scale)
        runner = Runner(folder, deadline, options=flags, scale=scale)
        summary = Summary(out_dir, folder, chosen, runner.statuses, flags)
        runner.on_done = summary.write

        def stop(number: int, frame: object) -> None:
            runner.stop(f"stopped by signal {number}")

        before = [signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            statuses = runner.run(chosen)
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)
        summary.write()
        print(summary.closing_text())
    return 1 if any(status.is_failure for status in statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
