"""torch.compile: the numbers of eager mode, and ops that keep their promises to it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import CASES, MAIN_CASES, Case
from tests.devices import LIBRARIES
from tests.pairs import BACKENDS, case_name
from tests.test_raw_ops import HYPER, arguments, statistics_arguments

each_library = pytest.mark.parametrize("library", LIBRARIES)
each_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
OPTIONS = {"clip_grad_norm": 0.7, "clip_grad_value": 0.9, "centralize_grad": True}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Any, *, fullgraph: bool = False) -> Any:
    """Compile without Inductor, whose C++ builds take longer than all tests of this file."""
    return torch.compile(function, backend="aot_eager", fullgraph=fullgraph)


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def optimizer_for(model: nn.Module, case: Case, **extras: Any) -> Any:
    return case.cls(model.parameters(), **(case.kwargs | extras))


def assert_equal(model: nn.Module, other: nn.Module, rtol: float = 1e-6) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


def set_grads(model: nn.Module, other: nn.Module) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "transforms"])
@pytest.mark.parametrize("backend", ["auto", *BACKENDS[1:-1]])
@each_case
def test_compiled_step_is_that_of_eager_mode(
    case: Case, backend: str, options: dict[str, Any]
) -> None:
    model, other = small_model(), small_model()
    eager = optimizer_for(model, case, backend=backend, **options)
    optimizer = optimizer_for(other, case, backend=backend, **options)
    step = compiled(optimizer.step)
    for _ in range(3):
        set_grads(model, other)
        eager.step()
        step()
        assert_equal(model, other)
    for state, twin in zip(eager.state.values(), optimizer.state.values(), strict=True):
        assert state.keys() == twin.keys()
        for name in state:
            torch.testing.assert_close(state[name], twin[name], rtol=1e-6, atol=1e-6)


@each_case
def test_compiled_training_step(case: Case) -> None:
    model, other = small_model(), small_model()
    eager = optimizer_for(model, case, **OPTIONS)
    optimizer = optimizer_for(other, case, **OPTIONS)

    def train(net: nn.Module, opt: Any, x: Tensor, y: Tensor) -> Tensor:
        opt.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        opt.step()
        return loss

    fast = compiled(lambda x, y: train(other, optimizer, x, y))
    for _ in range(3):
        x, y = torch.randn(4, 6), torch.randn(4, 2)
        loss = train(model, eager, x, y)
        torch.testing.assert_close(fast(x, y), loss, rtol=1e-5, atol=1e-6)
    assert_equal(model, other, rtol=1e-5)


@each_case
def test_step_is_one_graph_once_the_state_exists(case: Case) -> None:
    model, other = small_model(), small_model()
    lr = torch.tensor(case.kwargs["lr"])
    eager = optimizer_for(model, case)
    optimizer = optimizer_for(other, case, lr=lr)
    set_grads(model, other)
    eager.step()
    optimizer.step()
    step = compiled(optimizer.step, fullgraph=True)
    for _ in range(2):
        set_grads(model, other)
        eager.step()
        step()
    assert_equal(model, other)


@pytest.mark.parametrize("backend", BACKENDS)
@each_case
def test_tensor_lr_changes_between_compiled_steps(case: Case, backend: str) -> None:
    model, other = small_model(), small_model()
    lr = torch.tensor(case.kwargs["lr"])
    eager = case.torch_cls(model.parameters(), **case.torch_kwargs)
    optimizer = optimizer_for(other, case, lr=lr, backend=backend)
    step = compiled(optimizer.step)
    n_frames = []
    for factor in (1.0, 1.0, 0.5, 0.3, 2.0):
        eager.param_groups[0]["lr"] = case.kwargs["lr"] * factor
        lr.fill_(case.kwargs["lr"] * factor)
        set_grads(model, other)
        case.torch_step(eager)
        step()
        n_frames.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert_equal(model, other, rtol=3e-6)
    assert n_frames[2] == n_frames[-1], "compiled again for another learning rate"


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("Adam-l2", "SGD-l2", "RMSprop-l2-maximize")]
)
def test_decay_changes_between_compiled_steps(case: Case) -> None:
    model, other = small_model(), small_model()
    eager = case.torch_cls(model.parameters(), **case.torch_kwargs)
    optimizer = optimizer_for(other, case)
    step = compiled(optimizer.step)
    # torch.compile takes a number that varied for a variable; 0 is another variant of the kernels.
    for decay in (0.17, 0.29, 0.0, 0.13):
        for each in (eager, optimizer):
            each.param_groups[0]["weight_decay"] = decay
        set_grads(model, other)
        case.torch_step(eager)
        step()
    assert_equal(model, other, rtol=3e-6)


def test_overflow_in_a_compiled_step_changes_nothing() -> None:
    case = MAIN_CASES[0]
    model, other = small_model(), small_model()
    optimizer = optimizer_for(model, case, skip_nonfinite=True)
    step = compiled(optimizer.step)
    set_grads(model, other)
    step()
    kept = [p.detach().clone() for p in model.parameters()]
    kept += [v.clone() for s in optimizer.state.values() for v in s.values()]
    set_grads(model, other)
    model[2].bias.grad[1] = torch.nan
    step()
    now = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


@pytest.mark.parametrize("transforms", [True, False])
@pytest.mark.parametrize("name", HYPER)
@each_library
def test_opcheck_of_steps(library: str, name: str, transforms: bool) -> None:
    given = arguments(name)
    if not transforms:
        for key in ("row_means", "coefficient", "grad_scale", "clip_value", "found_inf"):
            given[key] = None
        given |= {"centralize": [0, 0], "model_params": [], "model_index": [], "variants": [0, 0]}
        given |= {"averages": [], "average_index": []}
        n_states = {"adam": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1}[name]
        per_param = len(given["states"]) // 3
        given["states"] = [s for i, s in enumerate(given["states"]) if i % per_param < n_states]
    torch.library.opcheck(getattr(getattr(torch.ops, library), f"{name}_").default, (), given)


@pytest.mark.parametrize("centralize", [[0, 0], [2, 0], [2, 3], [4, 2]], ids=str)
@each_library
def test_opcheck_of_grad_statistics(library: str, centralize: list[int]) -> None:
    given = statistics_arguments() | {"centralize": centralize}
    given["grads"] = [torch.randn(7, 3), torch.randn(0, 4), torch.randn(2, 3, 4)]
    torch.library.opcheck(getattr(torch.ops, library).grad_statistics.default, (), given)


@pytest.mark.parametrize("max_norm", [None, 0.7])
@each_library
def test_opcheck_of_finalize_statistics(library: str, max_norm: float | None) -> None:
    totals = [torch.rand(2, dtype=torch.float64) for _ in range(2)]
    torch.library.opcheck(
        getattr(torch.ops, library).finalize_statistics.default, (totals, max_norm)
    )
