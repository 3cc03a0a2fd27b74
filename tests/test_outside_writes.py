"""What others do to parameters, gradients and groups between two steps is seen by the next."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import optim
from tests.cases import CASES, MAIN_CASES, Case
from tests.devices import NATIVE
from tests.pairs import BACKENDS, case_name, leaf

each_backend = pytest.mark.parametrize("backend", BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


def low_precision(case: Case, backend: str, **options: Any) -> tuple[Tensor, Any]:
    """Return a bf16 parameter and an optimizer that keeps a master of it."""
    param = nn.Parameter(torch.randn(7, 5).bfloat16())
    return param, case.cls([param], backend=backend, master_weights=True, **options, **case.kwargs)


def step(param: Tensor, optimizer: Any) -> None:
    param.grad = torch.randn(param.shape).to(param.dtype)
    optimizer.step()


@each_backend
@every_case
@pytest.mark.parametrize("n_steps_before", [0, 1, 3])
def test_weights_loaded_after_construction_reach_the_master(
    case: Case, backend: str, n_steps_before: int
) -> None:
    param, optimizer = low_precision(case, backend)
    for _ in range(n_steps_before):
        step(param, optimizer)
    loaded = torch.full_like(param, 7.0)
    with torch.no_grad():
        param.copy_(loaded)
    step(param, optimizer)
    # No case moves a parameter by more than 1 in a step.
    assert (param.detach() - loaded).abs().max() < 1
    assert (optimizer.state[param]["master_param"] - 7.0).abs().max() < 1


@each_backend
@main_case
def test_a_master_keeps_its_digits_where_nobody_wrote(case: Case, backend: str) -> None:
    params, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(3)
        param, optimizer = low_precision(case, backend)
        step(param, optimizer)
        params.append(param)
        optimizers.append(optimizer)
    with torch.no_grad():
        params[1][0, 0] += 1
        params[1].copy_(params[1].clone())
    grad = torch.randn(7, 5).bfloat16()
    for param, optimizer in zip(params, optimizers, strict=True):
        param.grad = grad
        optimizer.step()
    one, two = (o.state[p]["master_param"] for p, o in zip(params, optimizers, strict=True))
    assert torch.equal(one.flatten()[1:], two.flatten()[1:])
    assert not torch.equal(one[0, 0], two[0, 0])


@each_backend
@main_case
def test_masters_turned_off_and_on_again(case: Case, backend: str) -> None:
    param, optimizer = low_precision(case, backend)
    step(param, optimizer)
    optimizer.param_groups[0]["master_weights"] = False
    for _ in range(3):
        param.grad = torch.ones_like(param)
        optimizer.step()
    before = param.detach().clone()
    optimizer.param_groups[0]["master_weights"] = True
    param.grad = torch.zeros_like(param)
    optimizer.step()
    master = optimizer.state[param]["master_param"]
    assert torch.equal(master.bfloat16(), param)
    # The old master would undo the three steps.
    assert (param - before).abs().max() < 0.5


@pytest.mark.parametrize("cls,kwargs", [(optim.SGD, {"lr": 1e-4}), (optim.Adagrad, {"lr": 1e-4})])
def test_sparse_gradients_move_the_master(cls: type, kwargs: dict[str, float]) -> None:
    param = nn.Parameter(torch.ones(4, 2).bfloat16())
    optimizer = cls([param], master_weights=True, **kwargs)
    values = torch.ones(1, 2).bfloat16()
    for _ in range(100):
        param.grad = torch.sparse_coo_tensor([[1]], values, (4, 2), check_invariants=True)
        optimizer.step()
    master = optimizer.state[param]["master_param"]
    assert (master[1] < 0.999).all() and (master[0] == 1).all()
    assert torch.equal(param, master.bfloat16())


@each_backend
@every_case
def test_swap_tensors_after_a_step(case: Case, backend: str) -> None:
    param = nn.Parameter(torch.zeros(5))
    optimizer = case.cls([param], backend=backend, **case.kwargs)
    step(param, optimizer)
    other = nn.Parameter(torch.full((5,), 3.0))
    torch.utils.swap_tensors(param, other)
    step(param, optimizer)
    assert (param.detach() - 3.0).abs().max() < 1 and not torch.equal(param, torch.full((5,), 3.0))


@main_case
def test_modules_may_swap_their_parameters(case: Case) -> None:
    module = nn.Linear(3, 2)
    optimizer = case.cls(module.parameters(), **case.kwargs)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert torch.equal(module.weight, torch.ones(2, 3))


@pytest.mark.parametrize("change", ["resized", "expanded"])
def test_groups_with_other_states_are_checked_before_any_is_written(change: str) -> None:
    params = [leaf(torch.ones(5)), leaf(torch.ones(5))]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "amsgrad": True}]
    optimizer = optim.AdamW(groups, lr=0.02, weight_decay=0.03)
    for param in params:
        param.grad = torch.ones(5)
    optimizer.step()
    params[1].data = torch.ones(8) if change == "resized" else torch.ones(1).expand(5)
    params[1].grad = torch.ones(params[1].shape)
    before, count = params[0].detach().clone(), optimizer.state[params[0]]["step"].clone()
    with pytest.raises((RuntimeError, ValueError), match="parameter 0 of group 1"):
        optimizer.step()
    assert torch.equal(params[0], before)
    assert torch.equal(optimizer.state[params[0]]["step"], count)


@each_backend
def test_write_grads_refuses_an_expanded_gradient_before_it_writes_one(backend: str) -> None:
    params = [leaf(torch.ones(3)), leaf(torch.ones(3))]
    optimizer = optim.SGD(params, lr=0.2, clip_grad_norm=0.1, write_grads=True, backend=backend)
    params[0].grad = torch.ones(3)
    params[1].grad = torch.ones(1).expand(3)
    with pytest.raises(RuntimeError, match="gradient of parameter 1 of group 0: it was expanded"):
        optimizer.step()
    assert torch.equal(params[0].grad, torch.ones(3))
    assert torch.equal(params[0].detach(), torch.ones(3))


def test_one_optimizer_in_several_threads() -> None:
    params = [leaf(torch.zeros(1000)) for _ in range(50)]
    for param in params:
        param.grad = torch.ones(1000)
    optimizer = optim.AdamW(params, lr=1e-3, weight_decay=0.1)
    optimizer.step()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                optimizer.step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@main_case
def test_groups_keep_our_options_when_a_torch_checkpoint_is_loaded(case: Case) -> None:
    def groups() -> list[dict[str, Any]]:
        return [{"params": [leaf(torch.ones(2, 2))]} for _ in range(2)]

    saved = case.torch_cls(groups(), **case.torch_kwargs).state_dict()
    ours = groups()
    ours[0]["centralize_grad"], ours[1]["master_weights"] = "conv", True
    optimizer = case.cls(ours, **case.kwargs)
    optimizer.load_state_dict(saved)
    assert [g["centralize_grad"] for g in optimizer.param_groups] == ["conv", False]
    assert [g["master_weights"] for g in optimizer.param_groups] == [False, True]


@each_backend
def test_the_state_of_another_algorithm_is_refused(backend: str) -> None:
    param, other = leaf(torch.ones(3)), leaf(torch.ones(3))
    source = torch.optim.SGD([other], lr=0.3, momentum=0.8)
    other.grad = param.grad = torch.ones(3)
    source.step()
    optimizer = optim.AdamW([param], lr=0.02, weight_decay=0.03, backend=backend)
    optimizer.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match="'exp_avg' of parameter 0 of group 0 is missing"):
        optimizer.step()


@pytest.mark.parametrize("name", ["clip_grad_norm", "skip_nonfinite", "write_grads", "backend"])
def test_options_of_the_optimizer_are_refused_in_a_group(name: str) -> None:
    param = leaf(torch.ones(3))
    with pytest.raises(ValueError, match=f"Invalid option {name} in a parameter group"):
        optim.SGD([{"params": [param], name: 1}], lr=0.3)


@each_backend
def test_wrong_options_set_later_are_named(backend: str) -> None:
    param = leaf(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = optim.SGD([param], lr=0.3, momentum=0.8, dampening=0.4, backend=backend)
    optimizer.clip_grad_norm = "1"
    with pytest.raises(ValueError, match="Invalid clip_grad_norm value: '1'"):
        optimizer.step()
    assert not optimizer.state[param]
    optimizer.clip_grad_norm = None
    optimizer.param_groups[0]["centralize_grad"] = "off"
    with pytest.raises(ValueError, match="Invalid centralize_grad value: 'off'"):
        optimizer.step()


def test_a_negated_parameter() -> None:
    param = leaf(torch.complex(torch.ones(4), torch.arange(4.0)).conj().imag)
    assert param.is_neg()
    param.grad = torch.ones(4)
    optim.SGD([param], lr=0.5).step()
    assert param.tolist() == [-0.5, -1.5, -2.5, -3.5]
    with pytest.raises(RuntimeError, match="negated view"):
        optim.SGD([param], lr=0.5, backend=NATIVE).step()


@each_backend
def test_momentum_under_another_default_device(backend: str) -> None:
    param = leaf(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = optim.SGD([param], lr=0.5, momentum=0.8, dampening=0.4, backend=backend)
    with torch.device("meta"):
        optimizer.step()
        optimizer.step()
    # buf = 1, then 0.8 * 1 + 0.6 * 1
    torch.testing.assert_close(param.detach(), torch.full((3,), 1 - 0.5 - 0.5 * 1.4))


@each_backend
def test_params_may_become_a_tuple(backend: str) -> None:
    param, twin = leaf(torch.ones(3)), leaf(torch.ones(3).double())
    ours = optim.SGD([param], lr=0.5, momentum=0.8, dampening=0.4, backend=backend)
    theirs = torch.optim.SGD([twin], lr=0.5, momentum=0.8, dampening=0.4)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["params"] = tuple(optimizer.param_groups[0]["params"])
    for _ in range(3):
        param.grad, twin.grad = torch.ones(3), torch.ones(3).double()
        ours.step()
        theirs.step()
    torch.testing.assert_close(param.detach().double(), twin.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kwargs", [{}, {"decouple_lr": True}])
def test_decouple_lr_turned_on_in_a_group(kwargs: dict[str, bool]) -> None:
    param = leaf(torch.ones(3))
    param.grad = torch.zeros(3)
    optimizer = optim.SGDW([param], lr=0.5, weight_decay=0.25, **kwargs)
    optimizer.param_groups[0]["decouple_lr"] = True
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.75))
