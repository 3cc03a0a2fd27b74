"""Residual blocks that start as the identity."""

import pytest
import torch
from torch import nn

from fusedtricks.nn.resnets import ResNet, resnet
from fusedtricks.nn.shake import ShakeDrop
from fusedtricks.nn.small_resnet import SmallResNet
from fusedtricks.nn.zero_gamma import zero_gamma_
from tests.resnet_formulas import randomize


def check_blocks_are_shortcuts(model, images):
    """Demand that every block's output is relu(downsample(its input)), and return their number."""
    seen = []

    def compare(block, inputs, output):
        shortcut = block.downsample or nn.Identity()
        torch.testing.assert_close(output, shortcut(inputs[0]).relu(), rtol=0, atol=0)
        seen.append(block)

    for module in model.modules():
        if hasattr(module, "downsample"):
            module.register_forward_hook(compare)
    # In evaluation mode, where looking at the shortcut again does not change its statistics.
    model.eval()(images)
    return len(seen)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("variant", ["A", "D"])
def test_blocks_are_shortcuts_at_the_start(block, variant):
    model = ResNet(block, (2, 1), widths=(4, 6), variant=variant, n_classes=3, zero_gamma=True)
    assert check_blocks_are_shortcuts(model, torch.randn(2, 3, 33, 32)) == 3


def test_other_weights_and_biases_stay():
    model = randomize(ResNet("bottleneck", (1, 2), widths=(4, 6), variant="D", n_classes=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = zero_gamma_(model)
    assert names == ["layer1.0.bn3.weight", "layer2.0.bn3.weight", "layer2.1.bn3.weight"]
    for name, value in model.state_dict().items():
        assert value.equal(torch.zeros_like(value) if name in names else before[name]), name


def test_by_default_nothing_is_zero():
    for model in (ResNet("basic", (1,), widths=(4,)), SmallResNet(widths=(4,), blocks=(1,))):
        assert (model.layer1[0].bn2.weight == 1).all()


def test_names_are_those_of_the_model_given():
    model = SmallResNet(widths=(4, 6), blocks=(1, 1))
    assert zero_gamma_(nn.ModuleList([nn.Linear(2, 2), model])) == [
        "1.layer1.0.bn2.weight",
        "1.layer2.0.bn2.weight",
    ]
    assert zero_gamma_(model.layer1[0]) == ["bn2.weight"]


def test_it_learns_from_there():
    # The gammas at the first update, what is before them at the second one.
    model = SmallResNet(1, 3, widths=(4,), blocks=(2,))
    name, *_ = zero_gamma_(model)
    inner = "layer1.0.conv1.weight"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    for n_updates in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        assert (model.get_parameter(name).grad != 0).any()
        assert (model.get_parameter(inner).grad != 0).any() == (n_updates == 1)
        optimizer.step()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvisions(name):
    models = pytest.importorskip("torchvision.models")
    model = models.get_model(name, zero_init_residual=False)
    theirs = models.get_model(name, zero_init_residual=True)
    expected = [n for n, p in theirs.named_parameters() if n.startswith("layer") and (p == 0).all()]
    expected = [n for n in expected if n.endswith("weight")]
    assert zero_gamma_(model) == expected
    n_blocks = check_blocks_are_shortcuts(model, torch.randn(2, 3, 33, 32))
    assert n_blocks == len(expected) == (8 if name == "resnet18" else 16)


@pytest.mark.parametrize("name", ["resnet18d", "seresnet50", "resnetblur50"])
def test_timms(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, zero_init_last=False)
    theirs = timm.create_model(name, zero_init_last=True)
    expected = {n for n, p in theirs.named_parameters() if (p == 0).all() and ".bn" in n}
    assert set(zero_gamma_(model)) == {n for n in expected if n.endswith("weight")}
    assert check_blocks_are_shortcuts(model, torch.randn(2, 3, 33, 32)) in (8, 16)


def test_subclasses_are_known():
    block = type("MyBlock", (type(resnet(18).layer1[0]),), {})
    model = nn.Sequential(block(3, 3, stride=1, variant="B"))
    assert zero_gamma_(model) == ["0.bn2.weight"]


def test_unknown_models_raise():
    text = "no residual block of fusedtricks, torchvision or timm in Sequential; set the last"
    with pytest.raises(ValueError, match="zero_gamma_: found " + text):
        zero_gamma_(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))


@pytest.mark.parametrize("make_norm", [nn.BatchNorm2d, lambda width: nn.GroupNorm(2, width)])
def test_the_last_norm_of_several_layers(make_norm):
    model = SmallResNet(3, 5, widths=(4, 6), blocks=(1, 1))
    model.layer2[0].bn2 = nn.Sequential(make_norm(6), nn.Sequential(make_norm(6)), ShakeDrop(0.5))
    assert zero_gamma_(model) == ["layer1.0.bn2.weight", "layer2.0.bn2.1.0.weight"]
    assert (model.layer2[0].bn2[0].weight == 1).all()
    assert (model.layer2[0].bn2[1][0].weight == 0).all()
    assert check_blocks_are_shortcuts(model, torch.randn(2, 3, 8, 8)) == 2


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Identity(), "layer2.0.bn2.weight to be a parameter .* stay 0; got Identity"),
        (nn.Sequential(nn.Identity()), "layer2.0.bn2.weight to be .* stay 0; got Sequential"),
        (
            nn.Sequential(nn.BatchNorm2d(6, affine=False)),
            "layer2.0.bn2.0.weight to be .* stay 0; got BatchNorm2d",
        ),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), "got ParametrizedLinear"),
    ],
)
def test_branches_without_a_last_norm_raise(layer, text):
    model = SmallResNet(widths=(4, 6), blocks=(1, 1))
    model.layer2[0].bn2 = layer
    with pytest.raises(ValueError, match="zero_gamma_: expected .*" + text):
        zero_gamma_(model)
    assert (model.layer1[0].bn2.weight == 1).all()


def test_something_that_is_no_model_raises():
    with pytest.raises(TypeError, match="zero_gamma_: expected model to be a Module, got dict"):
        zero_gamma_({})


@pytest.mark.parametrize("kind", ["no weight", "frozen", "buffer"])
def test_branches_that_would_stay_zero_raise(kind):
    model = SmallResNet(widths=(4, 6), blocks=(1, 1))
    norm = model.layer2[0].bn2
    if kind == "no weight":
        model.layer2[0].bn2 = nn.BatchNorm2d(6, affine=False)
    elif kind == "frozen":
        norm.requires_grad_(False)
    else:
        del norm.weight
        norm.register_buffer("weight", torch.ones(6))
    text = r"zero_gamma_: expected layer2.0.bn2.weight to be a parameter that is trained.*BatchNorm"
    with pytest.raises(ValueError, match=text):
        zero_gamma_(model)
    assert (model.layer1[0].bn2.weight == 1).all()
