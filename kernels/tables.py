"""Tables on the device: kept between steps, uploaded again only when their contents change.

Note [Captured graphs]
While a CUDA graph is captured, an upload becomes part of the graph: each replay copies from the
same page-locked memory to the same place, and the kernels read the same tables. So all that a
capture has used is kept for as long as the process lives; nothing tells when a graph is gone. It is
a few kilobytes for each captured step.
"""

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
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> Value:
        """Keep a value, in place of the one that was not used for longest."""
        self._values[key] = value
        if len(self._values) > self._size:
            self._values.popitem(last=False)
        return value


def is_capturing(device: torch.device) -> bool:
    """Return whether the current stream is being captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def keep_for_graphs(*objects: Any) -> None:
    """Keep what a captured graph uses."""
    _kept_for_graphs.extend(objects)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device without waiting for it; `values` is on the CPU."""
    if device.type == "cpu":
        return values
    # torch reuses page-locked memory only after the copy.
    return values.pin_memory().to(device, non_blocking=True)


class Table:
    """Eight-byte numbers of a call on the device, int64 or float64.

    The last few contents stay there: gradients may lie elsewhere at each step, mostly at one of a
    few places in turn.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, length: int) -> None:
        self._device = device
        self._dtype = dtype
        self._length = length
        self._uploaded: Recent[Tensor] = Recent(4)
        # Had beforehand, because page-locking memory may wait for a device that is captured.
        self._spare = self._page_locked()

    def _page_locked(self) -> Tensor | None:
        if self._device.type == "cpu":
            return None
        return torch.empty(self._length, dtype=self._dtype, device="cpu", pin_memory=True)

    def get(self, contents: bytes) -> Tensor:
        """Return the contents on the device."""
        if is_capturing(self._device):
            return self._captured(contents)
        table = self._uploaded.get(contents)
        if table is None:
            if self._spare is None:
                self._spare = self._page_locked()
            table = upload(self._as_tensor(contents), self._device)
            self._uploaded.put(contents, table)
        return table

    def _captured(self, contents: bytes) -> Tensor:
        source = self._page_locked() if self._spare is None else self._spare
        self._spare = None
        source.copy_(self._as_tensor(contents))
        table = source.to(self._device, non_blocking=True)
        keep_for_graphs(source)
        return table

    def _as_tensor(self, contents: bytes) -> Tensor:
        # A bytearray, because torch warns of read-only memory.
        numbers = bytearray(contents or bytes(8))
        return torch.frombuffer(numbers, dtype=self._dtype)


class Ticket:
    """The counter by which the programs of a launch tell which of them is the last.

    Note [Last program]
    Work that needs all programs is done by the one that finishes last, which saves a launch. It
    does not matter which one that is: what it does has a fixed order. It sets the ticket back to
    zero. A captured graph has its own, set to zero by each replay, because it may run beside
    eager steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ticket: Tensor | None = None

    def get(self) -> Tensor:
        """Return an int32 that is zero when the next launch begins."""
        if is_capturing(self._device):
            return torch.zeros(1, dtype=torch.int32, device=self._device)
        if self._ticket is None:
            self._ticket = torch.zeros(1, dtype=torch.int32, device=self._device)
        return self._ticket
