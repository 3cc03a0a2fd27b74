"""Orthogonal penalty and decay against autograd, singular values and steps worked out by hand."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fusedtricks
from fusedtricks.nn.orthogonal import OrthogonalDecay, orthogonal_penalty, orthogonal_weights
from fusedtricks.nn.shake_resnet import ShakeShakeResNet
from tests.devices import DEVICE

# (out, rest): fewer, more and as many rows as columns, convolutions, and a single element.
SHAPES = [(3, 7), (7, 3), (5, 5), (4, 2, 3, 3), (11, 1, 3, 3), (2, 3, 5), (1, 1)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def exact(weights: list[Tensor]) -> Tensor:
    """Return the formula with W W^T whatever the shape, less what cannot vanish."""
    total = torch.zeros((), dtype=torch.float64)
    for weight in weights:
        matrix = weight.double().reshape(weight.shape[0], -1)
        rows, columns = matrix.shape
        excess = matrix @ matrix.T - torch.eye(rows, dtype=torch.float64)
        total = total + (excess**2).sum() - max(rows - columns, 0)
    return total


def leaf(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 0.5) -> Tensor:
    return nn.Parameter((scale * torch.randn(shape)).to(dtype))


def pull_of(weight: Tensor) -> Tensor:
    """Return the gradient of `exact` by autograd, in float64."""
    twin = weight.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(exact([twin]), twin)
    return grad


@every_shape
def test_penalty_is_the_formula(shape):
    weight = leaf(*shape)
    penalty = orthogonal_penalty([weight])
    torch.testing.assert_close(penalty, exact([weight]))
    (grad,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(grad, pull_of(weight))
    # The singular values say the same: sum of (s^2 - 1)^2.
    values = torch.linalg.svdvals(weight.detach().flatten(1))
    torch.testing.assert_close(penalty.detach(), ((values**2 - 1) ** 2).sum())


def test_penalty_by_hand():
    # W W^T - I = [[4, 1], [1, 0]]; for the second, W^T W - I = [[9]].
    wide = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    tall = torch.tensor([[1.0], [3.0]])
    assert orthogonal_penalty([wide]).item() == 18
    assert orthogonal_penalty(iter([wide, tall])).item() == 18 + 81


@every_shape
def test_penalty_of_orthonormal_weights_is_zero(shape):
    weight = nn.init.orthogonal_(torch.empty(shape))
    assert orthogonal_penalty([weight]).item() == pytest.approx(0, abs=1e-10)


def test_weights_of_a_model():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
            self.transposed = nn.ConvTranspose2d(6, 3, 2)
            self.norm = nn.BatchNorm2d(6)
            self.embedding = nn.Embedding(5, 4)
            self.one = nn.Linear(4, 4)
            self.two = nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.frozen = nn.Linear(4, 2).requires_grad_(False)
            self.line = nn.Conv1d(3, 2, 3)

    model = Tied()
    weights = orthogonal_weights(model)
    assert [id(w) for w in weights] == [id(m.weight) for m in (model.conv, model.one, model.line)]
    torch.testing.assert_close(orthogonal_penalty(model).double(), exact(weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_16_bits_and_autocast_do_not_lose_the_excess(dtype):
    # W W^T - I is 2^-9 here, less than what bfloat16 can tell from 0 beside 1.
    weight = nn.Parameter((torch.eye(8) * (1 + 2**-10)).to(torch.float32))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        penalty = orthogonal_penalty([weight])
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(exact([weight]).item(), rel=1e-3)
    weight = nn.Parameter((torch.randn(5, 8) / 3).to(dtype))
    penalty = orthogonal_penalty([weight])
    penalty.backward()
    assert penalty.item() == pytest.approx(exact([weight]).item(), rel=1e-5)
    assert weight.grad.dtype == dtype
    torch.testing.assert_close(
        weight.grad.double(), pull_of(weight), rtol=2 * torch.finfo(dtype).eps, atol=1e-5
    )


def test_penalty_compiles_and_takes_any_layout():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(7, 5))
    compiled = torch.compile(orthogonal_penalty, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(model), orthogonal_penalty(model))
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        orthogonal_penalty(model).double(), exact([model[0].weight, model[2].weight])
    )
    strided = torch.randn(6, 8)[::2, ::3]
    torch.testing.assert_close(orthogonal_penalty([strided]).double(), exact([strided]))


def optimizers(lr: Any = 0.07) -> dict[str, Any]:
    ours, theirs = fusedtricks.optim, torch.optim
    return {
        "torch-sgd": lambda p: theirs.SGD(p, lr=lr, momentum=0.6, weight_decay=0.03),
        "torch-adamw": lambda p: theirs.AdamW(p, lr=lr, betas=(0.7, 0.8), weight_decay=0.03),
        "torch-fused": lambda p: theirs.AdamW(p, lr=lr, betas=(0.7, 0.8), fused=True),
        "sgd": lambda p: ours.SGD(p, lr=lr, momentum=0.6, weight_decay=0.03),
        "adamw": lambda p: ours.AdamW(p, lr=lr, betas=(0.7, 0.8), weight_decay=0.03),
        "reference": lambda p: ours.AdamW(p, lr=lr, betas=(0.7, 0.8), backend="reference"),
    }


each_optimizer = pytest.mark.parametrize("make", optimizers().values(), ids=optimizers().keys())


@each_optimizer
def test_a_step_is_the_optimizers_less_the_pull(make):
    weights = [leaf(*shape, dtype=torch.float32) for shape in SHAPES]
    bias = leaf(3, dtype=torch.float32)
    left = leaf(3, 3, dtype=torch.float32)
    ours = [*weights, bias, left]
    twins = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer, twin = make(ours), make(twins)
    decay = OrthogonalDecay(optimizer, weights, strength=0.3)
    for number in range(4):
        pulls = [pull_of(weight) for weight in weights]
        for param, other in zip(ours, twins, strict=True):
            with torch.no_grad():
                other.copy_(param)
            param.grad = torch.randn(param.shape)
            other.grad = param.grad.clone()
        optimizer.step()
        twin.step()
        for weight, other, pull in zip(weights, twins, pulls, strict=False):
            expected = other.detach().double() - 0.07 * 0.3 * pull
            torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(bias, twins[-2]) and torch.equal(left, twins[-1]), number
    decay.remove()
    for param, other in zip(ours, twins, strict=True):
        with torch.no_grad():
            other.copy_(param)
    optimizer.step()
    twin.step()
    assert all(torch.equal(param, other) for param, other in zip(ours, twins, strict=True))


@pytest.mark.parametrize("library", [torch.optim, fusedtricks.optim])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_coupled_and_decoupled_agree_for_plain_sgd_alone(name, library):
    coupled = leaf(5, 7)
    decoupled = nn.Parameter(coupled.detach().clone())
    inputs = torch.randn(4, 7, dtype=torch.float64)
    steps = []
    for weight in (coupled, decoupled):
        optimizer = getattr(library, name)([weight], lr=0.04)
        loss = (inputs @ weight.T).tanh().sum()
        if weight is coupled:
            loss = loss + 0.6 * exact([weight])
        else:
            OrthogonalDecay(optimizer, [weight], strength=0.6)
        loss.backward()
        optimizer.step()
        steps.append(weight.detach())
    if name == "SGD":
        torch.testing.assert_close(*steps, rtol=1e-12, atol=1e-14)
    else:
        assert (steps[0] - steps[1]).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(6, 13), (13, 6), (4, 3, 3, 3)])
def test_singular_values_approach_one(shape):
    weight = leaf(*shape, dtype=torch.float32, scale=0.7)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    OrthogonalDecay(optimizer, [weight], strength=0.25)
    weight.grad = torch.zeros_like(weight)
    values = torch.linalg.svdvals(weight.detach().flatten(1))
    for _ in range(300):
        optimizer.step()
    torch.testing.assert_close(
        torch.linalg.svdvals(weight.detach().flatten(1)), torch.ones_like(values)
    )


def test_a_singular_value_by_hand():
    # s - 4 * lr * strength * (s^2 - 1) * s = 2 - 4 * 0.1 * 0.5 * 3 * 2
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    OrthogonalDecay(optimizer, [weight], strength=0.5)
    weight.grad = torch.zeros(1, 1)
    optimizer.step()
    assert weight.item() == pytest.approx(0.8)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("cls", [torch.optim.SGD, fusedtricks.optim.SGD])
def test_the_current_rate_of_each_group_counts(cls, tensor):
    weights = [nn.Parameter(torch.tensor([[2.0]])) for _ in range(2)]
    rates = [0.01, 0.02]
    groups = [
        {"params": [w], "lr": torch.tensor(lr) if tensor else lr}
        for w, lr in zip(weights, rates, strict=True)
    ]
    optimizer = cls(groups, lr=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    decay = OrthogonalDecay(optimizer, weights, strength=0.5)
    expected = [2.0, 2.0]
    for number in range(3):
        decay.strength = 0.5 + number
        for index, weight in enumerate(weights):
            weight.grad = torch.zeros(1, 1)
            pull = 4 * (expected[index] ** 2 - 1) * expected[index]
            expected[index] -= rates[index] * 0.5**number * (0.5 + number) * pull
        optimizer.step()
        scheduler.step()
    assert [w.item() for w in weights] == pytest.approx(expected, rel=1e-5)
    # Groups loaded from a checkpoint are new objects.
    optimizer.load_state_dict(optimizer.state_dict())
    before = weights[0].item()
    optimizer.step()
    assert weights[0].item() != before


def test_weights_without_a_gradient_are_pulled_and_frozen_ones_not():
    weights = [nn.Parameter(torch.tensor([[2.0]])) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    OrthogonalDecay(optimizer, weights, strength=0.5)
    weights[1].requires_grad_(False)
    optimizer.step()
    assert [w.item() for w in weights] == pytest.approx([0.8, 2.0])


def test_a_step_under_autocast_loses_nothing():
    weight = leaf(5, 8, dtype=torch.float32)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    OrthogonalDecay(optimizer, [weight], strength=0.5)
    expected = weight.detach().double() - 0.05 * pull_of(weight)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


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
    weights = [leaf(3, 5, dtype=torch.float32) for _ in range(2)]
    with torch.no_grad():
        weights[1].copy_(weights[0])
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


def train_in_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.manual_seed(rank)  # other images and other shakes in each process
    net = ShakeShakeResNet(1, 3, width=4, blocks=(1, 1))
    parallel = DistributedDataParallel(net)
    optimizer = fusedtricks.optim.SGD(net.parameters(), lr=0.05, momentum=0.8)
    OrthogonalDecay(optimizer, orthogonal_weights(parallel), strength=0.4)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(5, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    torch.save(net.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(DEVICE.type != "cpu", reason="two processes with gloo on the CPU")
def test_two_processes_stay_alike(tmp_path):
    torch.multiprocessing.spawn(train_in_a_process, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in one.items():
        assert value.isfinite().all()
        if "running" not in name:
            assert torch.equal(value, two[name]), name


def test_errors():
    weight, bias = leaf(3, 4), leaf(3)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    with pytest.raises(ValueError, match="orthogonal_penalty: expected at least one weight, got n"):
        orthogonal_penalty(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"at least 2 dimensions, weight 1 has shape \[3\]"):
        orthogonal_penalty([weight, bias])
    with pytest.raises(ValueError, match=r"OrthogonalDecay: expected weights with at least 2 dim"):
        OrthogonalDecay(optimizer, [bias], strength=0.1)
    with pytest.raises(ValueError, match="OrthogonalDecay: expected at least one weight, got none"):
        OrthogonalDecay(optimizer, [], strength=0.1)
    with pytest.raises(ValueError, match=r"weight 1 of shape \[2, 2\] is not; pass the optimizer"):
        OrthogonalDecay(optimizer, [weight, leaf(2, 2)], strength=0.1)
    for strength in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"strength >= 0, got {strength}"):
            OrthogonalDecay(optimizer, [weight], strength=strength)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
