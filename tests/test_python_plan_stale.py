"""What makes a plan in Python stale, and what does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import optim
from fusedtricks.optim import FusedOptimizer, native
from fusedtricks.reference import GradOptions
from tests.devices import NATIVE
from tests.pairs import close, leaf, make_params
from tests.python_plans import adamw, first, give_grads, planned, swap
from tests.python_plans import python_plan as python_plan
from tests.snapshot import assert_unchanged, snapshot

pytestmark = pytest.mark.usefixtures("python_plan")


def replace_state(optimizer: FusedOptimizer, name: str) -> None:
    state = optimizer.state[first(optimizer)]
    state[name] = state[name].clone()


def replace_dict(optimizer: FusedOptimizer) -> None:
    optimizer.state[first(optimizer)] = dict(optimizer.state[first(optimizer)])


def exchange_states(optimizer: FusedOptimizer, *, reorder: bool) -> None:
    (one, a), (other, b), *rest = optimizer.state.items()
    optimizer.state.clear()
    pairs = [(other, a), (one, b)] if reorder else [(one, b), (other, a)]
    optimizer.state.update([*pairs, *rest])


def move_to_the_next_group(optimizer: FusedOptimizer) -> None:
    one, other = (group["params"] for group in optimizer.param_groups)
    other.insert(0, one.pop())


def swap_params(optimizer: FusedOptimizer) -> None:
    one, other = (group["params"] for group in optimizer.param_groups)
    one[0], other[0] = other[0], one[0]


def add_a_group(optimizer: FusedOptimizer) -> None:
    optimizer.add_param_group({"params": make_params(torch.float32, [(3,)])})
    give_grads(optimizer)


def sparse_grad(optimizer: FusedOptimizer) -> None:
    grad = torch.sparse_coo_tensor([[1]], [1.0], (5,), check_invariants=True)
    first(optimizer).grad = grad


def other_grad(optimizer: FusedOptimizer, value: Tensor) -> None:
    first(optimizer).grad.data = value


def other_data(optimizer: FusedOptimizer, value: Tensor) -> None:
    first(optimizer).data = value


STALE: dict[str, Callable[[FusedOptimizer], Any]] = {
    "replaced state": lambda o: replace_state(o, "exp_avg"),
    # Equal, and one element: == would not tell.
    "replaced step": lambda o: replace_state(o, "step"),
    "removed state": lambda o: o.state[first(o)].pop("exp_avg"),
    "replaced dict": replace_dict,
    "exchanged states": lambda o: exchange_states(o, reorder=False),
    "exchanged keys": lambda o: exchange_states(o, reorder=True),
    "popped": lambda o: o.state.pop(first(o)),
    "cleared": lambda o: o.state.clear(),
    "added group": add_a_group,
    "removed group": lambda o: o.param_groups.pop(),
    "removed parameter": lambda o: o.param_groups[0]["params"].pop(),
    "moved to the next group": move_to_the_next_group,
    "exchanged parameters": swap_params,
    "no list": lambda o: o.param_groups[0].update(params={first(o): 1}),
    "other option": lambda o: o.param_groups[0].update(amsgrad=True),
    "sparse gradient": sparse_grad,
    "gradient of another shape": lambda o: other_grad(o, torch.ones(4)),
    "gradient of another dtype": lambda o: other_grad(o, torch.ones(5, dtype=torch.int32)),
    "gradient of a subclass": lambda o: setattr(
        first(o), "grad", torch.ones(5).as_subclass(nn.Buffer)
    ),
    "parameter of another shape": lambda o: other_data(o, torch.ones(4)),
    "parameter of another dtype": lambda o: other_data(o, torch.ones(5, dtype=torch.float64)),
    "negated parameter": lambda o: other_data(o, torch.zeros(5, dtype=torch.cfloat).conj().imag),
}
if NATIVE != "cpu":
    STALE["gradient elsewhere"] = lambda o: other_grad(o, torch.ones(5, device="cpu"))
    STALE["parameter elsewhere"] = lambda o: other_data(o, torch.ones(5, device="cpu"))


def assert_stale(optimizer: FusedOptimizer) -> None:
    before = snapshot(optimizer)
    assert native.planned_step(optimizer, GradOptions()) is None
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("change", STALE.values(), ids=STALE.keys())
def test_changes_make_it_stale(change: Callable[[FusedOptimizer], Any]) -> None:
    optimizer = adamw()
    planned(optimizer)
    give_grads(optimizer)
    change(optimizer)
    assert_stale(optimizer)


def test_a_loaded_state_is_planned_anew() -> None:
    optimizer = adamw()
    made = planned(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert planned(optimizer) is not made


def test_a_first_gradient_makes_it_stale() -> None:
    optimizer = adamw()
    params = give_grads(optimizer)
    params[1].grad = None
    optimizer.step()
    params[1].grad = torch.ones_like(params[1])
    assert_stale(optimizer)


def written(param: Tensor) -> None:
    with torch.no_grad():
        param.add_(1)


@pytest.mark.parametrize("change", [written, swap])
@pytest.mark.parametrize("between", [False, True], ids=["", "after a step without its gradient"])
def test_a_parameter_whose_master_has_to_follow(
    change: Callable[[Tensor], None], between: bool
) -> None:
    params = [nn.Parameter(torch.randn(5).bfloat16()) for _ in range(2)]
    optimizer = optim.AdamW(params, lr=0.03, master_weights=True, backend=NATIVE)
    planned(optimizer)
    give_grads(optimizer)
    if between:
        params[0].grad = None
        optimizer.step()
        params[0].grad = torch.ones_like(params[0])
    change(params[0])
    assert_stale(optimizer)


@pytest.mark.parametrize("change", ["resized", "expanded", "resized state"])
def test_groups_with_other_states_are_checked_before_any_is_written(change: str) -> None:
    optimizer = adamw(((5,), (5,)))
    optimizer.param_groups[1]["amsgrad"] = True
    planned(optimizer)
    give_grads(optimizer)
    (param,) = optimizer.param_groups[1]["params"]
    if change == "resized state":
        optimizer.state[param]["exp_avg_sq"].data = torch.ones(8)
    else:
        param.data = torch.ones(8) if change == "resized" else torch.ones(1).expand(5)
        param.grad = torch.ones(param.shape)
    assert_stale(optimizer)


def notes(optimizer: FusedOptimizer) -> None:
    optimizer.state["steps"] = optimizer.state.get("steps", 0) + 1
    optimizer.state[first(optimizer)]["note"] = object()


def strides(optimizer: FusedOptimizer) -> None:
    param = optimizer.param_groups[0]["params"][1]
    param.grad = param.grad.t().contiguous().t()


def data(optimizer: FusedOptimizer) -> None:
    first(optimizer).data = first(optimizer).detach().clone()


def frozen(optimizer: FusedOptimizer) -> None:
    first(optimizer).requires_grad_(not first(optimizer).requires_grad)


def shared_grad(optimizer: FusedOptimizer) -> None:
    one, other = optimizer.param_groups[0]["params"]
    one.grad = other.grad


def no_grads(optimizer: FusedOptimizer) -> None:
    optimizer.zero_grad()


def params_as_tuple(optimizer: FusedOptimizer) -> None:
    group = optimizer.param_groups[0]
    group["params"] = tuple(group["params"])


HARMLESS = [notes, strides, data, frozen, shared_grad, no_grads, params_as_tuple]


@pytest.mark.parametrize("change", HARMLESS)
def test_changes_that_a_plan_survives(change: Callable[[FusedOptimizer], None]) -> None:
    shapes = ((4, 3), (4, 3), ())
    params = make_params(torch.float64, shapes)
    twins = [leaf(p.detach().clone()) for p in params]
    kwargs = {"lr": 0.03, "weight_decay": 0.13}
    ours = optim.AdamW([{"params": params[:2]}, {"params": params[2:]}], backend=NATIVE, **kwargs)
    theirs = torch.optim.AdamW(twins, **kwargs)
    made = None
    for number in range(4):
        give_grads(ours)
        if number:
            change(ours)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
        ours.step()
        theirs.step()
        made = made or ours._plan
        assert ours._plan is made
        for param, twin in zip(params, twins, strict=True):
            close(param, twin, torch.float64)
