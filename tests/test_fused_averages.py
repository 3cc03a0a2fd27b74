"""Averages that fused steps move in their own sweep: values, and that it is one sweep."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusedtricks import optim
from fusedtricks.nn import ModelEMA
from tests.cases import CASES, MAIN_CASES
from tests.followed import SMALL, Followed, counts, fused, holder, make
from tests.followed import moved as moved
from tests.pairs import case_name, give_grads
from tests.python_plans import python_plan as python_plan
from tests.values import shapes_for

each_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
COMBINED = {"centralize_grad": True, "clip_grad_norm": 1.1, "clip_grad_value": 0.7}


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


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.499, 0.5])
@fused
def test_averages_that_forget_at_once(backend, decay, moved) -> None:
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.03, backend=backend)
    followed = Followed(model, optimizer, decay=decay)
    followed.step()
    with torch.no_grad():
        for average in followed.ema.module.parameters():
            average.fill_(1e8)
    followed.expected = [torch.full_like(value, 1e8) for value in followed.expected]
    followed.step()
    assert counts(moved) == [0, 6]
    for param, average in zip(followed.params, followed.ema.module.parameters(), strict=True):
        # The same end as torch's: 1e8 is 8 away from its neighbours.
        expected = torch.lerp(torch.full_like(param, 1e8), param, 1 - decay)
        torch.testing.assert_close(average, expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_averages_of_another_dtype(dtype, moved) -> None:
    model = make(torch.float32)
    optimizer = optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.2)
    followed = Followed(model, optimizer, decay=0.3)
    followed.ema.module.to(dtype)
    followed.run(4)
    # The sweep has the precision of the parameter.
    assert counts(moved) == [0] + [0 if dtype == torch.float64 else len(SMALL)] * 3
    bound = {torch.bfloat16: 2e-2, torch.float64: 1e-13}.get(dtype, 2e-6)
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
