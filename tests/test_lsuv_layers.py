"""LSUV: which layers it takes and which it leaves."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedtricks.nn.lsuv import lsuv_
from tests.devices import DEVICE
from tests.lsuv_nets import measure, scramble


def test_layers_that_are_left():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, features: Tensor) -> Tensor:
            features = self.frozen(self.two(self.one(self.one(features))))
            return self.attention(features, features, features)[0]

    model = scramble(Tied()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = 3 * torch.randn(20, 6, 4)
    record = lsuv_(model, batch, tolerance=0.01, max_iterations=2)
    assert [layer.name for layer in record.layers] == ["one"]
    assert record.left == {
        "frozen": "frozen",
        "two": "shares its weight with one",
        "attention.out_proj": "not run",
    }
    # The first of the two times that it runs.
    assert model.one(batch).std(correction=0).item() == pytest.approx(1, abs=0.005)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"one.weight", "one.bias", "two.weight"}


class Direct(nn.Module):
    """Computes with the weights of a layer that it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.direct, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.linear(self.first(features), self.direct.weight, self.direct.bias)
        return self.last(hidden)


class Attentive(nn.Module):
    """Its attention computes with `out_proj` without running it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 8)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.attention(features, features, features, need_weights=False)[0])


@pytest.mark.parametrize(
    ("kind", "not_run"), [(Direct, "direct"), (Attentive, "attention.out_proj")]
)
def test_layers_behind_weights_that_stay_are_scaled_by_those(kind, not_run):
    model = scramble(kind())
    weight = model.get_submodule(not_run).weight.detach().clone()
    batch = 3 * torch.randn(20, 6, 8)
    record = lsuv_(model, batch, tolerance=0.01, max_iterations=2)
    assert record.left == {not_run: "not run"}
    assert torch.equal(model.get_submodule(not_run).weight, weight)
    assert model(batch).std(correction=0).item() == pytest.approx(1, abs=0.005)


def test_a_head_that_is_tied_to_an_embedding_is_left():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(13, 6)
            self.layer = nn.Linear(6, 6)
            self.head = nn.Linear(6, 13)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.layer(self.embedding(tokens)))

    model = scramble(Language())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.randint(13, (40, 3))
    record = lsuv_(model, tokens, tolerance=0.01, max_iterations=2)
    assert record.left == {"head": "shares its weight with embedding"}
    hidden = model.layer(model.embedding(tokens))
    assert hidden.std(correction=0).item() == pytest.approx(1, abs=0.005)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (9, 4, 11)),
        (nn.Conv3d(2, 3, 2), (5, 2, 3, 4, 5)),
        (nn.ConvTranspose2d(4, 3, 2, stride=2), (5, 4, 3, 5)),
        (nn.Conv2d(2, 30, 1).double(), (5, 2, 3, 5)),
        (nn.Linear(3, 7).bfloat16(), (50, 3)),
        (nn.Linear(3, 7, bias=False).half(), (50, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_kinds_of_layers_and_dtypes(layer, shape):
    layer = copy.deepcopy(layer).to(DEVICE)
    batch = (4 * torch.randn(shape)).to(layer.weight.dtype)
    lsuv_(layer, batch, tolerance=0.02, max_iterations=5)
    assert measure(layer, batch)[""] == pytest.approx(1, abs=0.02)


def test_several_inputs_and_a_compiled_model():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.one(first) + self.two(second)

    torch._dynamo.reset()
    inputs = (4 * torch.randn(50, 3), 4 * torch.randn(50, 5))
    model = Sum()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(*inputs)  # without hooks, and kept
    record = lsuv_(compiled, inputs, tolerance=0.01, max_iterations=3)
    assert len(record.layers) == 2 and record.left == {}
    assert list(measure(model, *inputs).values()) == pytest.approx([1, 1], abs=0.005)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
