"""The best compiled backend of this machine beside torch in float64, over all sizes and options.

On the GPU where there is one, else on the CPU, so that this file is known to work when a GPU is at
hand.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtricks import optim
from tests.cases import CASES, MAIN_CASES, Case
from tests.values import TOLERANCE, transform_by_hand

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Empty, scalar, prime, rows of all kinds, more than one work item, a row longer than any item.
SHAPES = [
    *((0,), (), (1009,), (5, 3), (4, 3, 3, 3), (2, 0), (64, 3, 7, 7), (1000, 512), (3, 32771)),
    *((2, 65551), (17, 70001), (1, 9), (300_007,)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=lambda case: case.name)
OPTIONS = {
    "plain": {},
    "clipped": {"clip_grad_norm": 0.7},
    "combined": {"clip_grad_norm": 0.7, "clip_grad_value": 0.9, "centralize_grad": True},
}


def leaf(value: Tensor) -> Tensor:
    return value.detach().to(DEVICE).requires_grad_()


def make(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    torch.manual_seed(5)
    return [leaf(torch.randn(shape, device="cpu").to(dtype)) for shape in shapes]


def give(params: list[Tensor], twins: list[Tensor], seed: int) -> None:
    """Give both the same gradients; the twins are float64 on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for param, twin in zip(params, twins, strict=True):
        grad = torch.randn(param.shape, generator=generator, device="cpu").to(param.dtype)
        param.grad = grad.to(param.device)
        twin.grad = grad.double()


def twins_of(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().cpu().double().clone().requires_grad_() for p in params]


def check(params: list[Tensor], twins: list[Tensor]) -> None:
    for index, (param, twin) in enumerate(zip(params, twins, strict=True)):
        rtol, atol = TOLERANCE[param.dtype]
        torch.testing.assert_close(
            param.detach().cpu().double(),
            twin.detach(),
            rtol=rtol,
            atol=atol,
            msg=lambda text, i=index: f"parameter {i}: {text}",
        )


def build(case: Case, params: list[Tensor], **options: Any) -> optim.FusedOptimizer:
    return case.cls(params, backend=DEVICE, **options, **case.kwargs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@every_case
def test_steps_match_torch_in_float64(case: Case, dtype: torch.dtype, options: dict) -> None:
    masters = dtype in (torch.bfloat16, torch.float16)
    params = make(dtype)
    twins = twins_of(params)
    ours = build(case, params, master_weights=masters, **options)
    theirs = case.torch_cls(twins, **case.torch_kwargs)
    for seed in range(3):
        give(params, twins, seed)
        ours.step()
        norm = transform_by_hand(
            twins,
            options.get("clip_grad_value"),
            options.get("clip_grad_norm"),
            2 if options.get("centralize_grad") else 0,
        )
        case.torch_step(theirs)
        if norm is not None:
            torch.testing.assert_close(ours.grad_norm.cpu().double(), norm, rtol=2e-6, atol=0)
    check(params, twins)


@pytest.mark.parametrize("masters", [False, True], ids=["alone", "masters"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@main_case
def test_sixteen_bit_parameters(case: Case, dtype: torch.dtype, masters: bool) -> None:
    params = make(dtype)
    twins = twins_of(params)
    ours = build(case, params, master_weights=masters, clip_grad_norm=3.0)
    theirs = case.torch_cls(twins, **case.torch_kwargs)
    for seed in range(2):
        give(params, twins, seed)
        ours.step()
        transform_by_hand(twins, None, 3.0, 0)
        case.torch_step(theirs)
    check(params, twins)
    if masters:
        for param in params:
            assert torch.equal(param, ours.state[param]["master_param"].to(dtype))


@main_case
def test_layouts_and_alignments(case: Case) -> None:
    base = torch.randn(40_000, device="cpu").to(DEVICE)
    params = [
        leaf(torch.randn(8, 5, 6, 7)).to(memory_format=torch.channels_last).detach(),
        torch.randn(33, 65, device=DEVICE).t(),
        base[1:5000],
        base[5003:20_000],
        torch.randn(64, 64, device=DEVICE)[:, 3:40],
    ]
    params = [p.requires_grad_() for p in params]
    kept = base.clone()
    twins = twins_of(params)
    ours = build(case, params, centralize_grad=True, clip_grad_norm=0.9)
    theirs = case.torch_cls(twins, **case.torch_kwargs)
    for seed in range(3):
        give(params, twins, seed)
        ours.step()
        transform_by_hand(twins, None, 0.9, 2)
        case.torch_step(theirs)
    check(params, twins)
    for untouched in (slice(0, 1), slice(5000, 5003), slice(20_000, None)):
        assert torch.equal(base[untouched], kept[untouched])


@main_case
def test_many_tensors_and_groups(case: Case) -> None:
    params = make(torch.float32, [(i % 97 + 1, 3) for i in range(1500)])
    twins = twins_of(params)
    rates = [0.01 + 0.001 * g for g in range(50)]
    ours = build(case, [{"params": params[g::50], "lr": rates[g]} for g in range(50)])
    theirs = case.torch_cls(
        [{"params": twins[g::50], "lr": rates[g]} for g in range(50)], **case.torch_kwargs
    )
    for seed in range(2):
        give(params, twins, seed)
        ours.step()
        case.torch_step(theirs)
    check(params, twins)


@main_case
def test_norm_and_update_are_reproducible(case: Case) -> None:
    results = []
    for _ in range(3):
        params = make(torch.float32)
        ours = build(case, params, **OPTIONS["combined"])
        for seed in range(2):
            give(params, twins_of(params), seed)
            ours.step()
        results.append([ours.grad_norm, *params])
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(results[0], r, strict=True))
