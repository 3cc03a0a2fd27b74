"""What torch already does right, held to the formulas of the lectures."""

import math

import pytest
import torch
from torch import nn

import fusedtricks


def test_activations_and_their_slopes_at_zero():
    inputs = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    outputs = nn.functional.relu(inputs)
    outputs.sum().backward()
    assert outputs.tolist() == [0, 0, 3]
    assert inputs.grad.tolist() == [0, 0, 1]  # the subgradient at 0 is 0
    inputs.grad = None
    leaky = nn.functional.leaky_relu(inputs, negative_slope=0.1)  # torch's own default is 0.01
    leaky.sum().backward()
    torch.testing.assert_close(leaky, torch.maximum(0.1 * inputs, inputs))
    torch.testing.assert_close(inputs.grad, torch.tensor([0.1, 0.1, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("fan_in, fan_out", [(50, 200), (300, 70)])
def test_initialisations_have_the_papers_variances(fan_in, fan_out):
    weight = torch.empty(fan_out, fan_in, dtype=torch.float64)
    variances = {
        "kaiming_in": 2 / fan_in,
        "kaiming_out": 2 / fan_out,
        "kaiming_leaky": 2 / (1 + 0.1**2) / fan_in,
        "xavier": 2 / (fan_in + fan_out),
    }
    found = {
        "kaiming_in": nn.init.kaiming_normal_(weight, nonlinearity="relu").var().item(),
        "kaiming_out": nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        .var()
        .item(),
        "kaiming_leaky": nn.init.kaiming_normal_(weight, a=0.1).var().item(),
        "xavier": nn.init.xavier_uniform_(weight).var().item(),
    }
    # The relative error of a variance of n normal numbers is sqrt(2 / n); five of it.
    assert found == pytest.approx(variances, rel=5 * math.sqrt(2 / (fan_in * fan_out)))


# Two samples of two maps of 1x2 pixels.
MAPS = torch.tensor([[[[1.0, 3.0]], [[5.0, 7.0]]], [[[9.0, 11.0]], [[13.0, 15.0]]]]).double()


@pytest.mark.parametrize(
    "norm, groups_of_values",
    [
        (nn.BatchNorm2d(2, eps=0.25), [[1, 3, 9, 11], [5, 7, 13, 15]]),
        (nn.LayerNorm([2, 1, 2], eps=0.25), [[1, 3, 5, 7], [9, 11, 13, 15]]),
        (nn.GroupNorm(1, 2, eps=0.25), [[1, 3, 5, 7], [9, 11, 13, 15]]),
        (nn.InstanceNorm2d(2, eps=0.25), [[1, 3], [5, 7], [9, 11], [13, 15]]),
    ],
    ids=["batch", "layer", "group", "instance"],
)
def test_normalisations_share_statistics_over_these_values(norm, groups_of_values):
    outputs = dict(
        zip(MAPS.flatten().tolist(), norm.double()(MAPS).flatten().tolist(), strict=True)
    )
    for values in groups_of_values:
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 0.25)
        for value in values:
            assert outputs[value] == pytest.approx((value - mean) / deviation)


def test_dropout_rescales_what_it_keeps():
    outputs = nn.functional.dropout(torch.ones(10_000), p=0.2)
    assert set(outputs.tolist()) == {0.0, 1.25}
    assert outputs.mean().item() == pytest.approx(1, abs=5 * math.sqrt(0.2 / 0.8 / 10_000))


def test_l2_and_decoupled_decay_are_one_for_plain_sgd():
    start = torch.tensor([2.0, -3.0], dtype=torch.float64)
    grad = torch.tensor([0.5, 0.25], dtype=torch.float64)
    found = []
    for cls in (fusedtricks.optim.SGD, fusedtricks.optim.SGDW):
        param = nn.Parameter(start.clone())
        param.grad = grad.clone()
        cls([param], lr=0.3, momentum=0.0, weight_decay=0.07).step()
        found.append(param.detach())
    expected = (1 - 0.3 * 0.07) * start - 0.3 * grad
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], expected)


def test_coupled_decay_of_adam_is_normalised_away_and_decoupled_decay_is_not():
    found = {}
    for cls in (fusedtricks.optim.Adam, fusedtricks.optim.AdamW):
        param = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
        param.grad = torch.tensor([2.0], dtype=torch.float64)
        cls([param], lr=0.5, betas=(0.8, 0.9), eps=0.0, weight_decay=0.1).step()
        found[cls.__name__] = param.item()
    # The first step of Adam is lr * sign(g + decay * w); AdamW shrinks w by lr * decay before it.
    assert found == pytest.approx({"Adam": 4 - 0.5, "AdamW": 4 * (1 - 0.05) - 0.5})


@pytest.mark.parametrize("max_norm, factor", [(2.5, 0.5), (7.0, 1.0)])
def test_clipping_by_norm_scales_by_its_share(max_norm, factor):
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    params[0].grad, params[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    optimizer = fusedtricks.optim.SGD(params, lr=0.1, clip_grad_norm=max_norm)
    optimizer.step()
    moved = torch.cat([-param.detach() / 0.1 for param in params])
    torch.testing.assert_close(moved, factor * torch.tensor([3.0, 0.0, 4.0]))
    assert optimizer.grad_norm.item() == pytest.approx(5)


@pytest.mark.parametrize(
    "shape, mode, is_centralized",
    [
        ((2, 3), True, True),
        ((2, 3), "conv", False),
        ((2, 3, 1, 2), "conv", True),
        ((5,), True, False),
    ],
)
def test_centralization_takes_the_mean_of_each_row(shape, mode, is_centralized):
    param = nn.Parameter(torch.zeros(shape))
    param.grad = torch.arange(1.0, 1 + param.numel()).view(shape) ** 2
    fusedtricks.optim.SGD([param], lr=0.5, centralize_grad=mode).step()
    expected = param.grad.clone()
    if is_centralized:
        for row in expected:
            row -= sum(row.flatten().tolist()) / row.numel()
    torch.testing.assert_close(param.detach(), -0.5 * expected)
