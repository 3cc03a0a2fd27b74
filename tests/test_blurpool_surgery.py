"""Anti-aliasing of models that exist already."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fusedtricks.nn.blur_pool import BlurPool
from fusedtricks.nn.resnets import ResNet
from fusedtricks.nn.surgery import apply_blurpool
from fusedtricks.nn.zero_gamma import zero_gamma_
from tests.resnet_formulas import blurrer, randomize, residual_network, subsample


def small_model(block="basic", **changes):
    arguments = {"variant": "D", "stem": "imagenet", "widths": (6, 10, 4), "n_classes": 7}
    return randomize(ResNet(block, (2, 1, 2), **arguments | changes))


def n_blurs(model):
    return sum(isinstance(module, BlurPool) for module in model.modules())


# What it computes. --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("variant", ["A", "B", "C", "D"])
@pytest.mark.parametrize("filt_size", [2, 3, 4])
@pytest.mark.parametrize("stem_conv", [False, True])
def test_every_strided_layer_is_dense_then_blurred(block, variant, filt_size, stem_conv):
    model = small_model(block, variant=variant)
    state = copy.deepcopy(model.state_dict())
    assert apply_blurpool(model, filt_size=filt_size, stem_conv=stem_conv, verbose=False) is model
    images = torch.randn(3, 3, 41, 32, dtype=torch.float64)
    downs = {
        "down": blurrer(filt_size),
        "stem_down": blurrer(filt_size) if stem_conv else subsample,
    }
    # Training mode: the statistics are those of the dense maps. The stem's, without a blur, are
    # of fewer pixels than the formulas take.
    for training in (False, True) if stem_conv else (False,):
        expected = residual_network(state, images, variant, "imagenet", training=training, **downs)
        torch.testing.assert_close(model.train(training)(images), expected)


def test_a_small_stem_has_nothing_to_blur():
    model = apply_blurpool(small_model(stem="small"), filt_size=4, stem_conv=True, verbose=False)
    images = torch.randn(3, 3, 11, 8, dtype=torch.float64)
    expected = residual_network(
        model.state_dict(), images, "D", "small", training=True, down=blurrer(4)
    )
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("name", "block"), [("resnet18", "basic"), ("resnet50", "bottleneck")])
@pytest.mark.parametrize("library", ["torchvision.models", "timm"])
def test_others_models_compute_what_ours_does(library, name, block):
    models = pytest.importorskip(library)
    make = models.get_model if library == "torchvision.models" else models.create_model
    theirs = randomize(make(name, num_classes=7))
    images = torch.randn(2, 3, 65, 33, dtype=torch.float64)
    expected = residual_network(
        theirs.eval().state_dict(), images, "B", "imagenet", training=False, down=blurrer(5)
    )
    blurred = apply_blurpool(theirs, filt_size=5, verbose=False)
    torch.testing.assert_close(blurred(images), expected)


@pytest.mark.parametrize("name", ["resnetblur50", "resnetblur50d"])
def test_the_result_is_timms_but_for_the_shortcuts(name):
    timm = pytest.importorskip("timm")
    theirs = randomize(timm.create_model(name, num_classes=7))
    ours = randomize(timm.create_model(name.replace("blur", ""), num_classes=7))
    apply_blurpool(ours, filt_size=3, verbose=False)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
        shortcut = stage[0].downsample
        channels = next(m for m in shortcut if isinstance(m, nn.Conv2d)).in_channels
        blur = timm.layers.BlurPool2d(channels, filt_size=3, stride=2).double()
        if name.endswith("d"):
            shortcut[0] = blur
        else:
            shortcut[0].stride = (1, 1)
            stage[0].downsample = nn.Sequential(blur, *shortcut)
    images = torch.randn(2, 3, 65, 64, dtype=torch.float64)
    for training in (True, False):
        result = ours.train(training)(images)
        torch.testing.assert_close(result, theirs.train(training)(images))


# What it keeps. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["B", "D"])
def test_checkpoints_load_in_both_directions(variant):
    model, plain = (small_model("bottleneck", variant=variant) for _ in range(2))
    images = torch.randn(2, 3, 33, 32, dtype=torch.float64)
    expected = plain.eval()(images)
    parameters = list(model.parameters())
    apply_blurpool(model, filt_size=3, stem_conv=True, verbose=False)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)
    assert not torch.allclose(model.eval()(images), expected)
    other = small_model("bottleneck", variant=variant).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert other(images).equal(expected)


def test_shapes_mode_dtype_and_hooks_stay():
    model = small_model("bottleneck").to(torch.bfloat16).eval()
    shapes, called = [], []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    model.layer2[0].conv3.register_forward_hook(lambda module, *others: called.append(module))
    for size in [(33, 32), (47, 3), (1, 1)]:
        model(torch.zeros(2, 3, *size, dtype=torch.bfloat16))
    before = list(shapes)
    shapes.clear(), called.clear()
    apply_blurpool(model, filt_size=4, verbose=False)
    assert not any(module.training for module in model.modules())
    for size in [(33, 32), (47, 3), (1, 1)]:
        assert model(torch.zeros(2, 3, *size, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert shapes == before
    assert called == [model.layer2[0].conv3] * 3


def test_copies_compilation_and_layouts():
    model = apply_blurpool(small_model(), filt_size=3, verbose=False).float()
    images = torch.randn(2, 3, 33, 32)
    expected = model(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin(images).equal(expected)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images), expected)
    last = model.to(memory_format=torch.channels_last)
    its_images = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(its_images), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        result = model(images)
    torch.testing.assert_close(result.float(), expected, rtol=0.1, atol=0.1)


def test_an_optimizer_made_before_goes_on():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apply_blurpool(model, filt_size=3, verbose=False)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(4, 3, 33, 32, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not parameter.equal(before[name]), name


@pytest.mark.parametrize("zeroed_first", [True, False])
def test_with_zero_gamma(zeroed_first):
    model = small_model("bottleneck")
    if zeroed_first:
        names = zero_gamma_(model)
    apply_blurpool(model, filt_size=3, verbose=False)
    if not zeroed_first:
        names = zero_gamma_(model)
    assert len(names) == 5
    assert all((model.get_parameter(name) == 0).all() for name in names)


# What it says. ------------------------------------------------------------------------------------


def test_it_prints_what_it_did(capsys):
    model = apply_blurpool(nn.ModuleDict({"net": small_model(variant="C")}), filt_size=3)
    assert capsys.readouterr().out.splitlines() == [
        "apply_blurpool: 5 of 6 strided layers blur now: net.maxpool, net.layer2.0.conv1, "
        "net.layer2.0.downsample.0, net.layer3.0.conv1, net.layer3.0.downsample.0",
        "left as they were: net.conv1.0",
    ]
    assert n_blurs(model) == 5
    # What a first call left can follow.
    apply_blurpool(model, filt_size=3, stem_conv=True)
    assert capsys.readouterr().out.splitlines() == [
        "apply_blurpool: 1 of 1 strided layers blur now: net.conv1.0",
        "left as they were: none",
    ]
    assert n_blurs(model) == 6


def test_a_second_call_raises_and_changes_nothing():
    model = apply_blurpool(small_model(variant="B"), filt_size=3, verbose=False)
    images = torch.randn(2, 3, 33, 32, dtype=torch.float64)
    expected = model.eval()(images)
    text = r"found nothing to replace, .* blurs already or has no stride; strided layers: conv1$"
    with pytest.raises(ValueError, match=text):
        apply_blurpool(model, filt_size=4)
    assert model(images).equal(expected)


def test_unknown_models_raise():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    text = "a ResNet of fusedtricks, torchvision or timm, found none in Sequential; build other"
    with pytest.raises(ValueError, match=text):
        apply_blurpool(model)
    assert model[0].stride == (2, 2)


def test_filters_that_do_not_blur_raise():
    with pytest.raises(ValueError, match="expected filt_size of at least 2, got 1"):
        apply_blurpool(small_model(), filt_size=1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": 3}, "expected model to be a Module, got int"),
        ({"filt_size": 2.5}, "expected filt_size to be a whole number, got 2.5"),
        ({"filt_size": True}, "expected filt_size to be a whole number, got True"),
        ({"stem_conv": "no"}, "expected stem_conv to be True or False, got 'no'"),
        ({"verbose": 0}, "expected verbose to be True or False, got 0"),
    ],
)
def test_arguments_of_other_types_raise_and_change_nothing(options, text):
    model = small_model()
    with pytest.raises(TypeError, match=f"apply_blurpool: {text}"):
        apply_blurpool(**{"model": model} | options)
    assert n_blurs(model) == 0


class Halved(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        """Return half of it."""
        return weight / 2


def test_what_does_not_fit_is_left(capsys):
    model = small_model(variant="B").eval()
    parametrize.register_parametrization(model.layer2[0].conv2, "weight", Halved())
    model.layer3[0].conv1.stride = (2, 1)
    model.layer3[0].downsample[0].stride = (2, 1)
    model.maxpool.ceil_mode = True
    apply_blurpool(model, filt_size=3)
    assert capsys.readouterr().out.splitlines() == [
        "apply_blurpool: 1 of 6 strided layers blur now: layer2.0.downsample.0",
        "left as they were: conv1, maxpool, layer2.0.conv1, layer3.0.conv1, layer3.0.downsample.0",
    ]
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).shape == (1, 7)


def test_models_changed_for_small_images():
    model = small_model(variant="B")
    model.conv1, model.maxpool = nn.Conv2d(3, 6, 3, padding=1, bias=False).double(), nn.Identity()
    apply_blurpool(model, filt_size=3, stem_conv=True, verbose=False)
    assert n_blurs(model) == 4


def test_sizes_may_be_pairs():
    model, other = (small_model(variant="D").eval() for _ in range(2))
    model.load_state_dict(other.state_dict())
    model.maxpool = nn.MaxPool2d((3, 3), (2, 2), (1, 1))
    model.layer2[0].downsample[0] = nn.AvgPool2d((2, 2), (2, 2), ceil_mode=True)
    images = torch.randn(2, 3, 33, 32, dtype=torch.float64)
    result, expected = (
        apply_blurpool(m, filt_size=3, verbose=False)(images) for m in (model, other)
    )
    assert result.equal(expected)


def test_dilated_stages_stay():
    models = pytest.importorskip("torchvision.models")
    model = models.resnet50(replace_stride_with_dilation=[False, True, True])
    apply_blurpool(model, filt_size=3, verbose=False)
    assert n_blurs(model) == 3  # The pooling, and the second stage's two.
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize(
    "changes", [{"dilation": 2}, {"dilation": (1, 2)}, {"return_indices": True}], ids=str
)
def test_poolings_with_other_options_stay(changes):
    model = small_model(variant="B")
    model.maxpool = pool = nn.MaxPool2d(3, stride=2, padding=1, **changes)
    apply_blurpool(model, filt_size=3, verbose=False)
    assert model.maxpool is pool and n_blurs(model) == 4


def test_a_pooling_with_a_pair_of_ones_is_not_dilated():
    model = small_model(variant="B")
    model.maxpool.dilation = (1, 1)
    apply_blurpool(model, filt_size=3, verbose=False)
    assert n_blurs(model) == 5
