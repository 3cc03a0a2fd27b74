"""The same bits whatever the instruction set and number of threads, and exact conversions."""

import pytest
import torch
from torch import Tensor

from fusedtricks import ops
from tests.cases import CASES, MAIN_CASES, Case
from tests.values import (
    TOLERANCE,
    make_params,
    set_grads,
    wide_copy,
)


@pytest.fixture
def any_isa():
    """Restore the instruction set after a test that forces others."""
    yield [name for name in ("baseline", "avx2", "avx512") if _supports(name)]
    ops.native.set_isa("auto")


def _supports(name: str) -> bool:
    try:
        ops.native.set_isa(name)
    except ValueError:
        return False
    return True


def _trajectory(case: Case, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(5)
    params = make_params(dtype)
    optimizer = case.cls(
        params, clip_grad_norm=0.9, clip_grad_value=0.8, centralize_grad=True, **case.kwargs
    )
    norms = []
    for _ in range(3):
        set_grads(params, wide_copy(params))
        optimizer.step()
        norms.append(optimizer.grad_norm)
    return [p.detach() for p in params] + norms


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_instruction_sets_give_the_same_bits(
    case: Case, dtype: torch.dtype, any_isa: list[str]
) -> None:
    results = []
    for name in any_isa:
        ops.native.set_isa(name)
        assert ops.native.build_info()["isa"] == name
        results.append(_trajectory(case, dtype))
    for other in results[1:]:
        # NaN is equal to NaN: square_avg - grad_avg^2 in 16 bits may be negative, as in torch.
        torch.testing.assert_close(other, results[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", MAIN_CASES, ids=lambda case: case.name)
def test_number_of_threads_does_not_matter(case: Case) -> None:
    results = []
    for n_threads in (1, 2, 3, 7):
        torch.set_num_threads(n_threads)
        results.append(_trajectory(case, torch.float32))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_value_loads_exactly(dtype: torch.dtype, any_isa: list[str]) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    grad = bits.view(dtype)
    for name in any_isa:
        ops.native.set_isa(name)
        param = torch.zeros(grad.numel(), requires_grad=True)
        param.grad_dtype = dtype
        param.grad = grad.clone()
        case = next(c for c in CASES if c.name == "SGD-plain")
        case.cls([param], lr=1.0, maximize=True).step()
        torch.testing.assert_close(
            param.detach(), grad.float() + 0.0, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_16_bits_is_that_of_torch(dtype: torch.dtype, any_isa: list[str]) -> None:
    exact = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    exact = exact[torch.isfinite(exact)].sort().values
    # Every value, every tie between neighbours, and both sides of each tie.
    ties = (exact[1:].double() + exact[:-1].double()).div(2).float()
    up = torch.nextafter(ties, torch.full_like(ties, torch.inf))
    down = torch.nextafter(ties, torch.full_like(ties, -torch.inf))
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 65519.0, 65520.0, 3.4e38, 1e-40])
    grad = torch.cat([exact, ties, up, down, special, torch.randn(1000)])
    for name in any_isa:
        ops.native.set_isa(name)
        param = torch.zeros(grad.numel(), dtype=dtype, requires_grad=True)
        param.grad_dtype = torch.float32
        param.grad = grad.clone()
        case = next(c for c in CASES if c.name == "SGD-plain")
        case.cls([param], lr=1.0, maximize=True).step()
        torch.testing.assert_close(param.detach(), grad.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_norm_of_huge_and_tiny_gradients_neither_overflows_nor_vanishes() -> None:
    case = MAIN_CASES[0]
    for scale in (1e30, 1e-30):
        param = torch.zeros(1000, requires_grad=True)
        param.grad = torch.full((1000,), scale)
        optimizer = case.cls([param], clip_grad_norm=0.9, **case.kwargs)
        optimizer.step()
        assert optimizer.grad_norm.item() == pytest.approx(scale * 1000**0.5, rel=1e-6)
