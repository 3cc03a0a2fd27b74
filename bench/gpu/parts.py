"""What the GPU check runs, in which order, and for how long at most."""

import sys
from collections.abc import Sequence
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
        by_default: Also where --parts does not name it.
        least_s: Seconds that the stages before leave for it.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    stage: int
    log: str = "parts"
    needs: tuple[str, ...] = ("environment", "build")
    is_extra: bool = False
    in_quick: bool = True
    by_default: bool = True
    least_s: float = 0.0

    def command(self, options: list[str]) -> list[str]:
        """Return the command line of the process."""
        return [sys.executable, *self.arguments, *options]


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Return what runs a module of this package."""
    return ("-m", f"bench.gpu.{name}", *arguments)


def left_for_later(parts: Sequence[Part], stage: int) -> float:
    """Return the seconds that parts of a stage must leave for the stages after it."""
    least: dict[int, float] = {}
    for part in parts:
        if part.stage > stage:
            least[part.stage] = max(part.least_s, least.get(part.stage, 0.0))
    return sum(least.values())


def triton(name: str, *arguments: str) -> tuple[str, ...]:
    """Return what runs a module of this package for the Triton backend."""
    return module(name, *arguments, "--backend", "triton")


ALONE = ("environment",)
# The other tools need more time, and are for what Triton's compiler takes care of.
MEMCHECK = triton("sanitizer", "--tools", "memcheck")
# The sum of the stages' limits exceeds the budget: the build and the checks need a part of theirs.
# Triton has processes of its own: an illegal access ends all work of a process on the device. Its
# parts try without the build too, which may fail for want of nvcc.
PARTS = (
    Part("environment", module("environment"), 60, 0, needs=()),
    Part("build", module("build"), 240, 1, log="build", needs=ALONE),
    Part("tests-device", module("run_tests", "--suite", "device"), 110, 2, "tests", least_s=40),
    Part("tests-generic", module("run_tests", "--suite", "generic"), 110, 2, "tests"),
    Part("steps", module("sanitize"), 80, 2),
    Part("options", module("options", "--workers", "2"), 80, 2),
    Part("graphs", module("graphs"), 80, 2),
    Part("sanitizer", module("sanitizer"), 110, 2, "sanitizer"),
    Part("tests-triton", triton("run_tests", "--suite", "device"), 90, 3, "triton", ALONE),
    Part("steps-triton", triton("sanitize"), 90, 3, "triton", ALONE, least_s=40),
    Part("options-triton", triton("options", "--workers", "6"), 90, 3, "triton", ALONE),
    Part("graphs-triton", triton("graphs"), 90, 3, "triton", ALONE),
    Part("agreement", module("agreement"), 90, 3),
    Part("tests-tricks", module("run_tests", "--suite", "tricks"), 90, 3, "tests"),
    Part("memcheck-triton", MEMCHECK, 90, 3, "triton", ALONE, is_extra=True),
    # Without the build, torch's figures and the copy are still worth having.
    Part("bench", module("bench_gpu"), 170, 4, needs=ALONE, least_s=110),
    Part("host", module("host"), 40, 5, needs=ALONE, least_s=25),
    Part("first-step", module("first_step"), 60, 6, needs=ALONE, least_s=30),
    Part("batch", module("batch"), 40, 7, needs=ALONE, is_extra=True),
    Part("compiled", module("compiled"), 70, 8, is_extra=True, in_quick=False),
    Part("tunables", module("tunables"), 90, 9, is_extra=True),
    Part(
        "generic-triton",
        triton("run_tests", "--suite", "generic"),
        240,
        10,
        "triton",
        is_extra=True,
        by_default=False,
    ),
)
