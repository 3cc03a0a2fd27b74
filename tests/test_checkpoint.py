"""Checkpoints: exact resume, hooks, old formats, names, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import CASES, MAIN_CASES, Case
from tests.pairs import (
    HOST_BACKENDS,
    Pair,
    case_name,
    clones,
    close,
    make_params,
    through_file,
    train,
)

each_backend = pytest.mark.parametrize("backend", HOST_BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


def snapshot(value: Any) -> Any:
    """Copy a nested structure with tensors turned into lists that `==` compares."""
    if isinstance(value, Tensor):
        # id, too: the very tensor has to stay.
        return (id(value), value.dtype, value.tolist())
    if isinstance(value, dict):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [snapshot(entry) for entry in value]
    return value


EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "master": {"master_weights": True},
    "all": {
        "master_weights": True,
        "clip_grad_norm": 0.9,
        "clip_grad_value": 0.8,
        "centralize_grad": True,
        "skip_nonfinite": True,
    },
}


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_backend
@every_case
def test_resume_is_exact(
    case: Case, backend: str, dtype: torch.dtype, extras: dict[str, Any]
) -> None:
    params = make_params(dtype)
    options = case.kwargs | extras | {"backend": backend}
    optimizer = case.cls(params, **options)
    train(optimizer, 0, 2)
    saved = through_file(optimizer.state_dict())
    copies = clones(params)
    resumed = case.cls(copies, **options)
    before = snapshot(saved)
    resumed.load_state_dict(saved)
    assert snapshot(saved) == before
    for param, twin in zip(params, copies, strict=True):
        mine, its = optimizer.state.get(param, {}), resumed.state.get(twin, {})
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            assert its[name].dtype == value.dtype
            assert torch.equal(its[name], value)
            assert its[name].data_ptr() != value.data_ptr() or not value.numel()
    train(optimizer, 2, 3)
    train(resumed, 2, 3)
    assert all(torch.equal(p, c) for p, c in zip(params, copies, strict=True))
    # The loaded optimizer shares nothing with the dict.
    assert snapshot(saved) == before


@main_case
def test_hooks_around_saving_and_loading(case: Case) -> None:
    optimizer = case.cls(make_params(torch.bfloat16), master_weights=True, **case.kwargs)
    train(optimizer, 0, 1)
    saved = optimizer.state_dict()
    calls: list[str] = []
    replacement = copy.deepcopy(saved)
    replacement["param_groups"][0]["lr"] = 0.77
    for values in replacement["state"].values():
        for value in values.values():
            value += 1

    def pre(o: Any, given: dict[str, Any]) -> dict[str, Any]:
        assert o is optimizer
        assert given == saved and given is not saved
        calls.append("pre")
        return replacement

    def post(o: Any) -> None:
        # After everything: the state is what it will be, not rounded to the parameter's dtype.
        assert_loaded()
        calls.append("post")

    def assert_loaded() -> None:
        for index, param in enumerate(optimizer.param_groups[0]["params"]):
            for name, value in optimizer.state[param].items():
                assert torch.equal(value, replacement["state"][index][name])

    handles = [
        optimizer.register_load_state_dict_pre_hook(pre),
        optimizer.register_load_state_dict_post_hook(post),
        optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving")),
        optimizer.register_state_dict_post_hook(lambda o, d: calls.append("after saving")),
    ]
    optimizer.load_state_dict(state_dict=saved)
    assert calls == ["pre", "post"]
    assert_loaded()
    assert optimizer.param_groups[0]["lr"] == 0.77
    optimizer.state_dict()
    assert calls == ["pre", "post", "before saving", "after saving"]
    for handle in handles:
        handle.remove()
    optimizer.load_state_dict(saved)
    assert len(calls) == 4
    assert optimizer.param_groups[0]["lr"] == case.kwargs["lr"]
    for name in vars(optimizer):
        assert "load_state_dict" not in name or not getattr(optimizer, name)


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3.0)], ids=repr)
@each_backend
@every_case
def test_older_checkpoints(case: Case, backend: str, step: Any) -> None:
    """Steps as numbers, buffers that are None, and only the keys that groups had from the start."""
    pair = Pair(case, backend)
    for _ in range(3):
        pair.step()
    saved = copy.deepcopy(pair.theirs.state_dict())
    for values in saved["state"].values():
        if "step" in values:
            values["step"] = step
    kept = {"params", *case.kwargs}
    group = saved["param_groups"][0]
    saved["param_groups"] = [{name: value for name, value in group.items() if name in kept}]
    if not case.cls.has_step and "momentum" not in case.kwargs:
        saved["state"] = {i: {"momentum_buffer": None} for i in range(len(pair.params))}
    pair.ours = case.cls(pair.params, backend=backend, **case.kwargs)
    pair.ours.load_state_dict(saved)
    if case.decays_by_hand:
        pair.ours.param_groups[0]["weight_decay"] = case.decays_by_hand
    assert pair.ours.param_groups[0].keys() == set(pair.ours.defaults) | {"params"}
    assert None not in [v for s in pair.ours.state.values() for v in s.values()]
    for values in pair.ours.state.values():
        if "step" in values:
            assert isinstance(values["step"], Tensor)
            assert values["step"].dtype == torch.float32 or isinstance(step, Tensor)
    for _ in range(2):
        pair.set_grads()
        pair.ours.step()
        case.torch_step(pair.theirs)
    for param, twin in zip(pair.params, pair.twins, strict=True):
        close(param, twin, torch.float64)


@main_case
def test_loading_adds_no_keys(case: Case) -> None:
    optimizer = case.cls(make_params(), **case.kwargs)
    train(optimizer, 0, 1)
    saved = optimizer.state_dict()
    fresh = case.cls(make_params(), **case.kwargs)
    defaults = set(fresh.defaults)
    fresh.load_state_dict(saved)
    assert set(fresh.defaults) == defaults
    for group in (fresh.param_groups[0], fresh.state_dict()["param_groups"][0]):
        assert group.keys() == optimizer.param_groups[0].keys()
    assert fresh.state_dict()["param_groups"] == saved["param_groups"]


@main_case
def test_a_torch_checkpoint_loads_with_decoupled_lr(case: Case) -> None:
    if not case.cls(make_params())._decoupled(case.cls(make_params()).param_groups[0]):
        return
    params = make_params()
    theirs = case.torch_cls(params, **case.torch_kwargs)
    train(theirs, 0, 1)
    ours = case.cls(params, **case.kwargs | {"lr": 0.3}, decouple_lr=True)
    ours.load_state_dict(theirs.state_dict())
    ours.param_groups[0]["weight_decay"] = case.kwargs["weight_decay"]
    before = params[2].detach().clone()
    train(ours, 1, 1)
    assert not torch.equal(params[2], before)
    assert ours.param_groups[0]["initial_lr"] == case.kwargs["lr"]
    resumed = case.cls(make_params(), **case.kwargs | {"lr": 0.3}, decouple_lr=True)
    resumed.load_state_dict(ours.state_dict())
    assert resumed.param_groups[0]["initial_lr"] == case.kwargs["lr"]


@main_case
def test_param_names(case: Case) -> None:
    def named(prefix: str) -> list[tuple[str, Tensor]]:
        return [(f"{prefix}{i}", p) for i, p in enumerate(make_params())]

    first, second = (case.cls(named(prefix), **case.kwargs) for prefix in "ab")
    unnamed = case.cls(make_params(), **case.kwargs)
    for optimizer in (first, unnamed):
        train(optimizer, 0, 1)
    assert first.state_dict()["param_groups"][0]["param_names"][:2] == ["a0", "a1"]
    second.load_state_dict(unnamed.state_dict())
    assert second.param_groups[0]["param_names"][:2] == ["b0", "b1"]
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["param_names"][:2] == ["a0", "a1"]
    unnamed.load_state_dict(first.state_dict())
    train(unnamed, 1, 1)
    assert unnamed.param_groups[0]["param_names"][:2] == ["a0", "a1"]


@main_case
def test_wrong_checkpoints_are_refused_and_change_nothing(case: Case) -> None:
    params = make_params()
    optimizer = case.cls(params, **case.kwargs)
    train(optimizer, 0, 1)
    good = optimizer.state_dict()
    before = snapshot(good)

    def wrong(n_groups: int, n_params: int, shape: tuple[int, ...] | None) -> dict[str, Any]:
        bad = copy.deepcopy(good)
        bad["param_groups"] *= n_groups
        bad["param_groups"][0]["params"] = bad["param_groups"][0]["params"][:n_params]
        for name in () if shape is None else bad["state"][2].keys() - {"step"}:
            bad["state"][2][name] = torch.ones(shape)
        return bad

    rows = [
        (wrong(2, 6, None), "loaded state dict has a different number of parameter groups"),
        (wrong(1, 4, None), "doesn't match the size of optimizer's group"),
        (wrong(1, 6, (55,)), r"parameter 2 in the state dict has shape \(55,\), the par"),
    ]
    for bad, text in rows:
        with pytest.raises(ValueError, match=text):
            optimizer.load_state_dict(bad)
        assert snapshot(optimizer.state_dict()) == before
    optimizer.load_state_dict(good)
