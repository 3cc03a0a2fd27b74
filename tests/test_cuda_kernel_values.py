"""The CUDA kernels: every mixture of dtypes, and gradients that are huge, tiny or not finite."""

import itertools
import math

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
    as_scale,
    exact_norm,
    in_place,
    shifted,
    tuned,
)
from tests.pairs import case_name

pytestmark = pytest.mark.skipif(not devices.SHIM, reason=NEEDS_SHIM)

each_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
each_dtype = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
each_place = pytest.mark.parametrize("place", [in_place, shifted])

OPTIONAL = [None, *FLOAT_DTYPES]
# A parameter of each mixture, with every average beside every model copy.
MIXTURES = [
    DTypes(*of_tensors, model, OPTIONAL[(i + i // len(OPTIONAL)) % len(OPTIONAL)])
    for i, (*of_tensors, model) in enumerate(itertools.product(*[FLOAT_DTYPES] * 3, OPTIONAL))
]
PLAIN, MIXED = GradOptions(), GradOptions(grad_scale=4.0, clip_value=0.9, centralize=2)

# Dtypes. ---------------------------------------------------------------------------------------


@each_place
@pytest.mark.parametrize("options", [PLAIN, MIXED, COMBINED], ids=["plain", "mixed", "combined"])
@main_case
def test_mixtures_of_dtypes(case: Case, options: GradOptions, place) -> None:
    shapes = [((3, 13), (40,), (5, 8))[i % 3] for i in range(len(MIXTURES))]
    call = Call(case, shapes, MIXTURES, group_size=20, place=place)
    expected = call.expected(options)
    norm = call.run(options)
    # The norm has the errors of the gradients that are not float64.
    call.assert_close(expected, double=1e-12 if options.max_norm is None else 1e-7)
    for model, i in zip(call.models, call.model_index, strict=True):
        # Rounded from what was computed, not from a parameter that was rounded before.
        if call.params[i].dtype == torch.float32:
            assert torch.equal(model, call.params[i].to(model.dtype)), call.dtypes[i]
    if options.max_norm is not None:
        assert norm.item() == pytest.approx(expected.norm.item(), rel=1e-6)


@pytest.mark.parametrize("count", [0.0, 1.0, 1000.0, 2.0**24 - 1])
@pytest.mark.parametrize("step_dtype", [torch.float32, torch.float64], ids=str)
@each_case
def test_step_counts(case: Case, step_dtype: torch.dtype, count: float) -> None:
    for dtype in (torch.float32, torch.float64):
        step = torch.tensor(count, dtype=step_dtype)
        call = Call(case, [(5, 3), (0,), (17,), ()], [DTypes(dtype, dtype, dtype)], step=step)
        expected = call.expected()
        call.run()
        call.assert_close(expected)
        assert all(s.dtype == step_dtype and s == count + 1 for s in call.steps)


def test_large_step_counts_of_float64() -> None:
    call = Call(MAIN_CASES[0], [(5,)], step=torch.tensor(2.0**24, dtype=torch.float64))
    call.run()
    assert call.steps[0] == 2**24 + 1


# Magnitudes. -----------------------------------------------------------------------------------

# Factors of normal numbers; "mixed" takes one after the other.
MAGNITUDES = {
    "huge": [1e30],
    "tiny": [1e-30],
    "mixed": [1e30, 1e-30, 1.0, 0.0, 1e-12],
    "mixed small": [1e-10, 1e-30, 1e-20],
    "around the limits": [1e-15, 1e17],
    "below the limit": [1e-15],
    "above the limit": [1e17],
    "subnormal": [1e-40],
    "zero": [0.0],
    "negative zero": [-0.0],
}


def scaled(shape: tuple[int, ...], factors: list[float], dtype: torch.dtype) -> Tensor:
    value = torch.randn(shape, dtype=torch.float64)
    flat = value.view(-1)
    flat *= torch.tensor(factors, dtype=torch.float64).repeat(flat.numel() // len(factors) + 1)[
        : flat.numel()
    ]
    return value.to(dtype)


def sweep(
    grads: list[Tensor], options: GradOptions = PLAIN, max_norm: float | None = None
) -> tuple[Tensor, ...]:
    """Return the means of the rows, the norm, the coefficient and the non-finite flag."""
    scale = as_scale(options.grad_scale)
    means, totals = torch.ops.fusedtricks.grad_statistics(
        grads, [len(grads)], [options.centralize], scale, options.clip_value
    )
    return means, *torch.ops.fusedtricks.finalize_statistics([totals], max_norm)


@each_place
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_norm_of_any_magnitude(magnitude: str, dtype: torch.dtype, place) -> None:
    shapes = [(1,), (17,), (3, 700), (2, 20011), (40, 9), (2, 66001)]
    grads = [place("grad", scaled(shape, MAGNITUDES[magnitude], dtype)) for shape in shapes]
    error = 1e-13 if dtype == torch.float64 else 1e-6
    for chosen in [[grad] for grad in grads] + [grads]:
        means, norm, coefficient, nonfinite = sweep(chosen, GradOptions(centralize=2), 1.7)
        exact = exact_norm(chosen)
        assert norm.item() == pytest.approx(exact, rel=error, abs=0)
        assert coefficient.item() == pytest.approx(min(1.0, 1.7 / (exact + 1e-6)), rel=error)
        assert nonfinite == 0
        wide = [g.double().reshape(len(g), -1) for g in chosen if g.ndim == 2]
        wanted = torch.cat([torch.zeros(0).double(), *(g.mean(dim=1) for g in wide)])
        largest = max([g.abs().max().item() for g in wide], default=0.0)
        torch.testing.assert_close(means, wanted, rtol=error, atol=error * largest)


@each_dtype
def test_zero_gradients_have_norm_zero(dtype: torch.dtype) -> None:
    for value in (0.0, -0.0):
        _, norm, coefficient, nonfinite = sweep(
            [torch.full((4000,), value, dtype=dtype)], max_norm=2
        )
        assert (norm.item(), coefficient.item(), nonfinite.item()) == (0, 1, 0)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@each_place
@each_dtype
def test_one_bad_element_anywhere(dtype: torch.dtype, place, bad: float) -> None:
    for length in (*range(1, 36), 2051):
        grad = place("grad", torch.ones(length).to(dtype))
        assert sweep([grad])[3] == 0
        for position in range(0, length, 1 if length < 40 else 97):
            grad[position] = bad
            _, norm, _, nonfinite = sweep([grad])
            grad[position] = 1
            assert nonfinite == 1, (length, position)
            assert math.isnan(norm) if math.isnan(bad) else norm == math.inf


@pytest.mark.parametrize("centralize", [0, 2])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_clipped_bad_element_is_still_bad(bad: float, centralize: int) -> None:
    for shape in ((4, 9), (2, 3001), (1, 66001), (30, 8)):
        grads = [torch.ones(20), torch.ones(shape), torch.ones(shape, dtype=torch.bfloat16)]
        grads[1][-1, -1] = bad
        options = GradOptions(clip_value=0.5, centralize=centralize)
        for tensors in (grads, grads[:2], grads[1:2]):
            for settings in ({}, {"table_bytes": 512}, {"statistics_item": 64}):
                with tuned(**settings):
                    means, norm, coefficient, nonfinite = sweep(tensors, options, 0.3)
                assert nonfinite == 1
                assert math.isnan(norm) == math.isnan(coefficient) == math.isnan(bad)
                assert means.isnan().any() == bool(centralize and math.isnan(bad))
                if not math.isnan(bad):
                    n = sum(grad.numel() for grad in tensors)
                    assert norm.item() == pytest.approx(math.sqrt(n) / 2)


def test_a_finite_gradient_that_overflows_when_unscaled_is_finite() -> None:
    """As in torch's GradScaler, which looks at the gradients as they are."""
    for n in (9, 3000):
        grad = torch.full((n,), 1e3)
        _, norm, coefficient, nonfinite = sweep([grad], GradOptions(grad_scale=1e-36), 0.3)
        assert (norm.item(), coefficient.item(), nonfinite.item()) == (math.inf, 0, 0)


@pytest.mark.parametrize("place", [in_place, shifted])
@each_case
def test_updates_with_any_gradient(case: Case, place) -> None:
    """Element by element the same numbers, infinities and NaN as torch.optim in float32."""
    # Where torch subtracts the square of the mean from infinity, it depends on its instructions
    # whether that square is infinite too.
    huge = 1e18 if case.kwargs.get("centered") else 3e38
    special = [torch.inf, -torch.inf, torch.nan, -0.0, 1e-45, 1e-38, huge, -huge, 1e-30]
    call = Call(case, [(len(special) * 5 + 3,)], place=place)
    call.grads[0][: len(special)] = torch.tensor(special)
    twin = call.params[0].clone().requires_grad_()
    twin.grad = call.grads[0].clone()
    options = {**case.torch_kwargs, **call.group_options[0]}
    theirs = case.torch_cls([twin], foreach=False, **options)
    state = dict(zip(call.state_names, (s.clone() for s in call.states), strict=True))
    theirs.state[twin] = state if "momentum_buffer" in state and len(state) == 1 else {
        **state, "step": call.steps[0].clone()
    }  # fmt: skip
    case.torch_step(theirs)
    call.run()
    ours = [call.params[0], *call.states]
    for mine, its in zip(ours, [twin, *state.values()], strict=True):
        torch.testing.assert_close(mine, its.detach(), rtol=4e-6, atol=4e-6, equal_nan=True)
