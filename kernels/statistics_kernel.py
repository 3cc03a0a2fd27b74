"""The statistics sweep: reads each gradient once, for sums of squares, sums of rows and a flag.

Note [Rows]
A row is an index of dim 0 of a gradient that is centralized. Rows of less than LONG_ROW elements
are summed whole, several to a program, in tiles whose width is the body's; longer ones, and
gradients whose rows do not matter (one row of all elements), in pieces. The program that finishes
last adds up what the others left, in the order of the items: results have the same bits each time.

Note [Powers]
A gradient's squares may overflow or vanish in float32, where its norm does neither. A program whose
largest element is out of the safe range sums again with all elements divided by a power of two near
it, and leaves that power beside the sum. All others need one multiplication for it.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from .arithmetic import divide, double_from_bits
from .choices import choice, n_choices, size_of
from .combine_kernel import combine_rows, combine_totals
from .memory import inverse_scale, unscale_and_clamp


# Triton compares global constexprs at every launch, which costs more than a function here.
@triton.constexpr_function
def column(name):
    """Return the column of the table of gradients."""
    names = "numel row_length mean_index body first_item pieces_per_row first_piece"
    return names.split().index(name)


@triton.constexpr_function
def n_columns():
    """Return the number of columns of the table of gradients."""
    return 7


@triton.constexpr_function
def largest_finite(dtype):
    """Return the largest number of float32 or float64."""
    return 3.4028234663852886e38 if dtype.primitive_bitwidth == 32 else 1.7976931348623157e308


@dataclass(frozen=True)
class Body:
    """What is compiled for a gradient: its dtype, and the width of a tile (0: rows in pieces)."""

    grad: Any
    compute: Any
    width: int


@triton.jit
def _magnitude(grad, largest):
    # A NaN stays, to be noticed as not finite.
    return tl.maximum(largest, tl.abs(grad), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _add_tile(pointers, mask, sums, squares, largest, transform, FULL: tl.constexpr):
    """Add the elements at `pointers` to the sums, lane by lane."""
    inv_scale, limit, inv_power = transform
    if FULL:
        grad = tl.load(pointers).to(sums.dtype)
    else:
        grad = tl.load(pointers, mask=mask, other=0.0).to(sums.dtype)
    largest = _magnitude(grad, largest)
    grad = unscale_and_clamp(grad, inv_scale, limit) * inv_power
    return sums + grad, squares + grad * grad, largest


@triton.jit
def _sum_rows(
    address, row_length, n_rows, transform,
    BODY: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Sums over up to TILE / BODY.width whole rows from an address on, in lanes."""
    WIDTH: tl.constexpr = BODY.width
    ROWS: tl.constexpr = TILE // WIDTH
    pointer = address.to(tl.pointer_type(BODY.grad))
    rows = tl.arange(0, ROWS)
    in_rows = rows < n_rows
    starts = rows * row_length
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
        starts = tl.multiple_of(starts, (16,))
    sums = tl.zeros((ROWS, WIDTH), BODY.compute)
    squares = tl.zeros((ROWS, WIDTH), BODY.compute)
    largest = tl.zeros((ROWS, WIDTH), BODY.compute)
    for first in range(0, row_length, WIDTH):
        columns = first + tl.arange(0, WIDTH)
        if ALIGNED:
            # The same as below, in a form that shows Triton that it holds for 16 columns or none.
            in_columns = columns // 16 < row_length // 16
        else:
            in_columns = columns < row_length
        mask = in_rows[:, None] & in_columns[None, :]
        pointers = pointer + starts[:, None] + columns[None, :]
        sums, squares, largest = _add_tile(pointers, mask, sums, squares, largest, transform, False)
    return sums, squares, largest


@triton.jit
def _sum_piece(
    address, numel, transform, BODY: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr
):
    """Sums over `numel` elements from an address on, in lanes, as one row of them."""
    pointer = address.to(tl.pointer_type(BODY.grad))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    offsets = tl.arange(0, TILE)
    sums = tl.zeros((TILE,), BODY.compute)
    squares = tl.zeros((TILE,), BODY.compute)
    largest = tl.zeros((TILE,), BODY.compute)
    for first in range(0, numel // TILE * TILE, TILE):
        sums, squares, largest = _add_tile(
            pointer + first + offsets, offsets < 0, sums, squares, largest, transform, True
        )
    first = numel // TILE * TILE
    if first < numel:
        sums, squares, largest = _add_tile(
            pointer + first + offsets, offsets < numel - first, sums, squares, largest, transform,
            False,
        )  # fmt: skip
    return (
        tl.reshape(sums, (1, TILE)),
        tl.reshape(squares, (1, TILE)),
        tl.reshape(largest, (1, TILE)),
    )


@triton.jit
def _sum_item(
    address, row_length, numel, inv_scale, limit,
    BODY: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The row sums of an item, divided by a power of two, its sum of squares, the power, a flag."""
    COMPUTE: tl.constexpr = BODY.compute
    IS_DOUBLE: tl.constexpr = tl.float64 == COMPUTE
    power = tl.full((), 1.0, COMPUTE)
    n_rows: tl.constexpr = 1 if BODY.width == 0 else TILE // BODY.width
    row_sums = tl.zeros((n_rows,), COMPUTE)
    squares = tl.full((), 0.0, COMPUTE)
    is_finite = True
    tries = 0
    while tries < 2:
        transform = (inv_scale, limit, divide(1.0, power))
        if BODY.width == 0:
            parts = _sum_piece(address, numel, transform, BODY, TILE, ALIGNED)
        else:
            parts = _sum_rows(
                address, row_length, numel // row_length, transform, BODY, TILE, ALIGNED
            )
        row_sums = tl.sum(parts[0], axis=1)
        squares = tl.sum(tl.sum(parts[1], axis=1), axis=0)
        LARGEST: tl.constexpr = largest_finite(COMPUTE)
        bad = tl.where(parts[2] <= LARGEST, 0, 1)
        is_finite = tl.max(tl.max(bad, axis=1), axis=0) == 0
        tries += 2
        if not IS_DOUBLE:
            # Clamping keeps the order of magnitudes, and those that are not finite do not count.
            finite = tl.where(parts[2] <= LARGEST, parts[2], 0.0)
            largest = tl.max(tl.max(finite, axis=1), axis=0) * tl.abs(inv_scale)
            largest = tl.minimum(largest, limit)
            in_range = (largest == 0.0) | ((largest > 1e-15) & (largest < 1e16))
            if (power == 1.0) & (largest <= LARGEST) & (in_range == 0):
                exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
                power = tl.maximum(exponent, 0x00800000).to(tl.float32, bitcast=True)
                tries = tries - 1
    return row_sums, squares, power, is_finite


@triton.jit
def _sweep_item(
    address, record_ptr, local, means_ptr, pieces_ptr, inv_scale, limit,
    BODY: tl.constexpr, TILE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Store the means of whole rows, or the sum of a piece; return the other results."""
    COMPUTE: tl.constexpr = BODY.compute
    row_length = tl.load(record_ptr + column("row_length"))
    mean_index = tl.load(record_ptr + column("mean_index"))
    if BODY.width == 0:
        per_row = tl.load(record_ptr + column("pieces_per_row"))
        begin_in_row = local % per_row * PIECE
        begin = local // per_row * row_length + begin_in_row
        numel = tl.minimum(row_length - begin_in_row, PIECE)
    else:
        ITEM_ROWS: tl.constexpr = TILE // BODY.width
        begin = local * ITEM_ROWS * row_length
        numel = tl.minimum(ITEM_ROWS * row_length, tl.load(record_ptr + column("numel")) - begin)
    address += begin * size_of(BODY.grad)
    inv_scale = inv_scale.to(COMPUTE)
    limit = limit.to(COMPUTE)
    is_aligned = address % 16 == 0
    if BODY.width != 0:
        is_aligned = is_aligned & (row_length % 16 == 0)
    if is_aligned:
        row_sums, squares, power, is_finite = _sum_item(
            address, row_length, numel, inv_scale, limit, BODY, TILE, True
        )
    else:
        row_sums, squares, power, is_finite = _sum_item(
            address, row_length, numel, inv_scale, limit, BODY, TILE, False
        )
    if BODY.width != 0:
        rows = tl.arange(0, TILE // BODY.width)
        means = divide(row_sums, row_length.to(COMPUTE)) * power
        means_ptr += mean_index + local * (TILE // BODY.width)
        tl.store(means_ptr + rows, means, mask=rows < numel // row_length)
    else:
        if mean_index >= 0:
            piece_ptr = pieces_ptr + 2 * (tl.load(record_ptr + column("first_piece")) + local)
            tl.store(piece_ptr, tl.sum(row_sums, axis=0).to(tl.float64))
            tl.store(piece_ptr + 1, power.to(tl.float64))
    return squares.to(tl.float64), power.to(tl.float64), is_finite


@triton.jit(
    do_not_specialize=["limit_bits", "n_items", "n_long_rows"],
    do_not_specialize_on_alignment=["scale_ptr"],
)
def statistics_kernel(
    addresses_ptr,  # [n_tensors] int64
    tensors_ptr,  # [n_tensors, n_columns()] int64
    items_ptr,  # [n_items] int32: the tensor of each work item
    long_rows_ptr,  # [n_long_rows, 4] int64
    scale_ptr,  # float32 or None
    limit_bits,  # of the float64 that clips by value
    means_ptr,  # [rows] float32, or float64 if a gradient is
    pieces_ptr,  # [n_pieces, 2] float64: sum divided by a power, power
    partial_ptr,  # [n_items, 3] float64: squares divided by power^2, power, 1 if not finite
    totals_ptr,  # [2] float64: sum of squares, 1 if not finite
    ticket_ptr,  # int32, zero between launches
    n_items,
    n_long_rows,
    BODIES: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Sweep the gradients of a call, one program per work item."""
    item = tl.program_id(0)
    if item < n_items:
        tensor = tl.load(items_ptr + item).to(tl.int64)
        record_ptr = tensors_ptr + tensor * n_columns()
        address = tl.load(addresses_ptr + tensor)
        local = item - tl.load(record_ptr + column("first_item"))
        body = tl.load(record_ptr + column("body"))
        limit = double_from_bits(limit_bits)
        for k in tl.static_range(n_choices(BODIES)):
            if body == k:
                inv_scale = inverse_scale(scale_ptr, choice(BODIES, k).compute)
                squares, power, is_finite = _sweep_item(
                    address, record_ptr, local, means_ptr, pieces_ptr, inv_scale, limit,
                    choice(BODIES, k), TILE, PIECE,
                )  # fmt: skip
                item_ptr = partial_ptr + 3 * item.to(tl.int64)
                tl.store(item_ptr, squares)
                tl.store(item_ptr + 1, power)
                tl.store(item_ptr + 2, tl.where(is_finite, 0.0, 1.0).to(tl.float64))
    # What the last program reads, sums and powers, are single numbers: Triton lets the first thread
    # store them, which takes the ticket as well, so that they are there before it on any GPU.
    tl.debug_barrier()
    if tl.atomic_add(ticket_ptr, 1) == tl.num_programs(0) - 1:
        tl.store(ticket_ptr, 0)
        combine_totals(partial_ptr, totals_ptr, n_items, 1024)
        # Many rows, mostly of a few pieces, or few rows of perhaps many.
        if n_long_rows >= 32:
            combine_rows(pieces_ptr, long_rows_ptr, means_ptr, n_long_rows, 64, 4)
        else:
            combine_rows(pieces_ptr, long_rows_ptr, means_ptr, n_long_rows, 2, 128)
