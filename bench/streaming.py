"""The streaming limit: a plain loop over all threads that moves the bytes of an update.

No step can be faster than its memory traffic. The limit is measured in the same run as the
contenders, by a loop with as many input and output streams as the update has.
"""

import importlib
from collections.abc import Callable

import torch

from .cases import Case, needed_traffic

BYTES_PER_ELEMENT = 4


def why_missing() -> str | None:
    """Return why there is no streaming limit here, or None if there is one."""
    try:
        importlib.import_module("fusedtricks._C").stream  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def stream_counts(case: Case) -> tuple[int, int]:
    """Return the numbers of float32 tensors read and written that stand for a case's update.

    Exact for float32 parameters. With bfloat16 ones, the nearest whole numbers.
    """
    traffic = needed_traffic(case)
    return round(traffic.read / BYTES_PER_ELEMENT), round(traffic.written / BYTES_PER_ELEMENT)


def build_stream(n_elements: int, n_reads: int, n_writes: int) -> tuple[Callable[[], object], int]:
    """Return a streaming step over contiguous tensors, and the bytes that it moves.

    The tensors written are among those read, as in an optimizer: a store to memory that was not
    read makes the processor fetch it first, which would count as traffic of the loop.

    Args:
        n_elements: Elements per tensor.
        n_reads: Tensors read.
        n_writes: Tensors written, at most `n_reads`.

    Raises:
        ValueError: If `n_writes` > `n_reads`.
    """
    if n_writes > n_reads:
        raise ValueError(f"build_stream: expected n_writes <= n_reads={n_reads}, got {n_writes}")
    stream = importlib.import_module("fusedtricks._C").stream
    # Filled by hand: fresh zero pages would all be one page of memory until they are written.
    reads = [torch.empty(n_elements).fill_(0.0) for _ in range(n_reads)]
    writes = reads[n_reads - n_writes :]
    n_bytes = (n_reads + n_writes) * n_elements * BYTES_PER_ELEMENT
    return lambda: stream(reads, writes), n_bytes
