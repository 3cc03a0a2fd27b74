"""param_groups against groups worked out by hand for the usual architectures."""

import pytest
import torch
from torch import nn

from fusedtricks.optim.grouping import format_table, param_groups
from tests.small_models import TinyResNet, TinyTransformer


class MyNorm(nn.Module):
    """A norm of the user: a matrix gain, so that only its type can tell."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2, 3))
        self.inner = nn.Linear(3, 3, bias=False)


def names_of(groups: list[dict], *, decayed: bool) -> set[str]:
    return {n for g in groups if (g["weight_decay"] > 0) is decayed for n in g["param_names"]}


def assert_each_once(model: nn.Module, groups: list[dict]) -> None:
    grouped = [id(p) for g in groups for p in g["params"]]
    expected = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(expected)
    by_name = dict(model.named_parameters(remove_duplicate=False))
    for group in groups:
        assert all(
            by_name[name] is p
            for name, p in zip(group["param_names"], group["params"], strict=True)
        )


@pytest.fixture
def resnet() -> nn.Module:
    return TinyResNet()


def test_resnet_downsample_norm_is_not_decayed(resnet):
    groups = param_groups(resnet, 0.1, verbose=False)
    assert_each_once(resnet, groups)
    blocks = ("layer1.0", "layer1.1", "layer2.0")
    expected = {"conv1.weight", "fc.weight"}
    expected |= {f"{b}.{w}.weight" for b in blocks for w in ("conv1", "downsample.0")}
    assert names_of(groups, decayed=True) == expected
    assert [(g["name"], g["weight_decay"]) for g in groups] == [("decay", 0.1), ("no_decay", 0.0)]
    assert "lr" not in groups[0] and "lr_scale" not in groups[0]


def test_transformer_attention_and_tied_embedding():
    model = TinyTransformer()
    groups = param_groups(model, 0.1, lr=1.0, verbose=False)
    assert_each_once(model, groups)
    expected = {"cls_token", "encoder.pos_embedding"}
    for i in range(3):
        block = f"encoder.blocks.{i}"
        expected |= {f"{block}.attention.in_proj_weight", f"{block}.attention.out_proj.weight"}
        expected |= {f"{block}.mlp.0.weight", f"{block}.mlp.2.weight"}
    assert names_of(groups, decayed=True) == expected
    exempt = names_of(groups, decayed=False)
    assert {"tokens.weight", "segments.weight", "gain", "encoder.ln.weight"} <= exempt
    assert {
        f"encoder.blocks.0.attention.{n}" for n in ("in_proj_bias", "bias_k", "bias_v")
    } <= exempt
    assert all(g["lr"] == 1.0 for g in groups)


def test_untied_head_is_decayed():
    groups = param_groups(TinyTransformer(tied=False), 0.1, verbose=False)
    assert "head.weight" in names_of(groups, decayed=True)


@pytest.mark.parametrize("head_first", [True, False])
def test_tied_weight_is_exempt_whichever_owner_comes_first(head_first):
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleList([head, embedding] if head_first else [embedding, head])
    (group,) = param_groups(model, 0.1, verbose=False)
    assert group["name"] == "no_decay" and len(group["params"]) == 1


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_biases(kind):
    model = kind(3, 4, num_layers=2, bidirectional=True)
    groups = param_groups(model, 0.1, verbose=False)
    assert_each_once(model, groups)
    ends = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert names_of(groups, decayed=True) == {f"weight_{k}_{e}" for k in ("ih", "hh") for e in ends}
    assert names_of(groups, decayed=False) == {f"bias_{k}_{e}" for k in ("ih", "hh") for e in ends}


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4, affine=True),
        nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm3d(4, affine=True),
        nn.LayerNorm((4, 5)),
        nn.RMSNorm((4, 5)),
        nn.EmbeddingBag(3, 4),
    ],
    ids=lambda m: type(m).__name__,
)
def test_every_torch_norm_and_embedding(norm):
    assert names_of(param_groups(norm, 0.1, verbose=False), decayed=True) == set()


def test_a_weight_named_like_a_norm_is_decayed():
    model = nn.ModuleDict({"bn_norm_bias": nn.Linear(2, 2)})
    groups = param_groups(model, 0.1, verbose=False)
    assert names_of(groups, decayed=True) == {"bn_norm_bias.weight"}


def test_custom_norm_by_type_with_its_children():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), MyNorm())
    everything = {"0.weight", "1.gain", "1.inner.weight"}
    assert names_of(param_groups(model, 0.1, verbose=False), decayed=True) == everything
    groups = param_groups(model, 0.1, no_decay=("norm", MyNorm), verbose=False)
    assert names_of(groups, decayed=True) == {"0.weight"}


@pytest.mark.parametrize(
    ("no_decay", "exempt"),
    [
        ((), set()),
        (("bias",), {"0.bias", "3.weight"}),
        (("norm",), {"1.weight", "1.bias"}),
        (("embedding",), {"2.weight"}),
        ((nn.Linear,), {"0.weight", "0.bias"}),
    ],
)
def test_no_decay_selects_categories(no_decay, exempt):
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2), nn.PReLU())
    groups = param_groups(model, 0.1, no_decay=no_decay, verbose=False)
    assert_each_once(model, groups)
    assert names_of(groups, decayed=False) == exempt


def test_frozen_parameters_are_left_out(resnet):
    resnet.layer1.requires_grad_(False)
    groups = param_groups(resnet, 0.1, verbose=False)
    assert_each_once(resnet, groups)
    assert not any(n.startswith("layer1") for g in groups for n in g["param_names"])


def test_parametrized_embedding_stays_an_embedding():
    model = torch.nn.utils.parametrizations.spectral_norm(nn.Embedding(5, 3))
    assert names_of(param_groups(model, 0.1, verbose=False), decayed=True) == set()


def test_layer_decay_resnet(resnet):
    # Layers: conv1 (with bn1), three blocks, fc.
    groups = param_groups(resnet, 0.1, lr=0.8, layer_decay=0.5, verbose=False)
    assert_each_once(resnet, groups)
    lr = {n: g["lr"] for g in groups for n in g["param_names"]}
    prefixes = {
        "conv1": 0.05,
        "bn1": 0.05,
        "layer1.0": 0.1,
        "layer1.1": 0.2,
        "layer2.0": 0.4,
        "fc": 0.8,
    }
    for name, value in lr.items():
        expected = next(v for p, v in prefixes.items() if name.startswith(p + "."))
        assert value == pytest.approx(expected), name
    assert [g["name"] for g in groups][:3] == ["layer0_decay", "layer0_no_decay", "layer1_decay"]
    assert all(g["lr"] == pytest.approx(0.8 * g["lr_scale"]) for g in groups)


@pytest.mark.parametrize("tied", [True, False])
def test_layer_decay_transformer_opens_the_encoder(tied):
    model = TinyTransformer(tied)
    groups = param_groups(model, 0.1, lr=1.0, layer_decay=0.5, verbose=False)
    scale = {n: g["lr_scale"] for g in groups for n in g["param_names"]}
    # Embeddings, three blocks and, when it has a weight of its own, the head.
    top = 1.0 if tied else 0.5
    assert scale["encoder.blocks.2.mlp.0.weight"] == scale["encoder.ln.weight"] == top
    assert scale["encoder.blocks.0.mlp.2.weight"] == top / 4
    stem = ("cls_token", "gain", "tokens.weight", "segments.weight", "encoder.pos_embedding")
    assert {scale[n] for n in stem} == {top / 8}
    if not tied:
        assert scale["head.weight"] == 1.0


def test_layer_decay_sees_through_a_wrapper(resnet):
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module):
            super().__init__()
            self.module = module

    options = {"lr": 0.8, "layer_decay": 0.5, "verbose": False}
    wrapped, plain = (param_groups(m, 0.1, **options) for m in (Wrapper(resnet), resnet))
    assert [g["lr"] for g in wrapped] == [g["lr"] for g in plain]


def test_layer_decay_one_is_one_rate(resnet):
    groups = param_groups(resnet, 0.1, lr=0.3, layer_decay=1.0, verbose=False)
    assert {g["lr"] for g in groups} == {0.3}


def test_explicit_layers(resnet):
    # bn1 follows conv1, which is not listed: both are the stem. layer2 follows layer1.
    groups = param_groups(
        resnet, 0.1, lr=1.0, layer_decay=0.5, layers=[resnet.layer1, resnet.fc], verbose=False
    )
    scale = {n: g["lr_scale"] for g in groups for n in g["param_names"]}
    assert {s for n, s in scale.items() if not n.startswith("fc")} == {0.5}
    assert scale["fc.weight"] == scale["fc.bias"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -0.1}, r"weight_decay >= 0, got -0.1"),
        ({"weight_decay": float("nan")}, r"weight_decay >= 0, got nan"),
        ({"lr": -1.0}, r"lr >= 0, got -1.0"),
        ({"layer_decay": 0.0, "lr": 1.0}, r"layer_decay in \(0, 1\], got 0.0"),
        ({"layer_decay": 1.5, "lr": 1.0}, r"layer_decay in \(0, 1\], got 1.5"),
        ({"layer_decay": 0.5}, r"layer_decay=0.5 needs lr"),
        ({"layers": []}, r"layers has no effect without layer_decay"),
        ({"no_decay": ("norms",)}, r"'norm', 'bias', 'embedding' or .* got 'norms'"),
        ({"no_decay": (int,)}, r"got <class 'int'>"),
        ({"no_decay": "norm"}, r"no_decay to be a tuple, got 'norm'"),
        ({"layers": [nn.Linear(1, 1)], "layer_decay": 0.5, "lr": 1.0}, r"modules of the model"),
    ],
)
def test_errors_name_argument_and_value(resnet, options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(resnet, **{"weight_decay": 0.1, **options})


def test_nested_layers_are_refused(resnet):
    with pytest.raises(ValueError, match="do not contain each other"):
        param_groups(resnet, 0.1, lr=1.0, layer_decay=0.5, layers=[resnet.layer1, resnet.layer1[0]])


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_train(model):
    with pytest.raises(ValueError, match="requires_grad=True, got none"):
        param_groups(model, 0.1)


def test_lazy_parameters_are_refused():
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet"):
        param_groups(nn.Sequential(nn.LazyLinear(3)), 0.1)


def test_table(resnet, capsys):
    groups = param_groups(resnet, 0.1)
    table = format_table(groups)
    assert capsys.readouterr().out == table + "\n"
    lines = table.splitlines()
    assert lines[0].split() == [
        "group",
        "lr",
        "weight",
        "decay",
        "tensors",
        "parameters",
        "examples",
    ]
    # 588 + 3 * (144 + 16) + 40 weights; 2 * 4 + 3 * (8 + 4 + 8) + 10 others.
    assert lines[2].split()[:5] == ["decay", "default", "0.1", "8", "1,108"]
    assert lines[3].split()[:5] == ["no_decay", "default", "0", "18", "78"]
    assert lines[4].split() == ["total", "26", "1,186"]
    assert "conv1.weight" in lines[2] and "fc.weight" in lines[2]
    assert max(map(len, lines)) == len(lines[1])
    param_groups(resnet, 0.1, verbose=False)
    assert capsys.readouterr().out == ""


def test_groups_drive_a_torch_optimizer(resnet):
    optimizer = torch.optim.AdamW(param_groups(resnet, 0.1, lr=0.8, layer_decay=0.5, verbose=False))
    for parameter in resnet.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert "layer4_decay" in format_table(optimizer.param_groups)
    assert [g["lr"] for g in optimizer.param_groups if g["name"] == "layer4_decay"] == [0.8]
