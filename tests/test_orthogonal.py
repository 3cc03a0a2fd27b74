"""Orthogonal penalty and decay against autograd, singular values and steps worked out by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedtricks
from fusedtricks.nn.orthogonal import OrthogonalDecay, orthogonal_penalty, orthogonal_weights
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


def test_weights_that_are_computed_are_left_out():
    # Both ways to normalise weights; with the older one, `weight` is no parameter but an attribute.
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.spectral_norm(model[2])
    model(torch.randn(7, 3))
    assert [id(w) for w in orthogonal_weights(model)] == [id(model[1].weight)]
    torch.testing.assert_close(orthogonal_penalty(model).double(), exact([model[1].weight]))
    # Passed by hand, the penalty reaches what they are computed from.
    orthogonal_penalty([model[0].weight]).backward()
    assert model[0].parametrizations.weight.original0.grad.abs().max() > 0


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


def test_decay_takes_a_model_as_the_penalty_does():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.07)
    OrthogonalDecay(optimizer, model, 0.3)
    expected = model[0].weight.detach().double() - 0.07 * 0.3 * pull_of(model[0].weight)
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


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


def test_a_step_under_autocast_loses_nothing():
    weight = leaf(5, 8, dtype=torch.float32)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    OrthogonalDecay(optimizer, [weight], strength=0.5)
    expected = weight.detach().double() - 0.05 * pull_of(weight)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


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
    image_weights = leaf(2, 3, 3, 3)
    with pytest.raises(TypeError, match=r"orthogonal_penalty: expected a model .* pass \[weight"):
        orthogonal_penalty(image_weights)
    with pytest.raises(TypeError, match=r"OrthogonalDecay: expected a model or .* pass \[weight"):
        OrthogonalDecay(torch.optim.SGD([image_weights], lr=0.1), image_weights, strength=0.1)
    with pytest.raises(TypeError, match="OrthogonalDecay: expected an optimizer of torch or fused"):
        OrthogonalDecay(nn.Linear(3, 4), [weight], strength=0.1)
    for strength in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"of at least 0, got {strength}"):
            OrthogonalDecay(optimizer, [weight], strength=strength)
    for strength in ("0.1", True, None):
        with pytest.raises(TypeError, match=f"strength to be a number, got {strength!r}"):
            OrthogonalDecay(optimizer, [weight], strength=strength)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
