"""Bad input: an exception that names what is wrong, after which nothing at all has changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import backends, optim
from tests.cases import MAIN_CASES, Case
from tests.devices import NATIVE
from tests.pairs import BACKENDS, case_name, leaf
from tests.snapshot import assert_unchanged, snapshot

each_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_age = pytest.mark.parametrize("n_steps", [0, 2], ids=["fresh", "warm"])


class Bench:
    """Two groups of parameters with gradients, next to torch's optimizer on float64 copies."""

    def __init__(self, case: Case, backend: str, n_steps: int, **extras: Any) -> None:
        self.case = case
        self.params = [leaf(torch.randn(shape)) for shape in ((7, 3), (5,), (2, 3, 4), (1009,))]
        self.twins = [leaf(p.detach().double().clone()) for p in self.params]
        groups, twin_groups = (
            [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.021}]
            for ps in (self.params, self.twins)
        )
        self.ours = case.cls(groups, backend=backend, **extras, **case.kwargs)
        self.theirs = case.torch_cls(twin_groups, **case.torch_kwargs)
        for _ in range(n_steps):
            self.set_grads()
            self.step()
        self.set_grads()

    def set_grads(self) -> None:
        for param, twin in zip(self.params, self.twins, strict=True):
            param.grad = torch.randn(param.shape)
            twin.grad = param.grad.double()

    def step(self) -> None:
        self.ours.step()
        self.case.torch_step(self.theirs)

    def assert_refuses(self, error: type[Exception], match: str) -> None:
        before = snapshot(self.ours)
        with pytest.raises(error, match=match):
            self.ours.step()
        assert_unchanged(self.ours, before)

    def assert_still_works(self) -> None:
        for _ in range(2):
            self.step()
            self.set_grads()
        for param, twin in zip(self.params, self.twins, strict=True):
            torch.testing.assert_close(param.detach().double(), twin.detach(), rtol=3e-6, atol=3e-6)


@each_age
@each_backend
@each_case
def test_sparse_gradient(case: Case, backend: str, n_steps: int) -> None:
    if case.cls is optim.Adagrad:
        pytest.skip("Adagrad takes sparse gradients")
    bench = Bench(case, backend, n_steps)
    good = bench.params[2].grad
    bench.params[2].grad = good.to_sparse()
    bench.assert_refuses(RuntimeError, f"{case.cls.__name__} does not support sparse")
    bench.params[2].grad = good
    bench.assert_still_works()


@each_backend
def test_sparse_gradient_and_centralization(backend: str) -> None:
    bench = Bench(MAIN_CASES[-1], backend, 0, centralize_grad=True)
    bench.params[2].grad = bench.params[2].grad.to_sparse()
    bench.assert_refuses(RuntimeError, "centralize_grad does not support sparse.*parameter 0 of gr")


@each_age
@each_backend
@each_case
def test_gradient_of_another_shape(case: Case, backend: str, n_steps: int) -> None:
    bench = Bench(case, backend, n_steps)
    good = bench.params[3].data
    for shape in ((1008,), (1010,), (0,), (), (1, 1009)):
        bench.params[3].data = torch.randn(shape)
        bench.assert_refuses(RuntimeError, "gradient of parameter 1 of group 1 has shape .*1009")
    bench.params[3].data = good
    bench.assert_still_works()


def wrong_states() -> dict[str, Callable[[Tensor], Any]]:
    return {
        "shape": lambda p: torch.zeros(p.numel() + 1),
        "flat": lambda p: torch.zeros(1, p.numel()),
        "empty": lambda p: torch.zeros(0),
        "int": lambda p: torch.zeros(p.shape, dtype=torch.int64),
        "bool": lambda p: torch.zeros(p.shape, dtype=torch.bool),
        "complex": lambda p: torch.zeros(p.shape, dtype=torch.complex64),
        "meta": lambda p: torch.zeros(p.shape, device="meta"),
        "sparse": lambda p: torch.zeros(p.shape).to_sparse(),
        "expanded": lambda p: torch.zeros(()).expand(p.shape),
        "number": lambda p: 0.5,
        "text": lambda p: "zeros",
    }


@pytest.mark.parametrize("kind", wrong_states())
@each_backend
@each_case
def test_damaged_state(case: Case, backend: str, kind: str) -> None:
    bench = Bench(case, backend, 2)
    param = bench.params[3]
    for name in bench.ours._state_names(bench.ours.param_groups[1]):
        state = bench.ours.state[param]
        good = state[name]
        state[name] = wrong_states()[kind](param)
        bench.assert_refuses(
            (ValueError, TypeError, RuntimeError), f"{name}.*parameter 1 of group 1"
        )
        state[name] = good
    bench.assert_still_works()


def wrong_steps() -> dict[str, Any]:
    return {
        "two": torch.zeros(2),
        "none": torch.zeros(0),
        "int": torch.tensor(2),
        "complex": torch.tensor(2j),
        "meta": torch.zeros((), device="meta"),
        "number": 2.0,
        "text": "2",
    }


@pytest.mark.parametrize("kind", wrong_steps())
@each_backend
@pytest.mark.parametrize("case", [c for c in MAIN_CASES if c.cls.has_step], ids=case_name)
def test_damaged_step_count(case: Case, backend: str, kind: str) -> None:
    bench = Bench(case, backend, 2)
    state = bench.ours.state[bench.params[3]]
    good = state["step"]
    state["step"] = wrong_steps()[kind]
    bench.assert_refuses((ValueError, TypeError, RuntimeError), "step.*parameter 1 of group 1")
    state["step"] = good
    bench.assert_still_works()


@each_backend
@each_case
def test_missing_state(case: Case, backend: str) -> None:
    bench = Bench(case, backend, 2)
    state = bench.ours.state[bench.params[3]]
    for name in list(state):
        if name == "momentum_buffer":
            continue  # torch makes it when momentum is turned on, and so do we
        good = state.pop(name)
        bench.assert_refuses(ValueError, f"{name}.*parameter 1 of group 1")
        state[name] = good
    bench.assert_still_works()


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize("value", ["x", [1.0], torch.ones(2), torch.ones(0)], ids=repr)
@each_age
@each_backend
def test_scaler_attributes_of_a_wrong_type(
    backend: str, n_steps: int, value: Any, name: str
) -> None:
    bench = Bench(MAIN_CASES[0], backend, n_steps)
    setattr(bench.ours, name, value)
    bench.assert_refuses(TypeError, f"AdamW: expected {name} to be None or a one-element tensor")
    delattr(bench.ours, name)
    bench.assert_still_works()


@pytest.mark.parametrize(
    "value", [None, "x", torch.ones(2), torch.ones(0), [0.1]], ids=lambda v: repr(v)[:20]
)
@each_age
@each_backend
@each_case
def test_learning_rate_of_a_wrong_type(case: Case, backend: str, n_steps: int, value: Any) -> None:
    bench = Bench(case, backend, n_steps)
    bench.ours.param_groups[1]["lr"] = value
    bench.assert_refuses((TypeError, ValueError), "lr")
    bench.ours.param_groups[1]["lr"] = 0.021
    bench.assert_still_works()


@each_age
@each_backend
@each_case
def test_hyper_parameter_of_a_wrong_type(case: Case, backend: str, n_steps: int) -> None:
    bench = Bench(case, backend, n_steps)
    group = bench.ours.param_groups[1]
    group["weight_decay"], good = "x", group["weight_decay"]
    bench.assert_refuses((TypeError, ValueError), "weight_decay")
    group["weight_decay"] = good
    bench.assert_still_works()


@each_backend
@each_case
def test_expanded_parameter(case: Case, backend: str) -> None:
    bench = Bench(case, backend, 1)
    good = bench.params[0].data
    bench.params[0].data = torch.randn(1, 3).expand(7, 3)
    bench.assert_refuses(RuntimeError, "parameter 0.*clone")
    bench.params[0].data = good
    bench.assert_still_works()


def overlapping(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    base = torch.randn(2 * n).to(dtype)
    return [leaf(base[:n]), leaf(base[n // 2 : n // 2 + n]), leaf(base[n // 2 - 3 :].view(1, -1))]


@pytest.mark.parametrize("n", [40, 400_000])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@each_case
def test_overlapping_parameters_are_updated_one_after_the_other(
    case: Case, backend: str, n: int
) -> None:
    params, twins = overlapping(n), overlapping(n, torch.float64)
    with torch.no_grad():
        twins[0]._base.copy_(params[0]._base) if twins[0]._base is not None else None
        for twin, param in zip(twins, params, strict=True):
            twin.copy_(param)
    ours = case.cls(params, backend=backend, **case.kwargs)
    theirs = case.torch_cls(twins, foreach=False, **case.torch_kwargs)
    for _ in range(3):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn(param.shape)
            twin.grad = param.grad.double()
        ours.step()
        if case.decays_by_hand:
            for twin in twins:
                one = case.torch_cls([twin], **case.torch_kwargs)
                one.state = theirs.state
                case.torch_step(one)
        else:
            case.torch_step(theirs)
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param.detach().double(), twin.detach(), rtol=5e-6, atol=5e-6)


class Subclass(Tensor):
    """A tensor type that the compiled code does not know."""


UNUSUAL = {
    "complex": lambda: torch.randn(3, dtype=torch.complex64),
    "float8": lambda: torch.randn(3).to(torch.float8_e4m3fn),
    "meta": lambda: torch.randn(3, device="meta"),
    "subclass": lambda: torch.randn(3).as_subclass(Subclass),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@each_case
def test_backend_cpu_refuses_what_it_cannot_take(case: Case, kind: str) -> None:
    unusual = nn.Parameter(UNUSUAL[kind](), requires_grad=True)
    usual = leaf(torch.randn(3))
    optimizer = case.cls([usual, unusual], backend=NATIVE, **case.kwargs)
    usual.grad, unusual.grad = torch.ones(3), torch.ones_like(unusual)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"backend='cpu' cannot take a .*; use backend='auto'"):
        optimizer.step()
    assert_unchanged(optimizer, before)
    optimizer.backend = "auto"
    kept = usual.detach().clone()
    optimizer.step()
    assert not torch.equal(usual, kept)
    if kind != "meta":
        assert torch.isfinite(unusual.detach().to(torch.complex64)).all()


@pytest.mark.parametrize(
    "backend,error,match",
    [
        ("nope", ValueError, "Invalid backend value: 'nope', expected one of auto, cuda"),
        ("cuda", RuntimeError, "backend='cuda' cannot run here: .*use backend='auto'"),
        (None, ValueError, "Invalid backend value: None"),
    ],
)
@each_case
def test_backends_that_cannot_run_here(
    case: Case, backend: Any, error: type[Exception], match: str
) -> None:
    if backend == "cuda" and not backends.missing("cuda"):
        pytest.skip("the CUDA backend can run here")
    with pytest.raises(error, match=match):
        case.cls([leaf(torch.ones(2))], backend=backend, **case.kwargs)


@each_case
def test_load_state_dict_that_does_not_fit_changes_nothing(case: Case) -> None:
    bench = Bench(case, "auto", 2)
    state_dict = bench.ours.state_dict()
    wrong = {**state_dict, "param_groups": state_dict["param_groups"][:1]}
    names = bench.ours._state_names(bench.ours.param_groups[0])
    misshapen = {
        **state_dict,
        "state": {**state_dict["state"], 2: {**state_dict["state"][2], names[0]: torch.zeros(3)}},
    }
    before = snapshot(bench.ours)
    for bad, match in ((wrong, "different number of parameter groups"), (misshapen, names[0])):
        with pytest.raises(ValueError, match=match):
            bench.ours.load_state_dict(bad)
        assert_unchanged(bench.ours, before)
    bench.assert_still_works()
