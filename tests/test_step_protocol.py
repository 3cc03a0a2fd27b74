"""What a step does besides updating: closures, hooks, profiler ranges, versions, failures."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim import optimizer as optimizer_module

from tests.cases import CASES, MAIN_CASES, Case
from tests.pairs import BACKENDS, Pair, case_name, leaf, make_params

each_backend = pytest.mark.parametrize("backend", BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad], ids=["grad", "no_grad"])
@each_backend
@main_case
def test_closure(case: Case, backend: str, mode: Callable[[], Any]) -> None:
    pair = Pair(case, backend)
    targets = [torch.randn_like(p) for p in pair.params]
    calls = 0

    def loss_of(optimizer: Optimizer, params: list[torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum(((p - t) ** 2).sum() for p, t in zip(params, targets, strict=True))
        loss.backward()
        return loss

    with mode():
        for _ in range(3):
            mine = pair.ours.step(lambda: loss_of(pair.ours, pair.params))
            theirs = loss_of(pair.theirs, pair.twins) if torch.is_grad_enabled() else None
            if theirs is None:
                with torch.enable_grad():
                    theirs = loss_of(pair.theirs, pair.twins)
            case.torch_step(pair.theirs)
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert calls == 6
    pair.check()
    assert pair.ours.step(closure=lambda: 1.25) == 1.25
    assert pair.ours.step() is None


@each_backend
@main_case
def test_a_failing_closure_changes_nothing(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    pair.step()
    pair.set_grads()
    before = [p.detach().clone() for p in pair.params]

    def fail() -> None:
        raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        pair.ours.step(fail)
    assert all(torch.equal(p, b) for p, b in zip(pair.params, before, strict=True))
    assert torch.is_grad_enabled()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Record global hooks, and remove them after the test."""
    lines: list[str] = []
    handles = [
        optimizer_module.register_optimizer_step_pre_hook(lambda *_: lines.append("global pre")),
        optimizer_module.register_optimizer_step_post_hook(lambda *_: lines.append("global post")),
    ]
    yield lines
    for handle in handles:
        handle.remove()


@each_backend
@main_case
def test_hooks_run_once_each_in_order(case: Case, backend: str, log: list[str]) -> None:
    pair = Pair(case, backend)
    param = pair.params[2]
    values = {}

    def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert optimizer is pair.ours
        values["before"] = param.detach().clone()
        log.append("pre")

    def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values["after"] = param.detach().clone()
        log.append("post")

    handles = [
        pair.ours.register_step_pre_hook(before),
        pair.ours.register_step_post_hook(after),
    ]
    pair.set_grads()
    start = param.detach().clone()
    for _ in range(2):
        log.clear()
        pair.ours.step()
        assert log == ["global pre", "pre", "post", "global post"]
        assert torch.equal(values["before"], start)
        assert torch.equal(values["after"], param)
        start = param.detach().clone()
    for handle in handles:
        handle.remove()
    log.clear()
    pair.ours.step()
    assert log == ["global pre", "global post"]


@main_case
def test_subclasses_run_hooks_once(case: Case, log: list[str]) -> None:
    class Inherits(case.cls):
        pass

    # The class itself first, so that the subclass meets a step that is wrapped already.
    for cls in (case.cls, Inherits, case.cls):
        log.clear()
        cls(make_params(), **case.kwargs).step()
        assert log == ["global pre", "global post"]


@main_case
def test_a_pre_hook_may_replace_the_arguments(case: Case) -> None:
    optimizer = case.cls(make_params(), **case.kwargs)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 2.5), {}))
    assert optimizer.step() == 2.5


@each_backend
@main_case
def test_profiler_ranges(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    pair.set_grads()
    with torch.profiler.profile() as profile:
        pair.ours.step()
        pair.ours.zero_grad()
    names = [event.name for event in profile.events()]
    name = case.cls.__name__
    assert names.count(f"Optimizer.step#{name}.step") == 1
    assert names.count(f"Optimizer.zero_grad#{name}.zero_grad") == 1


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
@each_backend
@main_case
def test_a_step_replaced_on_the_instance_still_works(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    # A scheduler replaces the method, and so do libraries after it.
    scheduler = lr_scheduler.ConstantLR(pair.ours, factor=1.0, total_iters=1)
    assert "step" in vars(pair.ours)
    inner, calls = pair.ours.step, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args))
        return inner(*args, **kwargs)

    pair.ours.step = counted
    for _ in range(2):
        pair.step()
        scheduler.step()
    pair.check()
    assert calls == [0, 0]


@each_backend
@every_case
def test_no_learning_rate_and_no_gradient_is_no_change(case: Case, backend: str) -> None:
    for lr in (0.0, torch.tensor(0.0)):
        params = make_params(torch.float32)
        optimizer = case.cls(params, backend=backend, **case.kwargs | {"lr": lr})
        before = [p.detach().clone() for p in params]
        for _ in range(2):
            for param in params:
                param.grad = torch.zeros_like(param)
            optimizer.step()
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
        twin = leaf(torch.ones(()))
        theirs = case.torch_cls([twin], **case.torch_kwargs)
        twin.grad = torch.zeros(())
        theirs.step()
        keys = theirs.state[twin].keys()
        assert all(optimizer.state.get(param, {}).keys() == keys for param in params)


@each_backend
@main_case
def test_no_change_with_decoupled_lr_either(case: Case, backend: str) -> None:
    if not case.cls(make_params())._decoupled(case.cls(make_params()).param_groups[0]):
        return
    params = make_params(torch.float32)
    optimizer = case.cls(params, backend=backend, decouple_lr=True, **case.kwargs)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [p.detach().clone() for p in params]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("sweeps", [False, True], ids=["plain", "sweep"])
@each_backend
@every_case
def test_gradients_are_only_read(case: Case, backend: str, sweeps: bool) -> None:
    extras = {"clip_grad_norm": 0.3, "clip_grad_value": 0.2, "centralize_grad": True}
    params = make_params(torch.float32)
    optimizer = case.cls(params, backend=backend, **(extras if sweeps else {}), **case.kwargs)
    for _ in range(2):
        grads = [torch.randn_like(p) for p in params]
        kept = [(g.clone(), g._version, g.data_ptr(), g.stride()) for g in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        for param, grad, (value, version, pointer, stride) in zip(params, grads, kept, strict=True):
            assert param.grad is grad
            assert torch.equal(grad, value)
            assert (grad._version, grad.data_ptr(), grad.stride()) == (version, pointer, stride)


@each_backend
@every_case
def test_versions_are_raised_and_storage_stays(case: Case, backend: str) -> None:
    params = make_params(torch.float32)
    optimizer = case.cls(params, backend=backend, **case.kwargs)
    for round_ in range(3):
        states = [v for s in optimizer.state.values() for n, v in s.items() if n != "step"]
        tensors = [t for t in params + states if t.numel()]
        seen = [(t._version, t.data_ptr(), t.stride()) for t in tensors]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        assert round_ == 0 or len(tensors) >= 4
        for tensor, (version, pointer, stride) in zip(tensors, seen, strict=True):
            assert tensor._version > version
            assert (tensor.data_ptr(), tensor.stride()) == (pointer, stride)
        assert all(p.requires_grad and p.is_leaf for p in params)
        assert not any(t.requires_grad for t in states)


@pytest.mark.parametrize("master_weights", [False, True], ids=["plain", "master"])
@each_backend
@main_case
def test_backward_through_a_changed_weight_is_refused(
    case: Case, backend: str, master_weights: bool
) -> None:
    dtype = torch.bfloat16 if master_weights else torch.float32
    weight = leaf(torch.randn(4, 3).to(dtype))
    x = leaf(torch.randn(2, 3).to(dtype))
    optimizer = case.cls([weight], backend=backend, master_weights=master_weights, **case.kwargs)
    for _ in range(2):
        loss = (x @ weight.t()).square().sum()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_backend
@main_case
def test_zero_grad(case: Case, backend: str) -> None:
    for flags in ({}, {"foreach": True}):
        pair = Pair(case, backend, **flags)
        pair.step()
        kept = [p.grad for p in pair.params]
        pair.ours.zero_grad(set_to_none=False)
        assert all(p.grad is grad for p, grad in zip(pair.params, kept, strict=True))
        assert not any(grad.any() for grad in kept)
        pair.ours.zero_grad()
        assert all(p.grad is None for p in pair.params)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@each_backend
@every_case
def test_foreach_and_fused_change_nothing(case: Case, backend: str, flags: dict[str, Any]) -> None:
    if "fused" in flags and "fused" not in case.cls(make_params()).defaults:
        return
    pair = Pair(case, backend, **flags)
    for _ in range(2):
        pair.step()
    pair.check()
    assert pair.ours.param_groups[0][next(iter(flags))] is next(iter(flags.values()))


@each_backend
@every_case
def test_nan_and_inf_appear_where_torch_has_them(case: Case, backend: str) -> None:
    pair = Pair(case, backend, dtype=torch.float32)
    pair.step()
    pair.set_grads()
    for tensor in (pair.params[2], pair.twins[2]):
        tensor.grad[5], tensor.grad[50], tensor.grad[100] = torch.nan, torch.inf, -torch.inf
    for tensor in (pair.params[3], pair.twins[3]):
        tensor.data[1, 1] = torch.nan
        tensor.data[2, 2] = torch.inf
    pair.ours.step()
    case.torch_step(pair.theirs)
    pair.check()
    assert not torch.isfinite(pair.params[2]).all()
    pair.step()
    pair.check()


@each_backend
@main_case
def test_gradient_of_another_shape_is_refused(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    pair.step()
    before = [p.detach().clone() for p in pair.params]
    pair.set_grads()
    # What .data assignment leaves behind: torch itself checks when .grad is assigned.
    pair.params[2].data = torch.ones(7, dtype=torch.float64)
    with pytest.raises((RuntimeError, ValueError), match="parameter 2 of group 0"):
        pair.ours.step()
    others = [index for index in range(len(before)) if index != 2]
    assert all(torch.equal(pair.params[index], before[index]) for index in others)
