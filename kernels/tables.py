"""Tables on the device: kept between steps, uploaded again only when their contents change.

Note [Captured graphs]
While a CUDA graph is captured, an upload becomes part of the graph: each replay copies from the
same page-locked memory to the same place, and the kernels read the same tables. So all that a
capture has used is kept for as long as the process lives; nothing tells when a graph is gone. It is
a few kilobytes for each captured step.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")

_kept_for_graphs: list[Any] = []


class Recent(Generic[Value]):
    """A dict of the most recently used values."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """Return the value of `key`, None if there is none."""
        value = self._values.get(key)
        if value is not None:
            # Another thread may have put out the key meanwhile.
            with contextlib.suppress(KeyError):
                self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> Value:
        """Keep a value, in place of the one that was not used for longest."""
        self._values[key] = value
        if len(self._values) > self._size:
            self._values.popitem(last=False)
        return value


def stream_of(device: torch.device) -> int:
    """Return what identifies the current stream of a device."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def is_capturing(device: torch.device) -> bool:
    """Return whether the current stream is being captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def keep_for_graphs(*objects: Any) -> None:
    """Keep what a captured graph uses."""
    _kept_for_graphs.extend(objects)


def upload(values: Tensor, device: torch.device) -> "Uploaded":
    """Copy values from the CPU to the device without waiting."""
    if device.type == "cpu":
        return Uploaded(values)
    # torch reuses page-locked memory only after the copy.
    return Uploaded(values.pin_memory().to(device, non_blocking=True))


class Uploaded:
    """Values on the device, for kernels on any stream."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._streams = {stream_of(values.device)}
        self._is_there = None
        if values.is_cuda:
            self._is_there = torch.cuda.current_stream(values.device).record_event()

    def get(self, stream: int) -> Tensor:
        """Return the values for a kernel on the current stream, `stream`."""
        # What a capture uses was uploaded before it began, and is kept.
        if stream not in self._streams and not is_capturing(self._values.device):
            current = torch.cuda.current_stream(self._values.device)
            current.wait_event(self._is_there)
            self._values.record_stream(current)
            self._streams.add(stream)
        return self._values


class Table:
    """Eight-byte numbers of a call on the device, int64 or float64.

    The last contents stay there, up to a megabyte: gradients may lie elsewhere at each step, mostly
    at one of a few places in turn, and optimizers of equal layouts share a table.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, length: int) -> None:
        self._device = device
        self._dtype = dtype
        self._length = max(length, 1)
        self._uploaded: Recent[Uploaded] = Recent(max(4, min(64, 2**17 // self._length)))
        self._spares = self._page_locked()

    def _page_locked(self) -> list[Tensor]:
        """Return memory for captured steps; there may be none to be had during a capture."""
        if self._device.type == "cpu":
            return []
        n = max(2, min(8, 2**13 // self._length))
        shape = (n, self._length)
        return list(torch.empty(shape, dtype=self._dtype, device="cpu", pin_memory=True))

    def get(self, contents: bytes, stream: int) -> Tensor:
        """Return the contents on the device, for a kernel on the current stream, `stream`."""
        # A bytearray, because torch warns of read-only memory.
        if is_capturing(self._device):
            return self._captured(torch.frombuffer(bytearray(contents), dtype=self._dtype))
        table = self._uploaded.get(contents)
        if table is None:
            self._spares = self._spares or self._page_locked()
            values = torch.frombuffer(bytearray(contents or bytes(8)), dtype=self._dtype)
            table = self._uploaded.put(contents, upload(values, self._device))
        return table.get(stream)

    def _captured(self, values: Tensor) -> Tensor:
        source = (self._spares or self._page_locked()).pop()
        source.copy_(values)
        keep_for_graphs(source)
        return source.to(self._device, non_blocking=True)


class Ticket:
    """The counter by which the programs of a launch tell which of them is the last.

    Note [Last program]
    Work that needs all programs is done by the one that finishes last, which saves a launch. It
    does not matter which one that is: what it does has a fixed order. It sets the ticket back to
    zero. Launches that may run at the same time must not share one: each stream has its own, and
    so has each captured launch, set to zero by each replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tickets: dict[int, Tensor] = {}

    def get(self, stream: int) -> Tensor:
        """Return an int32 that is zero when the next launch on `stream` begins."""
        if is_capturing(self._device):
            return torch.zeros(1, dtype=torch.int32, device=self._device)
        ticket = self._tickets.get(stream)
        if ticket is None:
            ticket = torch.zeros(1, dtype=torch.int32, device=self._device)
            self._tickets[stream] = ticket
        return ticket


def refuse_capture(op: str, device: torch.device) -> None:
    """Refuse to prepare tables in the middle of a capture."""
    if is_capturing(device):
        raise RuntimeError(
            f"{op}: call it with tensors of the same layouts before capturing it in a CUDA graph; "
            "a capture cannot prepare what its kernels need"
        )
