"""Optimizer state: keys, shapes and dtypes of torch.optim, nothing more, and none kept too long."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import CASES, MAIN_CASES, Case
from tests.pairs import BACKENDS, SHAPES, Pair, case_name, close, leaf, make_params

each_backend = pytest.mark.parametrize("backend", BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


def described(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return what can be compared of tensors in a state dict besides their values."""
    return {
        index: {
            name: (v.shape, v.dtype, v.device, v.layout, v.stride(), v.requires_grad)
            for name, v in values.items()
        }
        for index, values in optimizer.state_dict()["state"].items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@each_backend
@every_case
def test_state_looks_like_that_of_torch(case: Case, backend: str, dtype: torch.dtype) -> None:
    shapes = [(), (0,), (7,), (3, 5)]
    values = [torch.randn(shape) for shape in shapes]
    values.append(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    values.append(torch.randn(4, 6).t())
    params, twins = ([leaf(v.to(dtype).clone()) for v in values] for _ in range(2))
    ours = case.cls(params, backend=backend, **case.kwargs)
    theirs = case.torch_cls(twins, **case.torch_kwargs)
    assert described(ours) == described(theirs)
    ours.step()
    assert described(ours) == described(theirs)
    for _ in range(2):
        for tensor in (*params[1:], *twins[1:]):
            tensor.grad = torch.ones_like(tensor)
        ours.step()
        theirs.step()
        assert described(ours) == described(theirs)
    assert all(isinstance(key, Tensor) for key in ours.state)
    assert all(values for values in ours.state.values())


@each_backend
@main_case
def test_step_count_follows_the_default_dtype(case: Case, backend: str) -> None:
    steps = []
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            params = make_params(torch.float32)
            for cls, kwargs in ((case.cls, case.kwargs), (case.torch_cls, case.torch_kwargs)):
                optimizer = cls(params, **kwargs)
                params[2].grad = torch.ones_like(params[2])
                optimizer.step()
                steps.append(optimizer.state.get(params[2], {}).get("step"))
        finally:
            torch.set_default_dtype(torch.float32)
    for mine, its in (steps[:2], steps[2:]):
        assert (mine is None) == (its is None) == (not case.cls.has_step)
        if mine is not None:
            assert (mine.dtype, mine.shape, mine.item()) == (its.dtype, its.shape, 1)


@each_backend
@every_case
def test_missing_gradients_do_not_advance_the_count(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    for without in ((2, 3), (2,), (), (5, 3), (2, 5)):
        kept = pair.params[2].detach().clone()
        pair.step(without)
        pair.check()
        assert torch.equal(kept, pair.params[2]) == (2 in without)


@each_backend
@main_case
def test_parameters_that_never_train_get_no_state(case: Case, backend: str) -> None:
    params = make_params()
    params[3].requires_grad_(False)
    pair = Pair(case, backend, params=params)
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        for param, twin in zip(pair.params[:3], pair.twins[:3], strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        pair.ours.step()
        case.torch_step(pair.theirs)
    pair.check()
    assert all(torch.equal(p, b) for p, b in zip(params[3:], before[3:], strict=True))


@each_backend
@every_case
def test_a_step_without_gradients_changes_nothing(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    before = [p.detach().clone() for p in pair.params]
    pair.ours.step()
    pair.theirs.step()
    pair.check()
    assert all(torch.equal(p, b) for p, b in zip(pair.params, before, strict=True))


@each_backend
@every_case
def test_replaced_state_is_used(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    for round_ in range(3):
        pair.step()
        for param, twin in zip(pair.params, pair.twins, strict=True):
            for name, value in pair.ours.state.get(param, {}).items():
                # Far apart values, so that a stale tensor cannot pass; never negative for a sum.
                other = value + round_ + 1 if name == "step" else torch.rand_like(value) + round_
                pair.ours.state[param][name] = other
                pair.theirs.state[twin][name] = other.clone()
        pair.step()
        pair.check()


@each_backend
@every_case
def test_replaced_data_is_used(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    pair.step()
    pair.step()
    for param, twin in zip(pair.params, pair.twins, strict=True):
        old, copy = param.data, param.detach().clone()
        data = torch.randn(param.shape, dtype=param.dtype)
        param.data = data
        twin.data = data.clone()
        param.abandoned = (old, copy)
        for name, value in pair.ours.state.get(param, {}).items():
            if value.ndim:
                value.data = value.clone()
                assert name in pair.theirs.state[twin]
    pair.step()
    pair.check()
    assert all(torch.equal(*param.abandoned) for param in pair.params)


@each_backend
@main_case
def test_cleared_state_starts_anew(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    pair.step()
    for optimizer in pair.both:
        optimizer.state.clear()
    pair.step()
    pair.check()
    pair.step()
    pair.check()


@each_backend
@main_case
def test_keys_that_are_no_parameters_are_left_alone(case: Case, backend: str) -> None:
    optimizer = case.cls(make_params(), backend=backend, **case.kwargs)
    notes = {"hook": True, "counts": {"steps": 3}, "tensor": torch.ones(2), 7: "seven"}
    optimizer.state |= notes
    for _ in range(2):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
            optimizer.state[param]["note"] = 11
        optimizer.step()
    if hasattr(optimizer, "share_memory"):
        optimizer.share_memory()
    fresh = case.cls(make_params(), backend=backend, **case.kwargs)
    saved = optimizer.state_dict()
    fresh.load_state_dict(saved)
    for state in (optimizer.state, saved["state"], fresh.state):
        assert {key: state[key] for key in notes} == notes
    assert all(fresh.state[p]["note"] == 11 for p in fresh.param_groups[0]["params"])
    fresh.step()


@main_case
def test_sharing_memory_as_torch_does(case: Case) -> None:
    optimizer = case.cls(make_params(), **case.kwargs)
    assert hasattr(optimizer, "share_memory") == hasattr(case.torch_cls, "share_memory")
    if hasattr(optimizer, "share_memory"):
        optimizer.add_param_group({"params": make_params()})
        optimizer.share_memory()
        shared = [v.is_shared() for values in optimizer.state.values() for v in values.values()]
        assert shared == [True] * (2 * 2 * len(SHAPES))


@each_backend
@main_case
def test_nothing_keeps_parameters_alive(case: Case, backend: str) -> None:
    params = make_params(shapes=[(50,), (4, 5)])
    optimizer = case.cls(params, backend=backend, clip_grad_norm=1.0, **case.kwargs)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    grads = [weakref.ref(param.grad) for param in params]
    optimizer.zero_grad()
    assert all(grad() is None for grad in grads)
    held = [weakref.ref(p) for p in params]
    held += [weakref.ref(v) for s in optimizer.state.values() for v in s.values()]
    held.append(weakref.ref(optimizer))
    del param, params, optimizer
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)


@each_backend
@main_case
def test_a_parameter_that_moves_to_another_group_follows_its_options(
    case: Case, backend: str
) -> None:
    pair = Pair(case, backend, params=[leaf(torch.randn(7).double())])
    pair.add([leaf(torch.randn(5, 3).double())], lr=0.0)
    for _ in range(2):
        pair.step()
    for optimizer in pair.both:
        groups = optimizer.param_groups
        groups[1]["params"].insert(0, groups[0]["params"].pop())
    pair.step()
    pair.check()


@each_backend
@main_case
def test_a_removed_group_is_let_go_at_the_next_step(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    extra = leaf(torch.randn(9, dtype=torch.float64))
    pair.ours.add_param_group({"params": [extra]})
    extra.grad = torch.ones_like(extra)
    pair.set_grads()
    pair.ours.step()
    case.torch_step(pair.theirs)
    pair.ours.param_groups.pop()
    pair.ours.state.pop(extra, None)
    pair.step()
    pair.check()
    held = weakref.ref(extra)
    del extra
    gc.collect()
    assert held() is None


def refer_to_own_optimizer(cls: type, kwargs: dict[str, Any]) -> list[weakref.ref]:
    """Build the cycle of torch.distributed.optim's optimizer in backward, return its tensors."""
    params = make_params()
    for param in params:
        optimizer = cls([param], **kwargs)
        param._in_backward_optimizers = [optimizer]
        for _ in range(2):
            param.grad = torch.ones_like(param)
            optimizer.step()
    return [weakref.ref(p) for p in params] + [weakref.ref(optimizer)]


@each_backend
@main_case
def test_a_cycle_through_the_optimizer_is_collected(case: Case, backend: str) -> None:
    for cls, kwargs in (
        (case.torch_cls, case.torch_kwargs),
        (case.cls, case.kwargs | {"backend": backend}),
    ):
        held = refer_to_own_optimizer(cls, kwargs)
        gc.collect()
        assert [reference() for reference in held] == [None] * len(held)


@each_backend
@every_case
def test_first_buffer_is_the_gradient(case: Case, backend: str) -> None:
    pair = Pair(case, backend)
    if case.cls.has_step or not pair.ours._state_names(pair.ours.param_groups[0]):
        return
    pair.set_grads(without=(2,))
    pair.set_option("weight_decay", 0)
    for without in ((2,), (3,)):
        pair.set_grads(without)
        sign = -1 if pair.ours.param_groups[0]["maximize"] else 1
        pair.ours.step()
        first = 3 if without == (2,) else 2
        buffer = pair.ours.state[pair.params[first]]["momentum_buffer"]
        close(buffer, sign * pair.params[first].grad, torch.float64)
