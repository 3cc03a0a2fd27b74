"""Orthogonal decay around an optimizer: skipped steps, 16 bits, copies, compilation, processes."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fusedtricks
from fusedtricks.nn.averaging import ModelEMA
from fusedtricks.nn.orthogonal import OrthogonalDecay, orthogonal_weights
from fusedtricks.nn.shake_resnet import ShakeShakeResNet
from tests.devices import DEVICE
from tests.processes import in_two_processes

# Skipped steps. ----------------------------------------------------------------------------------

SCALED = {
    "torch": (lambda p: torch.optim.SGD(p, lr=0.1), torch.amp.GradScaler),
    "torch-fused": (lambda p: torch.optim.SGD(p, lr=0.1, fused=True), torch.amp.GradScaler),
    "ours-torch": (lambda p: fusedtricks.optim.SGD(p, lr=0.1), torch.amp.GradScaler),
    "ours": (lambda p: fusedtricks.optim.SGD(p, lr=0.1), fusedtricks.amp.GradScaler),
    "ours-clip": (
        lambda p: fusedtricks.optim.SGD(p, lr=0.1, clip_grad_norm=1e6),
        fusedtricks.amp.GradScaler,
    ),
    "reference": (
        lambda p: fusedtricks.optim.SGD(p, lr=0.1, backend="reference"),
        fusedtricks.amp.GradScaler,
    ),
}


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize(("make", "scaler_class"), SCALED.values(), ids=SCALED.keys())
def test_steps_that_a_scaler_skips_do_nothing(make, scaler_class, unscales):
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = make([weight])
    OrthogonalDecay(optimizer, [weight], strength=0.5)
    scaler = scaler_class(DEVICE.type, init_scale=8.0)
    expected = 2.0
    for factor in (0.0, float("inf"), 0.0, float("nan"), 0.0):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if factor == 0:
            expected -= 4 * 0.1 * 0.5 * (expected**2 - 1) * expected
        assert weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_steps_that_skip_nonfinite_leaves_out_do_nothing(backend):
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = fusedtricks.optim.AdamW(
        [weight], lr=0.1, weight_decay=0, skip_nonfinite=True, backend=backend
    )
    OrthogonalDecay(optimizer, [weight], strength=0.5)
    for grad, expected in ((0.0, 0.8), (float("nan"), 0.8), (0.0, 0.8 + 0.2 * 0.36 * 0.8)):
        weight.grad = torch.full((1, 1), grad)
        optimizer.step()
        assert weight.item() == pytest.approx(expected)


def test_a_step_that_is_not_skipped_pulls_beside_a_gradient_that_is_not_finite():
    weights = [nn.Parameter(torch.tensor([[2.0, 0.0]])) for _ in range(2)]
    # Centralizing reads all gradients, and finds the bad one without leaving the step out.
    optimizer = fusedtricks.optim.SGD(weights, lr=0.1, centralize_grad=True)
    OrthogonalDecay(optimizer, weights, strength=0.5)
    weights[0].grad = torch.zeros(1, 2)
    weights[1].grad = torch.full((1, 2), float("nan"))
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), torch.tensor([[0.8, 0.0]]))


# Steps of another kind. --------------------------------------------------------------------------


def test_weights_without_a_gradient_are_pulled_and_frozen_ones_not():
    weights = [nn.Parameter(torch.tensor([[2.0]])) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    OrthogonalDecay(optimizer, weights, strength=0.5)
    weights[1].requires_grad_(False)
    optimizer.step()
    assert [w.item() for w in weights] == pytest.approx([0.8, 2.0])


@pytest.mark.parametrize("is_first", [True, False], ids=["decay first", "average first"])
@pytest.mark.parametrize("library", [torch.optim, fusedtricks.optim])
def test_averages_are_of_weights_that_were_pulled(library, is_first):
    model = nn.Linear(3, 5)
    optimizer = library.AdamW(model.parameters(), lr=0.1)
    ema = ModelEMA(model, decay=0.9)
    calls = [
        lambda: OrthogonalDecay(optimizer, model, strength=np.float32(0.5)),
        lambda: ema.follow(optimizer, model),
    ]
    for call in calls if is_first else reversed(calls):
        call()
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(ema.module.weight, model.weight)


def test_a_decay_without_ordered_hooks():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer._optimizer_step_post_hooks = type("Hooks", (dict,), {})()
    OrthogonalDecay(optimizer, [weight], strength=0.5)
    optimizer.step()
    assert weight.item() == pytest.approx(0.8)


def test_a_closure():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    OrthogonalDecay(optimizer, [weight], strength=0.25)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 3 * weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6
    assert weight.item() == pytest.approx(2 - 0.3 - 0.6)


# 16 bits. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_are_moved_and_keep_small_pulls(dtype):
    weight = nn.Parameter(torch.full((1, 1), 2.0, dtype=dtype))
    bare = nn.Parameter(weight.detach().clone())
    optimizers_ = [
        fusedtricks.optim.SGD([weight], lr=1e-4, master_weights=True),
        fusedtricks.optim.SGD([bare], lr=1e-4),
    ]
    for param, optimizer in zip((weight, bare), optimizers_, strict=True):
        OrthogonalDecay(optimizer, [param], strength=0.5)
        for _ in range(100):
            param.grad = torch.zeros_like(param)
            optimizer.step()
    expected = 2.0
    for _ in range(100):
        # The pull is taken at the rounded weight.
        rounded = torch.tensor(expected).to(dtype).item()
        expected -= 4e-4 * 0.5 * (rounded**2 - 1) * rounded
    master = optimizers_[0].state[weight]["master_param"]
    assert master.item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(weight, master.to(dtype)) and weight.item() < 1.95
    # 0.0012 is less than half a step of bfloat16 below 2, which is 0.0078, but not of float16.
    assert (bare.item() == 2.0) is (dtype == torch.bfloat16)


def test_a_master_that_is_turned_off_does_not_come_back():
    weight = nn.Parameter(torch.full((1, 1), 2.0, dtype=torch.bfloat16))
    optimizer = fusedtricks.optim.SGD([weight], lr=0.5, master_weights=True)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.param_groups[0]["master_weights"] = False
    weight.grad.fill_(2.0)
    optimizer.step()
    OrthogonalDecay(optimizer, [weight], strength=0.0)
    optimizer.step()
    assert weight.item() == 0.0


def test_the_optimizer_tells_its_masters():
    params = [nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)) for _ in range(3)]
    groups = [{"params": params[:2]}, {"params": params[2:], "master_weights": False}]
    optimizer = fusedtricks.optim.SGD(groups, lr=0.5, momentum=0.5, master_weights=True)
    assert optimizer.master_of(params[1]) is None
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params[:2]:
        assert optimizer.master_of(param) is optimizer.state[param]["master_param"]
        assert optimizer.master_of(param, optimizer.param_groups[0]).dtype == torch.float32
    assert optimizer.master_of(params[2]) is None
    optimizer.param_groups[0]["master_weights"] = False
    assert optimizer.master_of(params[1]) is None


def test_the_optimizer_tells_whether_its_step_was_skipped():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = fusedtricks.optim.SGD([weight], lr=0.5)
    assert optimizer.skip_flags() == []
    weight.grad = torch.full_like(weight, float("nan"))
    optimizer.step()
    assert optimizer.skip_flags() == []
    optimizer = fusedtricks.optim.SGD([weight], lr=0.5, skip_nonfinite=True)
    for value in (1.0, float("nan"), 2.0):
        weight.grad = torch.full_like(weight, value)
        optimizer.step()
        (flag,) = optimizer.skip_flags()
        assert bool(flag != 0) == (value != value)


# Copies, compilation, processes. -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_pull_their_own_weights(how):
    model = nn.Linear(3, 5, bias=False)
    optimizer = fusedtricks.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.03)
    decay = OrthogonalDecay(optimizer, [model.weight], strength=0.5)
    bundle = (model, optimizer, decay)
    twins = pickle.loads(pickle.dumps(bundle)) if how == "pickle" else copy.deepcopy(bundle)
    for net, stepper, _ in (bundle, twins):
        net.weight.grad = torch.ones(5, 3)
        for _ in range(3):
            stepper.step()
    assert torch.equal(twins[0].weight, model.weight)
    twins[2].remove()
    before = model.weight.detach().clone()
    for net, stepper, _ in (bundle, twins):
        net.weight.grad = torch.zeros(5, 3)
        stepper.param_groups[0]["betas"] = (0.0, 0.0)
        stepper.param_groups[0]["weight_decay"] = 0.0
        stepper.step()
    assert torch.equal(twins[0].weight, before) and not torch.equal(model.weight, before)


@pytest.mark.parametrize("library", [torch.optim, fusedtricks.optim])
def test_beside_a_compiled_step(library):
    torch._dynamo.reset()
    start = torch.randn(3, 5) / 2
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    steps = []
    for weight, compiles in zip(weights, (False, True), strict=True):
        optimizer = library.AdamW([weight], lr=torch.tensor(0.1), weight_decay=0.03)
        OrthogonalDecay(optimizer, [weight], strength=0.2)
        step = torch.compile(optimizer.step, backend="aot_eager") if compiles else optimizer.step
        for number in range(3):
            weight.grad = torch.full((3, 5), 0.3 - 0.2 * number)
            step()
        steps.append(weight.detach())
    torch.testing.assert_close(*steps)


def train_one_rank(rank: int) -> dict[str, Tensor]:
    torch.manual_seed(rank)  # other images and other shakes in each process
    net = ShakeShakeResNet(1, 3, width=4, blocks=(1, 1))
    parallel = DistributedDataParallel(net)
    optimizer = fusedtricks.optim.SGD(net.parameters(), lr=0.05, momentum=0.8)
    OrthogonalDecay(optimizer, orthogonal_weights(parallel), strength=0.4)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(5, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    return net.state_dict()


@pytest.mark.skipif(DEVICE.type != "cpu", reason="two processes with gloo on the CPU")
def test_two_processes_stay_alike(tmp_path):
    one, two = in_two_processes(train_one_rank, tmp_path)
    for name, value in one.items():
        assert value.isfinite().all()
        if "running" not in name:
            assert torch.equal(value, two[name]), name
