"""The Triton kernels, called directly where the optimizers would need too much memory or luck."""

import math
import random

import pytest
import torch
from torch import Tensor

from tests import devices

pytestmark = pytest.mark.skipif(
    not devices.HAS_TRITON or devices.DEVICE.type != "cpu",
    reason="needs Triton's interpreter: pip install triton, and no FUSEDTRICKS_TEST_SHIM",
)
if devices.HAS_TRITON:
    import triton
    import triton.language as tl
    from fusedtricks.kernels import arithmetic, sgd, statistics_kernel, update_kernel
    from fusedtricks.kernels.choices import Choices
    from fusedtricks.kernels.launch import bits_of

    @triton.jit
    def power_kernel(log_ptr, exponent_ptr, result_ptr, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        log = tl.load(log_ptr + offsets)
        exponent = tl.load(exponent_ptr + offsets)
        tl.store(result_ptr + offsets, arithmetic.one_minus_power(log, exponent))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 4e-7), (torch.float64, 2e-14)])
def test_one_minus_power_is_accurate(dtype: torch.dtype, bound: float) -> None:
    bases = [0.0, 0.3, 0.81, 0.9, 0.99, 0.999, 0.9999, 0.999999]
    exponents = [1, 2, 3, 9, 100, 999, 10_000, 2**24]
    pairs = [(b, t) for b in bases for t in exponents]
    logs = torch.tensor([math.log(b) if b else -math.inf for b, _ in pairs], dtype=dtype)
    counts = torch.tensor([float(t) for _, t in pairs], dtype=dtype)
    result = torch.empty(64, dtype=dtype)
    power_kernel[(1,)](logs, counts, result, BLOCK=64)
    # With the rounded logarithm, which is what the kernel gets.
    expected = -torch.expm1(
        torch.tensor([math.log(b) * t if b else -math.inf for b, t in pairs], dtype=torch.float64)
    )
    error = ((result.double() - expected) / expected).abs()
    assert error.max() < bound, pairs[int(error.argmax())]


def offset_address(tensor: Tensor, element: int) -> int:
    """Return where a tensor would begin, if `tensor` began at its element `element`."""
    return tensor.data_ptr() - element * tensor.element_size()


@pytest.mark.parametrize("numel", [2**31 + 8192 * 3 + 5, 2**33 + 17], ids=["2^31", "2^33"])
def test_updates_beyond_2_31_elements(numel: int) -> None:
    item_size = 8192
    n_items = -(-numel // item_size)
    begin = (n_items - 1) * item_size
    n = numel - begin
    # Only the last item is there, and only its program runs; guards tell of writes elsewhere.
    row_length = 2**31 + 3
    param, grad = torch.randn(n + 64), torch.randn(n)
    row = begin // row_length
    means = torch.randn(row + 2)
    before = param.clone()
    body = update_kernel.Body(
        0, 1024, tl.float32, True, tl.float32, tl.float32, None, None, Choices(()), None, None
    )
    # Items are counted backwards, and this program is the last.
    record = [numel, row_length, 0, 0, 0, -(n_items - 1), 0, 0, 0, 0, 0]
    assert update_kernel.column("first_item") == 5
    update_kernel.update_kernel[(1,)](
        torch.tensor([offset_address(param, begin), offset_address(grad, begin)]),
        torch.tensor([record]),
        torch.zeros(1, dtype=torch.int32),
        torch.tensor([0.5, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64),
        means,
        None,
        None,
        bits_of(math.inf),
        None,
        None,
        None,
        torch.zeros(1, dtype=torch.int32),
        1,
        1,
        PREPARE=sgd.prepare,
        UPDATE=sgd.update,
        N_CONSTANTS=sgd.N_CONSTANTS,
        BODIES=Choices((body,)),
        STEP_DTYPES=Choices(()),
        ITEM=item_size,
    )
    rows = (torch.arange(n, dtype=torch.int64) + begin) // row_length
    expected = before[:n] - 0.5 * (grad - means[rows])
    torch.testing.assert_close(param[:n], expected)
    assert torch.equal(param[n:], before[n:])


def test_statistics_beyond_2_31_elements() -> None:
    numel, piece = 2**33 + 100, 16384
    n_pieces = -(-numel // piece)
    begin = (n_pieces - 1) * piece
    grad = torch.randn(numel - begin)
    body = statistics_kernel.Body(tl.float32, tl.float32, 0)
    partial = torch.zeros(1, 3, dtype=torch.float64)
    totals = torch.zeros(2, dtype=torch.float64)
    record = [numel, numel, -1, 0, -(n_pieces - 1), n_pieces, 0]
    statistics_kernel.statistics_kernel[(1,)](
        torch.tensor([offset_address(grad, begin)]),
        torch.tensor([record]),
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(0, 4, dtype=torch.int64),
        None,
        bits_of(math.inf),
        torch.zeros(0),
        torch.zeros(0, 2, dtype=torch.float64),
        partial,
        totals,
        torch.zeros(1, dtype=torch.int32),
        1,
        0,
        BODIES=Choices((body,)),
        TILE=2048,
        PIECE=piece,
    )
    torch.testing.assert_close(totals[0], grad.double().square().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "row_length", [1, 2, 15, 16, 17, 64, 80, 100, 255, 1024, 1040, 1500, 16383, 16384, 40001]
)
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_means_of_rows_of_every_kind(row_length: int, offset: int) -> None:
    n_rows = max(1, 6000 // row_length) + 2
    flat = torch.randn(n_rows * row_length + offset)
    grad = flat[offset:].view(n_rows, row_length)
    other = torch.randn(random.Random(row_length).randrange(1, 9000))
    means, totals = torch.ops.fusedtricks_triton.grad_statistics(
        [other, grad], [1, 1], [0, 2], torch.tensor(4.0), 0.2
    )
    wanted = (grad.double() / 4).clamp(-0.2, 0.2)
    torch.testing.assert_close(means.double(), wanted.mean(dim=1), rtol=1e-6, atol=1e-7)
    squares = wanted.square().sum() + (other.double() / 4).clamp(-0.2, 0.2).square().sum()
    torch.testing.assert_close(totals[0], squares, rtol=1e-6, atol=0)
    assert totals[1] == 0


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-20, 1e18, 3e37], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 20000), (3001,)], ids=str)
def test_squares_that_overflow_or_vanish(shape: tuple[int, ...], scale: float) -> None:
    grad = torch.randn(shape).clamp(-3, 3).mul(scale)
    means, totals = torch.ops.fusedtricks_triton.grad_statistics([grad], [1], [2], None, None)
    rtol = 1e-6 if scale > 1e-37 else 0.05
    torch.testing.assert_close(totals[0], grad.double().square().sum(), rtol=rtol, atol=0)
    if grad.ndim == 2:
        wanted = grad.double().mean(dim=1)
        torch.testing.assert_close(means.double(), wanted, rtol=1e-5, atol=1e-7 * scale + 2e-45)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("shape", [(3, 5), (2, 20000), (3001,), (300, 100)], ids=str)
def test_one_value_that_is_not_finite(shape: tuple[int, ...], value: float) -> None:
    grad = torch.randn(shape)
    grad.flatten()[-2] = value
    _, totals = torch.ops.fusedtricks_triton.grad_statistics([grad], [1], [2], None, None)
    assert totals[1] == 1
    assert torch.equal(totals[0].isnan(), torch.tensor(math.isnan(value)))
    assert totals[0].isnan() or totals[0] == math.inf
    norm, coefficient, nonfinite = torch.ops.fusedtricks_triton.finalize_statistics([totals], 0.7)
    assert nonfinite == 1 and not norm.isfinite()
    assert coefficient.isnan() if math.isnan(value) else coefficient == 0


def test_many_long_rows_of_different_lengths() -> None:
    grads = [torch.randn(40, 16400), torch.randn(2, 70000)]
    means, _ = torch.ops.fusedtricks_triton.grad_statistics(grads, [2], [2], None, None)
    wanted = torch.cat([grad.double().mean(dim=1) for grad in grads])
    torch.testing.assert_close(means.double(), wanted, rtol=1e-6, atol=1e-7)


# The arguments of an optimizer's op from row_means on; averages move by 0.3.
GRADS_AS_THEY_ARE = [None, None, None, None, 0.3, None, None]


@pytest.mark.parametrize("n", [3, 1200])
def test_step_counts_of_both_dtypes_advance(n: int) -> None:
    params = [torch.ones(1) for _ in range(n)]
    dtypes = [torch.float32, torch.float64]
    steps = [torch.full((), float(i), dtype=dtypes[i % 2]) for i in range(n)]
    torch.ops.fusedtricks_triton.adagrad_(
        params,
        [torch.ones(1) for _ in range(n)],
        [torch.ones(1) for _ in range(n)],
        [],
        [],
        [],
        [],
        steps,
        [torch.tensor(0.5, dtype=torch.float64)],
        [0.1, 1e-3, 0.0, 0.0],
        [0],
        [n],
        [0],
        [0],
        *GRADS_AS_THEY_ARE,
    )
    assert [step.item() for step in steps] == [i + 1.0 for i in range(n)]
    assert all(step.dtype == dtypes[i % 2] for i, step in enumerate(steps))
    wanted = [1 - 0.5 / (1 + i * 0.1) / (2**0.5 + 1e-3) for i in range(n)]
    torch.testing.assert_close(torch.cat(params), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_a_call_without_parameters_does_nothing() -> None:
    lr = [torch.tensor(0.5, dtype=torch.float64)]
    no_tensors: list[list[Tensor]] = [[] for _ in range(8)]
    torch.ops.fusedtricks_triton.sgd_(
        *no_tensors, lr, [0.0, 0.0, 0.0], [0], [0], [0], [0], *GRADS_AS_THEY_ARE
    )


def test_an_inference_tensor_that_cannot_be_written_changes_nothing() -> None:
    with torch.inference_mode():
        state = torch.zeros(3, 5).t()
    param, step = torch.ones(5, 3), torch.zeros(())
    lr = [torch.tensor(0.5, dtype=torch.float64)]
    rest = [lr, [0.9, 0.0, 0.0], [1], [1], [0], [0], *GRADS_AS_THEY_ARE]
    with pytest.raises(RuntimeError, match="cannot update an inference tensor"):
        torch.ops.fusedtricks_triton.sgd_(
            [param], [torch.ones(5, 3)], [state], [], [], [], [], [step], *rest
        )
    assert torch.equal(param, torch.ones(5, 3)) and step == 0


ROLES = ("params", "grads", "states", "model_params", "averages")


@pytest.mark.parametrize("unaligned", [*ROLES, "nothing"])
def test_full_blocks_at_every_alignment(unaligned: str) -> None:
    n = 2500

    def tensor(role: str, like: Tensor) -> Tensor:
        offset = int(role == unaligned)
        memory = torch.zeros(n + 1, dtype=like.dtype)
        return memory[offset : offset + n].copy_(like)

    values = {role: torch.randn(n) for role in ROLES}
    results = []
    for run in (tensor, lambda role, like: like.clone()):
        param = run("params", values["params"])
        buffer = run("states", values["states"])
        model = run("model_params", values["model_params"].bfloat16())
        average = run("averages", values["averages"])
        torch.ops.fusedtricks_triton.sgd_(
            [param],
            [run("grads", values["grads"].bfloat16())],
            [buffer],
            [model],
            [0],
            [average],
            [0],
            [torch.full((), 3.0)],
            [torch.tensor(0.5, dtype=torch.float64)],
            [0.9, 0.1, 0.2],
            [7],
            [1],
            [0],
            [0],
            *GRADS_AS_THEY_ARE,
        )
        results.append((param, buffer, model, average))
    for mine, other in zip(*results, strict=True):
        assert torch.equal(mine, other)
    grad = values["grads"].bfloat16().double() + 0.2 * values["params"].double()
    buffer = 0.9 * values["states"].double() + 0.9 * grad
    wanted = values["params"].double() - 0.5 * (grad + 0.9 * buffer)
    torch.testing.assert_close(results[0][0].double(), wanted, rtol=3e-6, atol=3e-6)
    average = torch.lerp(values["averages"].double(), wanted, 0.3)
    torch.testing.assert_close(results[0][3].double(), average, rtol=3e-6, atol=3e-6)
