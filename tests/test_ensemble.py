"""Ensembles of predictions, and averages of weights."""

import copy
import math
import pickle
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from fusedtricks.nn.dropout import ScheduledDropout
from fusedtricks.nn.ensemble import Ensemble, average_weights
from tests.devices import DEVICE
from tests.small_models import TinyTransformer


class Constant(nn.Module):
    """Returns the same logits for every sample."""

    def __init__(self, odds):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(odds).log())

    def forward(self, x):
        return self.logits.expand(len(x), -1)


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        return self.scale * x


def small_model(width=5):
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.LazyLinear(7)
    )
    model(torch.randn(11, 3, 7, 5))
    return model


# Predictions. -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("average", "expected"),
    # Odds 1:1 and 9:1. Mean of 0.5 and 0.9; geometric mean of the odds 1 and 9.
    [("probabilities", [0.7, 0.3]), ("logits", [0.75, 0.25])],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_averages_computed_by_hand(average, expected, stacked):
    models = [Constant([1.0, 1.0]), Constant([9.0, 1.0])]
    found = Ensemble(models, average=average, stacked=stacked)(torch.zeros(3, 1))
    torch.testing.assert_close(found.exp(), torch.tensor(3 * [expected]))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (0, 3), (1, 3), (5, 3, 7, 2)], ids=str)
def test_equals_the_formulas_in_float64(shape, stacked):
    models = [nn.Identity(), nn.Tanh(), nn.Softplus(beta=3)]
    if stacked:
        models = [Scaled(scale) for scale in (0.3, 0.6, -1.7)]
    x = 4 * torch.randn(shape)
    logits = [model(x).detach().double() for model in models]
    mean = sum(z.exp() / z.exp().sum(1, keepdim=True) for z in logits) / 3
    found = Ensemble(models, average="probabilities", stacked=stacked)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), mean.log(), rtol=1e-5, atol=1e-5)
    geometric = (sum(logits) / 3).exp()
    expected = (geometric / geometric.sum(1, keepdim=True)).log()
    found = Ensemble(models, average="logits", stacked=stacked)(x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_cross_entropy_takes_the_result_as_logits():
    models = [small_model() for _ in range(3)]
    x, labels = torch.randn(11, 3, 7, 5), torch.randint(7, (11,))
    found = Ensemble(models)(x)
    mean = torch.stack([model(x).double().softmax(1) for model in models]).mean(0)
    expected = -mean[torch.arange(11), labels].log().mean()
    torch.testing.assert_close(functional.cross_entropy(found, labels).double(), expected)
    assert torch.equal(found.argmax(1), mean.argmax(1))


def test_large_logits_do_not_overflow():
    models = [Constant([1.0, 1.0, 1.0]), Constant([1.0, 1.0, 1.0])]
    with torch.no_grad():
        models[0].logits.copy_(torch.tensor([3000.0, 0.0, -3000.0]))
        models[1].logits.copy_(torch.tensor([3000.0, 3000.0, -3000.0]))
    found = Ensemble(models)(torch.zeros(1, 1))[0]
    torch.testing.assert_close(
        found, torch.tensor([math.log(0.75), math.log(0.25), -6000 + math.log(0.75)])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("stacked", [False, True])
def test_logits_of_all_dtypes(dtype, stacked):
    models = [small_model().to(dtype).eval() for _ in range(2)]
    x = torch.randn(2, 3, 7, 5, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = Ensemble(models, stacked=stacked).eval()(x)
    assert found.dtype == wide
    expected = torch.stack([model(x).to(wide).softmax(1) for model in models]).mean(0).log()
    tolerance = 1e-12 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Stacked. -----------------------------------------------------------------------------------------


def test_stacked_models_equal_the_loop():
    models = [small_model() for _ in range(3)]
    x = torch.randn(5, 3, 7, 5)
    loop, stacked = Ensemble(models).eval(), Ensemble(models, stacked=True).eval()
    torch.testing.assert_close(stacked(x), loop(x))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        torch.testing.assert_close(stacked(x), loop(x), rtol=0.02, atol=0.02)
    compiled = torch.compile(stacked, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), loop(x))
    restored = copy.deepcopy(pickle.loads(pickle.dumps(stacked)))
    torch.testing.assert_close(restored(x), loop(x))


def test_stacked_models_have_the_gradients_and_statistics_of_the_loop():
    models = [small_model() for _ in range(2)]
    models[0][0].bias.requires_grad_(False)
    stacked = Ensemble(models, stacked=True)
    loop, x = Ensemble(models), torch.randn(5, 3, 7, 5)
    for each in (stacked, loop):
        each(x).square().sum().backward()
    for index, model in enumerate(models):
        torch.testing.assert_close(stacked.models[4].weight.grad[index], model[4].weight.grad)
        torch.testing.assert_close(stacked.models[1].running_var[index], model[1].running_var)
        assert stacked.models[1].num_batches_tracked[index] == 2
    assert not stacked.models[0].bias.requires_grad


def test_stacking_copies_and_leaves_the_models_alone():
    models = [small_model(), torch.compile(small_model())]
    shapes = [tuple(parameter.shape) for parameter in models[0].parameters()]
    stacked = Ensemble(models, stacked=True)
    assert [tuple(parameter.shape) for parameter in models[0].parameters()] == shapes
    assert [tuple(p.shape) for p in stacked.parameters()] == [(2, *shape) for shape in shapes]
    assert stacked.models[0].weight.data_ptr() != models[0][0].weight.data_ptr()


def test_stacks_shared_parameters():
    class Tied(TinyTransformer):
        def forward(self, tokens):
            return self.head(self.tokens(tokens)).flatten(1, -1)

    models = [Tied(tied=True), Tied(tied=False), Tied(tied=True)]
    tokens = torch.randint(11, (5, 2))
    for some in (models, models[::2]):
        expected = Ensemble(some)(tokens)
        torch.testing.assert_close(Ensemble(some, stacked=True)(tokens), expected)


def test_dropout_of_stacked_models_is_drawn_for_each():
    models = [nn.Sequential(Scaled(1.0), nn.Dropout(0.4)) for _ in range(2)]
    stacked = Ensemble(models, average="logits", stacked=True)
    found = stacked(torch.ones(1, 101)).exp()
    # Both kept, one of the two, none.
    assert len(found.unique()) == 3


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (nn.Conv2d(3, 5, 3, stride=2), "model 1 has another stride than the first; use stacked=F"),
        (nn.Conv2d(3, 5, 3, bias=False), "'bias' is in the first one and not in the other"),
        (nn.Conv2d(3, 4, 3), r"'weight' has shape \[5, 3, 3, 3\] in the first one and \[4, 3, 3"),
    ],
)
def test_other_architectures_are_not_stacked(other, text):
    with pytest.raises(ValueError, match=text):
        Ensemble([nn.Conv2d(3, 5, 3), other], stacked=True)


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.gain = gain


def encoder(n_heads, activation):
    return nn.TransformerEncoderLayer(6, n_heads, 7, dropout=0.1, activation=activation)


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ([nn.MultiheadAttention(6, n) for n in (3, 3, 2)], "model 2 has another num_heads than"),
        ([encoder(3, "relu"), encoder(3, "gelu")], "1 has another activation"),
        ([encoder(3, "relu"), encoder(2, "relu")], "1 has another self_attn.num_heads than"),
        ([Gain(1), Gain(1.5)], "1 has another gain than"),
        ([Gain(True), Gain(None)], "1 has another gain than"),
        ([Gain("a"), Gain("b")], "1 has another gain than"),
        ([Gain((2, 3)), Gain((2, 5))], "1 has another gain than"),
        ([Gain([2, 3]), Gain([2, 5])], "1 has another gain than"),
        ([Gain(torch.relu), Gain(torch.tanh)], "1 has another gain than"),
        ([Gain(functional.relu), Gain(functional.silu)], "1 has another gain than"),
        ([Gain(partial(torch.add, alpha=2)), Gain(partial(torch.add, alpha=3))], "another gain"),
        ([nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())], "1 has another class of 0 than"),
        ([ScheduledDropout(0.3), ScheduledDropout(0.4)], "1 has another text in print than"),
        ([nn.ReLU(), nn.GELU()], "1 has another class of model than"),
        ([nn.Sequential(nn.ReLU()), nn.Sequential()], "1 has another set of submodules than"),
    ],
)
def test_models_that_differ_in_no_tensor_are_not_stacked(models, text):
    with pytest.raises(ValueError, match=text):
        Ensemble(models, stacked=True)


def test_models_that_differ_in_mode_and_private_attributes_are_stacked():
    models = [encoder(3, "gelu"), encoder(3, "gelu").eval()]
    models[1]._note = "second"
    models[1].self_attn.table = torch.ones(2)
    Ensemble(models, stacked=True)


def test_parametrized_models_are_stacked():
    models = [nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)) for _ in range(2)]
    x = torch.randn(5, 3)
    torch.testing.assert_close(Ensemble(models, stacked=True)(x), Ensemble(models)(x))
    with pytest.raises(ValueError, match="is in the first one and not in the other"):
        Ensemble([models[0], nn.Linear(3, 2)], stacked=True)


def test_bad_ensembles_are_refused():
    with pytest.raises(ValueError, match="expected at least one model, got none"):
        Ensemble([])
    with pytest.raises(TypeError, match="expected model 1 to be a Module, got function"):
        Ensemble([nn.Identity(), functional.relu])
    with pytest.raises(TypeError, match="expected stacked to be True or False, got 'no'"):
        Ensemble([nn.Identity()], stacked="no")
    with pytest.raises(ValueError, match=r"average to be one of \('prob.*, got 'votes'"):
        Ensemble([nn.Identity()], average="votes")


@pytest.mark.parametrize(
    ("models", "text"),
    [
        (small_model(), r"a list of models, got one Sequential; pass \[first, second\]"),
        (nn.Linear(2, 3), "a list of models, got one Linear"),
        (torch.compile(nn.Sequential(nn.ReLU())), "a list of models, got one OptimizedModule"),
        (nn.ModuleDict({"a": nn.ReLU()}), "a list of models, got one ModuleDict"),
        (functional.relu, "a list of models, got one function"),
        (None, "a list of models, got one NoneType"),
        ("ab", "model 0 to be a Module, got str"),
    ],
)
def test_what_is_no_list_of_members_is_refused(models, text):
    with pytest.raises(TypeError, match=f"Ensemble: expected {text}"):
        Ensemble(models)
    assert len(Ensemble(nn.ModuleList([nn.ReLU(), nn.GELU()])).models) == 2


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("shape", [(5, 1), (5,), (), (5, 0), (5, 1, 4)], ids=str)
def test_outputs_without_classes_are_refused(average, stacked, shape):
    ensemble = Ensemble([Scaled(1.0), Scaled(2.0)], average=average, stacked=stacked)
    text = f"K of at least 2, got {list(shape)}; a softmax needs at least 2 classes"
    with pytest.raises(ValueError, match=re.escape(text)):
        ensemble(torch.zeros(shape))


def test_outputs_of_different_shapes_and_no_tensors_are_refused():
    text = r"same shape from all models, got \[3, 2\] from model 0 and \[3, 3\] from model 1"
    with pytest.raises(ValueError, match=text):
        Ensemble([Constant([1.0, 2.0]), Constant([1.0, 2.0, 3.0])])(torch.zeros(3, 1))
    with pytest.raises(TypeError, match="the output of model 0 to be a tensor, got tuple"):
        Ensemble([nn.LSTM(2, 3)])(torch.zeros(4, 2))


# Weights. -----------------------------------------------------------------------------------------


def test_mean_of_weights_computed_by_hand():
    states = [
        {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor(7), "note": "first"},
        {"w": torch.tensor([3.0, 8.0]), "count": torch.tensor(9), "note": "second"},
        {"w": torch.tensor([8.0, -4.0]), "count": torch.tensor(2), "note": "third"},
    ]
    found = average_weights(states)
    assert found["w"].tolist() == [4.0, 2.0]
    assert found["count"].item() == 7
    assert found["note"] == "first"
    assert states[0]["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (torch.float32, [1e8, 1.0, -1e8], 1 / 3),
        (torch.bfloat16, [256.0, 1.0, 1.0, 1.0, 1.0], 52.0),
        (torch.complex64, [1e8, 1.5j, -1e8], 0.5j),
    ],
    ids=str,
)
def test_the_mean_is_computed_in_float64(dtype, values, expected):
    found = average_weights({"w": torch.tensor([value], dtype=dtype)} for value in values)["w"]
    assert torch.equal(found, torch.tensor([expected], dtype=dtype))


def test_the_mean_of_models_can_be_loaded():
    models = [small_model() for _ in range(3)]
    models[1] = nn.DataParallel(torch.compile(models[1]))
    states = [
        models[0].state_dict(),
        models[1].module._orig_mod.state_dict(),
        models[2].state_dict(),
    ]
    found = average_weights([models[0], models[1], states[2]])
    assert found._metadata == states[0]._metadata
    small_model().load_state_dict(found, strict=True)
    for name, tensor in found.items():
        assert not tensor.requires_grad
        assert all(tensor.data_ptr() != state[name].data_ptr() for state in states)
        values = torch.stack([state[name] for state in states]).double()
        torch.testing.assert_close(tensor.double(), values.mean(0), rtol=1e-6, atol=1e-7)


def test_the_mean_has_no_gradient():
    layers = [nn.Linear(3, 1), nn.Linear(3, 1)]
    found = average_weights(dict(layer.named_parameters()) for layer in layers)
    assert not found["weight"].requires_grad


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([], "expected at least one model, got none"),
        ([{"a": 1}, {"a": 1}, {}], "'a' is in the first one and not in the other"),
        ([{"a": 1}, {"a": 1, "b": 2}], "'b' is in the other one and not in the first"),
        (
            [{"w": torch.ones(3)}, {"w": torch.ones(1)}],
            r"'w' has shape \[3\] in the first one and \[1\] in the other",
        ),
        ([{"w": torch.ones(())}, {"w": 1.0}], "'w' is a Tensor in the first one and a float in"),
        ([{"w": 1.0}, {"w": torch.ones(())}], "'w' is a float in the first one and a Tensor in"),
        (
            [{"epoch": epoch, "model": {"w": torch.ones(2)}} for epoch in (3, 4)],
            r"floating-point tensors to average, got none in model 0; pass checkpoint\['model'\]",
        ),
        ([{"net": nn.Linear(2, 1)}], r"in model 0; pass checkpoint\['net'\]"),
        ([{"n": torch.tensor(2)}], "none in model 0; pass models with weights"),
        ([{"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.long)}], "got none in model 1"),
    ],
)
def test_other_weights_are_refused(states, text):
    with pytest.raises(ValueError, match=text):
        average_weights(states)


@pytest.mark.parametrize(
    ("models", "text"),
    [
        (nn.Linear(2, 1).state_dict(), "expected a list of models or state_dicts, got one Ordered"),
        (nn.Sequential(nn.Linear(2, 1)), r"got one Sequential; pass \[first, second\]"),
        (nn.Linear(2, 1), "got one Linear"),
        (None, "got one NoneType"),
        ([nn.Linear(2, 1), torch.ones(2)], "expected models or state_dicts, got Tensor"),
    ],
)
def test_what_is_no_list_of_models_is_refused(models, text):
    with pytest.raises(TypeError, match=text):
        average_weights(models)


def test_the_mean_of_an_ensembles_models():
    ensemble = Ensemble([Scaled(3.0), Scaled(5.0)])
    assert average_weights(ensemble.models)["scale"].item() == 4
