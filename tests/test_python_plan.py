"""The plan in Python: what installations without the compiled extension step with.

FUSEDTRICKS_TEST_PLAN=python runs the generic suites with it.
"""

import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from fusedtricks import backends, optim
from fusedtricks.optim import plan
from tests import devices
from tests.cases import MAIN_CASES, Case
from tests.devices import NATIVE
from tests.pairs import Pair, case_name, close, leaf, make_params
from tests.python_plans import adamw, first, give_grads, planned, swap
from tests.python_plans import python_plan as python_plan
from tests.snapshot import assert_unchanged, snapshot

pytestmark = pytest.mark.usefixtures("python_plan")
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
EXTRAS = {"clip_grad_norm": 1.7, "clip_grad_value": 0.9, "centralize_grad": True}


@main_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_those_of_torch(case: Case, dtype: torch.dtype) -> None:
    pair = Pair(case, NATIVE, dtype=dtype)
    pair.step()
    made = pair.ours._plan
    for _ in range(3):
        pair.step()
        pair.check()
    assert isinstance(made, plan.Plan) and pair.ours._plan is made


@main_case
def test_statistics_are_those_of_the_reference(case: Case) -> None:
    params = make_params()
    twins = [leaf(p.detach().clone()) for p in params]
    ours = case.cls(params, backend=NATIVE, **EXTRAS, **case.kwargs)
    theirs = case.cls(twins, backend="reference", **EXTRAS, **case.kwargs)
    for _ in range(4):
        for param, twin in zip(give_grads(ours), twins, strict=True):
            twin.grad = param.grad.clone()
        ours.step()
        theirs.step()
        close(ours.grad_norm, theirs.grad_norm, torch.float64)
        for param, twin in zip(params, twins, strict=True):
            close(param, twin, torch.float64)
    assert isinstance(ours._plan, plan.Plan)


@main_case
def test_gradients_come_and_go(case: Case) -> None:
    pair = Pair(case, NATIVE)
    for without in ((2, 3), (2, 3), (2,), (), (5, 3), (0, 1, 2, 3, 4, 5), (2, 5), ()):
        pair.step(without)
        pair.check()


@main_case
def test_groups_options_and_schedules(case: Case) -> None:
    pair = Pair(case, NATIVE)
    pair.add(make_params(shapes=[(3, 2), (7,)]), weight_decay=0.0)
    planned_once = None
    for lr in (0.02, 0.05, torch.tensor(0.04, dtype=torch.float64), 0.01):
        for optimizer in pair.both:
            optimizer.param_groups[1]["lr"] = lr
        if not case.decays_by_hand:
            pair.step()
            pair.check()
        planned_once = planned_once or pair.ours._plan
        assert pair.ours._plan is planned_once


@main_case
def test_a_parameter_listed_twice_is_updated_twice(case: Case) -> None:
    pair = Pair(case, params=make_params(shapes=[(4, 3)]))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        ours = case.cls(pair.params * 2, backend=NATIVE, **case.kwargs)
    for _ in range(3):
        pair.set_grads()
        ours.step()
        case.torch_step(pair.theirs)
        case.torch_step(pair.theirs)
        close(pair.params[0], pair.twins[0], torch.float64)


def test_masters() -> None:
    params = [nn.Parameter(torch.randn(7, 5).bfloat16()) for _ in range(2)]
    optimizer = optim.AdamW(params, lr=0.03, master_weights=True, backend=NATIVE)
    made = planned(optimizer)
    for without in (None, 0, 0, 1, None):
        give_grads(optimizer)
        if without is not None:
            params[without].grad = None
        optimizer.step()
        for param in params:
            assert torch.equal(optimizer.state[param]["master_param"].bfloat16(), param)
    assert optimizer._plan is made


def test_a_default_device_has_no_say() -> None:
    optimizer = adamw()
    made = planned(optimizer)
    give_grads(optimizer)
    with torch.device("meta"):
        optimizer.step()
    assert optimizer._plan is made


def test_grad_mode_is_left_alone() -> None:
    optimizer = adamw()
    planned(optimizer)
    optimizer.defaults["differentiable"] = True
    give_grads(optimizer)
    optimizer.step()
    assert torch.is_grad_enabled()
    assert not any(v.requires_grad for s in optimizer.state.values() for v in s.values())


@pytest.fixture(params=[False, True], ids=["on the host", "on the device"])
def skips_on_device(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Choose who decides to skip a step; the CPU's ops can do it too."""
    if devices.SKIPS_ON_DEVICE and not request.param:
        pytest.skip("the device decides")
    monkeypatch.setattr(backends, "skips_on_device", lambda device: request.param)
    return request.param


@main_case
@pytest.mark.parametrize("skip_nonfinite,has_nan", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("found_inf", [0.0, 1.0, None])
def test_skipped_steps(
    case: Case,
    skip_nonfinite: bool,
    has_nan: bool,
    found_inf: float | None,
    skips_on_device: bool,
) -> None:
    pair = Pair(case, NATIVE, skip_nonfinite=skip_nonfinite)
    pair.step()
    pair.step()
    made = pair.ours._plan
    if found_inf is not None:
        pair.ours.found_inf = torch.tensor(found_inf)
    n_skipped = 2 if has_nan or found_inf else 0
    for _ in range(2):
        pair.set_grads()
        if has_nan:
            pair.params[3].grad[1, 1] = torch.nan
        pair.ours.step()
        if not n_skipped:
            case.torch_step(pair.theirs)
        pair.check()
    assert pair.ours.skipped_steps == n_skipped
    assert (pair.ours._record.skipped_on_device is not None) == skips_on_device
    pair.ours.found_inf = torch.tensor(0.0)
    pair.step()
    pair.check()
    assert pair.ours.skipped_steps == n_skipped and pair.ours._plan is made


def test_a_skipped_step_of_several_calls_counts_once(skips_on_device: bool) -> None:
    optimizer = adamw(skip_nonfinite=True)
    optimizer.param_groups[1]["amsgrad"] = True
    planned(optimizer)
    params = give_grads(optimizer)
    before = [param.detach().clone() for param in params]
    params[0].grad[1] = torch.inf
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not torch.isfinite(optimizer.grad_norm)


@pytest.mark.parametrize("master_weights", [False, True])
def test_versions_are_raised(master_weights: bool) -> None:
    dtype = torch.bfloat16 if master_weights else torch.float32
    param = nn.Parameter(torch.randn(4, 3).to(dtype))
    optimizer = optim.AdamW([param], lr=0.1, master_weights=master_weights, backend=NATIVE)
    planned(optimizer)
    states = [value for name, value in optimizer.state[param].items() if name != "step"]
    for _ in range(2):
        loss = (torch.ones(2, 3, dtype=dtype, requires_grad=True) @ param.t()).square().sum()
        seen = [tensor._version for tensor in (param, *states)]
        give_grads(optimizer)
        optimizer.step()
        assert all(t._version > v for t, v in zip((param, *states), seen, strict=True))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@main_case
def test_nothing_is_kept_alive(case: Case) -> None:
    params = make_params(shapes=[(50,), (4, 5)])
    optimizer = case.cls(params, backend=NATIVE, **EXTRAS, **case.kwargs)
    planned(optimizer)
    grads = [weakref.ref(param.grad) for param in params]
    del params
    gc.collect()
    gc.disable()
    try:
        optimizer.zero_grad()
        assert all(grad() is None for grad in grads)
    finally:
        gc.enable()
    params = optimizer.param_groups[0]["params"]
    params[0]._in_backward_optimizers = [optimizer]  # a cycle
    held = [weakref.ref(p) for p in params]
    held += [weakref.ref(v) for s in optimizer.state.values() for v in s.values()]
    held += [weakref.ref(optimizer), weakref.ref(optimizer._plan)]
    del params, optimizer
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)


def test_what_was_removed_from_the_state_is_let_go() -> None:
    optimizer = adamw()
    params = give_grads(optimizer)
    stranger = leaf(torch.ones(3))
    optimizer.state[stranger] = {"exp_avg": torch.ones(3)}
    made = planned(optimizer)
    held = weakref.ref(stranger)
    del optimizer.state[stranger], stranger, params
    give_grads(optimizer)
    optimizer.step()
    gc.collect()
    assert optimizer._plan is made and held() is None


@main_case
def test_swap_tensors(case: Case) -> None:
    param = nn.Parameter(torch.zeros(5))
    optimizer = case.cls([param], backend=NATIVE, **case.kwargs)
    planned(optimizer)
    swap(param)
    planned(optimizer)
    assert (param.detach() - 3.0).abs().max() < 1 and not torch.equal(param, torch.full((5,), 3.0))


def test_failures_change_nothing_and_name_the_culprit() -> None:
    optimizer = adamw()
    planned(optimizer)
    give_grads(optimizer)
    before = snapshot(optimizer)
    optimizer.param_groups[1]["lr"] = "1"
    with pytest.raises(TypeError, match="expected lr of group 1 to be a number"):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.03
    optimizer.param_groups[0]["eps"] = None
    with pytest.raises(TypeError, match="expected numbers in group 0"):
        optimizer.step()
    optimizer.param_groups[0]["eps"] = 1e-8
    assert_unchanged(optimizer, before)
    optimizer.state[first(optimizer)]["exp_avg"].data = torch.ones(9)
    with pytest.raises(ValueError, match="'exp_avg' of parameter 0 of group 0"):
        optimizer.step()


def test_several_threads() -> None:
    optimizer = adamw(((1000,),) * 20)
    planned(optimizer)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                optimizer.step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_it_is_taken_where_the_extension_is_missing() -> None:
    code = (
        "import sys; sys.modules['fusedtricks._C'] = None\n"
        "from fusedtricks.optim import native, plan\n"
        "assert native._planner is plan"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
