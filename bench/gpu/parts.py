"""What the GPU check runs, in which order, and for how long at most."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A process of the check.

    Attributes:
        name: Identifier.
        arguments: What follows `python`; the options that all parts have are added.
        limit_s: Most seconds.
        stage: Parts of equal stage run at the same time: checks share the device, measurements
            have it for themselves.
        log: Name of the log file that its output goes to.
        needs: Parts that must have succeeded.
        is_extra: What does not come to run, or not to its end, for lack of time is no failure.
        in_quick: Also with --quick.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    stage: int
    log: str = "parts"
    needs: tuple[str, ...] = ("environment", "build")
    is_extra: bool = False
    in_quick: bool = True

    def command(self, options: list[str]) -> list[str]:
        """Return the command line of the process."""
        return [sys.executable, *self.arguments, *options]


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Return what runs a module of this package."""
    return ("-m", f"bench.gpu.{name}", *arguments)


# The sum of the stages' limits exceeds the budget: the build and the checks need a part of theirs.
PARTS = (
    Part("environment", module("environment"), 60, 0, needs=()),
    Part("build", module("build"), 240, 1, log="build", needs=("environment",)),
    Part("tests-device", module("run_tests", "--suite", "device"), 120, 2, log="tests"),
    Part("tests-generic", module("run_tests", "--suite", "generic"), 120, 2, log="tests"),
    Part("steps", module("sanitize"), 90, 2),
    Part("agreement", module("agreement"), 90, 2),
    Part("graphs", module("graphs"), 90, 2),
    Part("sanitizer", module("sanitizer"), 130, 2, log="sanitizer"),
    # Without the build, torch's figures and the copy are still worth having.
    Part("bench", module("bench_gpu"), 170, 3, needs=("environment",)),
    Part("compiled", module("compiled"), 70, 4, is_extra=True, in_quick=False),
    Part("tunables", module("tunables"), 90, 5, is_extra=True),
)
