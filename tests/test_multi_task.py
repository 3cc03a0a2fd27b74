"""Shared encoders, the distance of parameters, and losses weighted by uncertainty."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from fusedtricks.nn.multi_task import HardSharing, UncertaintyWeighting, soft_sharing_penalty

# Hard sharing. ------------------------------------------------------------------------------------


class Counting(nn.Linear):
    n_calls = 0

    def forward(self, x, shift=0):
        self.n_calls += 1
        return super().forward(x) + shift


def two_tasks():
    return HardSharing(Counting(8, 4), {"kind": nn.Linear(4, 3), "age": nn.Linear(4, 1)})


def test_heads_see_what_the_encoder_returns_once():
    model, x = two_tasks(), torch.randn(5, 8)
    outputs = model(x, 2.5)
    assert model.encoder.n_calls == 1
    assert list(outputs) == ["kind", "age"]
    features = x @ model.encoder.weight.T + model.encoder.bias + 2.5
    for task, output in outputs.items():
        head = model.heads[task]
        torch.testing.assert_close(output, features @ head.weight.T + head.bias)


def test_only_the_chosen_tasks_run():
    model, x = two_tasks(), torch.randn(5, 8)
    outputs = model(x, tasks=["age"])
    assert list(outputs) == ["age"]
    outputs["age"].sum().backward()
    assert model.heads["kind"].weight.grad is None
    assert model.encoder.weight.grad is not None
    assert model(x, tasks=[]) == {}
    assert list(model(x, tasks=iter(["age"]))) == ["age"]


def test_hard_sharing_is_compiled_pickled_and_cast():
    model, x = two_tasks(), torch.randn(5, 8)
    expected = model(x, tasks=["age"])["age"]
    model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, tasks=["age"])["age"], expected)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert model(x)["kind"].dtype == torch.bfloat16


def test_bad_tasks_are_refused():
    with pytest.raises(ValueError, match=r"to be some of \['kind', 'age'\], got 'size'"):
        two_tasks()(torch.zeros(1, 8), tasks=["age", "size"])
    with pytest.raises(TypeError, match="expected a list of tasks, got 'age'"):
        two_tasks()(torch.zeros(1, 8), tasks="age")
    with pytest.raises(ValueError, match="expected at least one head, got none"):
        HardSharing(nn.Identity(), {})
    with pytest.raises(TypeError, match="expected age to be a Module, got type"):
        HardSharing(nn.Identity(), {"age": nn.ReLU})
    with pytest.raises(TypeError, match="expected encoder to be a Module, got type"):
        HardSharing(nn.ReLU, {"age": nn.Identity()})
    with pytest.raises(TypeError, match="expected encoder to be a Module, got str"):
        HardSharing("resnet", {"encoder": nn.Identity()})


# Soft sharing. ------------------------------------------------------------------------------------


def filled(weight, bias):
    layer = nn.Linear(3, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def test_penalty_computed_by_hand():
    # 3 * 2^2 + 5^2, 3 * 1^2 + 4^2 and 3 * 3^2 + 1^2.
    models = [filled(1, 2), filled(3, -3), filled(0, -2)]
    assert soft_sharing_penalty(models[:2]).item() == 37
    assert soft_sharing_penalty(models[::2]).item() == 19
    assert soft_sharing_penalty(models[1:]).item() == 28
    assert soft_sharing_penalty(iter(models)).item() == 37 + 19 + 28


def test_penalty_pulls_models_together_and_spares_frozen_ones():
    models = [filled(1, 2), filled(3, -3), filled(0, -2).requires_grad_(False)]
    soft_sharing_penalty(models).backward()
    # 2 * sum over the others of (own - other).
    assert models[0].weight.grad.tolist() == [3 * [2 * (-2 + 1)]]
    assert models[1].bias.grad.tolist() == [2 * (-5 - 1)]
    assert models[2].weight.grad is None


def test_penalty_of_equal_models_is_zero_with_zero_gradients():
    first = filled(1, 2)
    second = copy.deepcopy(first)
    penalty = soft_sharing_penalty([first, second])
    penalty.backward()
    assert penalty.item() == 0
    assert first.weight.grad.tolist() == [3 * [0.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_penalty_is_computed_in_at_least_float32(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    models = [filled(300, 0).to(dtype), filled(44, 1).to(dtype)]
    found = soft_sharing_penalty(models)
    assert found.dtype == wide
    assert found.item() == 3 * 256**2 + 1


def test_penalty_takes_wrapped_models_in_a_compiled_function():
    models = [filled(1, 2), nn.DataParallel(torch.compile(filled(3, -3)))]
    assert soft_sharing_penalty(models).item() == 37
    models = [filled(1, 2), filled(3, -3)]
    compiled = torch.compile(soft_sharing_penalty, backend="aot_eager", fullgraph=True)
    assert compiled(models).item() == 37


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ([nn.Linear(3, 1)], "expected at least two models, got 1"),
        ([nn.ReLU(), nn.ReLU()], "expected models with parameters, got none"),
        ([nn.Linear(3, 1), nn.Linear(3, 1, bias=False)], "'bias' is in the first one and not in"),
        ([nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(1, 1)], r"'weight' has shape \[1, 3\] in"),
        (
            [nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1, device="meta")],
            r"same device, but 'weight' is on .* and on meta in another; .* \.to\(device\)",
        ),
    ],
)
def test_models_that_do_not_match_are_refused(models, text):
    with pytest.raises(ValueError, match=text):
        soft_sharing_penalty(models)


@pytest.mark.parametrize(
    ("models", "text"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "a list of models, got one Sequential"),
        (nn.Linear(3, 3), r"a list of models, got one Linear; pass \[first, second\]"),
        (3, "a list of models, got one int"),
        ([nn.Linear(3, 1), nn.Linear(3, 1).state_dict()], "model 1 to be a Module, got Ordered"),
    ],
)
def test_what_is_no_list_of_models_is_refused(models, text):
    with pytest.raises(TypeError, match=f"soft_sharing_penalty: expected {text}"):
        soft_sharing_penalty(models)


# Weights of losses. -------------------------------------------------------------------------------


def two_weights(s_depth=0.0, s_kind=0.0):
    weighting = UncertaintyWeighting({"depth": "regression", "kind": "classification"})
    with torch.no_grad():
        weighting.log_variances["depth"].fill_(s_depth)
        weighting.log_variances["kind"].fill_(s_kind)
    return weighting


def test_total_computed_by_hand():
    # With sigma^2 = 4 and 1/4: 3 / (2 * 4) + log 2, and 0.5 / (1/4) - log 2.
    weighting = two_weights(math.log(4), -math.log(4))
    losses = {"kind": torch.tensor(0.5), "depth": torch.tensor(3.0)}
    assert weighting(losses).item() == pytest.approx(3 / 8 + 2, rel=1e-6)
    only = weighting({"depth": losses["depth"]}).item()
    assert only == pytest.approx(3 / 8 + math.log(2), rel=1e-6)
    only = weighting({"kind": losses["kind"]}).item()
    assert only == pytest.approx(2 - math.log(2), rel=1e-6)


def test_equals_equation_10_with_its_gradients():
    weighting = two_weights(0.7, -1.3)
    depth, kind = (torch.tensor(value, requires_grad=True) for value in (2.3, 0.4))
    total = weighting({"kind": kind, "depth": depth})
    assert total.shape == ()
    total.backward()
    sigmas = torch.tensor([0.7, -1.3], dtype=torch.float64).div(2).exp().requires_grad_()
    losses = torch.tensor([2.3, 0.4], dtype=torch.float64, requires_grad=True)
    first, second = sigmas
    total = losses[0] / (2 * first**2) + losses[1] / second**2 + first.log() + second.log()
    total.backward()
    torch.testing.assert_close(torch.stack([depth.grad, kind.grad]).double(), losses.grad)
    # d/ds = d/dsigma * sigma / 2.
    expected = sigmas.grad * sigmas.detach() / 2
    found = torch.cat([weighting.log_variances[task].grad for task in ("depth", "kind")])
    torch.testing.assert_close(found.double(), expected)


def test_learned_variances_are_those_of_the_losses():
    weighting = two_weights()
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weighting({"depth": torch.tensor(0.3), "kind": torch.tensor(1.2)}).backward()
        optimizer.step()
    # Where the derivative is 0: sigma^2 = loss for regression, 2 * loss for classification.
    found = [weighting.log_variances[task].exp().item() for task in ("depth", "kind")]
    assert found == pytest.approx([0.3, 2.4], rel=1e-4)


def test_a_checkpoint_fits_tasks_in_another_order():
    weighting = two_weights(0.5, 0.25)
    other = UncertaintyWeighting({"kind": "classification", "depth": "regression"})
    other.load_state_dict(weighting.state_dict())
    losses = {"kind": torch.tensor(0.5), "depth": torch.tensor(3.0)}
    assert torch.equal(other(losses), weighting(losses))
    third = UncertaintyWeighting({"depth": "regression", "size": "classification"})
    with pytest.raises(RuntimeError, match=r"log_variances\.size"):
        third.load_state_dict(weighting.state_dict())


def test_weighting_is_compiled_pickled_and_keeps_float32():
    weighting = two_weights(0.5, 0.25)
    losses = {"kind": torch.tensor(0.5), "depth": torch.tensor(3.0)}
    expected = weighting(losses)
    compiled = torch.compile(weighting, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(losses), expected)
    fresh = two_weights()
    fresh.load_state_dict(pickle.loads(pickle.dumps(weighting)).state_dict())
    assert torch.equal(fresh(losses), expected)
    low = copy.deepcopy(weighting).bfloat16()
    found = low({task: loss.bfloat16() for task, loss in losses.items()})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_bad_losses_are_refused():
    with pytest.raises(ValueError, match="expected at least one task, got none"):
        UncertaintyWeighting({})
    with pytest.raises(ValueError, match=r"kind of 'a' to be one of \['regr.*, got 'ranking'"):
        UncertaintyWeighting({"a": "ranking"})
    with pytest.raises(ValueError, match=r"to be some of \['depth', 'kind'\], got 'size'"):
        two_weights()({"size": torch.tensor(1.0)})
    for shape in ([2], [1]):
        with pytest.raises(
            ValueError, match=rf"'kind' to be a scalar, got shape \[{shape[0]}\]; take"
        ):
            two_weights()({"depth": torch.tensor(1.0), "kind": torch.ones(shape)})
    with pytest.raises(ValueError, match="expected at least one loss, got none"):
        two_weights()({})
