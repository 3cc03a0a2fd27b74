"""Which tensors a step takes: layouts, dtypes, and the kinds that only the reference handles."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import CASES, MAIN_CASES, Case
from tests.devices import NATIVE
from tests.pairs import BACKENDS, Pair, case_name, close, leaf, make_params

each_backend = pytest.mark.parametrize("backend", BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


def inside(shape: tuple[int, ...], *index: Any) -> tuple[Tensor, Tensor]:
    """Return a tensor and a parameter that is a part of it."""
    whole = torch.randn(shape)
    return whole, leaf(whole[index])


@each_backend
@every_case
def test_parts_of_a_tensor_leave_the_rest_alone(case: Case, backend: str) -> None:
    everything, row, column = slice(None), slice(2, 7), slice(3, 8)
    parts = [
        inside((64,), slice(1, 40)),
        inside((12, 9), row),
        inside((12, 9), everything, column),
        inside((6, 5, 9), everything, 2, slice(None, None, 2)),
        inside((30,), slice(5, 6)),
        inside((30,), 7),
    ]
    pair = Pair(case, backend, params=[part for _, part in parts])
    kept = [whole.clone() for whole, _ in parts]
    shapes = [(p.shape, p.stride(), p.data_ptr()) for p in pair.params]
    for _ in range(3):
        pair.step()
    pair.check()
    assert [(p.shape, p.stride(), p.data_ptr()) for p in pair.params] == shapes
    for (whole, part), before in zip(parts, kept, strict=True):
        moved = whole != before
        assert moved.sum() == part.numel() == (part != part.detach().clone().zero_()).sum()


def expanded(shape: tuple[int, ...]) -> list[Tensor]:
    """Return gradients with zero strides: of sum(), of a row sum, of a column sum."""
    grads = [torch.full((), 0.37)]
    if len(shape) == 2:
        grads += [torch.randn(shape[0], 1), torch.randn(shape[1])]
    return [grad.double().expand(shape) for grad in grads]


@pytest.mark.parametrize("transforms", [False, True], ids=["plain", "centralized"])
@each_backend
@main_case
def test_expanded_gradients(case: Case, backend: str, transforms: bool) -> None:
    params = make_params(torch.float64, [(5, 7), (5, 7), (5, 7), (11,), (), (2, 0), (2, 3, 4, 5)])
    pair = Pair(case, backend, params=params, centralize_grad=transforms)
    grads = expanded((5, 7)) + [expanded(tuple(p.shape))[0] for p in params[3:]]
    for _ in range(2):
        for param, twin, grad in zip(pair.params, pair.twins, grads, strict=True):
            param.grad = grad
            twin.grad = grad.contiguous()
            if transforms and grad.ndim > 1 and grad.numel():
                twin.grad -= twin.grad.mean(tuple(range(1, grad.ndim)), keepdim=True)
        pair.ours.step()
        case.torch_step(pair.theirs)
    if not transforms:
        pair.check()
        return
    # A gradient without variation centralizes to rounding noise, which some algorithms amplify.
    for index in (2, 3, 4):
        close(pair.params[index], pair.twins[index], torch.float64)


@each_backend
@main_case
def test_gradient_with_other_strides_than_the_parameter(case: Case, backend: str) -> None:
    params = [leaf(torch.randn(2, 3, 4, 5)) for _ in range(3)]
    params.append(leaf(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)))
    pair = Pair(case, backend, params=params)
    for _ in range(2):
        pair.set_grads()
        changed = [
            params[0].grad.to(memory_format=torch.channels_last),
            params[1].grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
            torch.stack([params[2].grad] * 2, dim=-1)[..., 1],
            params[3].grad.contiguous(),
        ]
        for param, grad in zip(params, changed, strict=True):
            assert grad.stride() != param.stride()
            param.grad = grad
        pair.ours.step()
        case.torch_step(pair.theirs)
    pair.check()


@each_backend
@every_case
def test_mixed_dtypes_in_one_group(case: Case, backend: str) -> None:
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16] * 2
    params = [leaf(torch.randn(17, 3).to(dtype)) for dtype in dtypes]
    pair = Pair(case, backend, params=params)
    alone = [leaf(p.detach().clone()) for p in params]
    for _ in range(2):
        pair.step()
    for param, twin in zip(params, pair.twins, strict=True):
        if param.dtype in (torch.float32, torch.float64):
            close(param, twin, param.dtype)
    # A parameter moves as it would without neighbours of other dtypes.
    singles = [case.cls([p], backend=backend, **case.kwargs) for p in alone]
    torch.manual_seed(7)
    grads = [[torch.randn(17, 3).to(dtype) for dtype in dtypes] for _ in range(2)]
    together = [leaf(p.detach().clone()) for p in alone]
    group = case.cls(together, backend=backend, **case.kwargs)
    for batch in grads:
        for index, grad in enumerate(batch):
            alone[index].grad, together[index].grad = grad, grad.clone()
            singles[index].step()
        group.step()
    assert all(torch.equal(a, t) for a, t in zip(alone, together, strict=True))


@each_backend
@main_case
def test_many_groups_with_many_dtypes(case: Case, backend: str) -> None:
    pair = Pair(case, backend, dtype=torch.float32)
    pair.add(make_params(torch.float64), lr=0.013)
    pair.add(make_params(torch.float32), maximize=True)
    for without in ((), (2, 8), (0, 1)):
        pair.step(without)
    pair.check()


@every_case
def test_complex_parameters(case: Case) -> None:
    for backend in ("auto", "reference"):
        shapes = [(), (7,), (2, 3), (2, 0)]
        params = [leaf(torch.randn(shape, dtype=torch.complex128)) for shape in shapes]
        params.append(leaf(torch.randn(5, dtype=torch.float64)))
        twins = [leaf(p.detach().clone()) for p in params]
        ours = case.cls(params, backend=backend, **case.kwargs)
        theirs = case.torch_cls(twins, **case.torch_kwargs)
        for _ in range(3):
            for param, twin in zip(params, twins, strict=True):
                param.grad = torch.randn_like(param)
                twin.grad = param.grad.clone()
            ours.step()
            case.torch_step(theirs)
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-12)
            mine, its = ours.state.get(param, {}), theirs.state.get(twin, {})
            assert mine.keys() == its.keys()
            for name, value in mine.items():
                torch.testing.assert_close(value, its[name], rtol=1e-12, atol=1e-12)


@main_case
def test_complex_is_refused_by_the_compiled_backend(case: Case) -> None:
    params = [leaf(torch.randn(3, dtype=torch.complex64))]
    optimizer = case.cls(params, backend=NATIVE, **case.kwargs)
    params[0].grad = torch.ones_like(params[0])
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match=re.escape("torch.complex64; use backend='auto'")):
        optimizer.step()
    assert torch.equal(params[0], before)


def sparse_grad() -> Tensor:
    """Return a gradient with an index that appears twice."""
    indices = torch.tensor([[1, 4, 1]])
    values = torch.randn(3, 2, dtype=torch.float64)
    return torch.sparse_coo_tensor(indices, values, (6, 2), check_invariants=True)


def takes_sparse(case: Case) -> bool:
    """Tell whether torch steps with sparse gradients, and for more than one step."""
    param = leaf(torch.randn(6, 2, dtype=torch.float64))
    theirs = case.torch_cls([param], **case.torch_kwargs)
    try:
        for _ in range(3):
            param.grad = sparse_grad()
            theirs.step()
    except RuntimeError:
        return False
    return case.kwargs.get("momentum", 0) == 0


@pytest.mark.parametrize("backend", ["auto", "reference"])
@every_case
def test_sparse_gradients(case: Case, backend: str) -> None:
    params = make_params(shapes=[(6, 2), (4,)])
    pair = Pair(case, backend, params=params)
    if takes_sparse(case) and not case.decays_by_hand:
        for _ in range(3):
            pair.set_grads()
            grad = sparse_grad()
            pair.params[0].grad, pair.twins[0].grad = grad, grad.clone()
            pair.ours.step()
            case.torch_step(pair.theirs)
            assert pair.params[0].grad is grad
        pair.check()
        return
    pair.set_grads()
    pair.params[0].grad = sparse_grad()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="sparse"):
        pair.ours.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not any("momentum_buffer" in s or "exp_avg" in s for s in pair.ours.state.values())


@every_case
def test_refusals_of_sparse_gradients_have_torchs_text(case: Case) -> None:
    param, twin = make_params(shapes=[(6, 2), (6, 2)])
    ours = case.cls([param], **case.kwargs)
    theirs = case.torch_cls([twin], **case.torch_kwargs)
    param.grad, twin.grad = sparse_grad(), sparse_grad()
    try:
        theirs.step()
    except RuntimeError as error:
        if "sparse gradients" in str(error):
            text = str(error).replace(case.torch_cls.__name__, case.cls.__name__)
            # torch's AdamW calls itself Adam here.
            text = text.replace("Adam does", f"{case.cls.__name__} does")
            with pytest.raises(RuntimeError, match=re.escape(text)):
                ours.step()


def derivatives(case: Case, ours: bool, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return a loss after a step, and its derivatives with respect to all that the step reads."""
    leaves = {name: leaf(value.clone()) for name, value in inputs.items()}
    cls, kwargs = (case.cls, case.kwargs) if ours else (case.torch_cls, case.torch_kwargs)
    param = leaves["param"].clone()
    optimizer = cls([param], differentiable=True, **kwargs | {"lr": leaves.get("lr", kwargs["lr"])})
    for name in inputs.keys() - {"param", "grad", "lr"}:
        optimizer.state[param][name] = leaves[name].clone()
    if case.cls.has_step:
        optimizer.state[param]["step"] = torch.tensor(3.0)
    param.grad = leaves["grad"].clone()
    if case.decays_by_hand and not ours:
        param.mul_(1 - optimizer.param_groups[0]["lr"] * case.decays_by_hand)
    optimizer.step()
    loss = (param**2).sum() + sum(
        (value**2).sum() for name, value in optimizer.state[param].items() if name != "step"
    )
    return [loss, *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@every_case
def test_differentiable_steps(case: Case, tensor_lr: bool) -> None:
    inputs = {name: torch.randn(5, dtype=torch.float64) for name in ("param", "grad")}
    probe = case.cls(make_params(), **case.kwargs)
    for name in probe._state_names(probe.param_groups[0]):
        inputs[name] = torch.rand(5, dtype=torch.float64) * 0.3 + (0.0 if "buf" in name else 0.5)
    if "grad_avg" in inputs:
        inputs["grad_avg"] *= 0.1
    if tensor_lr:
        inputs["lr"] = torch.tensor(case.kwargs["lr"], dtype=torch.float64)
    mine = derivatives(case, True, inputs)
    try:
        theirs = derivatives(case, False, inputs)
    except TypeError:
        # torch has no derivative with respect to lr here.
        assert tensor_lr
        assert mine[-1].abs() > 0
        return
    # torch's Adam computes the bias corrections in float32 when it is differentiable.
    for value, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@every_case
def test_two_differentiable_steps_match_finite_differences(case: Case) -> None:
    grads = torch.randn(2, 4, dtype=torch.float64)

    def train(start: Tensor, grads: Tensor, lr: Tensor) -> Tensor:
        param = start.clone()
        optimizer = case.cls([param], differentiable=True, **case.kwargs | {"lr": lr})
        for grad in grads:
            param.grad = grad.clone()
            optimizer.step()
        return param

    lr = torch.tensor(case.kwargs["lr"], dtype=torch.float64)
    inputs = [leaf(t) for t in (torch.randn(4, dtype=torch.float64), grads, lr)]
    assert torch.autograd.gradcheck(train, inputs)


@main_case
def test_differentiable_is_refused_by_the_compiled_backend(case: Case) -> None:
    params = make_params()
    optimizer = case.cls(params, backend=NATIVE, differentiable=True, **case.kwargs)
    params[2].grad = torch.ones_like(params[2])
    with pytest.raises(RuntimeError, match="cannot take differentiable=True; use backend='auto'"):
        optimizer.step()
