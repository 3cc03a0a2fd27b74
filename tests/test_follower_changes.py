"""Averages that follow an optimizer while models, averages, options and masters change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from fusedtricks import optim
from tests.devices import SKIPS_ON_DEVICE
from tests.followed import Followed, counts, fused, make
from tests.followed import moved as moved
from tests.pairs import give_grads
from tests.python_plans import python_plan as python_plan


def load_average(followed: Followed) -> None:
    saved = copy.deepcopy(followed.ema.state_dict())
    for name, value in saved.items():
        if name != "n_averaged":
            saved[name] = value * 0.7
    followed.ema.load_state_dict(saved)
    followed.expected = [value * 0.7 for value in followed.expected]


def load_average_by_assignment(followed: Followed) -> None:
    saved = {name: value.clone() for name, value in followed.ema.state_dict().items()}
    followed.ema.load_state_dict(saved, assign=True)


def start_again(followed: Followed) -> None:
    followed.ema.n_averaged.zero_()
    followed.n = 0


def load_optimizer(followed: Followed) -> None:
    followed.optimizer.load_state_dict(copy.deepcopy(followed.optimizer.state_dict()))


def load_average_into_its_memory(followed: Followed) -> None:
    followed.ema.load_state_dict(followed.ema.state_dict(), assign=True)


def load_model_by_assignment(followed: Followed) -> None:
    """The optimizer goes on with the old parameters, the averages with the new ones."""
    saved = {name: value + 5 for name, value in followed.model.state_dict().items()}
    followed.model.load_state_dict(saved, assign=True)
    followed.params = list(followed.model.parameters())


def replace_dict_of_parameters(followed: Followed) -> None:
    new = {name: nn.Parameter(p.detach() + 5) for name, p in followed.model._parameters.items()}
    followed.model.__dict__.update(_parameters=new)
    followed.params = list(followed.model.parameters())


def replace_averaged_model(followed: Followed) -> None:
    followed.ema.module = copy.deepcopy(followed.model).requires_grad_(False)
    followed.expected = [followed.value(param) for param in followed.params]


def retype_average(followed: Followed) -> None:
    followed.ema.module[3].data = followed.ema.module[3].data.double()
    followed.expected[3] = followed.ema.module[3].detach().clone()


def swap_average(followed: Followed) -> None:
    other = nn.Parameter(followed.ema.module[3].detach() * 0.7)
    torch.utils.swap_tensors(followed.ema.module[3], other)
    followed.expected[3] = followed.expected[3] * 0.7


def replace_average(followed: Followed) -> None:
    followed.ema.module[3] = nn.Parameter(followed.ema.module[3].detach().clone())


def replace_data(followed: Followed) -> None:
    followed.params[3].data = followed.params[3].detach() * 0.6


def add_group(followed: Followed) -> None:
    moved = followed.optimizer.param_groups[0]["params"].pop()
    followed.optimizer.add_param_group({"params": [moved], "lr": 0.01})


def change_options(followed: Followed) -> None:
    followed.optimizer.param_groups[0]["lr"] = 0.011
    followed.ema.decay = followed.decay = 0.5


def step_with_a_closure(followed: Followed) -> None:
    give_grads(followed.params, 77)
    followed.optimizer.step(lambda: torch.zeros(()))
    followed.note()


def write_grads(followed: Followed) -> None:
    followed.optimizer.write_grads = True


CHANGES: dict[str, Callable[[Followed], None]] = {
    change.__name__: change
    for change in (
        load_average,
        load_average_by_assignment,
        load_average_into_its_memory,
        load_model_by_assignment,
        replace_dict_of_parameters,
        replace_averaged_model,
        retype_average,
        swap_average,
        start_again,
        load_optimizer,
        replace_average,
        replace_data,
        add_group,
        change_options,
        step_with_a_closure,
        write_grads,
    )
}


@pytest.mark.parametrize("planner", ["usual", "python"])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_between_steps_are_noticed(name, planner, moved, request) -> None:
    if planner == "python":
        request.getfixturevalue("python_plan")
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03, clip_grad_norm=0.9)
    followed = Followed(model, optimizer).run(3)
    CHANGES[name](followed)
    followed.run(3).check()
    expected = 0 if "parameters" in name or "model_by" in name else 5 if "retype" in name else 6
    assert counts(moved)[-2:] == [expected] * 2


@pytest.mark.parametrize("planner", ["usual", "python"])
@fused
def test_an_average_in_the_parameters_own_memory(backend, planner, moved, request) -> None:
    if planner == "python":
        request.getfixturevalue("python_plan")
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03, backend=backend)
    followed = Followed(model, optimizer).run(3)
    followed.ema.module[3].data = followed.params[3].data
    wanted = followed.params[3].detach() - 0.03 * gradient(followed, 3)
    followed.step()
    assert counts(moved)[-1] == 5
    torch.testing.assert_close(followed.params[3].detach(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(followed.ema.module[3], followed.params[3])


def gradient(followed: Followed, index: int) -> Tensor:
    give_grads(followed.params, followed.n)
    return followed.params[index].grad


@pytest.mark.parametrize("options", [{}, {"write_grads": True}, {"backend": "reference"}], ids=str)
@pytest.mark.parametrize("change", ["shape", "layer"])
def test_a_model_that_no_longer_fits_changes_nothing(change, options) -> None:
    model = make(shapes=[(5, 3), (7,)])
    optimizer = optim.SGD(model.parameters(), lr=0.03, clip_grad_norm=0.1, **options)
    followed = Followed(model, optimizer).run(3)
    if change == "shape":
        model[0].data = torch.ones(1, 3)
    else:
        model.append(nn.Parameter(torch.ones(2)))
    give_grads(followed.params, 5)
    grads = [param.grad for param in followed.params]
    before = [tensor.detach().clone() for tensor in (*model, *followed.ema.module, *grads)]
    with pytest.raises(ValueError, match="ModelEMA: expected models of the same architecture"):
        optimizer.step()
    now = [*model, *followed.ema.module, *grads]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    assert followed.ema.n_averaged == 3


@pytest.mark.parametrize("planner", ["usual", "python"])
def test_averages_that_moved_away_are_left_to_the_hook(planner, moved, request) -> None:
    if planner == "python":
        request.getfixturevalue("python_plan")
    model = make(shapes=[(5, 3), (7,)])
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    # A layout that no kernel takes; another device would do the same.
    average = followed.ema.module[0]
    average.data = average.data.to(torch.complex64)
    give_grads(followed.params, 3)
    with torch.no_grad():
        optimizer.step()
    followed.note()
    assert counts(moved)[-1] == 1
    torch.testing.assert_close(average.real.double(), followed.expected[0], rtol=2e-6, atol=2e-6)


def test_an_average_in_the_memory_of_another_parameter(moved) -> None:
    model = make(shapes=[(5, 3), (5, 3), (7,)])
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(2)
    followed.ema.module[0] = nn.Parameter(model[1].detach())
    followed.step()
    assert counts(moved)[-1] == 2


def test_an_average_of_a_class_of_its_own(moved) -> None:
    model = make(shapes=[(5, 3), (7,)])
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    average = followed.ema.module[0].detach()
    other = TwoTensor(average.clone(), average.clone())
    torch.utils.swap_tensors(followed.ema.module._parameters["0"], nn.Parameter(other))
    followed.step()
    assert counts(moved)[-1] == 1
    now = followed.ema.module[0]
    for half in (now.a, now.b):
        torch.testing.assert_close(half.double(), followed.expected[0], rtol=2e-6, atol=2e-6)
    followed.step()
    assert counts(moved)[-1] == 1


def test_what_a_failed_step_has_seen_is_forgotten(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    optimizer.param_groups[0]["lr"] = torch.ones(2)
    give_grads(followed.params, 5)
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.03
    # Now another hook is the first, and the step does not ask for averages.
    handle = optimizer.register_step_post_hook(lambda *_: None)
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
    load_model_by_assignment(followed)
    followed.run(2).check()
    assert counts(moved)[-2:] == [0, 0]


# Masters that their parameters have left. ---------------------------------------------------------


def half(**options: Any) -> Followed:
    model = make(torch.bfloat16, [(5, 3), (7,)])
    optimizer = optim.SGD(model.parameters(), lr=0.03, master_weights=True, **options)
    return Followed(model, optimizer)


def assert_averages_weights(followed: Followed, expected: list[Tensor]) -> None:
    for average, wanted in zip(followed.ema.module, expected, strict=True):
        torch.testing.assert_close(average.double(), wanted.double(), rtol=2e-6, atol=2e-6)


def test_an_earlier_hook_changed_the_parameter_and_not_the_master() -> None:
    model = make(torch.bfloat16, [(5, 3), (7,)])
    optimizer = optim.SGD(model.parameters(), lr=0.03, master_weights=True)
    limit = torch.no_grad()(lambda *_: [param.clamp_(-0.01, 0.01) for param in model])
    optimizer.register_step_post_hook(limit)
    followed = Followed(model, optimizer).run(3)
    assert max(average.abs().max() for average in followed.ema.module) <= 0.0101


def test_a_frozen_parameter_was_written() -> None:
    followed = half().run(2)
    first = followed.params[0].requires_grad_(False)
    with torch.no_grad():
        first.fill_(7.0)
    expected = followed.expected[0]
    for number in range(3):
        give_grads(followed.params, number)
        first.grad = None
        followed.optimizer.step()
        expected = torch.lerp(expected, first.double(), 0.17)
    assert_averages_weights(followed, [expected, followed.ema.module[1]])


def test_a_step_was_skipped_after_the_model_was_loaded() -> None:
    followed = half(skip_nonfinite=True).run(2)
    before = [average.detach().double() for average in followed.ema.module]
    followed.model.load_state_dict({k: v + 4 for k, v in followed.model.state_dict().items()})
    for param in followed.params:
        param.grad = torch.full_like(param, torch.nan)
    followed.optimizer.step()
    if SKIPS_ON_DEVICE:
        expected = before
    else:
        pairs = zip(before, followed.params, strict=True)
        expected = [torch.lerp(old, param.detach().double(), 0.17) for old, param in pairs]
    assert_averages_weights(followed, expected)


def test_parameters_are_no_longer_of_16_bits() -> None:
    followed = half().run(2)
    followed.model.float()
    assert followed.optimizer.master_of(followed.params[0]) is None
    for param in followed.params:
        param.grad = None
    followed.optimizer.backend = "reference"
    followed.run(3)
    followed.check()
