"""Measure contenders in turns: kernel time, graph replay, whole step, host time, memory."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from bench import report
from bench.contenders import Contender
from bench.gpu import measure
from bench.gpu.measure import Launches
from bench.gpu.part import first_line
from bench.timing import Spread, Step, interleave

# Gets whether to build for the capture in a graph.
Builder = Callable[[bool], Contender]
KERNELS, GRAPH, WHOLE, HOST = "kernels", "graph", "whole", "host"


@dataclass(frozen=True)
class Effort:
    """How often to measure.

    Attributes:
        n_profiles: Profiles of each contender, in turns.
        n_profiled: Steps in each.
        seconds: Time of each of the other figures.
        min_rounds: Turns of each contender even if that takes longer.
        max_rounds: Turns after which to stop.
        n_captured: Steps in one graph.
    """

    n_profiles: int = 5
    n_profiled: int = 4
    seconds: float = 0.6
    min_rounds: int = 5
    max_rounds: int = 200
    n_captured: int = 5


FULL = Effort()
QUICK = Effort(n_profiles=3, n_profiled=3, seconds=0.25, min_rounds=3, n_captured=4)
HURRIED = Effort(n_profiles=3, n_profiled=2, seconds=0.2, min_rounds=3, n_captured=4)
DRY = Effort(n_profiles=1, n_profiled=1, seconds=0.0, min_rounds=1, max_rounds=1, n_captured=1)


def effort_of(options: object) -> Effort:
    """Return the effort that the command line asks for."""
    return DRY if options.dry_run else QUICK if options.quick else FULL


@dataclass
class Measured:
    """The figures of one table.

    Attributes:
        timings: Seconds per step by figure and contender; `report.STREAM` is the copy.
        launches: Of one step, by contender.
        extra_bytes: Peak memory of a step beyond what is held, by contender.
        reasons: Why a figure is missing, by contender and figure.
        copy_bytes: Bytes that the copy moves.
    """

    timings: dict[str, dict[str, Spread]] = field(default_factory=dict)
    launches: dict[str, Launches] = field(default_factory=dict)
    extra_bytes: dict[str, int | None] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    copy_bytes: int = 0

    def fail(self, name: str, figure: str, reason: str) -> None:
        """Keep why a figure is missing."""
        self.reasons.setdefault(name, {})[figure] = reason


def settle() -> None:
    """Import what the first optimizer imports, and spare the collector all that is imported."""
    torch.optim.SGD([torch.zeros(1)])
    gc.collect()
    gc.freeze()


def release(device: torch.device) -> None:
    """Give freed memory back, so that the next table does not meet the fragments of this one."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_timings(
    builders: Mapping[str, Builder],
    measured: Measured,
    *,
    device: torch.device,
    effort: Effort,
    graphs: bool = True,
) -> None:
    """Measure whole step, host time, memory and graph replay of some contenders, in turns.

    Args:
        builders: Contenders by name; one that cannot be built or run is left out, with a reason.
        measured: Gets the figures.
        device: Where the parameters are.
        effort: How often.
        graphs: Replay steps from CUDA graphs too.
    """
    steps = _running_steps(builders, measured, device)
    rounds = {
        "seconds": effort.seconds,
        "min_rounds": effort.min_rounds,
        "max_rounds": effort.max_rounds,
        "warmup": 1,
    }
    measured.timings[WHOLE] = interleave(steps, clock=measure.host_clock(device), **rounds)
    measured.timings[HOST] = interleave(
        steps, clock=time.perf_counter, before=lambda: measure.synchronize(device), **rounds
    )
    steps.clear()
    release(device)
    if graphs:
        _time_graphs(builders, measured, device, effort, rounds)
        release(device)


def measure_kernels(
    builders: Mapping[str, Builder],
    measured: Measured,
    *,
    device: torch.device,
    effort: Effort,
    copy_bytes: int,
) -> None:
    """Measure kernel times and launches of some contenders, and a copy, in turns.

    What the profiler leaves behind may slow the host down: to be called after all
    `measure_timings` of a process.

    Args:
        builders: Contenders by name.
        measured: Gets the figures.
        device: Where the parameters are.
        effort: How often.
        copy_bytes: What the copy that stands for the bandwidth is to move.
    """
    steps = _running_steps(builders, measured, device)
    copy, measured.copy_bytes = measure.build_copy(copy_bytes, device)
    _profile(steps, copy, measured, device, effort)
    steps.clear()
    del copy
    release(device)


def _running_steps(
    builders: Mapping[str, Builder], measured: Measured, device: torch.device
) -> dict[str, Step]:
    """Return the steps that can be built and run; take the first ones, and their memory."""
    steps: dict[str, Step] = {}
    for name, builder in builders.items():
        if "all" in measured.reasons.get(name, {}):
            continue
        try:
            step = builder(False).step
            for _ in range(2):
                step()
            measured.extra_bytes[name] = measure.extra_memory(step, device)
            steps[name] = step
        except Exception as error:
            measured.fail(name, "all", first_line(error))
    return steps


def _profile(
    steps: Mapping[str, Step], copy: Step, measured: Measured, device: torch.device, effort: Effort
) -> None:
    """Take kernel times and launches by the profiler, in turns."""
    names = [*steps, report.STREAM]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(effort.n_profiles):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            try:
                launches = measure.profile(steps.get(name, copy), effort.n_profiled, device)
            except (RuntimeError, ValueError, KeyError) as error:
                measured.fail(name, KERNELS, first_line(error))
                continue
            seconds[name].append(launches.seconds)
            if name != report.STREAM:
                measured.launches[name] = launches
    measured.timings[KERNELS] = {
        name: Spread(tuple(values))
        for name, values in seconds.items()
        if len(values) == effort.n_profiles
    }


def _time_graphs(
    builders: Mapping[str, Builder],
    measured: Measured,
    device: torch.device,
    effort: Effort,
    rounds: Mapping[str, float],
) -> None:
    """Time the replay of captured steps by events, in turns."""
    replays: dict[str, Step] = {}
    kept = []
    for name, builder in builders.items():
        if "all" in measured.reasons.get(name, {}):
            continue
        try:
            contender = builder(True)
            if device.type == "cuda":
                replays[name] = measure.capture(contender.step, effort.n_captured)
            else:
                measured.fail(name, GRAPH, "no graphs on a CPU")
            kept.append(contender)
        except Exception as error:
            measured.fail(name, GRAPH, first_line(error))
            measure.synchronize(device)
    if not replays:
        return
    timings = interleave(replays, clock=measure.EventClock(), **rounds)
    measured.timings[GRAPH] = {
        name: Spread(tuple(value / effort.n_captured for value in spread.values))
        for name, spread in timings.items()
    }
