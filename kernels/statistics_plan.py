"""What the statistics sweep prepares once: the tables of a call and the bodies of its kernel."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from . import checks
from .choices import Choices
from .launch import LANGUAGE_DTYPES
from .layouts import Staged, is_dense, row_length_if_centralized
from .statistics_kernel import Body, column
from .tables import Table, Ticket, Uploaded, upload

__all__ = ["PIECE", "TILE", "Plan", "build_plan", "max_registers"]

# Elements that a program loads at a time: eight for each thread.
TILE = 2048
# Rows of at least this length are summed in pieces of it.
PIECE = 16384
# The widths of the tiles in which shorter rows are summed: the widest that a row fills, so that at
# most half of the lanes idle.
WIDTHS = (1024, 256, 64, 16)

_OP = "grad_statistics"


@dataclass
class Plan:
    """What stays from call to call while the layouts of all gradients do."""

    device: torch.device
    means_dtype: torch.dtype
    n_rows: int
    n_items: int
    n_pieces: int
    n_long_rows: int
    bodies: Choices
    max_registers: int
    staged: list[Staged]
    tensors: Uploaded
    items: Uploaded
    long_rows: Uploaded
    addresses: Table
    ticket: Ticket


def build_plan(
    grads: list[Tensor], group_sizes: list[int], centralize: list[int], device: torch.device
) -> Plan:
    """Check the arguments of a call and lay out its tables.

    Raises:
        RuntimeError, TypeError, ValueError: If an argument does not fit; it names what.
    """
    if len(group_sizes) != len(centralize):
        raise ValueError(
            f"{_OP}: expected {len(group_sizes)} values of centralize, got {len(centralize)}"
        )
    layout = _Layout()
    groups = checks.groups_of_tensors(_OP, len(grads), group_sizes)
    for index, (grad, group) in enumerate(zip(grads, groups, strict=True)):
        checks.check_tensor(f"{_OP}: gradient {index}", grad, grad.shape, device)
        layout.add(index, grad, row_length_if_centralized(grad, centralize[group]))
    bodies = Choices.of(layout.bodies)
    for record, body in zip(layout.records, layout.bodies, strict=True):
        record["body"] = bodies.values.index(body)
    records = [[record[name] for name in sorted(record, key=column)] for record in layout.records]
    items = torch.arange(len(records), dtype=torch.int32, device="cpu")
    counts = torch.tensor(layout.counts, dtype=torch.int64, device="cpu")
    has_double = any(grad.dtype == torch.float64 for grad in grads)
    long_rows = torch.tensor(layout.long_rows, dtype=torch.int64, device="cpu")
    return Plan(
        device=device,
        means_dtype=torch.float64 if has_double else torch.float32,
        n_rows=layout.n_rows,
        n_items=layout.n_items,
        n_pieces=layout.n_pieces,
        n_long_rows=len(layout.long_rows),
        bodies=bodies,
        max_registers=max_registers(bodies.values),
        staged=layout.staged,
        tensors=upload(torch.tensor(records, dtype=torch.int64, device="cpu"), device),
        items=upload(items.repeat_interleave(counts), device),
        long_rows=upload(long_rows.reshape(-1, 4), device),
        addresses=Table(device, torch.int64, len(grads)),
        ticket=Ticket(device),
    )


def max_registers(bodies: Iterable[Body]) -> int:
    """Return the bound on registers of a thread: three blocks or one fit on an SM."""
    return 168 if any(body.compute == tl.float64 for body in bodies) else 80


class _Layout:
    """The rows of the table of gradients, one after the other; see Note [Rows]."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        self.records: list[dict[str, int]] = []
        self.counts: list[int] = []
        self.long_rows: list[tuple[int, int, int, int]] = []
        self.staged: list[Staged] = []
        self.n_rows = self.n_items = self.n_pieces = 0

    def add(self, index: int, grad: Tensor, row_length: int) -> None:
        if not is_dense(grad, row_length > 0):
            self.staged.append(Staged(index, None, False))
        width = 0
        if 0 < row_length < PIECE:
            width = next((width for width in WIDTHS if width <= row_length), WIDTHS[-1])
        length = row_length or grad.numel()
        n_rows = grad.shape[0] if row_length else min(1, grad.numel())
        pieces_per_row = -(-length // PIECE)
        self.records.append(
            {
                "numel": grad.numel(),
                "row_length": length,
                "mean_index": self.n_rows if row_length else -1,
                "body": 0,
                "first_item": self.n_items,
                "pieces_per_row": pieces_per_row,
                "first_piece": self.n_pieces,
            }
        )
        if width:
            self.counts.append(-(-n_rows // (TILE // width)))
        else:
            self.counts.append(n_rows * pieces_per_row)
            if row_length:
                self._add_long_rows(n_rows, pieces_per_row, length)
        self.n_items += self.counts[-1]
        self.n_rows += n_rows if row_length else 0
        dtype = LANGUAGE_DTYPES[grad.dtype]
        compute = tl.float64 if grad.dtype == torch.float64 else tl.float32
        self.bodies.append(Body(dtype, compute, width))

    def _add_long_rows(self, n_rows: int, pieces_per_row: int, length: int) -> None:
        self.long_rows += [
            (self.n_pieces + row * pieces_per_row, pieces_per_row, self.n_rows + row, length)
            for row in range(n_rows)
        ]
        self.n_pieces += n_rows * pieces_per_row
