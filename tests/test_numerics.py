"""Values: every optimizer, backend, dtype and layout against torch.optim in float64."""

import pytest
import torch
from torch import Tensor

from fusedtricks import ops
from tests.cases import CASES, MAIN_CASES, Case
from tests.devices import NATIVE
from tests.values import (
    BACKENDS,
    TOLERANCE,
    assert_same,
    make_params,
    set_grads,
    shapes_for,
    transform_by_hand,
    wide_copy,
)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plain_step(case: Case, backend: str, dtype: torch.dtype) -> None:
    params = make_params(dtype, shapes_for(backend))
    oracle = wide_copy(params)
    ours = case.cls(params, backend=backend, **case.kwargs)
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    n_steps = 5 if dtype in (torch.float32, torch.float64) else 2
    for _ in range(n_steps):
        set_grads(params, oracle)
        kept = [p.grad.clone() for p in params]
        ours.step()
        case.torch_step(theirs)
        assert all(torch.equal(p.grad, k) for p, k in zip(params, kept, strict=True))
    assert_same(params, oracle, dtype)


@pytest.mark.parametrize("mode,smallest_ndim", [(False, 0), (True, 2), ("conv", 4)])
@pytest.mark.parametrize("clip_value", [None, 0.7])
@pytest.mark.parametrize("max_norm", [None, 0.9, 1e6])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", MAIN_CASES[:2] + MAIN_CASES[2:3], ids=lambda case: case.name)
def test_gradient_transforms(
    case: Case,
    backend: str,
    max_norm: float | None,
    clip_value: float | None,
    mode: bool | str,
    smallest_ndim: int,
) -> None:
    params = make_params(torch.float32, shapes_for(backend))
    oracle = wide_copy(params)
    ours = case.cls(
        params,
        backend=backend,
        clip_grad_norm=max_norm,
        clip_grad_value=clip_value,
        centralize_grad=mode,
        **case.kwargs,
    )
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    for _ in range(3):
        set_grads(params, oracle)
        ours.step()
        norm = transform_by_hand(oracle, clip_value, max_norm, smallest_ndim)
        case.torch_step(theirs)
        if norm is not None:
            assert ours.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    assert_same(params, oracle, torch.float32)


def test_sweep_is_skipped_when_nothing_needs_it() -> None:
    params = make_params(torch.float32)
    optimizer = MAIN_CASES[0].cls(params, **MAIN_CASES[0].kwargs)
    set_grads(params, wide_copy(params))
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.step()
    names = [event.name for event in profile.events()]
    assert "fusedtricks::adam_" in names
    assert "fusedtricks::grad_statistics" not in names
    assert optimizer.grad_norm is None


@pytest.mark.parametrize("grad_dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", MAIN_CASES, ids=lambda case: case.name)
def test_gradient_of_another_dtype(case: Case, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    params = make_params(dtype)
    if not hasattr(params[0], "grad_dtype") and dtype != grad_dtype:
        pytest.skip("this torch has no Tensor.grad_dtype")
    oracle = wide_copy(params)
    ours = case.cls(params, clip_grad_norm=0.9, centralize_grad=True, **case.kwargs)
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    for _ in range(2):
        set_grads(params, oracle, grad_dtype)
        ours.step()
        transform_by_hand(oracle, None, 0.9, 2)
        case.torch_step(theirs)
    # The mean of a gradient is exact to its own precision, float32 for 16 bits.
    is_narrower = dtype == torch.float64 != grad_dtype
    assert_same(params, oracle, torch.float32 if is_narrower else dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_master_weights(case: Case, dtype: torch.dtype, backend: str) -> None:
    params = make_params(dtype, shapes_for(backend))
    oracle = wide_copy(params)
    ours = case.cls(
        params,
        backend=backend,
        master_weights=True,
        clip_grad_norm=0.9,
        centralize_grad=True,
        **case.kwargs,
    )
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    for _ in range(5):
        set_grads(params, oracle)
        ours.step()
        transform_by_hand(oracle, None, 0.9, 2)
        case.torch_step(theirs)
    masters = [ours.state[p]["master_param"] for p in params]
    assert_same(masters, oracle, torch.float32)
    for param, master in zip(params, masters, strict=True):
        assert torch.equal(param, master.to(dtype))
        assert all(v.dtype == torch.float32 for v in ours.state[param].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MAIN_CASES, ids=lambda case: case.name)
def test_backends_agree_closely(case: Case, dtype: torch.dtype) -> None:
    """Compare by the last place, which the comparison with float64 cannot for 16-bit data."""
    params = make_params(dtype)
    twins = [p.detach().clone().requires_grad_() for p in params]
    options = {"clip_grad_norm": 0.9, "centralize_grad": True, "clip_grad_value": 0.8}
    fused = case.cls(params, backend=NATIVE, **options, **case.kwargs)
    plain = case.cls(twins, backend="reference", **options, **case.kwargs)
    for _ in range(3):
        set_grads(params, wide_copy(params))
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad.clone()
        fused.step()
        plain.step()
    n_elements = sum(p.numel() for p in params)
    n_different = sum((p != t).sum().item() for p, t in zip(params, twins, strict=True))
    assert n_different <= (0.7 if dtype == torch.float32 else 0.01) * n_elements
    rtol = 2e-6 if dtype == torch.float32 else 2**-7
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=rtol, atol=rtol)


def strided(dtype: torch.dtype) -> list[Tensor]:
    """Return parameters of unusual layouts: unaligned, permuted, sliced, channels_last."""
    base = torch.randn(4001).to(dtype)
    channels_last = torch.randn(6, 5, 4, 3).to(dtype).to(memory_format=torch.channels_last)
    views = [
        base[1:1008],
        torch.randn(13, 7).to(dtype).t(),
        torch.randn(9, 20).to(dtype)[:, 3:14],
        torch.randn(40).to(dtype)[::3],
        torch.randn(3, 5, 7).to(dtype).permute(2, 0, 1),
        channels_last,
        torch.randn(2, 3, 4, 5).to(dtype),
    ]
    return [view.detach().requires_grad_() for view in views]


def other_layouts(grad: Tensor) -> list[Tensor]:
    """Return the same values in several layouts."""
    wide = torch.empty(*grad.shape, 2, dtype=grad.dtype)
    wide[..., 0] = grad
    layouts = [grad.contiguous(), wide[..., 0]]
    if grad.ndim > 1:
        layouts.append(grad.t().contiguous().t() if grad.ndim == 2 else grad)
    if grad.ndim == 4:
        layouts.append(grad.contiguous(memory_format=torch.channels_last))
    return layouts


@pytest.mark.parametrize("layout", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", MAIN_CASES, ids=lambda case: case.name)
def test_strides(case: Case, backend: str, dtype: torch.dtype, layout: int) -> None:
    params = strided(dtype)
    bases = [p._base if p._base is not None else p for p in params]
    oracle = wide_copy(params)
    extra = {"clip_grad_norm": 0.9, "centralize_grad": True, "master_weights": layout % 2 == 1}
    ours = case.cls(params, backend=backend, **extra, **case.kwargs)
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    strides = [p.stride() for p in params]
    for _ in range(2):
        for param, wide in zip(params, oracle, strict=True):
            grad = torch.randn(param.shape).to(dtype)
            choices = other_layouts(grad)
            param.grad = choices[layout % len(choices)]
            wide.grad = grad.double()
        ours.step()
        transform_by_hand(oracle, None, 0.9, 2)
        case.torch_step(theirs)
    assert_same(params, oracle, dtype)
    assert [p.stride() for p in params] == strides
    assert len(bases) == len(params)


@pytest.mark.parametrize("case", MAIN_CASES, ids=lambda case: case.name)
def test_memory_between_strided_elements_is_untouched(case: Case) -> None:
    storage = torch.randn(9, 20)
    before = storage.clone()
    param = storage[:, 3:14].detach().requires_grad_()
    optimizer = case.cls([param], centralize_grad=True, **case.kwargs)
    param.grad = torch.randn(9, 11)
    optimizer.step()
    assert not torch.equal(storage[:, 3:14], before[:, 3:14])
    storage[:, 3:14] = before[:, 3:14]
    assert torch.equal(storage, before)


@pytest.mark.parametrize("eps_inside", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_inside_the_root(backend: str, eps_inside: bool) -> None:
    from fusedtricks.optim import Adagrad, RMSprop

    p = torch.tensor([2.0], requires_grad=True)
    p.grad = torch.tensor([3.0])
    RMSprop([p], lr=0.1, alpha=0.75, eps=0.5, eps_inside_sqrt=eps_inside, backend=backend).step()
    v = 0.25 * 9
    root = (v + 0.5) ** 0.5 if eps_inside else v**0.5 + 0.5
    assert p.item() == pytest.approx(2 - 0.1 * 3 / root, rel=1e-6)
    p = torch.tensor([2.0], requires_grad=True)
    p.grad = torch.tensor([3.0])
    Adagrad(
        [p],
        lr=0.1,
        initial_accumulator_value=0.2,
        eps=0.5,
        eps_inside_sqrt=eps_inside,
        backend=backend,
    ).step()
    root = (9.2 + 0.5) ** 0.5 if eps_inside else 9.2**0.5 + 0.5
    assert p.item() == pytest.approx(2 - 0.1 * 3 / root, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adam_without_bias_correction_and_decoupled_lr(backend: str) -> None:
    from fusedtricks.optim import AdamW

    p = torch.tensor([2.0], requires_grad=True)
    p.grad = torch.tensor([3.0])
    optimizer = AdamW(
        [p],
        lr=0.1,
        betas=(0.8, 0.7),
        eps=0.25,
        weight_decay=0.05,
        bias_correction=False,
        decouple_lr=True,
        backend=backend,
    )
    optimizer.param_groups[0]["lr"] = 0.04
    optimizer.step()
    m, v = 0.2 * 3, 0.3 * 9
    expected = 2 * (1 - 0.04 / 0.1 * 0.05) - 0.04 * m / (v**0.5 + 0.25)
    assert p.item() == pytest.approx(expected, rel=1e-6)


def test_python_and_cpp_agree_on_names() -> None:
    layout = ops.native.build_info()["optimizers"]
    assert set(layout) == set(ops.ALGORITHMS) == {case.cls.algorithm for case in CASES}
    for case in CASES:
        param = torch.zeros(2, requires_grad=True)
        optimizer = case.cls([param], **case.kwargs)
        group = optimizer.param_groups[0]
        mine = layout[case.cls.algorithm]
        assert list(case.cls.flag_names) == mine["flags"]
        assert len(optimizer._flags(group)) == len(mine["flags"])
        assert len(optimizer._hyper(group)) == len(mine["hyper"])
        assert set(optimizer._state_names(group)) <= set(mine["states"])
