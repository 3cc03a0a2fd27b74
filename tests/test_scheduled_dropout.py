"""The dropout layer whose probability compiled models need not know."""

import copy
import math
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from fusedtricks.lr_scheduler import Linear
from fusedtricks.nn.dropout import DropoutSchedule, ScheduledDropout
from tests.devices import DEVICE
from tests.test_dropout_schedule import DropPath, StochasticDepth, all_kinds

SHAPES = {"element": (5, 3, 7), "channel": (5, 3, 1), "sample": (5, 1, 1), "batch": (1, 1, 1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("per", SHAPES)
def test_output_is_that_of_the_drawn_numbers(per, dtype):
    x = torch.randn(5, 3, 7, dtype=dtype, requires_grad=True)
    layer = ScheduledDropout(0.3, per=per, generator=torch.Generator().manual_seed(6))
    y = layer(x)
    draws = torch.rand(SHAPES[per], generator=torch.Generator().manual_seed(6), device="cpu")
    scale = ((draws >= 0.3).double() / 0.7).to(DEVICE)
    assert y.dtype == dtype
    torch.testing.assert_close(y, (x.double() * scale).to(dtype))
    y.sum().backward()
    torch.testing.assert_close(x.grad, scale.expand_as(x).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shares_and_means_are_right_for_all_dtypes(dtype):
    # 0.0013 is less than the 1/256 that numbers drawn in bfloat16 would resolve.
    for p in (0.0013, 0.3):
        y = ScheduledDropout(p)(torch.ones(1000, 1009, dtype=dtype))
        share = (y == 0).double().mean().item()
        assert share == pytest.approx(p, abs=5 * math.sqrt(p / 1_009_000))
        assert y.max().item() == torch.tensor(1 / (1 - p)).to(dtype).item()


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_probabilities_are_exact(p):
    x = torch.randn(5, 3, requires_grad=True)
    y = ScheduledDropout(p)(x)
    assert torch.equal(y, (1 - p) * x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((5, 3), 1 - p))


def test_evaluation_and_odd_shapes():
    x = torch.randn(5, 3)
    assert ScheduledDropout(0.3).eval()(x) is x
    for per in SHAPES:
        assert ScheduledDropout(0.3, per=per)(torch.zeros(0, 3, 7)).shape == (0, 3, 7)
        assert ScheduledDropout(0.3, per=per)(torch.ones(())).shape == ()
    images = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    assert ScheduledDropout(0.3)(images).is_contiguous(memory_format=torch.channels_last)


def test_layer_is_copied_pickled_and_cast():
    layer = ScheduledDropout(0.3, per="sample", generator=torch.Generator().manual_seed(6))
    assert not layer.state_dict()
    x = torch.ones(11, 2)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).half()]
    expected = layer(x)
    for each in copies:
        torch.testing.assert_close(each(x), expected, rtol=1e-3, atol=0)
    for dtype in (torch.bfloat16, torch.float64):
        low = nn.Sequential(copy.deepcopy(layer)).to(dtype)[0]
        assert low.p.dtype == torch.float32
        assert low(x).max().item() == pytest.approx(1 / 0.7, rel=1e-6)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert "0.3" in repr(layer) and "per='sample'" in repr(layer)
    repr(layer.to("meta"))


def test_p_is_made_again_after_a_start_without_memory():
    with torch.device("meta"):
        layer = ScheduledDropout(0.3)
    layer.bfloat16().to_empty(device=DEVICE)
    layer.p.fill_(7)
    layer.reset_parameters()
    assert layer.p.device.type == DEVICE.type
    assert layer.p.item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"p": 1.5}, ValueError, r"expected p in \[0, 1\], got 1.5"),
        ({"p": "0.5"}, TypeError, "expected p to be a number, got '0.5'"),
        ({"per": "row"}, ValueError, r"one of \['element', 'batch', 'sample', 'ch.*, got 'row'"),
        ({"p": True}, TypeError, "expected p to be a number, got True"),
        ({"p": float("nan")}, ValueError, "expected p to be"),
        ({"generator": 3}, TypeError, "ScheduledDropout: expected generator to be one, got 3"),
    ],
)
def test_bad_options_of_the_layer_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        ScheduledDropout(**options)


# Compiled. ----------------------------------------------------------------------------------------


def compilations(model, n_steps):
    torch.compiler.reset()
    schedule = DropoutSchedule(model, Linear(2 * n_steps))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(n_steps):
        y = compiled(torch.ones(101, 103))
        scale = 1 / (1 - 0.8 * (1 - step / (2 * n_steps)))
        assert y.max().item() == pytest.approx(scale, rel=1e-6)
        schedule.step()
    return counter.frame_count


def test_a_compiled_model_with_our_layer_is_compiled_once():
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.8))
    assert compilations(copy.deepcopy(model), 5) >= 5
    assert compilations(ScheduledDropout.convert(model), 12) == 1


class Attention(nn.Module):
    """Reads the p of its layer, as timm's does."""

    def __init__(self, p):
        super().__init__()
        self.attn_drop, self.proj_drop = nn.Dropout(p), nn.Dropout(p)

    def forward(self, x):
        p = self.attn_drop.p if self.training else 0.0
        return self.proj_drop(nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=p))


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_layers_whose_p_is_read_are_left(p):
    model = ScheduledDropout.convert(nn.Sequential(Attention(p)))
    assert type(model[0].attn_drop) is nn.Dropout
    assert type(model[0].proj_drop) is ScheduledDropout
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert compiled(torch.randn(2, 3, 5, 7)).shape == (2, 3, 5, 7)


def test_a_vision_transformer_of_timm_is_compiled_once():
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224",
        depth=2,
        img_size=32,
        attn_drop_rate=0.15,
        proj_drop_rate=0.25,
        drop_path_rate=0.35,
    )
    ScheduledDropout.convert(model)
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    schedule = DropoutSchedule(compiled, Linear(11), kinds=ScheduledDropout)
    for _ in range(3):
        compiled(torch.randn(2, 3, 32, 32))
        schedule.step()
    assert counter.frame_count == 1


def test_new_layers_are_where_the_model_is():
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(3, 4, device="meta"))
    assert ScheduledDropout.convert(model)[0].p.device.type == "meta"
    with torch.device("cpu"):
        model = nn.Sequential(nn.Dropout(0.3), nn.BatchNorm1d(4, affine=False))
    with torch.device("meta"):
        ScheduledDropout.convert(model)
    assert model[0].p.device.type == "cpu"


def test_all_layers_that_can_be_are_converted():
    shared = nn.Dropout(0.15)
    model = nn.ModuleDict(
        {
            **all_kinds(),
            "nested": nn.Sequential(nn.Sequential(nn.Dropout1d(0.35), nn.Dropout3d(0.45)), shared),
            "depth of all": StochasticDepth(0.55, "batch"),
            "unscaled": DropPath(0.65, scale_by_keep=False),
            "same": shared,
            "again": shared,
        }
    )
    model["plain"].eval()
    assert ScheduledDropout.convert(model) is model
    found = {
        name: (layer.p.item(), layer.per)
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, ScheduledDropout)
    }
    expected = {
        "plain": (0.4, "element"),
        "channels": (0.2, "channel"),
        "depth": (0.8, "sample"),
        "path": (0.1, "sample"),
        "zero": (0.0, "sample"),
        "tensor": (0.5, "element"),
        "nested.0.0": (0.35, "channel"),
        "nested.0.1": (0.45, "channel"),
        "nested.1": (0.15, "element"),
        "depth of all": (0.55, "batch"),
        "same": (0.15, "element"),
        "again": (0.15, "element"),
    }
    assert found == {name: (pytest.approx(p), per) for name, (p, per) in expected.items()}
    assert model["same"] is model["again"] is model["nested"][1]
    assert not model["plain"].training and model["depth"].training
    assert isinstance(ScheduledDropout.convert(nn.Dropout(0.3)), ScheduledDropout)


@pytest.mark.parametrize("p", [1.5, -0.1, float("nan")])
def test_a_wrong_p_is_refused_before_a_layer_is_replaced(p):
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    layers = list(model.modules())
    model[1][0].p = p
    with pytest.raises(ValueError, match=r"convert: expected p of model\.1\.0 in \[0, 1\], got"):
        ScheduledDropout.convert(model)
    assert list(model.modules()) == layers
    layers[-1].p = 0.3
    ScheduledDropout.convert(model)
    assert [model[0].p.item(), model[1][0].p.item()] == pytest.approx([0.5, 0.3])


def test_only_modules_are_converted():
    with pytest.raises(TypeError, match="convert: expected model to be a Module, got list"):
        ScheduledDropout.convert([nn.Dropout(0.5)])


def test_stochastic_depth_of_torchvision_and_timm_follows_and_is_converted():
    ops = pytest.importorskip("torchvision.ops")
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        ops.StochasticDepth(0.2, "row"), ops.StochasticDepth(0.4, "batch"), layers.DropPath(0.6)
    )
    schedule = DropoutSchedule(model, Linear(4))
    schedule.step()
    found = [model[0].p, model[1].p, model[2].drop_prob]
    assert found == pytest.approx([0.15, 0.3, 0.45])
    x = torch.ones(20_011, 3)
    before = [layer(x) for layer in model]
    schedule.step(0)
    ScheduledDropout.convert(model)
    schedule = DropoutSchedule(model, Linear(4))
    schedule.step()
    assert [layer.per for layer in model] == ["sample", "batch", "sample"]
    for layer, y in zip(model, before, strict=True):
        found = layer(x)
        assert torch.equal(found[:, 0], found[:, 2])
        if layer.per == "sample":
            torch.testing.assert_close(found.unique(), y.unique())
            torch.testing.assert_close(found.mean(), y.mean(), rtol=0.03, atol=0)
