"""The CUDA kernels: tables, parts, work items, rows and the order of threads change no result."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests import devices
from tests.cases import CASES, MAIN_CASES, Case
from tests.cuda_shim.calls import (
    COMBINED,
    FLOAT_DTYPES,
    NEEDS_SHIM,
    Call,
    DTypes,
    GradOptions,
    bits,
    exact_norm,
    in_place,
    set_seed,
    shifted,
    tuned,
)
from tests.pairs import case_name

pytestmark = pytest.mark.skipif(not devices.SHIM, reason=NEEDS_SHIM)

each_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
each_dtype = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
each_place = pytest.mark.parametrize("place", [in_place, shifted])

# What a float32 sum of squares of a block may lose, and a sum of float64 ones.
NORM_ERROR = {torch.float64: 1e-12}
# 205 tensors in 41 groups, all with rows but the scalars, the vectors and the empty ones.
SMALL_SHAPES = [(3,), (4, 5), (0,), (), (2, 3, 3)] * 41
# With records of 65,536 elements: parts of a vector, of rows longer than a record, of rows as long
# as one, of whole rows.
RECORD = 65536
SPLIT_SHAPES = [(RECORD * 3 + 17,), (2, RECORD * 2 + 5), (3, RECORD), (7, 30011), (0,), (5,)]
COMMON_SHAPES = [(3, 5), (9001,), (0,), (2, 20011), (70, 33), (), (17, 129)]


def error_of_norm(dtype: torch.dtype) -> float:
    return NORM_ERROR.get(dtype, 1e-6)


def assert_statistics(call: Call, options: GradOptions, error: float) -> tuple[Tensor, Tensor]:
    """Compare norm and means with sums of one rounding; return means and totals."""
    means, totals = call.statistics(options)
    grads = [prepared(grad, options) for grad in call.grads]
    assert totals[0].item() == pytest.approx(exact_norm(grads) ** 2, rel=error)
    assert totals[1] == 0
    wanted = [exact_means(g) for g in grads if g.numel() and 0 < options.centralize <= g.ndim]
    torch.testing.assert_close(means, torch.cat(wanted), rtol=error, atol=error)
    return means, totals


def prepared(grad: Tensor, options: GradOptions) -> Tensor:
    """Unscale and clip by value in the type in which the kernels do."""
    grad = grad if grad.dtype == torch.float64 else grad.float()
    grad = grad / (options.grad_scale or 1)
    return (
        grad if options.clip_value is None else grad.clamp(-options.clip_value, options.clip_value)
    )


def exact_means(grad: Tensor) -> Tensor:
    """Return the means of the rows with one rounding for each sum."""
    rows = grad.double().reshape(grad.shape[0], -1)
    return torch.tensor([math.fsum(row) / len(row) for row in rows.tolist()], dtype=torch.float64)


# Several launches. -----------------------------------------------------------------------------


@pytest.mark.parametrize("table_bytes", [512, 1000])
@each_case
def test_tables_of_many_launches(case: Case, table_bytes: int) -> None:
    dtypes = [DTypes(), DTypes(model=torch.bfloat16), DTypes(average=torch.float32)]
    one, many = (Call(case, SMALL_SHAPES, dtypes, group_size=5) for _ in range(2))
    expected = one.expected(COMBINED)
    means, totals = one.statistics(COMBINED)
    with tuned(table_bytes=table_bytes):
        other_means, other_totals = many.statistics(COMBINED)
    assert bits(means) == bits(other_means)
    # Each launch adds up its own items.
    torch.testing.assert_close(totals, other_totals, rtol=1e-14, atol=0)
    norm = one.run(COMBINED)
    assert norm.item() == pytest.approx(expected.norm.item(), rel=1e-6)
    one.assert_close(expected)
    _, coefficient, _ = torch.ops.fusedtricks.finalize_statistics([totals], COMBINED.max_norm)
    with tuned(table_bytes=table_bytes):
        many.run(COMBINED, means=means, coefficient=coefficient)
    assert many.written_bits() == one.written_bits()


@each_case
def test_one_launch_after_the_other(case: Case) -> None:
    """The block that ends last is found in every launch, and steps count them all."""
    for settings in ({}, {"table_bytes": 512}, {"blocks_per_sm": 1}):
        call = Call(case, COMMON_SHAPES, [DTypes(torch.float64, torch.float64, torch.float64)])
        for _ in range(3):
            expected = call.expected(COMBINED)
            with tuned(**settings):
                norm = call.run(COMBINED)
            assert norm.item() == pytest.approx(expected.norm.item(), rel=1e-13)
            call.assert_close(expected)


# Parts of large tensors. -----------------------------------------------------------------------


@pytest.mark.parametrize("table_bytes", [512, 32764])
@each_place
@main_case
def test_parts_of_tensors(case: Case, place, table_bytes: int) -> None:
    whole, parts = (Call(case, SPLIT_SHAPES, place=place) for _ in range(2))
    expected = whole.expected(COMBINED)
    with tuned(table_bytes=table_bytes, record_elements=RECORD):
        means, totals = assert_statistics(parts, COMBINED, 1e-6)
        norm = parts.run(COMBINED)
    assert norm.item() == pytest.approx(expected.norm.item(), rel=1e-6)
    assert [step.item() for step in parts.steps] == [3.0] * len(SPLIT_SHAPES)
    parts.assert_close(expected)
    _, coefficient, _ = torch.ops.fusedtricks.finalize_statistics([totals], COMBINED.max_norm)
    whole.run(COMBINED, means=means, coefficient=coefficient)
    assert parts.written_bits() == whole.written_bits()


@each_dtype
def test_parts_of_every_dtype(dtype: torch.dtype) -> None:
    dtypes = [DTypes(dtype, dtype, dtype), DTypes(dtype, dtype, dtype, torch.float16)]
    call = Call(MAIN_CASES[0], [(2, RECORD + 3), *SPLIT_SHAPES[2:]], dtypes, group_size=1)
    expected = call.expected(COMBINED)
    with tuned(record_elements=RECORD, table_bytes=512):
        assert_statistics(call, COMBINED, error_of_norm(dtype))
        call.run(COMBINED)
    call.assert_close(expected)


# Work items and blocks. ------------------------------------------------------------------------

SETTINGS = [
    {"update_item": 64},
    {"update_item": 64, "blocks_per_sm": 1},
    {"update_item": 1024, "blocks_per_sm": 2, "backward": 0},
    {"update_item": 65536, "backward": 0},
    {"blocks_per_sm": 1, "table_bytes": 512},
]


@each_place
@main_case
def test_work_items_do_not_change_the_update(case: Case, place) -> None:
    dtypes = [DTypes(model=torch.bfloat16), DTypes(grad=torch.bfloat16, average=torch.float32)]

    def result(**settings: int) -> list[str]:
        call = Call(case, COMMON_SHAPES, dtypes, group_size=1, place=place)
        means, _ = call.statistics(COMBINED)
        with tuned(**settings):
            call.run(COMBINED, means=means, coefficient=torch.tensor(0.7, dtype=torch.float64))
        return call.written_bits()

    usual = result()
    for settings in SETTINGS:
        assert result(**settings) == usual, settings


@each_place
@each_dtype
def test_work_items_of_the_statistics(dtype: torch.dtype, place) -> None:
    call = Call(MAIN_CASES[0], [*COMMON_SHAPES, (3, 70001)], [DTypes(grad=dtype)], place=place)
    for item in (64, 256, 4096, 65536):
        with tuned(statistics_item=item):
            means, totals = assert_statistics(call, COMBINED, error_of_norm(dtype))
            for seed, blocks_per_sm in [(1, 0), (2, 0), (3, 1), (4, 2)]:
                set_seed(seed)
                with tuned(blocks_per_sm=blocks_per_sm):
                    again = call.statistics(COMBINED)
                assert [bits(t) for t in again] == [bits(means), bits(totals)]
            with tuned(table_bytes=512):
                other_means, other_totals = call.statistics(COMBINED)
            assert bits(other_means) == bits(means)
            torch.testing.assert_close(other_totals, totals, rtol=1e-14, atol=0)


@pytest.mark.parametrize("blocks_per_sm", [0, 1])
@main_case
def test_the_order_of_threads_and_blocks(case: Case, blocks_per_sm: int) -> None:
    dtypes = [
        DTypes(model=torch.float16),
        DTypes(torch.bfloat16, torch.bfloat16, average=torch.float32),
    ]
    results = []
    for seed in range(10):
        set_seed(seed)
        call = Call(case, COMMON_SHAPES, dtypes, group_size=1)
        expected = call.expected(COMBINED)
        with tuned(blocks_per_sm=blocks_per_sm, update_item=1024, statistics_item=256):
            norm = call.run(COMBINED)
        results.append([bits(norm), *call.written_bits()])
        call.assert_close(expected)
    assert all(result == results[0] for result in results)


# Rows. -----------------------------------------------------------------------------------------

SHORT_ROWS = [*range(1, 71), *range(127, 130), *range(255, 258)]
LONG_ROWS = [*range(2047, 2050), *range(16383, 16386), *range(65535, 65538)]
ROW_SHAPES = [(n, length) for length in SHORT_ROWS for n in range(1, 10)]
ROW_SHAPES += [(n, length) for length in LONG_ROWS for n in (1, 2, 9)]


@pytest.fixture(scope="module")
def row_values() -> list[Tensor]:
    """Values for ROW_SHAPES."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in ROW_SHAPES]


@each_place
@each_dtype
def test_means_of_rows(row_values: Sequence[Tensor], dtype: torch.dtype, place) -> None:
    grads = [place("grad", value.to(dtype)) for value in row_values]
    means, totals = torch.ops.fusedtricks.grad_statistics(grads, [len(grads)], [2], None, None)
    wanted = torch.cat([grad.double().mean(dim=1) for grad in grads])
    error = error_of_norm(dtype)
    torch.testing.assert_close(means, wanted, rtol=error, atol=error)
    squares = sum(grad.double().square().sum().item() for grad in grads)
    assert totals.tolist() == [pytest.approx(squares, rel=error), 0]


@pytest.mark.parametrize(("update_item", "longest"), [(64, 300), (8192, 70000)])
@each_place
@each_dtype
def test_the_mean_of_every_element(
    dtype: torch.dtype, place, update_item: int, longest: int
) -> None:
    """The means are numbers of the rows, so that a wrong one is far away."""
    shapes = [shape for shape in ROW_SHAPES if shape[1] <= longest]
    params = [place("param", torch.zeros(shape, dtype=dtype)) for shape in shapes]
    grads = [torch.zeros_like(param) for param in params]
    n_rows = sum(param.shape[0] for param in params)
    # Exact in float16 and bfloat16, and different in neighbouring rows of neighbouring tensors.
    means = (torch.arange(n_rows) % 251).double()
    with tuned(update_item=update_item):
        torch.ops.fusedtricks.sgd_(
            params, grads, [], [], [], [], [], [], [torch.tensor(1.0)], [0.0, 0.0, 0.0], [0],
            [len(params)], [0], [2], means, None, None, None, 0.0, None, None,
        )  # fmt: skip
    row = 0
    for param in params:
        assert torch.equal(param[:, :1].double(), means[row : row + len(param), None])
        assert torch.equal(param, param[:, :1].expand_as(param)), tuple(param.shape)
        row += len(param)
