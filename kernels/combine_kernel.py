"""What follows the statistics sweep: partial results are added up, and finalized.

The arithmetic is float64: one program does it once.
"""

import triton
import triton.language as tl

from .arithmetic import double_from_bits


@triton.constexpr_function
def long_row_column(name):
    """Return the column of the table of long rows."""
    return ["first_piece", "n_pieces", "mean_index", "length"].index(name)


@triton.jit
def combine_totals(partial_ptr, totals_ptr, n_items, PARTIALS_AT_ONCE: tl.constexpr):
    """Add up the sums of squares of all items, and the number of those with a flag."""
    squares = tl.zeros((PARTIALS_AT_ONCE,), tl.float64)
    flags = tl.zeros((PARTIALS_AT_ONCE,), tl.float64)
    for first in range(0, n_items, PARTIALS_AT_ONCE):
        items = first + tl.arange(0, PARTIALS_AT_ONCE)
        mask = items < n_items
        item_ptr = partial_ptr + 3 * items.to(tl.int64)
        square = tl.load(item_ptr, mask=mask, other=0.0, cache_modifier=".cg")
        power = tl.load(item_ptr + 1, mask=mask, other=0.0, cache_modifier=".cg")
        squares += square * power * power
        flags += tl.load(item_ptr + 2, mask=mask, other=0.0, cache_modifier=".cg")
    tl.store(totals_ptr, tl.sum(squares, axis=0))
    tl.store(totals_ptr + 1, (tl.sum(flags, axis=0) > 0).to(tl.float64))


@triton.jit
def combine_rows(
    pieces_ptr, long_rows_ptr, means_ptr, n_long_rows,
    ROWS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Add up the pieces of the long rows, ROWS of them and PIECES of each at a time."""
    for first in range(0, n_long_rows, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = rows < n_long_rows
        row_ptr = long_rows_ptr + rows.to(tl.int64) * 4
        first_piece = tl.load(row_ptr + long_row_column("first_piece"), mask=mask, other=0)
        n_pieces = tl.load(row_ptr + long_row_column("n_pieces"), mask=mask, other=0)
        sums = tl.zeros((ROWS, PIECES), tl.float64)
        for start in range(0, tl.max(n_pieces, axis=0), PIECES):
            pieces = (start + tl.arange(0, PIECES))[None, :]
            has_piece = pieces < n_pieces[:, None]
            piece_ptr = pieces_ptr + 2 * (first_piece[:, None] + pieces)
            part = tl.load(piece_ptr, mask=has_piece, other=0.0, cache_modifier=".cg")
            power = tl.load(piece_ptr + 1, mask=has_piece, other=0.0, cache_modifier=".cg")
            sums += part * power
        length = tl.load(row_ptr + long_row_column("length"), mask=mask, other=1).to(tl.float64)
        mean_index = tl.load(row_ptr + long_row_column("mean_index"), mask=mask, other=0)
        means = (tl.sum(sums, axis=1) / length).to(means_ptr.dtype.element_ty)
        tl.store(means_ptr + mean_index, means, mask=mask)


@triton.jit(do_not_specialize=["max_norm_bits", "n"], do_not_specialize_on_alignment=["totals_ptr"])
def finalize_kernel(
    totals_ptr,  # [n, 2] float64
    norm_ptr,  # float64
    coefficient_ptr,  # float64
    nonfinite_ptr,  # float32
    max_norm_bits,  # of a float64, None without clipping by norm
    n,
    BLOCK: tl.constexpr,
):
    """Norm, coefficient of clipping and number of flags, from the totals of several calls.

    As in clip_grad_norm_, a NaN norm gives a NaN coefficient and an infinite one gives zero.
    """
    calls = tl.arange(0, BLOCK)
    squares = tl.load(totals_ptr + 2 * calls, mask=calls < n, other=0.0)
    flags = tl.load(totals_ptr + 2 * calls + 1, mask=calls < n, other=0.0)
    norm = tl.sqrt(tl.sum(squares, axis=0))
    tl.store(norm_ptr, norm)
    tl.store(nonfinite_ptr, tl.sum(flags, axis=0).to(tl.float32))
    coefficient = tl.full((), 1.0, tl.float64)
    if max_norm_bits is not None:
        wanted = double_from_bits(max_norm_bits) / (norm + 1e-6)
        coefficient = tl.where(wanted > 1.0, 1.0, wanted)
    tl.store(coefficient_ptr, coefficient)
