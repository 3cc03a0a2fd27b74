"""Averages that fused steps move in their own sweep: the same as by hand, after every step."""

import copy
import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fusedtricks import optim
from fusedtricks.nn import ModelEMA, OrthogonalDecay
from fusedtricks.optim.averaging import Averaging
from tests.cases import CASES, MAIN_CASES
from tests.devices import BACKENDS, NATIVE, SKIPS_ON_DEVICE
from tests.pairs import case_name, give_grads
from tests.python_plans import python_plan as python_plan
from tests.values import shapes_for

each_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
fused = pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
SMALL = [(0,), (), (101,), (5, 3), (2, 0), (4, 3, 3, 3)]
COMBINED = {"centralize_grad": True, "clip_grad_norm": 1.1, "clip_grad_value": 0.7}
# A few roundings in each of a few steps.
BOUND = {torch.float32: 2e-6, torch.float64: 1e-13}


def holder(params: list[Tensor]) -> nn.Module:
    """Return a model of parameters alone."""
    return nn.ParameterList([nn.Parameter(param) for param in params])


def make(dtype: torch.dtype = torch.float32, shapes: Any = SMALL) -> nn.Module:
    return holder([torch.randn(shape).to(dtype) for shape in shapes])


class Followed:
    """A model, an optimizer that averages it, and the averages as their formula has them."""

    def __init__(
        self, model: nn.Module, optimizer: optim.FusedOptimizer, *, decay: float = 0.83, **ema: Any
    ) -> None:
        self.model, self.optimizer, self.decay = model, optimizer, decay
        self.ema = ModelEMA(model, decay=decay, **ema)
        self.handle = self.ema.follow(optimizer, model)
        self.params = list(model.parameters())
        self.expected: list[Tensor] = []
        self.n = 0

    def value(self, param: Tensor) -> Tensor:
        master = self.optimizer.master_of(param) if param in self.optimizer.state else None
        return (param if master is None else master).detach().double().clone()

    def step(self, without: tuple[int, ...] = ()) -> None:
        give_grads(self.params, self.n)
        for index in without:
            self.params[index].grad = None
        self.optimizer.step()
        self.note()

    def note(self) -> None:
        """Move the expected averages to the present values."""
        values = [self.value(param) for param in self.params]
        if self.n == 0:
            self.expected = values
        else:
            self.expected = [
                torch.lerp(old, new, 1 - self.decay_now())
                for old, new in zip(self.expected, values, strict=True)
            ]
        self.n += 1

    def decay_now(self) -> float:
        return min(self.decay, (1 + self.n) / (10 + self.n)) if self.ema.warmup else self.decay

    def check(self) -> None:
        averages = list(self.ema.module.parameters())
        for average, expected in zip(averages, self.expected, strict=True):
            bound = BOUND[average.dtype]
            torch.testing.assert_close(average.double(), expected, rtol=bound, atol=bound)
        assert self.ema.n_averaged == self.n

    def run(self, n_steps: int = 4) -> "Followed":
        for _ in range(n_steps):
            self.step()
        return self


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Return a list that takes what each step has moved."""
    steps: list[list[Tensor]] = []
    take = Averaging.take_moved

    def noted(averaging: Averaging) -> Any:
        steps.append(list(averaging.moved))
        return take(averaging)

    monkeypatch.setattr(Averaging, "take_moved", noted)
    return steps


def counts(moved: list[list[Tensor]]) -> list[int]:
    return [len(of_step) for of_step in moved]


# Values. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", [{}, COMBINED], ids=["plain", "combined"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@fused
@each_case
def test_averages_of_every_optimizer(case, backend, dtype, extras, moved) -> None:
    model = make(dtype)
    optimizer = case.cls(model.parameters(), backend=backend, **extras, **case.kwargs)
    Followed(model, optimizer).run(3).check()
    assert counts(moved) == [0, len(SMALL), len(SMALL)]


@fused
@main_case
def test_averages_of_several_work_items(case, backend) -> None:
    model = make(shapes=shapes_for(backend))
    optimizer = case.cls(model.parameters(), backend=backend, **COMBINED, **case.kwargs)
    Followed(model, optimizer).run(3).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@fused
@main_case
def test_masters_are_averaged_in_place_of_their_roundings(case, backend, dtype, moved) -> None:
    model = make(dtype)
    optimizer = case.cls(model.parameters(), backend=backend, master_weights=True, **case.kwargs)
    followed = Followed(model, optimizer).run(3)
    followed.check()
    assert counts(moved) == [0, len(SMALL), len(SMALL)]
    assert {average.dtype for average in followed.ema.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("package", [optim, torch.optim], ids=["fusedtricks", "torch"])
def test_rounded_weights_without_masters_are_averaged_as_they_are(package, moved) -> None:
    model = make(torch.bfloat16)
    optimizer = package.SGD(model.parameters(), lr=0.03, momentum=0.7)
    ema = ModelEMA(model, decay=0.83)
    ema.follow(optimizer, model)
    expected: list[Tensor] = []
    for number in range(4):
        give_grads(list(model.parameters()), number)
        optimizer.step()
        values = [param.detach().double() for param in model.parameters()]
        pairs = zip(expected or values, values, strict=True)
        expected = [torch.lerp(old, new, 0.17) for old, new in pairs]
    assert not any(moved)
    for average, wanted in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), wanted, rtol=2e-6, atol=2e-6)


def layouts() -> dict[str, Tensor]:
    memory = torch.randn(1000)
    return {
        "unaligned": memory[1:106].view(5, 21),
        "transposed": torch.randn(7, 5).t(),
        "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "sliced": torch.randn(6, 8)[:, ::2],
        "permuted": torch.randn(3, 4, 5).permute(2, 0, 1),
    }


@pytest.mark.parametrize("of_average", ["like the parameter", "contiguous", "strided"])
@fused
@main_case
def test_every_layout(case, backend, of_average, moved) -> None:
    model = holder(list(layouts().values()))
    optimizer = case.cls(model.parameters(), backend=backend, centralize_grad=True, **case.kwargs)
    followed = Followed(model, optimizer)
    for average in followed.ema.module.parameters():
        if of_average == "contiguous":
            average.data = average.data.contiguous()
        elif of_average == "strided":
            average.data = torch.zeros(*average.shape, 2)[..., 0].copy_(average.data)
    followed.run(3).check()
    assert counts(moved) == [0, len(layouts()), len(layouts())]


def test_warmup_changes_the_weight_of_every_step(moved) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.2)
    Followed(model, optimizer, decay=0.4, warmup=True).run(9).check()
    assert counts(moved) == [0] + [len(SMALL)] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_averages_of_another_dtype(dtype, moved) -> None:
    model = make(torch.float32)
    optimizer = optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.2)
    followed = Followed(model, optimizer, decay=0.3)
    followed.ema.module.to(dtype)
    followed.run(4)
    assert counts(moved) == [0] + [len(SMALL)] * 3
    bound = {torch.bfloat16: 2e-2}.get(dtype, 2e-6)
    for average, expected in zip(followed.ema.module.parameters(), followed.expected, strict=True):
        assert average.dtype == dtype
        torch.testing.assert_close(average.double(), expected, rtol=bound, atol=bound)


# One sweep. ---------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Notes the names of all ops and the tensors that they get."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_the_hook_has_nothing_to_do_for_weights_alone() -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03, clip_grad_norm=0.9)
    followed = Followed(model, optimizer).run(2)
    give_grads(followed.params, 5)
    with Calls() as calls:
        optimizer.step()
    followed.note()
    followed.check()
    ours = [name for name in calls.names if name.startswith("fusedtricks")]
    assert len(ours) == 3, calls.names
    assert not any("lerp" in name or "foreach" in name for name in calls.names)


def test_the_plan_stays_while_nothing_changes() -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03, momentum=0.7)
    followed = Followed(model, optimizer).run(2)
    plan = optimizer._plan
    followed.run(3)
    assert plan is not None and optimizer._plan is plan
    # Parameters without a gradient are averaged by the hook, in the same plan.
    followed.step(without=(2, 3))
    followed.step()
    followed.check()
    assert optimizer._plan is plan


def test_averages_are_counted_as_written() -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(2)
    averages = list(followed.ema.module.parameters())
    before = [average._version for average in averages]
    followed.step()
    assert all(a._version > v for a, v in zip(averages, before, strict=True))


# What the step leaves to the hook. ----------------------------------------------------------------


def with_buffers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def test_buffers_and_frozen_parameters(moved) -> None:
    model = with_buffers()
    model[0].weight.requires_grad_(False)
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    ema, by_hand = (ModelEMA(model, decay=0.83) for _ in range(2))
    ema.follow(optimizer, model)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(7, 3)).square().sum().backward()
        optimizer.step()
        by_hand.update_parameters(model)
    assert counts(moved) == [0, 5, 5, 5]
    for mine, other in zip(ema.state_dict().values(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-6, atol=2e-6)
    assert torch.equal(ema.module[1].running_mean, by_hand.module[1].running_mean)


def test_gradients_come_and_go(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03, momentum=0.7)
    followed = Followed(model, optimizer)
    for without in ((2, 3), (2, 3), (), (5,), (0, 1, 2, 3, 4, 5), (2,), ()):
        followed.step(without)
        followed.check()
    assert counts(moved) == [0, 4, 6, 5, 0, 5, 6]


def test_shared_parameters_move_once(moved) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    optimizer = optim.SGD(model.parameters(), lr=0.03, momentum=0.7)
    Followed(model, optimizer).run(3).check()
    assert counts(moved) == [0, 1, 1]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_the_average_of_a_parameter_that_is_listed_twice_moves_once(moved) -> None:
    model = make(shapes=[(5, 3), (7,)])
    twice, once = model.parameters()
    optimizer = optim.SGD([twice, once, twice], lr=0.03, momentum=0.7)
    Followed(model, optimizer).run(3).check()
    assert counts(moved) == [0, 1, 1]


def test_two_averages_of_one_model(moved) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03)
    first, second = Followed(model, optimizer), Followed(model, optimizer, decay=0.4)
    for _ in range(4):
        first.step()
        second.note()
    first.check()
    second.check()
    # The first hook's by the step, the second's by the hook.
    assert counts(moved) == [0, 0, 6, 0, 6, 0, 6, 0]
    first.handle.remove()
    for _ in range(3):
        second.step()
    second.check()
    assert counts(moved)[8:] == [0, 6, 6]
    assert first.ema.n_averaged == 4


def test_an_earlier_hook_may_change_the_weights(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.3, momentum=0.7)

    @torch.no_grad()
    def limit(*_: Any) -> None:
        for param in model.parameters():
            param.clamp_(-0.2, 0.2)

    handle = optimizer.register_step_post_hook(limit)
    followed = Followed(model, optimizer).run(4)
    followed.check()
    assert not any(moved)
    handle.remove()
    followed.run(2).check()
    assert counts(moved)[4:] == [0, 6]


class Limited(optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # Not super().step: once there was an SGD, torch has put hooks around that too.
        loss = inspect.unwrap(optim.SGD.step)(self, closure)
        for group in self.param_groups:
            for param in group["params"]:
                param.clamp_(-0.2, 0.2)
        return loss


def test_a_subclass_may_change_the_weights(moved) -> None:
    model = make()
    Followed(model, Limited(model.parameters(), lr=0.3, momentum=0.7)).run(4).check()
    assert not any(moved)


@pytest.mark.parametrize("is_first", [True, False], ids=["decay first", "average first"])
def test_orthogonal_decay_is_part_of_the_step(is_first, moved) -> None:
    model = nn.Linear(3, 5)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    if is_first:
        OrthogonalDecay(optimizer, model, strength=0.5)
    followed = Followed(model, optimizer).run(2)
    if not is_first:
        OrthogonalDecay(optimizer, model, strength=0.5)
    followed.run(3).check()
    assert not any(moved[2:])


def test_removal_ends_it(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    followed.handle.remove()
    before = copy.deepcopy(followed.ema.state_dict())
    give_grads(followed.params, 9)
    optimizer.step()
    for now, then in zip(followed.ema.state_dict().values(), before.values(), strict=True):
        assert torch.equal(now, then)
    assert len(moved) == 3
    gone = weakref.ref(followed.ema)
    params = followed.params
    del followed, now, then, moved[:]
    gc.collect()
    assert gone() is None and optimizer._plan is not None and len(params) == len(SMALL)


@pytest.mark.parametrize("how", ["reference", "overlapping"])
def test_what_the_fused_backends_do_not_take(how, moved) -> None:
    memory = torch.randn(12)
    shapes = [memory[:8], memory[4:]] if how == "overlapping" else [memory[:8], memory[8:]]
    model = holder([])
    for view in shapes:
        model.append(nn.Parameter(view))
    backend = "reference" if how == "reference" else "auto"
    optimizer = optim.SGD(model.parameters(), lr=0.03, backend=backend)
    Followed(model, optimizer).run(4).check()
    assert not any(moved)


# Changes between steps. ---------------------------------------------------------------------------


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
    assert counts(moved)[-2:] == [6, 6]


def test_an_average_in_the_parameters_own_memory(moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    followed.ema.module[3].data = followed.params[3].data
    # A plan that was made before goes on until something changes, and comes to the same.
    load_optimizer(followed)
    followed.run(2)
    assert torch.equal(followed.ema.module[3], followed.params[3])


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


# Checkpoints, errors, skipped steps. --------------------------------------------------------------


def test_checkpoints_and_copies_of_the_optimizer_know_nothing_of_it() -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    assert optimizer.state_dict()["state"][2].keys() == {"step", "exp_avg", "exp_avg_sq"}
    copied = copy.deepcopy(optimizer)
    assert copied.averaging is None
    before = copy.deepcopy(followed.ema.state_dict())
    give_grads([p for group in copied.param_groups for p in group["params"]], 9)
    copied.step()
    for now, then in zip(followed.ema.state_dict().values(), before.values(), strict=True):
        assert torch.equal(now, then)
    followed.run(2).check()


def test_a_failed_step_moves_no_average(moved) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03)
    followed = Followed(model, optimizer).run(3)
    before = copy.deepcopy(followed.ema.state_dict())
    give_grads(followed.params, 9)
    good, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], torch.ones(2)
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    for now, then in zip(followed.ema.state_dict().values(), before.values(), strict=True):
        assert torch.equal(now, then)
    optimizer.param_groups[0]["lr"] = good
    followed.run(2).check()
    assert counts(moved) == [0, 6, 6, 6, 6]


def test_a_step_that_is_skipped_leaves_the_averages_near_the_weights(moved) -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters(), lr=0.03, skip_nonfinite=True)
    followed = Followed(model, optimizer).run(3)
    before = [average.detach().clone() for average in followed.ema.module.parameters()]
    give_grads(followed.params, 9)
    followed.params[3].grad[0, 0] = torch.inf
    optimizer.step()
    assert optimizer.skipped_steps == 1
    if SKIPS_ON_DEVICE:
        followed.n += 1
        for now, then in zip(followed.ema.module.parameters(), before, strict=True):
            assert torch.equal(now, then)
    else:
        followed.note()
    followed.check()
    followed.run(2).check()
    assert counts(moved)[-2:] == [6, 6]


@pytest.mark.skipif(NATIVE != "cpu", reason="needs a device that Python reads without waiting")
def test_a_first_step_that_is_skipped_copies_the_weights() -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03, skip_nonfinite=True)
    followed = Followed(model, optimizer)
    with torch.no_grad():
        for param in followed.params:
            param.mul_(0.5)
    for param in followed.params:
        param.grad = torch.full_like(param, torch.nan)
    optimizer.step()
    followed.note()
    followed.check()
    followed.run(3).check()
