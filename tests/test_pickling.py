"""Copies of an optimizer, by pickle and deepcopy, go on as the original does."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tests.cases import CASES, MAIN_CASES, Case
from tests.pairs import HOST_BACKENDS, case_name, make_params, train

each_backend = pytest.mark.parametrize("backend", HOST_BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
@each_backend
@every_case
def test_copies_continue_the_same_way(case: Case, backend: str, how: str) -> None:
    optimizer = case.cls(
        make_params(torch.bfloat16),
        backend=backend,
        master_weights=True,
        clip_grad_norm=0.9,
        clip_grad_value=0.8,
        skip_nonfinite=True,
        **case.kwargs,
    )
    train(optimizer, 0, 2)
    optimizer.skipped_steps = 3
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(optimizer))
    elif how == "deepcopy":
        twin = copy.deepcopy(optimizer)
    else:
        buffer = io.BytesIO()
        torch.save(optimizer, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert type(twin) is case.cls
    public = ("backend", "clip_grad_norm", "clip_grad_value", "skip_nonfinite", "write_grads")
    for name in (*public, "skipped_steps", "grad_norm"):
        assert getattr(twin, name) == getattr(optimizer, name)
    params, copies = (o.param_groups[0]["params"] for o in (optimizer, twin))
    assert not any(p is c for p, c in zip(params, copies, strict=True))
    train(optimizer, 2, 2)
    train(twin, 2, 2)
    assert all(torch.equal(p, c) for p, c in zip(params, copies, strict=True))
    fired: list[bool] = []
    twin.register_step_post_hook(lambda *_: fired.append(True))
    train(twin, 4, 1)
    assert fired == [True]
    twin.zero_grad()


@main_case
def test_a_copy_with_its_model_shares_the_parameters_of_the_copy(case: Case) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = case.cls(model.parameters(), **case.kwargs)
    train(optimizer, 0, 1)
    twin_model, twin = copy.deepcopy((model, optimizer))
    before = [p.detach().clone() for p in model.parameters()]
    train(twin, 1, 1)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert twin.param_groups[0]["params"][0] is twin_model[0].weight
    assert not torch.equal(twin_model[0].weight, before[0])
