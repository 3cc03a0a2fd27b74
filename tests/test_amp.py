"""Loss scaling: the contract with torch.amp.GradScaler, and our own scaler."""

import pytest
import torch
from torch import Tensor

from fusedtricks import optim
from fusedtricks.amp import GradScaler
from tests import devices
from tests.cases import MAIN_CASES, Case
from tests.devices import BACKENDS, NATIVE
from tests.snapshot import assert_unchanged, snapshot

SCALERS = [torch.amp.GradScaler, GradScaler]
SHAPES = [(1009,), (5, 3), (4, 3, 3, 3), (), (0,), (2, 17003)]
# fp16 states and parameters are rounded at each of a few steps; fp32 as in test_numerics.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 5e-3}

each_case = pytest.mark.parametrize("case", MAIN_CASES, ids=lambda case: case.name)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_scaler = pytest.mark.parametrize("scaler_cls", SCALERS, ids=["torch", "ours"])


def make_scaler(cls: type, device: str = NATIVE, **kwargs: float) -> torch.amp.GradScaler:
    """Return a scaler whose scale exists, with no value at its default."""
    options = {
        "init_scale": 512.0,
        "growth_factor": 4.0,
        "backoff_factor": 0.25,
        "growth_interval": 3,
    }
    scaler = cls(device, **(options | kwargs))
    scaler.scale(torch.ones(()))
    return scaler


def make_params(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in SHAPES]


def set_grads(
    params: list[Tensor], scale: float, oracle: list[Tensor] | None = None, bad: float | None = None
) -> None:
    """Set random gradients times `scale`; the oracle gets the unscaled values in float64."""
    for i, param in enumerate(params):
        param.grad = (torch.randn(param.shape) * 0.5 * scale).to(param.dtype)
        if oracle is not None:
            oracle[i].grad = param.grad.double() / scale
    if bad is not None:
        params[1].grad[2, 1] = bad


def wide_copy(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().double().clone().requires_grad_() for p in params]


def assert_close(params: list[Tensor], oracle: list[Tensor]) -> None:
    for param, wide in zip(params, oracle, strict=True):
        tolerance = TOLERANCE[param.dtype]
        torch.testing.assert_close(
            param.detach().double(), wide.detach(), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("masters", [False, True], ids=["", "masters"])
@pytest.mark.parametrize("n_good", [0, 2], ids=["fresh", "warm"])
@each_scaler
@each_backend
@each_case
def test_an_overflow_changes_nothing(
    case: Case, backend: str, scaler_cls: type, n_good: int, masters: bool
) -> None:
    params = make_params(torch.float16)
    optimizer = case.cls(params, backend=backend, master_weights=masters, **case.kwargs)
    scaler = make_scaler(scaler_cls, growth_interval=100)
    for _ in range(n_good):
        set_grads(params, 512.0)
        scaler.step(optimizer)
        scaler.update()
    for i, bad in enumerate((torch.inf, -torch.inf, torch.nan)):
        set_grads(params, 512.0, bad=bad)
        before = snapshot(optimizer)
        scaler.step(optimizer)
        assert_unchanged(optimizer, before)
        scaler.update()
        assert scaler.get_scale() == 512.0 * 0.25 ** (i + 1)
    assert optimizer.skipped_steps == 3


@pytest.mark.parametrize("n_good", [0, 1], ids=["fresh", "warm"])
@pytest.mark.parametrize("found_inf", [0.0, 1.0, 2.0])
@each_backend
@each_case
def test_found_inf_is_a_sum_over_devices(
    case: Case, backend: str, found_inf: float, n_good: int
) -> None:
    params = make_params()
    oracle = wide_copy(params)
    ours = case.cls(params, backend=backend, **case.kwargs)
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    for _ in range(n_good):
        set_grads(params, 1.0, oracle)
        ours.step()
        case.torch_step(theirs)
    set_grads(params, 8.0, oracle)
    ours.grad_scale, ours.found_inf = torch.tensor(8.0), torch.tensor(found_inf)
    before = snapshot(ours)
    ours.step()
    if found_inf:
        assert_unchanged(ours, before)
        assert ours.skipped_steps == 1
    else:
        case.torch_step(theirs)
        assert_close(params, oracle)
        assert ours.skipped_steps == 0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@each_scaler
@each_backend
@each_case
def test_good_step_after_a_skipped_first_one_is_a_first_step(
    case: Case, backend: str, scaler_cls: type, dtype: torch.dtype
) -> None:
    params = make_params(dtype)
    oracle = wide_copy(params)
    ours = case.cls(params, backend=backend, **case.kwargs)
    theirs = case.torch_cls(oracle, foreach=False, **case.torch_kwargs)
    scaler = make_scaler(scaler_cls)
    set_grads(params, 512.0, bad=torch.inf)
    scaler.step(ours)
    scaler.update()
    if case.cls is not optim.Adagrad and not (backend == NATIVE and devices.SKIPS_ON_DEVICE):
        assert not any(ours.state[p] for p in params if p in ours.state)
    for _ in range(2):
        set_grads(params, scaler.get_scale(), oracle)
        scaler.step(ours)
        scaler.update()
        case.torch_step(theirs)
        assert_close(params, oracle)


@each_scaler
@each_backend
@each_case
def test_after_unscale_the_gradients_are_taken_as_they_are(
    case: Case, backend: str, scaler_cls: type
) -> None:
    params = make_params()
    oracle = wide_copy(params)
    ours = case.cls(params, backend=backend, **case.kwargs)
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    scaler = make_scaler(scaler_cls, growth_interval=100)
    seen = []
    ours.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append((optimizer.grad_scale, optimizer.found_inf))
    )
    for _ in range(2):
        set_grads(params, 512.0, oracle)
        scaler.unscale_(ours)
        torch.nn.utils.clip_grad_norm_(params, 0.7)
        torch.nn.utils.clip_grad_norm_(oracle, 0.7)
        scaler.step(ours)
        scaler.update()
        case.torch_step(theirs)
    assert [(grad_scale, flag.item()) for grad_scale, flag in seen] == [(None, 0.0)] * 2
    assert_close(params, oracle)
    set_grads(params, 512.0, bad=torch.nan)
    scaler.unscale_(ours)
    before = snapshot(ours)
    scaler.step(ours)
    assert_unchanged(ours, before)
    scaler.update()
    assert scaler.get_scale() == 128.0
    assert not hasattr(ours, "grad_scale") and not hasattr(ours, "found_inf")


@pytest.mark.parametrize(
    "options", [{}, {"centralize_grad": True}, {"clip_grad_norm": 0.7}], ids=str
)
@each_backend
@each_case
def test_skip_nonfinite_needs_no_scaler(case: Case, backend: str, options: dict) -> None:
    params = make_params(torch.bfloat16)
    optimizer = case.cls(params, backend=backend, skip_nonfinite=True, **options, **case.kwargs)
    n_skipped = 0
    for bad in (torch.inf, None, torch.nan, -torch.inf, None):
        set_grads(params, 1.0, bad=bad)
        before = snapshot(optimizer)
        optimizer.step()
        n_skipped += bad is not None
        assert optimizer.skipped_steps == n_skipped
        if bad is not None:
            assert_unchanged(optimizer, before)
        else:
            assert snapshot(optimizer) != before
    steps = [state["step"].item() for state in optimizer.state.values() if "step" in state]
    assert set(steps) <= {2.0}


@each_scaler
@each_backend
@each_case
def test_norm_and_clipping_are_of_the_unscaled_gradient(
    case: Case, backend: str, scaler_cls: type
) -> None:
    params = make_params()
    oracle = wide_copy(params)
    ours = case.cls(
        params,
        backend=backend,
        clip_grad_norm=0.7,
        clip_grad_value=0.9,
        centralize_grad=True,
        **case.kwargs,
    )
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    scaler = make_scaler(scaler_cls)
    for _ in range(4):
        set_grads(params, scaler.get_scale(), oracle)
        kept = [p.grad.clone() for p in params]
        scaler.step(ours)
        scaler.update()
        torch.nn.utils.clip_grad_value_(oracle, 0.9)
        norm = torch.nn.utils.clip_grad_norm_(oracle, 0.7)
        for wide in oracle:
            if wide.ndim > 1:
                wide.grad -= wide.grad.mean(dim=tuple(range(1, wide.ndim)), keepdim=True)
        case.torch_step(theirs)
        assert ours.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
        assert all(torch.equal(p.grad, k) for p, k in zip(params, kept, strict=True))
    assert scaler.get_scale() == 2048.0
    assert_close(params, oracle)


@each_scaler
@each_backend
@each_case
def test_write_grads_leaves_what_the_update_saw(case: Case, backend: str, scaler_cls: type) -> None:
    params = make_params()
    oracle = wide_copy(params)
    ours = case.cls(
        params,
        backend=backend,
        write_grads=True,
        clip_grad_norm=0.7,
        centralize_grad=True,
        **case.kwargs,
    )
    theirs = case.torch_cls(oracle, **case.torch_kwargs)
    scaler = make_scaler(scaler_cls)
    for _ in range(2):
        set_grads(params, 512.0, oracle)
        scaler.step(ours)
        scaler.update()
        torch.nn.utils.clip_grad_norm_(oracle, 0.7)
        for wide in oracle:
            if wide.ndim > 1:
                wide.grad -= wide.grad.mean(dim=tuple(range(1, wide.ndim)), keepdim=True)
        case.torch_step(theirs)
        assert_close([p.grad for p in params], [p.grad for p in oracle])
    assert_close(params, oracle)
    set_grads(params, 512.0, bad=torch.inf)
    before = snapshot(ours)
    scaler.step(ours)
    assert_unchanged(ours, before)


@each_scaler
def test_attributes_are_gone_after_the_step(scaler_cls: type) -> None:
    case = MAIN_CASES[0]
    params = make_params()
    optimizer = case.cls(params, **case.kwargs)
    scaler = make_scaler(scaler_cls)
    for bad in (None, torch.inf):
        set_grads(params, 512.0, bad=bad)
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
        assert not optimizer._wants_flag


def test_a_step_that_raises_leaves_no_scale_behind() -> None:
    case = MAIN_CASES[0]
    params = make_params()
    optimizer = case.cls(params, **case.kwargs)
    scaler = make_scaler(GradScaler)
    set_grads(params, 512.0)
    good, params[0].grad = params[0].grad, None
    params[0].grad = good.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale") and not optimizer._wants_flag
    params[0].grad = good
    before = snapshot(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert snapshot(optimizer) != before
