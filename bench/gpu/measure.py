"""Clocks, kernel times, graphs and memory of a CUDA device; plain stand-ins on a CPU."""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bench.timing import Clock, Step

# Kineto's categories of what runs on the device. Annotations of ranges also appear there, under a
# name of their own, and would count twice.
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
# What stands for them in a rehearsal.
HOST_WORK = ("cpu_op",)


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_clock(device: torch.device) -> Clock:
    """Return a host clock that is read when the device is idle."""

    def read() -> float:
        synchronize(device)
        return time.perf_counter()

    return read


class EventClock:
    """The device's own clock, read by events.

    Each reading adds the time since the one before: the resolution of an event's float32
    milliseconds would suffer from a start far away.
    """

    def __init__(self):
        self._seconds = 0.0
        self._last: Any = None

    def __call__(self) -> float:
        """Wait for all queued work; return seconds since the first call."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:
            self._seconds += self._last.elapsed_time(event) / 1e3
        self._last = event
        return self._seconds


@dataclass(frozen=True)
class Launches:
    """What a step runs on the device.

    Attributes:
        seconds: Sum of the durations per step.
        counts: Launches per step by kernel name.
        us: Microseconds per step by kernel name.
    """

    seconds: float
    counts: dict[str, float]
    us: dict[str, float]

    @property
    def n_launches(self) -> float:
        """Launches per step, copies and fills included."""
        return sum(self.counts.values())


def parse_trace(
    trace: Mapping[str, Any], n_steps: int, categories: tuple[str, ...] = DEVICE_WORK
) -> Launches:
    """Return what a Chrome trace of torch.profiler says about `n_steps` steps."""
    counts: dict[str, float] = defaultdict(float)
    us: dict[str, float] = defaultdict(float)
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") in categories:
            counts[event["name"]] += 1 / n_steps
            us[event["name"]] += float(event["dur"]) / n_steps
    return Launches(sum(us.values()) / 1e6, dict(counts), dict(us))


def profile(step: Step, n_steps: int, device: torch.device) -> Launches:
    """Run steps under torch.profiler; return what each ran on the device.

    Raises:
        RuntimeError: If the profiler saw nothing.
    """
    on_device = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU
    synchronize(device)
    with torch.profiler.profile(activities=[activity]) as profiler:
        for _ in range(n_steps):
            step()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        text = path.read_text(encoding="utf-8", errors="replace")
    trace = json.loads(text, strict=False)
    launches = parse_trace(trace, n_steps, DEVICE_WORK if on_device else HOST_WORK)
    if not launches.counts:
        raise RuntimeError("the profiler recorded no kernel")
    return launches


def capture(step: Step, n_steps: int) -> Callable[[], None]:
    """Capture steps in one CUDA graph; return the function that replays it.

    The steps before the capture, on a stream of their own, create state and load kernels.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(n_steps):
            step()
    return graph.replay


def extra_memory(step: Step, device: torch.device) -> int | None:
    """Return the most bytes that a step allocates beyond what is there before it."""
    if device.type != "cuda":
        step()
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def build_copy(n_bytes: int, device: torch.device) -> tuple[Step, int]:
    """Return a device-to-device copy that moves about `n_bytes`, and the bytes that it moves.

    Bytes read and bytes written both count. The source is not constant: memory compression and
    the power that bits take would flatter zeros.
    """
    n_elements = max(n_bytes // 8, 1)
    source = torch.rand(n_elements, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 8 * n_elements
