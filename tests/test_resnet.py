"""The residual networks: torchvision's and timm's, the paper's formulas, and the small one."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusedtricks.nn.resnets import ResNet, resnet
from fusedtricks.nn.small_resnet import SmallResNet
from fusedtricks.nn.surgery import apply_blurpool
from tests.processes import in_two_processes
from tests.resnet_formulas import randomize, residual_network

SMALL = {"widths": (6, 10, 4), "in_channels": 2, "n_classes": 7}


def compare(model, other, images):
    """Compare outputs, in training and in evaluation mode, gradients and running statistics."""
    for training in (True, False):
        model.train(training)
        other.train(training)
        leaf, its_leaf = (images.clone().requires_grad_() for _ in range(2))
        result, expected = model(leaf), other(its_leaf)
        torch.testing.assert_close(result, expected)
        weight = torch.randn_like(expected)
        for output in (result, expected):
            (output * weight).sum().backward()
        torch.testing.assert_close(leaf.grad, its_leaf.grad)
        theirs = dict(other.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)
        torch.testing.assert_close(model.state_dict(), other.state_dict())


# The formulas. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("variant", ["A", "B", "C", "D"])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_the_papers_network(block, variant, stem):
    model = randomize(ResNet(block, (2, 1, 2), variant=variant, stem=stem, **SMALL)).eval()
    for size in [(33, 25), (20, 16)]:
        images = torch.randn(3, 2, *size, dtype=torch.float64)
        expected = residual_network(model.state_dict(), images, variant, stem, training=False)
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(
    ("depth", "variant", "millions"),
    # torchvision's documentation, and timm's table of results for the D variants.
    [
        (18, "B", 11.690),
        (34, "B", 21.798),
        (50, "A", 25.557),
        (50, "B", 25.557),
        (50, "C", 25.576),
        (50, "D", 25.576),
        (101, "B", 44.549),
        (101, "D", 44.568),
        (152, "B", 60.193),
    ],
)
def test_numbers_of_parameters(depth, variant, millions):
    with torch.device("meta"):
        model = resnet(depth, variant=variant, stem="imagenet", in_channels=3, n_classes=1000)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert round(n_parameters / 1e6, 3) == millions


@pytest.mark.parametrize(("variant", "billions"), [("A", 3.8), ("B", 4.1), ("C", 4.3), ("D", 4.3)])
def test_operations_of_the_papers_table(variant, billions):
    # He et al. 2019, table 5; a multiplication with an addition counts as one there.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = resnet(50, variant=variant, stem="imagenet", in_channels=3, n_classes=1000)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.06)


def test_initial_weights():
    model = ResNet("bottleneck", (1, 1), widths=(64, 32), variant="C", stem="imagenet")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            assert abs(module.weight.mean().item()) < 0.1 * (2 / fan_out) ** 0.5
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


# torchvision and timm. ----------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "size"), [(18, (225, 193)), (50, (97, 65)), (50, (64, 32))])
def test_variant_b_is_torchvisions(depth, size):
    models = pytest.importorskip("torchvision.models")
    theirs = randomize(models.get_model(f"resnet{depth}", num_classes=11))
    ours = resnet(depth, variant="B", stem="imagenet", in_channels=3, n_classes=11).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(ours, theirs, torch.randn(2, 3, *size, dtype=torch.float64))


def test_variant_a_is_torchvisions_with_the_stride_moved():
    models = pytest.importorskip("torchvision.models")
    theirs = randomize(models.resnet50(num_classes=5))
    for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    ours = resnet(50, variant="A", stem="imagenet", in_channels=3, n_classes=5).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(ours, theirs, torch.randn(2, 3, 65, 33, dtype=torch.float64))


@pytest.mark.parametrize(
    ("depth", "variant", "name", "size"),
    [
        (18, "B", "resnet18", (65, 33)),
        (18, "D", "resnet18d", (225, 193)),
        (50, "C", "resnet50c", (33, 65)),
        (50, "D", "resnet50d", (97, 65)),
        (50, "D", "resnet50d", (64, 32)),
    ],
)
def test_variants_b_c_d_are_timms(depth, variant, name, size):
    timm = pytest.importorskip("timm")
    theirs = randomize(timm.create_model(name, num_classes=11, in_chans=4))
    ours = resnet(depth, variant=variant, stem="imagenet", in_channels=4, n_classes=11).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(ours, theirs, torch.randn(2, 4, *size, dtype=torch.float64))


# As a module. -------------------------------------------------------------------------------------


def small_model(**changes):
    arguments = {"variant": "D", "stem": "imagenet"} | SMALL | changes
    return randomize(ResNet("bottleneck", (1, 2, 1), **arguments)).float()


def test_copies_channels_last_and_autocast():
    model = small_model().eval()
    images = torch.randn(3, 2, 40, 33)
    expected = model(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin(images).equal(expected)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    its_images = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(its_images), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        result = model(images)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.1, atol=0.1)


def test_compiles_as_one_graph():
    model = small_model()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    images = torch.randn(3, 2, 40, 33)
    for network in (model, compiled):
        network(images).square().sum().backward()
    for expected, got in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4)


def blurred_model():
    """Return a model on the CPU that has buffers outside of its state dict as well."""
    return apply_blurpool(small_model().cpu().eval(), filt_size=4, verbose=False)


def gradients_of_a_rank(rank, state, images):
    model = DistributedDataParallel(blurred_model())
    model.module.load_state_dict(state)
    model(images[rank::2]).square().mean().backward()
    return [p.grad for p in model.parameters()]


def test_two_processes(tmp_path):
    # In evaluation mode, where samples do not depend on each other, the gradients are those of
    # the whole batch.
    model = blurred_model()
    images = torch.randn(4, 2, 40, 33, device="cpu")
    ranks = in_two_processes(gradients_of_a_rank, tmp_path, model.state_dict(), images)
    model(images).square().mean().backward()
    for grads in ranks:
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"block": "wide"}, r"expected block to be one of \('basic', 'bottleneck'\), got 'wide'"),
        ({"variant": "E"}, r"expected variant to be one of \('A', 'B', 'C', 'D'\), got 'E'"),
        ({"stem": "big"}, r"expected stem to be one of \('imagenet', 'small'\), got 'big'"),
        ({"layers": (1, 2)}, r"layers and widths of one length, got \(1, 2\) and \(8, 16, 32\)"),
        ({"layers": (), "widths": ()}, "expected layers of at least one stage, got none"),
        ({"layers": (1, 0, 2)}, "expected layers of at least 1, got 0"),
        ({"widths": (8, 16, -4)}, "expected widths of at least 1, got -4"),
        ({"in_channels": 0}, "expected in_channels of at least 1, got 0"),
        ({"n_classes": 0}, "expected n_classes of at least 1, got 0"),
    ],
)
def test_errors(arguments, text):
    with pytest.raises(ValueError, match="ResNet: .*" + text):
        ResNet(**{"block": "basic", "layers": (1, 1, 1), "widths": (8, 16, 32)} | arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"layers": 3}, "expected layers to be whole numbers, got 3"),
        ({"widths": "abc"}, "expected widths to be whole numbers, got 'abc'"),
        ({"layers": (1, 1.0, 1)}, "expected layers to be a whole number, got 1.0"),
        ({"in_channels": True}, "expected in_channels to be a whole number, got True"),
        ({"zero_gamma": "no"}, "expected zero_gamma to be True or False, got 'no'"),
    ],
)
def test_arguments_of_other_types(arguments, text):
    with pytest.raises(TypeError, match="ResNet: " + text):
        ResNet(**{"block": "basic", "layers": (1, 1, 1), "widths": (8, 16, 32)} | arguments)


def test_unknown_depth():
    with pytest.raises(ValueError, match=r"depth to be one of \(18, 34, 50, 101, 152\), got 42"):
        resnet(42)


# The small one. -----------------------------------------------------------------------------------


def test_the_small_one_is_the_same_network():
    model = SmallResNet(3, 11, widths=(4, 6), blocks=(1, 2))
    randomize(model).eval()
    images = torch.randn(5, 3, 9, 8, dtype=torch.float64)
    expected = residual_network(model.state_dict(), images, "B", "small", training=False)
    torch.testing.assert_close(model(images), expected)
    assert model.head.out_features == 11


def test_parameters_of_the_small_one():
    parameters = list(SmallResNet().parameters())
    assert len(parameters) == 65
    assert sum(parameter.numel() for parameter in parameters) == 1_859_178


def test_the_small_ones_errors():
    text = r"SmallResNet: expected widths and blocks of one length, got \(4, 6\) and \(1,\)"
    with pytest.raises(ValueError, match=text):
        SmallResNet(widths=(4, 6), blocks=(1,))
    with pytest.raises(ValueError, match="SmallResNet: expected blocks of at least 1, got 0"):
        SmallResNet(widths=(4, 6), blocks=(1, 0))
