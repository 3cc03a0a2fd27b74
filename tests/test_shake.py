"""Shake-Shake and ShakeDrop against their formulas with given random numbers."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusedtricks.nn import shake
from fusedtricks.nn.shake import ShakeDrop, ShakeShake, linear_keep_probabilities, shake_shake
from tests.devices import DEVICE

every_level = pytest.mark.parametrize("per", ["image", "batch"])


def inject(monkeypatch: pytest.MonkeyPatch, *draws: list[float]) -> None:
    """Let the next draws be these; there must be none without one."""
    script = iter(draws)

    def draw(shape: tuple[int, ...], device: torch.device, generator: object) -> Tensor:
        return torch.tensor(next(script), device=device).view(shape)

    monkeypatch.setattr(shake, "_draw", draw)


def column(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1)


def clone(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


# Two images of one feature; first 2 and 6, second 10 and 4; dL/dy 8 and 16.
@pytest.mark.parametrize(
    ("forward", "backward", "draws", "values", "first", "second"),
    [
        # 0.25 * 2 + 0.75 * 10, 0.75 * 6 + 0.25 * 4; beta * 8, beta * 16 and the rests.
        ("shake", "shake", [0.25, 0.75, 0.5, 0.125], (8.0, 5.5), (4.0, 2.0), (4.0, 14.0)),
        ("shake", "keep", [0.25, 0.75, 9.0, 9.0], (8.0, 5.5), (2.0, 12.0), (6.0, 4.0)),
        ("shake", "even", [0.25, 0.75, 9.0, 9.0], (8.0, 5.5), (4.0, 8.0), (4.0, 8.0)),
        ("even", "shake", [9.0, 9.0, 0.25, 0.75], (6.0, 5.0), (2.0, 12.0), (6.0, 4.0)),
        ("even", "even", None, (6.0, 5.0), (4.0, 8.0), (4.0, 8.0)),
        ("even", "keep", None, (6.0, 5.0), (4.0, 8.0), (4.0, 8.0)),
    ],
)
def test_shake_shake_by_hand(monkeypatch, forward, backward, draws, values, first, second):
    inject(monkeypatch, *([draws] if draws else []))
    branches = clone(column(2.0, 6.0), column(10.0, 4.0))
    module = ShakeShake(forward=forward, backward=backward, per="image")
    blended = module(*branches)
    blended.backward(column(8.0, 16.0))
    assert torch.equal(blended, column(*values))
    assert torch.equal(branches[0].grad, column(*first))
    assert torch.equal(branches[1].grad, column(*second))


def test_shake_shake_of_a_batch_by_hand(monkeypatch):
    inject(monkeypatch, [0.25, 0.125])
    branches = clone(column(2.0, 6.0), column(10.0, 4.0))
    blended = ShakeShake(per="batch")(*branches)
    blended.backward(column(8.0, 16.0))
    assert torch.equal(blended, column(8.0, 4.5))
    assert torch.equal(branches[0].grad, column(1.0, 2.0))
    assert torch.equal(branches[1].grad, column(7.0, 14.0))


# The gate's number is below 0.75 in the first row only. Branch 2 and 6, dL/dy 8 and 16.
@pytest.mark.parametrize(
    ("gate", "values", "grads"),
    [
        (0.7, (2.0, 6.0), (8.0, 16.0)),
        # alpha = -0.5 + 2 * draw, beta = 0.25 + 0.5 * draw
        (0.8, (0.0, 9.0), (4.0, 10.0)),
    ],
)
def test_shake_drop_by_hand(monkeypatch, gate, values, grads):
    inject(monkeypatch, [gate], [0.25, 1.0, 0.5, 0.75])
    (branch,) = clone(column(2.0, 6.0))
    module = ShakeDrop(0.75, alpha_range=(-0.5, 1.5), beta_range=(0.25, 0.75))
    scaled = module(branch)
    scaled.backward(column(8.0, 16.0))
    assert torch.equal(scaled, column(*values))
    assert torch.equal(branch.grad, column(*grads))


def test_outside_of_training_weights_are_expectations():
    branches = clone(column(2.0, 6.0), column(10.0, 4.0))
    blended = ShakeShake().eval()(*branches)
    blended.backward(column(8.0, 16.0))
    assert torch.equal(blended, column(6.0, 5.0))
    assert torch.equal(branches[0].grad, column(4.0, 8.0))
    assert torch.equal(ShakeDrop(0.75).eval()(column(2.0, 6.0)), column(1.5, 4.5))
    # 0.75 + 0.25 * (-0.5 + 1.5) / 2
    drop = ShakeDrop(0.75, alpha_range=(-0.5, 1.5)).eval()
    assert torch.equal(drop(column(2.0, 6.0)), column(1.75, 5.25))


@every_level
def test_numbers_come_from_the_generator_as_documented(per):
    generator, same = (torch.Generator().manual_seed(7) for _ in range(2))
    n = 3 if per == "image" else 1
    alpha, beta = torch.rand(2, n, 1, 1, generator=same, device="cpu").to(DEVICE)
    first, second = clone(torch.randn(3, 5, 2), torch.randn(3, 5, 2))
    grad = torch.randn(3, 5, 2)
    blended = shake_shake(first, second, training=True, per=per, generator=generator)
    blended.backward(grad)
    torch.testing.assert_close(blended, alpha * first + (1 - alpha) * second)
    torch.testing.assert_close(first.grad, beta * grad)
    torch.testing.assert_close(second.grad, (1 - beta) * grad)

    gate = torch.rand(1, 1, 1, generator=same, device="cpu").to(DEVICE)
    alpha, beta = torch.rand(2, n, 1, 1, generator=same, device="cpu").to(DEVICE)
    keep = gate.item() + 0.01 if per == "batch" else gate.item() - 0.01
    (branch,) = clone(first)
    drop = ShakeDrop(keep, alpha_range=(-0.8, 0.4), beta_range=(0.1, 0.7), per=per)
    drop.generator = generator
    scaled = drop(branch)
    scaled.backward(grad)
    is_kept = float(per == "batch")
    alpha, beta = -0.8 + 1.2 * alpha, 0.1 + 0.6 * beta
    expected = (is_kept + alpha - is_kept * alpha) * branch
    torch.testing.assert_close(scaled, expected)
    torch.testing.assert_close(branch.grad, (is_kept + beta - is_kept * beta) * grad)


def test_weights_are_uniform_and_independent():
    ones, zeros = clone(torch.ones(20011, 1), torch.zeros(20011, 1))
    alpha = ShakeShake()(ones, zeros)
    alpha.sum().backward()
    pair = torch.cat([alpha.detach(), ones.grad], dim=1).double()
    # Deviations of 4 standard errors.
    assert (pair.mean(dim=0) - 0.5).abs().max() < 4 * (1 / 12 / 20011) ** 0.5
    assert (pair.var(dim=0) - 1 / 12).abs().max() < 4 * (1 / 180 / 20011) ** 0.5
    assert torch.corrcoef(pair.T)[0, 1].abs() < 4 / 20011**0.5
    assert pair.min() >= 0 and pair.max() <= 1


def test_shake_drop_has_its_expectation():
    drop = ShakeDrop(0.7, alpha_range=(-0.6, 0.2), beta_range=(0.5, 0.9))
    factors, back = [], []
    for _ in range(1500):
        (branch,) = clone(torch.ones(17, 1))
        scaled = drop(branch)
        scaled.sum().backward()
        factors.append(scaled.detach().mean())
        back.append(branch.grad.mean())
    assert abs(torch.stack(factors).mean() - (0.7 + 0.3 * -0.2)) < 4 * 0.55 / 1500**0.5
    assert abs(torch.stack(back).mean() - (0.7 + 0.3 * 0.7)) < 4 * 0.14 / 1500**0.5
    assert drop.eval()(torch.ones(1, 1)).item() == pytest.approx(0.7 + 0.3 * -0.2)


@pytest.mark.parametrize(("probability", "is_kept"), [(1.0, True), (0.0, False)])
def test_certain_coins(probability, is_kept):
    drop = ShakeDrop(probability, alpha_range=(0.25, 0.25), beta_range=(0.5, 0.5))
    for _ in range(20):
        (branch,) = clone(torch.full((3, 1), 4.0))
        scaled = drop(branch)
        scaled.sum().backward()
        assert torch.equal(scaled, branch if is_kept else branch / 4)
        assert (branch.grad == (1.0 if is_kept else 0.5)).all()


def test_linear_rule():
    assert linear_keep_probabilities(5, last=0.25) == pytest.approx([0.85, 0.7, 0.55, 0.4, 0.25])
    assert linear_keep_probabilities(1, last=0.25) == [0.25]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_rounding_in_either_pass(dtype):
    first, second = clone(torch.randn(7, 13).to(dtype), torch.randn(7, 13).to(dtype))
    grad = torch.randn(7, 13).to(dtype)
    weights = {}
    for name, (one, two) in {"alpha": (1.0, 0.0), "rest": (0.0, 1.0)}.items():
        generator = torch.Generator().manual_seed(3)
        pair = clone(torch.full((7, 1), one).to(dtype), torch.full((7, 1), two).to(dtype))
        weights[name] = shake_shake(*pair, training=True, generator=generator)
        weights[name].sum().backward()
        weights["beta"], weights["other"] = (branch.grad for branch in pair)
    generator = torch.Generator().manual_seed(3)
    blended = shake_shake(first, second, training=True, generator=generator)
    blended.backward(grad)
    assert blended.dtype == dtype and first.grad.dtype == dtype
    expected = weights["alpha"].double() * first.double()
    expected = expected + (1 - weights["alpha"].double()) * second.double()
    eps = torch.finfo(dtype).eps
    largest = torch.maximum(first.double().abs(), second.double().abs())
    assert ((blended.double() - expected).abs() <= 1.5 * eps * largest).all()
    for branch, name in ((first, "beta"), (second, "other")):
        exact = weights[name].double() * grad.double()
        assert ((branch.grad.double() - exact).abs() <= eps * grad.double().abs()).all()


def test_branches_of_two_dtypes():
    first, second = clone(torch.randn(3, 5).bfloat16(), torch.randn(3, 5))
    for training in (True, False):
        blended = shake_shake(first, second, training=training)
        assert blended.dtype == torch.float32
        blended.sum().backward()
    assert first.grad.dtype == torch.bfloat16 and second.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (1, 3, 5, 7), (3,), (5, 2, 3, 1, 1)])
@every_level
def test_shapes(shape, per):
    first, second = clone(torch.randn(shape), torch.randn(shape))
    for module in (ShakeShake(per=per), ShakeDrop(0.3, per=per)):
        branches = (first, second) if isinstance(module, ShakeShake) else (first,)
        result = module(*branches)
        result.sum().backward()
        assert result.shape == first.shape == first.grad.shape


def test_layouts_stay():
    images = torch.randn(3, 4, 5, 7).contiguous(memory_format=torch.channels_last)
    other = torch.randn_like(images)
    for result in (ShakeShake()(images, other), ShakeDrop(0.3)(images)):
        assert result.is_contiguous(memory_format=torch.channels_last)
    strided = torch.randn(6, 4)[::2].requires_grad_()
    ShakeShake()(strided, torch.randn(3, 4)).sum().backward()


def test_derivatives_are_exact_and_of_any_order():
    branches = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def kept(first: Tensor, second: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return shake_shake(first, second, training=True, backward="keep", generator=generator)

    assert torch.autograd.gradcheck(kept, branches)
    assert torch.autograd.gradgradcheck(kept, branches)
    grads = torch.func.grad(lambda first: kept(first, branches[1]).square().sum())(branches[0])
    assert grads.shape == (3, 2)


@pytest.mark.parametrize("module", [ShakeShake(), ShakeDrop(0.4)], ids=["shake", "drop"])
def test_compiled_without_a_graph_break(module):
    torch._dynamo.reset()
    n_branches = 2 if isinstance(module, ShakeShake) else 1
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        branches = clone(*[torch.randn(3, 5) for _ in range(n_branches)])
        twins = clone(*branches)
        torch.manual_seed(9)
        result = compiled.train(training)(*branches)
        torch.manual_seed(9)
        expected = module.train(training)(*twins)
        for out in (result, expected):
            out.square().sum().backward()
        torch.testing.assert_close(result, expected)
        for branch, twin in zip(branches, twins, strict=True):
            torch.testing.assert_close(branch.grad, twin.grad)


def test_compiled_with_a_generator():
    torch._dynamo.reset()
    module = ShakeShake(generator=torch.Generator().manual_seed(3))
    twin = copy.deepcopy(module)
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    compiled = torch.compile(module, backend="aot_eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(first, second), twin(first, second))


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("kind", [ShakeShake, lambda **options: ShakeDrop(0.4, **options)])
def test_copies_go_on_with_a_generator_of_their_own(kind, how):
    module = kind(per="batch", generator=torch.Generator().manual_seed(3))
    branches = [torch.randn(3, 5)] * (2 if isinstance(module, ShakeShake) else 1)
    branches = [branch + index for index, branch in enumerate(branches)]
    module(*branches)
    clone_of = pickle.loads(pickle.dumps(module)) if how == "pickle" else copy.deepcopy(module)
    assert clone_of.generator is not module.generator
    expected = [module(*branches) for _ in range(8)]
    assert all(torch.equal(clone_of(*branches), value) for value in expected)
    assert repr(clone_of) == repr(module) and not clone_of.state_dict()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", [lambda: ShakeShake(), lambda: ShakeDrop(0.5)])
def test_a_checkpoint_draws_the_same_numbers_again(kind, use_reentrant):
    module, layer = kind(), nn.Linear(5, 5)

    def run(features: Tensor) -> Tensor:
        # tanh needs what the module put out: a new draw would show in the gradient.
        hidden = layer(features)
        branches = (hidden, 3 - hidden) if isinstance(module, ShakeShake) else (hidden,)
        return layer(module(*branches).tanh()).square()

    features = torch.randn(4, 5)
    grads = []
    for recompute in (False, True):
        (inputs,) = clone(features)
        layer.zero_grad()
        torch.manual_seed(2)
        result = checkpoint(run, inputs, use_reentrant=use_reentrant) if recompute else run(inputs)
        torch.rand(3)  # what comes between must not matter
        result.sum().backward()
        grads.append([inputs.grad, layer.weight.grad.clone()])
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_errors():
    features = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"expected branches of one shape, got \[2, 3\] and"):
        shake_shake(features, torch.ones(2, 1), training=True)
    with pytest.raises(ValueError, match="forward to be 'shake' or 'even', got 'keep'"):
        ShakeShake(forward="keep")
    with pytest.raises(ValueError, match="backward to be 'shake' or 'even' or 'keep', got 'odd'"):
        shake_shake(features, features, training=False, backward="odd")
    with pytest.raises(ValueError, match=r"ShakeShake: expected per to be .* got 'pixel'"):
        ShakeShake(per="pixel")
    with pytest.raises(ValueError, match=r"ShakeDrop: expected per to be .* got 'pixel'"):
        ShakeDrop(0.5, per="pixel")
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"keep_probability in \[0, 1\], got"):
            ShakeDrop(probability)
    with pytest.raises(ValueError, match=r"high of alpha_range .* at least 1, got -1"):
        ShakeDrop(0.5, alpha_range=(1, -1))
    for bounds in ((-float("inf"), 0), (0, float("inf")), (float("nan"), 1)):
        with pytest.raises(ValueError, match="of alpha_range to be a finite number"):
            ShakeDrop(0.5, alpha_range=bounds)
    with pytest.raises(ValueError, match=r"expected beta_range \(low, high\), got \(1, 2, 3\)"):
        ShakeDrop(0.5, beta_range=(1, 2, 3))
    with pytest.raises(ValueError, match=r"expected beta_range \(low, high\), got 3"):
        ShakeDrop(0.5, beta_range=3)
    with pytest.raises(ValueError, match="expected n_blocks of at least 1, got 0"):
        linear_keep_probabilities(0, last=0.5)
    with pytest.raises(ValueError, match=r"expected last in \[0, 1\], got 2"):
        linear_keep_probabilities(3, last=2)


@pytest.mark.parametrize("value", ["a", True, None])
def test_what_is_no_number_is_refused_as_one(value):
    with pytest.raises(TypeError, match="ShakeDrop: expected keep_probability to be a number, got"):
        ShakeDrop(value)
    with pytest.raises(TypeError, match="expected low of alpha_range to be a number, got"):
        ShakeDrop(0.5, alpha_range=(value, 1))
    with pytest.raises(TypeError, match="expected high of beta_range to be a number, got"):
        ShakeDrop(0.5, beta_range=(-1, value))
    with pytest.raises(TypeError, match="expected n_blocks to be a whole number, got"):
        linear_keep_probabilities(value)
    with pytest.raises(TypeError, match="expected last to be a number, got"):
        linear_keep_probabilities(3, last=value)


def test_training_is_true_or_false():
    features = torch.ones(2, 3)
    with pytest.raises(TypeError, match="expected training to be True or False, got 'no'"):
        shake_shake(features, features, training="no")


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_numbers_of_numpy_count_as_numbers(number):
    features = torch.randn(3, 2)
    results = []
    for convert in (number, float):
        bounds = (convert(-0.5), convert(0.25))
        drop = ShakeDrop(convert(0.5), alpha_range=bounds, beta_range=bounds)
        torch.manual_seed(1)
        (inputs,) = clone(features)
        result = drop(inputs)
        result.sum().backward()
        results.append([result, inputs.grad, drop.eval()(features)])
    torch.testing.assert_close(*results)
    assert linear_keep_probabilities(np.int64(2), last=number(0.5)) == [0.75, 0.5]
