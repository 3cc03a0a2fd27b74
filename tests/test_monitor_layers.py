"""Which modules a monitor takes for layers, in which order, and how often it counts them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fusedtricks.train.monitor import Monitor


def layers_of(model, *inputs, n_backward=1) -> dict:
    with Monitor(model, every=1) as monitor:
        loss = model(*inputs).sum()
        for i in range(n_backward):
            loss.backward(retain_graph=i + 1 < n_backward)
        monitor.step(loss)
        return monitor.records()[0]["layers"]


@pytest.mark.parametrize("parametrise", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_layers(parametrise):
    layer = getattr(parametrizations, parametrise)(nn.Linear(4, 8))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2))
    found = layers_of(model, torch.randn(5, 4))
    assert list(found) == ["0", "1", "2"]
    assert found["0"]["activation"]["n"] == found["0"]["gradient"]["n"] == 5 * 8
    assert found["0"]["update_ratio"] is None and found["2"]["update_ratio"] == 0
    assert list(layers_of(layer, torch.randn(5, 4))) == [""]


def test_attention_is_a_layer():
    model = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.1, batch_first=True)
    found = layers_of(model, torch.randn(3, 5, 6))
    expected = "self_attn linear1 dropout linear2 norm1 norm2 dropout1 dropout2"
    assert list(found) == expected.split()
    assert found["self_attn"]["activation"]["n"] == found["self_attn"]["gradient"]["n"] == 3 * 5 * 6

    class First(nn.MultiheadAttention):
        def forward(self, inputs):
            return super().forward(inputs, inputs, inputs)[0]

    parametrised = parametrizations.weight_norm(First(6, 2), "in_proj_weight")
    for attention in (First(6, 2), parametrised):
        assert list(layers_of(attention, torch.randn(3, 5, 6))) == [""]


def test_a_shared_layer_is_one():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    found = layers_of(model, torch.randn(3, 4))
    assert list(found) == ["0", "1"] and found["0"]["activation"]["n"] == 2 * 3 * 4


class Swapped(nn.Module):
    """Runs its layers in another order than it has them, the first under checkpoint."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.second = nn.Linear(4, 3)
        self.first = nn.Sequential(nn.Linear(5, 4), nn.Tanh())

    def forward(self, inputs):
        if self.reentrant is None:
            return self.second(self.first(inputs))
        return self.second(checkpoint(self.first, inputs, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_the_order_is_that_of_the_model(reentrant):
    model = Swapped(reentrant)
    found = layers_of(model, torch.randn(7, 5, requires_grad=True))
    assert list(found) == ["second", "first.0", "first.1"]
    # Without reentrance both passes of the checkpoint have gradients.
    assert found["first.0"]["activation"]["n"] == (56 if reentrant is False else 28)
    model.reentrant = None
    with Monitor(model, every=1, layers=["first", "second"]) as monitor:
        model(torch.randn(7, 5)).sum().backward()
        monitor.step()
        assert list(monitor.records()[0]["layers"]) == ["second", "first"]


def test_gradients_of_several_backward_passes_are_taken_together():
    found = layers_of(nn.Linear(4, 3), torch.randn(5, 4), n_backward=2)[""]
    assert found["activation"]["n"] == 15 and found["gradient"]["n"] == 30
    assert found["gradient"]["mean"] == 1.0
