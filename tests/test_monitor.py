"""What a monitor records, and the arguments that it refuses."""

import bisect
import copy
import json
import math

import pytest
import torch
from torch import nn

from fusedtricks.train.activations import HISTOGRAM_EDGES, TensorStatistics, fetch
from fusedtricks.train.monitor import Monitor
from tests.monitored import build_model, by_hand, check_record, train

# One tensor. --------------------------------------------------------------------------------------


def recorded(*tensors, bounds=None) -> dict:
    found = TensorStatistics(bounds)
    for tensor in tensors:
        found.add(tensor)
    return found.to_record(iter(fetch(found.tensors())))


ODD = [
    0.0,
    -0.0,
    2.0**-33,
    -(2.0**-32),
    2.0**-31,
    1.0,
    -1.0,
    0.999,
    -2.0,
    3.0,
    2.0**16,
    -1e18,
    65535,
]
ODD += [2.0**-149, -5e-5, 0.5, 0.25, 1e-9]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_record_of_odd_values(dtype):
    tensor = torch.tensor(ODD, dtype=torch.float64).to(dtype)
    record = recorded(tensor.reshape(3, 6)[:, :5], tensor.reshape(3, 6)[:, 5:])
    check_record(record, by_hand(tensor.tolist()), 1e-12 if dtype == torch.float64 else 1e-6)


def test_the_edges_separate_the_bins():
    assert len(HISTOGRAM_EDGES) == 98 and list(HISTOGRAM_EDGES) == sorted(HISTOGRAM_EDGES)
    for value in (-7.5, 0.0, 0.3, 1e9, -1e-3):
        (place,) = [i for i, n in enumerate(recorded(torch.tensor([value]))["histogram"]) if n]
        assert place == bisect.bisect(HISTOGRAM_EDGES, value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad):
    values = [1.0, bad, -3.0, 0.0, bad]
    record = recorded(torch.tensor(values[:2]), torch.tensor(values[2:]), bounds=(-2.0, 2.0))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["nonfinite"], record["mean"], record["std"]) == (0.4, None, None)
    assert sum(record["histogram"]) == 3


@pytest.mark.parametrize(
    ("layer", "bounds"),
    [
        (nn.Sigmoid(), (0, 1)),
        (nn.Hardsigmoid(), (0, 1)),
        (nn.Tanh(), (-1, 1)),
        (nn.Softsign(), (-1, 1)),
        (nn.Hardtanh(-2.0, 5.0), (-2, 5)),
        (nn.ReLU6(), (0, 6)),
        (type("MyTanh", (nn.Tanh,), {})(), (-1, 1)),
        (nn.ReLU(), None),
    ],
)
def test_saturation(layer, bounds):
    inputs = torch.linspace(-9, 9, 37, dtype=torch.float64).requires_grad_()
    monitor = Monitor(layer, every=3)
    outputs = layer(inputs)
    outputs.sum().backward()
    monitor.step()
    record = monitor.records()[0]["layers"][""]["activation"]
    check_record(record, by_hand(outputs.tolist(), bounds))


def test_a_deviation_that_float32_cannot_hold():
    record = recorded(torch.tensor([2e30, -1e30]))
    assert (record["mean"], record["std"]) == (pytest.approx(5e29), None)


def test_a_large_mean_does_not_hide_the_deviation():
    values = 4e3 + torch.randn(3, 1000, dtype=torch.float64)
    record = recorded(*values.float())
    values = values.float().double()
    assert record["std"] == pytest.approx(values.std(correction=0).item(), rel=1e-5)
    assert record["mean"] == pytest.approx(values.mean().item(), rel=1e-7)


# A model. -----------------------------------------------------------------------------------------


def test_activations_and_gradients_are_those_of_retain_grad():
    model = build_model().double()
    twin = copy.deepcopy(model)
    twin[1].inplace = False
    with Monitor(model, every=2) as monitor:
        batches = [torch.randn(n, 3, 5, 5, dtype=torch.float64) for n in (4, 7)]
        outputs = {str(i): [] for i in range(5)}
        for images in batches:
            # In training, a batch counts as often as it was seen; evaluations do not count.
            model(images).pow(3).sum().backward()
            with torch.no_grad():
                model(images)
            model.eval()
            model(images)
            model.train()
            features = images
            for index, layer in enumerate(twin):
                features = layer(features)
                features.retain_grad()
                outputs[str(index)].append(features)
            features.pow(3).sum().backward()
        monitor.step()
        (record,) = monitor.records()
    assert list(record["layers"]) == list("01234")
    for name, layer in record["layers"].items():
        bounds = (-1.0, 1.0) if name == "4" else None
        activations = torch.cat([each.flatten() for each in outputs[name]])
        gradients = torch.cat([each.grad.flatten() for each in outputs[name]])
        check_record(layer["activation"], by_hand(activations.tolist(), bounds))
        check_record(layer["gradient"], by_hand(gradients.tolist()))


def test_update_ratios():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    nn.init.zeros_(model[1].weight)
    monitor = Monitor(model, every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.2)
    before = [layer.weight.detach().clone() for layer in (model[0], model[3])]
    for part in torch.randn(2, 6, 3, dtype=torch.float64):
        model(part).square().sum().backward()
    optimizer.step()
    monitor.step()
    layers = monitor.records()[0]["layers"]
    for name, weight, layer in zip("03", before, (model[0], model[3]), strict=True):
        # SGD has moved it by lr * (gradient + weight_decay * weight).
        update = 0.3 * (layer.weight.grad + 0.2 * weight)
        expected = (update.square().sum().sqrt() / weight.square().sum().sqrt()).item()
        assert layers[name]["update_ratio"] == pytest.approx(expected, rel=1e-9)
    assert layers["1"]["update_ratio"] is None  # its weight was 0
    assert layers["2"]["update_ratio"] is None  # it has none
    # The weights of the first of several forward passes count.
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    monitor = Monitor(model, every=1)
    for weight in (2.0, 7.0, 9.0):
        nn.init.constant_(model[0].weight, weight)
        model(torch.ones(1, 1)).sum().backward()
    monitor.step()
    assert monitor.records()[0]["layers"]["0"]["update_ratio"] == 3.5
    model = nn.Sequential(nn.Linear(3, 4))
    monitor = Monitor(model, every=1, updates=False)
    model(torch.randn(5, 3)).sum().backward()
    monitor.step()
    assert monitor.records()[0]["layers"]["0"]["update_ratio"] is None


def test_large_outputs_are_cut_to_their_first_samples():
    model = nn.Sequential(nn.Linear(3, 5), nn.Flatten(0))
    with Monitor(model, every=1, max_values=17) as monitor:
        inputs = torch.randn(8, 3)
        outputs = model(inputs)
        weights = torch.randn(40)
        (outputs * weights).sum().backward()
        monitor.step()
        layers = monitor.records()[0]["layers"]
    first, last = layers["0"], layers["1"]
    assert (first["activation"]["n"], first["gradient"]["n"]) == (15, 15)
    assert (last["activation"]["n"], last["gradient"]["n"]) == (17, 17)
    assert first["activation"]["mean"] == pytest.approx(outputs[:15].mean().item(), rel=1e-5)
    assert first["gradient"]["mean"] == pytest.approx(weights[:15].mean().item(), rel=1e-5)
    with Monitor(model[:1], every=1, max_values=2) as monitor:
        model(inputs).sum().backward()
        monitor.step()
        assert monitor.records()[0]["layers"]["0"]["activation"]["n"] == 5


class Odd(nn.Module):
    """Layers that return a tuple, a dict, integers, something frozen, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.attend = nn.MultiheadAttention(3, 1, batch_first=True)
        self.rank = Ranks()
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, tokens):
        features, _ = self.lstm(self.embed(tokens))
        features, _ = self.attend(features, features, features)
        return self.rank(features)["x"][1] + self.frozen(torch.ones(1, 2)).sum()


class Ranks(nn.Module):
    def forward(self, features):
        return {"ranks": features.argsort(), "x": [None, features * 2.0]}


@pytest.mark.parametrize("n", [6, 0])
def test_odd_layers(n):
    model = Odd()
    names = ["embed", "lstm", "attend", "rank", "unused", "frozen"]
    with Monitor(model, every=1, layers=names) as monitor:
        model(torch.randint(9, (n, 5))).sum().backward()
        monitor.step()
        layers = monitor.records()[0]["layers"]
    assert list(layers) == ["embed", "lstm", "attend", "rank", "frozen"]
    for name, size in (("embed", 4), ("lstm", 3), ("attend", 3), ("rank", 3)):
        activation, gradient = layers[name]["activation"], layers[name]["gradient"]
        if n == 0:
            assert activation is None and gradient is None
        else:
            assert activation["n"] == gradient["n"] == n * 5 * size
    assert layers["frozen"]["gradient"] is None


def test_losses():
    model = build_model()
    with Monitor(model, every=10**6) as monitor:
        train(model, monitor)
        loss = torch.tensor([[1.5]], requires_grad=True)
        monitor.step(loss)
        with torch.no_grad():
            loss += 7
        for value in (2, math.nan, torch.tensor(math.inf), torch.tensor(0.1, dtype=torch.float64)):
            monitor.step(value)
        monitor.step()
        assert monitor.losses()[1:] == [1.5, 2.0, None, None, 0.1]
        assert len(monitor.losses()) == 6
        json.dumps(monitor.state_dict(), allow_nan=False)


# Errors. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"every": 0}, ValueError, "expected every of at least 1, got 0"),
        ({"every": 2.5}, TypeError, "expected every to be a whole number, got 2.5"),
        ({"max_values": True}, TypeError, "max_values to be a whole number, got True"),
        ({"updates": "no"}, TypeError, "expected updates to be True or False, got 'no'"),
        ({"layers": ["0", "conv"]}, ValueError, "no layer 'conv'; see model.named_modules"),
        ({"layers": ["00"]}, ValueError, "no layer '00'; did you mean '0'"),
        ({"layers": []}, ValueError, "at least one layer, got an empty list"),
        ({"layers": "0"}, TypeError, "a list of names, got the string '0'"),
    ],
)
def test_bad_arguments(arguments, error, text):
    model = build_model()
    with pytest.raises(error, match="Monitor: .*" + text):
        Monitor(model, **arguments)
    assert not any(layer._forward_hooks for layer in model)
    with pytest.raises(TypeError, match="Monitor: expected model to be a Module, got list"):
        Monitor([model])


def test_bad_losses_and_states_change_nothing():
    model = build_model()
    monitor = Monitor(model, every=2)
    train(model, monitor, 2)
    before = monitor.state_dict()
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    with pytest.raises(ValueError, match=r"step: .* one element, got shape \[2, 3\]; average it"):
        monitor.step(torch.ones(2, 3))
    for bad in ("a", [1.0], 1j, True):
        with pytest.raises(TypeError, match="step: expected loss to be a number or a tensor, got"):
            monitor.step(bad)
    for dtype in (torch.complex64, torch.bool):
        with pytest.raises(TypeError, match=f"step: expected loss to be real, got .* {dtype}"):
            monitor.step(torch.ones((), dtype=dtype))
    with pytest.raises(ValueError, match=r"load_state_dict: .* got other bins of the histograms"):
        monitor.load_state_dict(before | {"edges": [1.0]})
    with pytest.raises(ValueError, match=r"load_state_dict: .* got no 'losses'"):
        monitor.load_state_dict({key: before[key] for key in before if key != "losses"})
    assert monitor.state_dict() == before
