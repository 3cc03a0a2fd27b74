"""Construction: signatures, defaults, parameter groups and error texts are those of torch.optim."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedtricks.optim import Extras
from tests.cases import CASES, MAIN_CASES, Case
from tests.pairs import BACKENDS, Pair, case_name, leaf, make_params

NAN = float("nan")
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


def arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
    }


@main_case
def test_signature_is_that_of_torch(case: Case) -> None:
    ours, theirs = arguments(case.cls.__init__), arguments(case.torch_cls.__init__)
    assert [ours[name] for name in ours if name in theirs] == list(theirs.values())
    added = [parameter for name, parameter in ours.items() if name not in theirs]
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in added)


@pytest.mark.parametrize("method", ["add_param_group", "load_state_dict", "step", "zero_grad"])
@main_case
def test_methods_have_the_signatures_of_torch(case: Case, method: str) -> None:
    ours = arguments(getattr(case.cls, method))
    theirs = arguments(getattr(case.torch_cls, method))
    assert list(ours.values()) == list(theirs.values())


@every_case
def test_hyper_parameters_are_in_defaults_and_groups(case: Case) -> None:
    pair = Pair(case, centralize_grad="conv", master_weights=True)
    for name, value in pair.theirs.defaults.items():
        expected = case.kwargs.get(name, value)
        assert pair.ours.defaults[name] == expected
        assert pair.ours.param_groups[0][name] == expected
    assert pair.ours.param_groups[0]["centralize_grad"] == "conv"
    assert pair.ours.param_groups[0]["master_weights"] is True
    assert set(pair.ours.param_groups[0]) == set(pair.ours.defaults) | {"params"}
    assert isinstance(pair.ours, torch.optim.Optimizer)


@every_case
def test_arguments_by_position(case: Case) -> None:
    kinds = arguments(case.torch_cls.__init__)
    names = [n for n, p in kinds.items() if p.kind is p.POSITIONAL_OR_KEYWORD][2:]
    values = [case.kwargs.get(name, kinds[name].default) for name in names]
    group = case.cls(make_params(), *values).param_groups[0]
    assert [group[name] for name in names] == values


EXTRAS = {
    "centralize_grad": "conv",
    "clip_grad_norm": 0.7,
    "clip_grad_value": 0.3,
    "master_weights": True,
    "decouple_lr": False,
    "skip_nonfinite": True,
    "write_grads": True,
    "backend": "reference",
}


@main_case
def test_every_class_takes_the_same_extras(case: Case) -> None:
    assert EXTRAS.keys() == Extras.__annotations__.keys()
    params = make_params(torch.bfloat16)
    optimizer = case.cls(params, **case.kwargs, **EXTRAS)
    for name, value in EXTRAS.items():
        found = optimizer.param_groups[0].get(name, getattr(optimizer, name, None))
        assert found == value
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    plain = case.cls(make_params(), **case.kwargs)
    for name in EXTRAS:
        default = plain.param_groups[0].get(name, getattr(plain, name, None))
        assert default in (["auto"] if name == "backend" else [False, None])


# (arguments, error, its text). Every row holds for the classes that have the arguments.
WRONG_VALUES = [
    ({"lr": -0.1}, ValueError, "Invalid learning rate: -0.1"),
    ({"lr": torch.tensor([0.1, 0.2])}, ValueError, "Tensor lr must be 1-element"),
    ({"eps": -1e-3}, ValueError, "Invalid epsilon value: -0.001"),
    ({"betas": (1.0, 0.9)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
    ({"betas": (0.9, -0.5)}, ValueError, "Invalid beta parameter at index 1: -0.5"),
    (
        {"betas": (torch.tensor(0.9), 0.99)},
        ValueError,
        "betas must be either both floats or both Tensors",
    ),
    ({"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    ({"momentum": -1.0}, ValueError, "Invalid momentum value: -1.0"),
    ({"alpha": -0.2}, ValueError, "Invalid alpha value: -0.2"),
    ({"lr_decay": -0.5}, ValueError, "Invalid lr_decay value: -0.5"),
    (
        {"initial_accumulator_value": -0.3},
        ValueError,
        "Invalid initial_accumulator_value value: -0.3",
    ),
    (
        {"nesterov": True},
        ValueError,
        "Nesterov momentum requires a momentum and zero dampening",
    ),
    (
        {"nesterov": True, "momentum": 0.8, "dampening": 0.1},
        ValueError,
        "Nesterov momentum requires a momentum and zero dampening",
    ),
    (
        {"fused": True, "differentiable": True},
        RuntimeError,
        "`fused` does not support `differentiable`",
    ),
    (
        {"fused": True, "foreach": True},
        RuntimeError,
        "`fused` and `foreach` cannot be `True` together.",
    ),
]
ROWS = [
    pytest.param(case, *row, id=f"{case.name}-{row[0]}")
    for case in MAIN_CASES
    for row in WRONG_VALUES
    if row[0].keys() <= arguments(case.torch_cls.__init__).keys()
]


@pytest.mark.parametrize("case,kwargs,error,text", ROWS)
def test_wrong_values_are_refused_with_torchs_text(
    case: Case, kwargs: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)) as theirs:
        case.torch_cls(make_params(), **kwargs)
    # None: the hyper-parameters are checked before the parameters are touched.
    with pytest.raises(error, match=re.escape(text)) as ours:
        case.cls(None, **kwargs)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value).startswith(str(theirs.value))


@pytest.mark.parametrize(
    "name",
    ["lr", "eps", "weight_decay", "momentum", "alpha", "lr_decay", "initial_accumulator_value"],
)
@main_case
def test_nan_is_refused(case: Case, name: str) -> None:
    if name not in arguments(case.torch_cls.__init__):
        assert name not in case.cls(make_params()).defaults
        return
    with pytest.raises(ValueError, match=r"Invalid .*: nan"):
        case.cls(None, **{name: NAN})


def test_tensor_betas_need_one_element() -> None:
    for case in MAIN_CASES:
        if "betas" in case.kwargs:
            with pytest.raises(ValueError, match=re.escape("Tensor betas[1] must be 1-element")):
                case.cls(None, betas=(torch.tensor(0.9), torch.tensor([0.9, 0.99])))


@pytest.mark.parametrize(
    "kwargs,error,text",
    [
        (
            {"centralize_grad": "all"},
            ValueError,
            "Invalid centralize_grad value: 'all', expected True, False or 'conv'",
        ),
        ({"clip_grad_norm": -1.0}, ValueError, "Invalid clip_grad_norm value: -1.0, expected a"),
        ({"clip_grad_norm": NAN}, ValueError, "Invalid clip_grad_norm value: nan, expected a num"),
        ({"clip_grad_value": -2.0}, ValueError, "Invalid clip_grad_value value: -2.0, expected"),
        (
            {"backend": "gpu"},
            ValueError,
            "Invalid backend value: 'gpu', expected one of auto, cuda, triton, cpu, reference",
        ),
        ({"clip_norm": 1.0}, TypeError, "clip_norm"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@main_case
def test_wrong_extras_are_refused(
    case: Case, kwargs: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        case.cls(make_params(), **kwargs)


@main_case
def test_decouple_lr_needs_a_decoupled_decay(case: Case) -> None:
    optimizer = case.cls(make_params(), **case.kwargs)
    options = {"params": make_params(), "decouple_lr": True}
    if optimizer._decoupled(optimizer.param_groups[0]):
        optimizer.add_param_group(options)
        assert optimizer.param_groups[1]["initial_lr"] == case.kwargs["lr"]
        return
    with pytest.raises(ValueError, match=r"Invalid decouple_lr value: True, .*use AdamW or SGDW"):
        case.cls(make_params(), decouple_lr=True)
    with pytest.raises(ValueError, match="decouple_lr"):
        optimizer.add_param_group(options)
    assert len(optimizer.param_groups) == 1


def shared() -> list[dict[str, Any]]:
    param = leaf(torch.ones(2))
    return [{"params": [param]}, {"params": [param]}]


def named_and_not() -> list[dict[str, Any]]:
    return [{"params": [("a", leaf(torch.ones(2)))]}, {"params": [leaf(torch.ones(2))]}]


BAD_PARAMS: dict[str, Callable[[], Any]] = {
    "bare tensor": lambda: leaf(torch.ones(2)),
    "None": lambda: None,
    "empty": list,
    "empty generator": lambda: iter(()),
    "group as dict": lambda: {"params": make_params()},
    "set in a group": lambda: [{"params": {leaf(torch.ones(2))}}],
    "non-leaf": lambda: [leaf(torch.ones(2)) * 2],
    "not a tensor": lambda: [1.5],
    "some names missing": lambda: [("a", leaf(torch.ones(2))), leaf(torch.ones(3))],
    "names in one group only": named_and_not,
    "in two groups": shared,
    "no params": lambda: [{"lr": 0.1}],
    "group is a list": lambda: [{"params": make_params()}, make_params()],
}


@pytest.mark.parametrize("make", BAD_PARAMS.values(), ids=BAD_PARAMS)
@main_case
def test_bad_params_are_refused_as_by_torch(case: Case, make: Callable[[], Any]) -> None:
    errors = []
    for cls, kwargs in ((case.torch_cls, case.torch_kwargs), (case.cls, case.kwargs)):
        with pytest.raises((TypeError, ValueError, KeyError)) as error:
            cls(make(), **kwargs)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


@main_case
def test_errors_name_what_torch_users_match_on(case: Case) -> None:
    with pytest.raises(TypeError, match="params argument given to the optimizer should be an iter"):
        case.cls(leaf(torch.ones(2)))
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        case.cls([])
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        case.cls(shared())
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        case.cls([leaf(torch.ones(2)) * 2])


@pytest.mark.parametrize("backend", BACKENDS)
@main_case
def test_params_may_come_in_any_form(case: Case, backend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    params, named = list(model.parameters()), list(model.named_parameters())
    forms = [
        (p for p in params),
        tuple(params),
        named,
        [{"params": p} for p in params],
        [{"params": named[:1]}, {"params": iter(named[1:])}],
        params[:1],
    ]
    for form in forms:
        optimizer = case.cls(form, backend=backend, **case.kwargs)
        listed = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(isinstance(p, Tensor) for p in listed)
        for param in params:
            param.grad = torch.ones_like(param)
        before = [p.detach().clone() for p in listed]
        optimizer.step()
        optimizer.step()
        assert not any(torch.equal(p, b) for p, b in zip(listed, before, strict=True))
        names = [n for g in optimizer.param_groups for n in g.get("param_names", ())]
        assert names in ([], [name for name, _ in named])


@pytest.mark.parametrize("backend", BACKENDS)
@main_case
def test_duplicates_in_a_group_warn_and_step_twice(case: Case, backend: str) -> None:
    param, other = make_params(shapes=[(7,), (4, 3)])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        ours = case.cls([param, other, param], backend=backend, **case.kwargs)
    twice = Pair(case, params=[leaf(param.clone())])
    once = Pair(case, params=[leaf(other.clone())])
    for _ in range(3):
        twice.set_grads()
        once.set_grads()
        param.grad, other.grad = twice.params[0].grad, once.params[0].grad
        ours.step()
        case.torch_step(once.theirs)
        case.torch_step(twice.theirs)
        case.torch_step(twice.theirs)
    torch.testing.assert_close(other, once.twins[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(param, twice.twins[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("position", ["first", "last", "only"])
@pytest.mark.parametrize("backend", BACKENDS)
@main_case
def test_a_group_may_be_empty(case: Case, backend: str, position: str) -> None:
    params = make_params()
    groups: list[dict[str, Any]] = [{"params": [] if position == "only" else params}]
    groups.insert(0 if position == "first" else 1, {"params": []})
    optimizer = case.cls(groups, backend=backend, **case.kwargs)
    before = [p.detach().clone() for p in params]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.step()
    for param, value in zip(params, before, strict=True):
        assert torch.equal(param, value) == (position == "only" or param.numel() == 0)


@main_case
def test_groups_override_options(case: Case) -> None:
    pair = Pair(case)
    pair.add(make_params(), lr=0.5, name="extra", maximize=True)
    for optimizer in pair.both:
        assert [g["lr"] for g in optimizer.param_groups] == [case.kwargs["lr"], 0.5]
        assert optimizer.param_groups[1]["name"] == "extra"
    for _ in range(2):
        pair.step()
    pair.check()


@main_case
def test_repr_lists_the_groups_as_torch_does(case: Case) -> None:
    text = repr(case.cls(make_params(), **case.kwargs))
    assert text.startswith(f"{case.cls.__name__} (\nParameter Group 0\n")
    assert f"    lr: {case.kwargs['lr']}\n" in text


@main_case
def test_fused_on_meta_is_refused_at_the_step(case: Case) -> None:
    if "fused" not in arguments(case.torch_cls.__init__):
        assert "fused" not in case.cls(make_params()).defaults
        return
    meta = [leaf(torch.ones(3, device="meta"))]
    optimizer = case.cls(meta, fused=True, **case.kwargs)
    meta[0].grad = torch.ones(3, device="meta")
    text = "`fused=True` requires all the params to be floating point Tensors"
    with pytest.raises(RuntimeError, match=text):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    real = make_params()
    optimizer.param_groups[0]["params"][:] = real
    for param in real:
        param.grad = torch.ones_like(param)
    before = real[2].detach().clone()
    optimizer.step()
    assert not torch.equal(real[2], before)


@main_case
def test_attributes_may_be_read_while_groups_are_added(case: Case) -> None:
    class Subclass(case.cls):
        def add_param_group(self, param_group: dict[str, Any]) -> None:
            assert isinstance(self.defaults, dict)
            self.seen = getattr(self, "seen", 0) + 1
            super().add_param_group(param_group)

    optimizer = Subclass([{"params": make_params()}, {"params": make_params()}], **case.kwargs)
    assert optimizer.seen == 2
