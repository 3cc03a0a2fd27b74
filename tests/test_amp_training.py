"""Our GradScaler beside torch's: same scales, same skipped steps, same parameters."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import optim
from fusedtricks.amp import GradScaler
from tests.cases import MAIN_CASES, Case
from tests.devices import NATIVE
from tests.test_amp import (
    assert_close,
    each_backend,
    each_case,
    make_params,
    make_scaler,
    set_grads,
    wide_copy,
)


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.GELU(), nn.Flatten(), nn.Linear(180, 7)
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
    case: Case,
    n_steps: int = 12,
) -> list[float]:
    """Train on noise, with an overflow in between; return the scales after each step."""
    torch.manual_seed(4)
    scales = []
    for i in range(n_steps):
        inputs, targets = torch.randn(6, 2, 8, 8), torch.randint(7, (6,))
        optimizer.zero_grad()
        with torch.autocast(NATIVE, dtype=dtype):
            loss = nn.functional.cross_entropy(model(inputs).float(), targets)
        scaler.scale(loss).backward()
        if i == 5:
            model[4].bias.grad[3] = torch.inf
        if type(optimizer) is case.torch_cls and not overflowed(model):
            decay_by_hand(optimizer, case)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def overflowed(model: nn.Module) -> bool:
    return any(not p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def decay_by_hand(optimizer: torch.optim.Optimizer, case: Case) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.mul_(1 - group["lr"] * case.decays_by_hand)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_backend
@each_case
def test_training_is_that_of_torchs_scaler_bit_for_bit(
    case: Case, backend: str, dtype: torch.dtype
) -> None:
    results = []
    for scaler_cls in (torch.amp.GradScaler, GradScaler):
        model = small_model()
        optimizer = case.cls(
            model.parameters(),
            backend=backend,
            clip_grad_norm=0.7,
            centralize_grad=True,
            **case.kwargs,
        )
        scaler = make_scaler(scaler_cls, init_scale=2.0**24)
        scales = train(model, optimizer, scaler, dtype, case)
        values = [v for state in optimizer.state.values() for v in state.values()]
        results.append((scales, optimizer.skipped_steps, [*model.parameters(), *values]))
    assert results[0][:2] == results[1][:2]
    assert results[0][1] > (1 if dtype == torch.float16 else 0)
    for theirs, ours in zip(results[0][2], results[1][2], strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_case
def test_training_is_that_of_torchs_optimizer(case: Case, dtype: torch.dtype) -> None:
    model, twin = small_model(), small_model()
    theirs = case.torch_cls(twin.parameters(), foreach=False, **case.torch_kwargs)
    torch_scales = train(twin, theirs, make_scaler(torch.amp.GradScaler), dtype, case)
    ours = case.cls(model.parameters(), **case.kwargs)
    assert train(model, ours, make_scaler(GradScaler), dtype, case) == torch_scales
    # The forward pass rounds weights to 16 bits: a difference in the last place of a weight may
    # become one unit of 2^-8 (bf16) in its activation, and the optimizers divide by small roots.
    for param, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(param, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("overflows", [(), (0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("second_is_torchs", [False, True])
@each_backend
def test_several_optimizers_on_one_scaler(
    backend: str, second_is_torchs: bool, overflows: tuple[int, ...]
) -> None:
    case, other = MAIN_CASES[0], MAIN_CASES[2]
    results = []
    for scaler_cls in (torch.amp.GradScaler, GradScaler):
        torch.manual_seed(2)
        lists = [make_params(), make_params()]
        second = torch.optim.SGD if second_is_torchs else optim.SGD
        optimizers = [
            case.cls(lists[0], backend=backend, **case.kwargs),
            second(lists[1], **other.kwargs),
        ]
        scaler = make_scaler(scaler_cls)
        scales = []
        for i in range(5):
            for k, params in enumerate(lists):
                set_grads(params, 512.0, bad=torch.inf if i == 2 and k in overflows else None)
            if i == 3:
                scaler.unscale_(optimizers[0])
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        results.append((scales, [p.detach() for params in lists for p in params]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_torchs_optimizers_are_stepped_as_by_torchs_scaler() -> None:
    params = make_params()
    oracle = wide_copy(params)
    case = MAIN_CASES[0]
    theirs = case.torch_cls(params, **case.kwargs)
    reference = case.torch_cls(oracle, **case.kwargs)
    scaler = make_scaler(GradScaler)
    for bad in (None, torch.inf, None):
        set_grads(params, scaler.get_scale(), oracle, bad)
        scaler.step(theirs)
        scaler.update()
        if bad is None:
            reference.step()
    assert_close(params, oracle)


def _names(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> list[str]:
    with torch.profiler.profile() as profile:
        scaler.step(optimizer)
        scaler.update()
    return [event.name for event in profile.events()]


def test_the_gradients_are_swept_once() -> None:
    case = MAIN_CASES[0]
    params = make_params()
    optimizer = case.cls(params, clip_grad_norm=0.7, **case.kwargs)
    scaler = make_scaler(GradScaler)
    for _ in range(2):
        set_grads(params, 512.0)
        names = _names(optimizer, scaler)
    assert names.count("fusedtricks::grad_statistics") == 1
    assert not any("non_finite_check" in name for name in names)
    assert names.count("fusedtricks::adam_") == 1


@pytest.mark.parametrize("scaler_cls", [torch.amp.GradScaler, GradScaler], ids=["torch", "ours"])
@each_backend
def test_no_gradients_at_all(scaler_cls: type, backend: str) -> None:
    case = MAIN_CASES[0]
    params = make_params()
    optimizer = case.cls(params, backend=backend, **case.kwargs)
    scaler = make_scaler(scaler_cls)
    set_grads(params, 512.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    kept = [p.detach().clone() for p in params]
    scaler.step(optimizer)
    assert all(torch.equal(p, k) for p, k in zip(params, kept, strict=True))
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.update()
    other = case.cls([torch.zeros(2, requires_grad=True)], backend=backend, **case.kwargs)
    other.param_groups[0]["params"][0].grad = torch.ones(2)
    scaler.step(other)
    scaler.update()


@pytest.mark.parametrize("scaler_cls", [torch.amp.GradScaler, GradScaler], ids=["torch", "ours"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_sparse_gradients(scaler_cls: type, backend: str) -> None:
    embedding = nn.Embedding(9, 4, sparse=True)
    wide = copy.deepcopy(embedding).double()
    kwargs = MAIN_CASES[-1].kwargs
    ours = optim.Adagrad(embedding.parameters(), backend=backend, **kwargs)
    theirs = torch.optim.Adagrad(wide.parameters(), **kwargs)
    scaler = make_scaler(scaler_cls)
    rows = torch.tensor([1, 3, 3, 7])
    for bad in (False, True, False):
        ours.zero_grad()
        theirs.zero_grad()
        scale = scaler.get_scale()
        scaler.scale(embedding(rows).pow(2).sum()).backward()
        if bad:
            embedding.weight.grad._values()[0, 0] = torch.nan
        else:
            wide(rows).pow(2).sum().backward()
            theirs.step()
        scaler.step(ours)
        scaler.update()
        assert scaler.get_scale() == (scale * 0.25 if bad else scale)
    torch.testing.assert_close(
        embedding.weight.detach().double(), wide.weight.detach(), rtol=3e-6, atol=3e-6
    )


def test_misuse_raises_what_torchs_scaler_raises() -> None:
    case = MAIN_CASES[0]
    params = make_params()
    for scaler_cls in (torch.amp.GradScaler, GradScaler):
        optimizer = case.cls(params, **case.kwargs)
        with pytest.raises(AssertionError, match="_scale is None"):
            scaler_cls(NATIVE).step(optimizer)
        scaler = make_scaler(scaler_cls)
        set_grads(params, 512.0)
        with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
            scaler.step(optimizer, closure=lambda: None)
        scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
            scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step"):
            scaler.unscale_(optimizer)
        scaler.update()
        assert scaler.step.__doc__


def test_disabled_scaler_only_steps() -> None:
    case = MAIN_CASES[0]
    params = make_params()
    oracle = wide_copy(params)
    optimizer = case.cls(params, **case.kwargs)
    scaler = GradScaler(NATIVE, enabled=False)
    set_grads(params, 1.0, oracle)
    scaler.step(optimizer)
    scaler.update()
    case.torch_step(case.torch_cls(oracle, **case.torch_kwargs))
    assert_close(params, oracle)


def test_scaler_is_saved_loaded_and_pickled_like_torchs() -> None:
    case = MAIN_CASES[0]
    params = make_params()
    optimizer = case.cls(params, **case.kwargs)
    scaler = make_scaler(GradScaler)
    for bad in (None, torch.inf, None, None):
        set_grads(params, scaler.get_scale(), bad=bad)
        scaler.step(optimizer)
        scaler.update()
    theirs = torch.amp.GradScaler(NATIVE)
    theirs.load_state_dict(scaler.state_dict())
    copies = [pickle.loads(pickle.dumps(scaler)), GradScaler(NATIVE), theirs]
    copies[1].load_state_dict(theirs.state_dict())
    for other in copies:
        assert other.state_dict() == scaler.state_dict()
    scales = []
    for other in [scaler, *copies]:
        other.scale(torch.ones(()))
        set_grads(params, 128.0)
        other.step(optimizer)
        other.update()
        scales.append(other.get_scale())
    assert scales == [512.0] * 4


def test_a_scale_set_on_the_optimizer_multiplies_as_with_torchs_scaler() -> None:
    case = MAIN_CASES[0]
    results = []
    for scaler_cls in (torch.amp.GradScaler, GradScaler):
        torch.manual_seed(2)
        params = make_params()
        optimizer = case.cls(params, clip_grad_norm=0.7, **case.kwargs)
        scaler = make_scaler(scaler_cls)
        set_grads(params, 2048.0)
        optimizer.grad_scale = torch.tensor(4.0)
        scaler.step(optimizer)
        scaler.update()
        results.append([*[p.detach() for p in params], optimizer.grad_norm])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def kinds_of_gradients() -> list[tuple[str, list[Tensor]]]:
    return [
        ("tiny", [torch.full((7, 3), 1e-38)]),
        ("huge", [torch.full((7, 3), 1e38)]),
        ("denormal", [torch.full((7, 3), 1e-42)]),
        ("zero", [torch.zeros(7, 3)]),
    ]


@pytest.mark.parametrize(
    "kind,grads", kinds_of_gradients(), ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**20])
@each_backend
def test_only_stored_values_count_as_overflow(
    backend: str, scale: float, kind: str, grads: list[Tensor]
) -> None:
    case = next(case for case in MAIN_CASES if case.cls is optim.SGD)
    results = []
    for scaler_cls in (torch.amp.GradScaler, GradScaler):
        param = torch.zeros(7, 3, requires_grad=True)
        param.grad = grads[0].clone()
        optimizer = case.cls([param], backend=backend, **case.kwargs)
        scaler = make_scaler(scaler_cls, init_scale=scale)
        scaler.step(optimizer)
        scaler.update()
        results.append((scaler.get_scale(), optimizer.skipped_steps, param.detach()))
    assert results[0][:2] == results[1][:2] == (scale, 0)
    assert torch.equal(results[0][2], results[1][2])
