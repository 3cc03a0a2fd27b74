"""Checkpoints that move between torch.optim, torch.distributed and ours."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.cases import CASES, MAIN_CASES, Case
from tests.pairs import (
    BACKENDS,
    Pair,
    case_name,
    clones,
    close,
    give_grads,
    leaf,
    make_params,
    through_file,
    train,
)

each_backend = pytest.mark.parametrize("backend", BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
main_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)


@each_backend
@every_case
def test_from_torch_to_ours(case: Case, backend: str) -> None:
    pair = Pair(case, dtype=torch.float32)
    other = case.torch_cls(clones(pair.params), **case.torch_kwargs)
    moved = other.param_groups[0]["params"]
    twin_step = [case.torch_step, case.torch_step]
    for number in range(3):
        for optimizer, step in zip((other, pair.theirs), twin_step, strict=True):
            give_grads(optimizer.param_groups[0]["params"], number)
            step(optimizer)
    # Other values than the checkpoint's, which has to bring its own.
    ours = case.cls(clones(moved), backend=backend, lr=0.5)
    saved = through_file(other.state_dict())
    ours.load_state_dict(saved)
    if case.decays_by_hand:
        ours.param_groups[0]["weight_decay"] = case.decays_by_hand
    for name, value in case.kwargs.items():
        assert ours.param_groups[0][name] == value
    assert ours.param_groups[0].keys() == set(ours.defaults) | {"params"}
    for number in range(3, 6):
        for optimizer, step in ((ours, type(ours).step), (pair.theirs, case.torch_step)):
            give_grads(optimizer.param_groups[0]["params"], number)
            step(optimizer)
    compare(ours, pair.theirs)


@each_backend
@every_case
def test_from_ours_to_torch(case: Case, backend: str) -> None:
    pair = Pair(case, backend, dtype=torch.float32)
    for number in range(6):
        if number == 3:
            ours, copies = pair.ours, clones(pair.params)
            pair.ours = case.torch_cls(copies, **{**case.torch_kwargs, "lr": 0.5})
            pair.ours.load_state_dict(through_file(ours.state_dict()))
            if case.decays_by_hand:
                pair.ours.param_groups[0]["weight_decay"] = 0
        for optimizer in pair.both:
            give_grads(optimizer.param_groups[0]["params"], number)
        if number < 3:
            pair.ours.step()
        else:
            case.torch_step(pair.ours)
        case.torch_step(pair.theirs)
    assert isinstance(pair.ours, case.torch_cls)
    compare(pair.ours, pair.theirs)


def compare(actual: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    """Compare float32 parameters and state with float64 ones."""
    params, twins = (o.param_groups[0]["params"] for o in (actual, expected))
    for param, twin in zip(params, twins, strict=True):
        close(param, twin, torch.float32)
        mine, its = actual.state.get(param, {}), expected.state.get(twin, {})
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            close(value, its[name], torch.float32)


@each_backend
@main_case
def test_checkpoints_of_torchs_fused_classes(case: Case, backend: str) -> None:
    if "fused" not in case.torch_cls(make_params()).defaults:
        return
    params = make_params(torch.float32)
    fused = case.torch_cls(params, fused=True, **case.torch_kwargs)
    train(fused, 0, 2)
    ours = case.cls(clones(params), backend=backend, **case.kwargs)
    ours.load_state_dict(through_file(fused.state_dict()))
    if case.decays_by_hand:
        ours.param_groups[0]["weight_decay"] = 0
    back = case.torch_cls(clones(params), fused=True, **case.torch_kwargs)
    back.load_state_dict(through_file(ours.state_dict()))
    for optimizer in (fused, ours, back):
        train(optimizer, 2, 2)
        compare(optimizer, fused)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Return the mesh of a group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@every_case
def test_distributed_tensors(case: Case, mesh: DeviceMesh) -> None:
    def distributed_copy(value: Tensor) -> Tensor:
        return distribute_tensor(value.clone(), mesh, [Shard(0)])

    pair = Pair(case, params=[leaf(torch.randn(6, 4)), leaf(torch.randn(5))])
    pair.params = [nn.Parameter(distributed_copy(p.detach())) for p in pair.params]
    pair.ours = case.cls(pair.params, **case.kwargs)
    for number in range(4):
        give_grads(pair.twins, number)
        for param, twin in zip(pair.params, pair.twins, strict=True):
            param.grad = distributed_copy(twin.grad.float())
        pair.ours.step()
        case.torch_step(pair.theirs)
        if number == 1:
            saved = pair.ours.state_dict()
            pair.ours = case.cls(pair.params, **case.kwargs)
            pair.ours.load_state_dict(saved)
    for param, twin in zip(pair.params, pair.twins, strict=True):
        close(param.full_tensor(), twin, torch.float32)
        for name, value in pair.ours.state.get(param, {}).items():
            assert name == "step" or isinstance(value, DTensor)


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
@each_backend
@every_case
def test_distributed_checkpoint_functions(case: Case, backend: str, flatten: bool) -> None:
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flatten)
    torch.manual_seed(3)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (
        case.cls(model.parameters(), backend=backend, **case.kwargs) for model in models
    )
    train(first, 0, 2)
    kept = [p.detach().clone() for p in models[1].parameters()]
    first.zero_grad()
    saved = dcp.get_optimizer_state_dict(models[0], first, options=options)
    if not flatten:
        assert set(saved["param_groups"][0]["params"]) == dict(models[0].named_parameters()).keys()
    dcp.set_optimizer_state_dict(models[1], second, saved, options=options)
    # It makes the state by a step without gradient and learning rate, which may not move weights.
    assert all(torch.equal(p, k) for p, k in zip(models[1].parameters(), kept, strict=True))
    models[1].load_state_dict(models[0].state_dict())
    for optimizer in (first, second):
        train(optimizer, 2, 2)
    assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"] == case.kwargs["lr"]
    for mine, its in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, its)
        assert first.state.get(mine, {}).keys() == second.state.get(its, {}).keys()
