"""Fixup: scales by hand, blocks against the source's figure, and 110 layers that train."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from fusedtricks import optim
from fusedtricks.lr_scheduler import Cosine, ScheduledLR
from fusedtricks.nn.fixup import (
    FixupBlock,
    ScalarBias,
    ScalarScale,
    fixup_init_,
    fixup_param_groups,
    fixup_scale,
)
from fusedtricks.nn.fixup_resnet import FixupBasicBlock, FixupBottleneck, FixupResNet
from tests.devices import DEVICE


def randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 4 + 0.1)


def scalars(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.numel() == 1]


# L^(-1 / (2m - 2)): 4^(-1/2), 54^(-1/2), 16^(-1/4), 81^(-1/4), 64^(-1/6).
@pytest.mark.parametrize(
    ("n_branches", "n_layers", "scale"),
    [
        (4, 2, 0.5),
        (54, 2, 0.13608276),
        (16, 3, 0.5),
        (81, 3, 0.33333333),
        (64, 4, 0.5),
        (1, 2, 1),
    ],
)
def test_scale_by_hand(n_branches, n_layers, scale):
    assert fixup_scale(n_branches, n_layers) == pytest.approx(scale)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [4, 6])
def test_basic_block_is_the_sources(width, stride):
    block = FixupBasicBlock(4, width, stride).double()
    randomise(block)
    images = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    bias_1a, bias_1b, bias_2a, scale, bias_2b = scalars(block)
    conv_1, conv_2 = block.branch[0].weight, block.branch[4].weight
    hidden = functional.conv2d(images + bias_1a, conv_1, None, stride, 1)
    hidden = functional.conv2d((hidden + bias_1b).relu() + bias_2a, conv_2, None, 1, 1)
    shortcut = images
    if (width, stride) != (4, 1):
        shortcut = functional.conv2d(images + bias_1a, block.projection.weight, None, stride)
    torch.testing.assert_close(block(images), (hidden * scale + bias_2b + shortcut).relu())
    assert (block.projection is None) is ((width, stride) == (4, 1))


@pytest.mark.parametrize(("width_in", "stride"), [(4, 1), (12, 1), (12, 2)])
def test_bottleneck_is_the_sources(width_in, stride):
    block = FixupBottleneck(width_in, 3, stride).double()
    randomise(block)
    images = torch.randn(2, width_in, 5, 7, dtype=torch.float64)
    first, bias_1b, bias_2a, bias_2b, bias_3a, scale, bias_3b = scalars(block)
    convs = [layer.weight for layer in block.branch if isinstance(layer, nn.Conv2d)]
    assert [tuple(w.shape) for w in convs] == [(3, width_in, 1, 1), (3, 3, 3, 3), (12, 3, 1, 1)]
    hidden = functional.conv2d(images + first, convs[0])
    hidden = functional.conv2d((hidden + bias_1b).relu() + bias_2a, convs[1], None, stride, 1)
    hidden = functional.conv2d((hidden + bias_2b).relu() + bias_3a, convs[2])
    shortcut = images
    if (width_in, stride) != (12, 1):
        shortcut = functional.conv2d(images + first, block.projection.weight, None, stride)
    torch.testing.assert_close(block(images), (hidden * scale + bias_3b + shortcut).relu())


@pytest.mark.parametrize(
    ("block", "factor"), [(FixupBasicBlock, 5**-0.5), (FixupBottleneck, 5**-0.25)]
)
def test_every_layer_starts_as_the_source_has_it(block, factor):
    net = FixupResNet((2, 3), block=block, widths=(48, 96), in_channels=40, n_classes=7)
    randomise(net)
    fixup_init_(net)
    seen = 0
    for module in net.modules():
        if isinstance(module, FixupBlock):
            layers = [layer for layer in module.branch if isinstance(layer, nn.Conv2d)]
            assert (layers.pop().weight == 0).all()
            expected = dict.fromkeys(layers, factor)
            if module.projection is not None:
                expected[module.projection] = 1.0
        elif module is net.stem:
            expected = {net.stem[0]: 1.0}
        else:
            continue
        for layer, scale in expected.items():
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            seen += 1
            # 4 standard errors of a standard deviation, and of a mean.
            std, n = scale * math.sqrt(2 / fan_out), layer.weight.numel()
            assert layer.weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))
            assert abs(layer.weight.mean().item()) < 4 * std / math.sqrt(n)
    assert seen == (7 if block is FixupBasicBlock else 13)
    assert (net.head.weight == 0).all() and (net.head.bias == 0).all()
    for module in net.modules():
        if isinstance(module, ScalarBias):
            assert module.bias.tolist() == [0.0]
        elif isinstance(module, ScalarScale):
            assert module.scale.tolist() == [1.0]
    # All classes are alike, and blocks that keep the shape are relu(x).
    images = torch.randn(3, 40, 8, 8)
    assert (net(images) == 0).all()
    hidden = net.stages[0][0](net.stem(images))
    assert torch.equal(net.stages[0][1](hidden), hidden.relu())


# Scalars: 5 per basic block, 7 per bottleneck, one each behind the stem and before the head.
@pytest.mark.parametrize(("depth", "n_convolutions"), [(8, 7), (20, 19), (110, 109)])
def test_depth(depth, n_convolutions):
    with torch.device("meta"):
        net = FixupResNet.for_small_images(depth, width=4, n_classes=3, in_channels=2)
    sizes = [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert sizes.count((3, 3)) == n_convolutions and sizes.count((1, 1)) == 2
    n_blocks = (depth - 2) // 2
    assert len(scalars(net)) == 5 * n_blocks + 2
    assert net.head.weight.shape == (3, 16)


def test_resnet_50_shape():
    with torch.device("meta"):
        net = FixupResNet(
            (3, 4, 6, 3),
            block=FixupBottleneck,
            widths=(64, 128, 256, 512),
            large_stem=True,
            n_classes=1000,
        )
        assert net(torch.empty(2, 3, 64, 96)).shape == (2, 1000)
        assert net.stem(torch.empty(2, 3, 224, 224)).shape == (2, 64, 56, 56)
    # torchvision's has 25,557,032, of them 53,120 in normalisation; ours 7 scalars per block and 2.
    assert sum(p.numel() for p in net.parameters()) == 25_557_032 - 53_120 + 7 * 16 + 2


def stripes(n: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of 8x8 pixels: rows, columns, a checkerboard or nothing; and which."""
    flip = (-1.0) ** torch.arange(8)
    rows, columns = flip.view(8, 1).expand(8, 8), flip.expand(8, 8)
    patterns = torch.stack([rows, columns, rows * columns, torch.ones(8, 8)])
    labels = torch.randint(4, (n,))
    images = patterns[labels] * torch.randn(n, 1, 1).sign() + 0.7 * torch.randn(n, 8, 8)
    return images.unsqueeze(1), labels


def losses_of(net: nn.Module, n_steps: int) -> Tensor:
    groups = fixup_param_groups(net, lr=0.03, weight_decay=5e-4, scalar_lr_ratio=0.1)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    losses = []
    for _ in range(n_steps):
        images, labels = stripes(32)
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_110_layers_without_normalisation_train_and_do_not_as_usually_initialised():
    net = FixupResNet.for_small_images(110, width=6, n_classes=4, in_channels=1)
    usual = copy.deepcopy(net)
    for module in usual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    losses = losses_of(net, 60)
    assert losses[0].item() == pytest.approx(math.log(4))
    assert losses.isfinite().all()
    # 0.60 to 0.70 log 4 for six seeds.
    assert losses[-8:].mean() < 0.8 * math.log(4)
    assert all((block.branch[4].weight != 0).any() for s in net.stages for block in s)
    losses = losses_of(usual, 4)
    assert losses[0] > 100 * math.log(4) and not losses[-1].isfinite()


def test_groups_find_scalars_by_the_type_of_their_owner():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Names that the authors' code would take for scalars, and one that it would miss.
            self.unbiased_upscale = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)
            self.net = FixupResNet((1,), widths=(3,), n_classes=1)
            self.gain = ScalarScale()
            self.frozen = ScalarBias().requires_grad_(False)

    model = Model()
    groups = fixup_param_groups(model, lr=0.4, weight_decay=0.03, scalar_lr_ratio=0.25)
    by_name = {group["name"]: group for group in groups}
    assert list(by_name) == ["decay", "no_decay", "fixup_scalars"]
    slow = by_name["fixup_scalars"]
    assert slow["lr"] == pytest.approx(0.1) and slow["weight_decay"] == 0
    assert {g["lr"] for g in groups[:2]} == {0.4}
    assert [g["weight_decay"] for g in groups] == [0.03, 0.0, 0.0]
    expected = {f"net.{name}" for name, p in model.net.named_parameters() if p.numel() == 1}
    expected = (expected - {"net.head.bias"}) | {"gain.scale"}
    assert set(slow["param_names"]) == expected and len(expected) == 8
    assert "unbiased_upscale.weight" in by_name["decay"]["param_names"]
    assert {"unbiased_upscale.bias", "norm.weight", "net.head.bias"} <= set(
        by_name["no_decay"]["param_names"]
    )
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = [
        (names[id(p)], name)
        for group in groups
        for p, name in zip(group["params"], group["param_names"], strict=True)
    ]
    assert all(one == other for one, other in pairs)
    assert len(pairs) == len(names) - 1


@pytest.mark.parametrize("lr", [0.4, torch.tensor(0.4)])
def test_groups_drive_optimizers_and_schedules(lr):
    net = FixupResNet((1,), widths=(4,))
    groups = fixup_param_groups(net, lr=lr, weight_decay=0.03, scalar_lr_ratio=0.25)
    optimizer = optim.AdamW(groups)
    scheduler = ScheduledLR(optimizer, Cosine(8))
    for _ in range(4):
        net(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    assert rates == pytest.approx([0.2, 0.2, 0.05])


def test_init_of_other_models():
    class Residual(FixupBlock):
        """A branch with its layers one level deeper, and one that is linear."""

        def __init__(self) -> None:
            super().__init__([nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1)])
            self.branch = nn.Sequential(nn.Sequential(nn.Linear(64, 64), nn.Conv1d(64, 64, 1)))
            self.branch.append(nn.Linear(64, 64))

    model = nn.Sequential(nn.ModuleDict({"any": Residual()}), nn.Linear(64, 64), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="to be the classifier, found 2; pass classifier="):
        fixup_init_(model)
    fixup_init_(model, classifier=model[2])
    branch = model[0]["any"].branch
    std = math.sqrt(2 / 64)
    assert branch[0][0].weight.std().item() == pytest.approx(std, rel=0.1)
    assert (branch[1].weight == 0).all() and (branch[0][0].bias == 0).all()
    assert model[1].weight.std().item() == pytest.approx(std, rel=0.1)
    assert (model[2].weight == 0).all()


def test_init_from_a_generator_and_in_other_dtypes():
    net = FixupResNet((2,), widths=(6,))
    generator = torch.Generator()
    fixup_init_(net, generator=generator.manual_seed(3))
    first = copy.deepcopy(net.state_dict())
    fixup_init_(net)
    assert not torch.equal(net.stem[0].weight, first["stem.0.weight"])
    torch.manual_seed(4)
    fixup_init_(net, generator=generator.manual_seed(3))
    torch.testing.assert_close(net.state_dict(), first, rtol=0, atol=0)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        fixup_init_(net.to(dtype), generator=generator.manual_seed(3))
        assert net.stem[0].weight.dtype == dtype
        rounding = torch.finfo(dtype).eps
        if dtype != torch.float64:  # drawn in float64 there, hence other numbers
            torch.testing.assert_close(
                net.stem[0].weight.float(), first["stem.0.weight"], rtol=rounding, atol=rounding
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_scalars_keep_the_features_dtype(dtype):
    for layer in (ScalarBias(), ScalarScale()):
        features = torch.randn(3, 2, dtype=dtype, requires_grad=True)
        result = layer(features)
        result.sum().backward()
        parameter = next(layer.parameters())
        assert result.dtype == dtype and parameter.grad.dtype == torch.float32
        expected = 6.0 if isinstance(layer, ScalarBias) else features.sum().item()
        assert parameter.grad.item() == pytest.approx(expected, rel=0.01, abs=0.02)


@pytest.mark.parametrize("block", [FixupBasicBlock, FixupBottleneck])
def test_compiled_in_channels_last_and_under_autocast(block):
    torch._dynamo.reset()
    net = FixupResNet((1, 1), block=block, widths=(4, 8), in_channels=2)
    randomise(net)
    images = torch.randn(3, 2, 7, 5)
    expected = net(images)
    net = net.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4)
    assert net.stages[0](net.stem(images)).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert net.stages[1](net.stages[0](net.stem(images))).dtype == torch.bfloat16
        net(images).float().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 1, 1), (2, 3, 7, 11)])
def test_shapes(shape):
    net = FixupResNet((1, 1), widths=(4, 6))
    net(torch.randn(shape)).sum().backward()
    large = FixupResNet((1, 1), widths=(4, 6), large_stem=True)
    assert large(torch.randn(shape)).shape == (shape[0], 10)


def test_copies():
    net = FixupResNet((1, 1), widths=(4, 6))
    randomise(net)
    images = torch.randn(2, 3, 8, 8)
    expected = net(images)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(images), expected)
    other = FixupResNet((1, 1), widths=(4, 6))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images), expected)


def test_errors():
    net = FixupResNet((1,), widths=(4,))
    with pytest.raises(ValueError, match=r"widths and blocks of one length, got \(4, 8\) and \(1,"):
        FixupResNet((1,), widths=(4, 8))
    with pytest.raises(ValueError, match="expected widths of at least one stage, got none"):
        FixupResNet((), widths=())
    with pytest.raises(ValueError, match="for_small_images: expected depth of at least 8, got 2"):
        FixupResNet.for_small_images(2)
    for depth in (18, 111):
        with pytest.raises(ValueError, match=f"a depth of 6n \\+ 2, n >= 1, got {depth}"):
            FixupResNet.for_small_images(depth)
    with pytest.raises(ValueError, match="FixupBlock: expected at least 2 convolutions, got 1"):
        FixupBlock([nn.Conv2d(3, 3, 1)])
    with pytest.raises(ValueError, match="expected n_layers of at least 2, got 1"):
        fixup_scale(3, 1)
    with pytest.raises(ValueError, match="expected n_branches of at least 1, got 0"):
        fixup_scale(0, 2)
    with pytest.raises(ValueError, match="a model of FixupBlocks, found none in Linear"):
        fixup_init_(nn.Linear(2, 2))
    net.head.weight.data.fill_(2.0)
    with pytest.raises(ValueError, match="expected classifier to be a layer of the model, got Lin"):
        fixup_init_(net, classifier=nn.Linear(2, 2))
    assert (net.head.weight == 2).all()
    with pytest.raises(ValueError, match=r"scalar_lr_ratio .* at least 0, got -1"):
        fixup_param_groups(net, lr=0.1, weight_decay=0.1, scalar_lr_ratio=-1)
    with pytest.raises(ValueError, match=r"lr .* at least 0, got -2"):
        fixup_param_groups(net, lr=-2, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"found none in Linear; use fusedtricks.optim.param_g"):
        fixup_param_groups(nn.Linear(2, 2), lr=0.1, weight_decay=0.1)
    frozen = nn.Sequential(nn.Linear(2, 2), ScalarBias().requires_grad_(False))
    with pytest.raises(ValueError, match="modules to train, found none in Sequential"):
        fixup_param_groups(frozen, lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("change", ["spectral", "pruned", "pruned bias", "lazy"])
def test_layers_that_cannot_be_written_are_refused_and_nothing_changes(change):
    model = FixupResNet((1, 1), widths=(4, 6))
    randomise(model)
    layer = model.stages[1][0].branch[4]
    name = r"stages\.1\.0\.branch\.4"
    text = f"the weight of {name} to be a parameter, .*; call fixup_init_ before parametrizing"
    if change == "spectral":
        nn.utils.parametrizations.spectral_norm(layer)
    elif change == "pruned":
        prune.l1_unstructured(layer, "weight", amount=0.5)
    elif change == "pruned bias":
        prune.l1_unstructured(model.head, "bias", amount=0.5)
        text = "the bias of head to be a parameter, it is computed from others; call fixup_init_"
    else:
        model.extra = nn.LazyConv2d(4, 3)
        text = "fixup_init_: extra has no shape yet; run the model once before"
    before = {n: v.clone() for n, v in model.state_dict().items() if not nn.parameter.is_lazy(v)}
    with pytest.raises(ValueError, match=text):
        fixup_init_(model)
    after = model.state_dict()
    assert all(torch.equal(after[n], value) for n, value in before.items())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"blocks": (1, -2)}, ValueError, "blocks of at least 1, got -2"),
        ({"blocks": (0, 1)}, ValueError, "blocks of at least 1, got 0"),
        ({"widths": (8, 0)}, ValueError, "widths of at least 1, got 0"),
        ({"n_classes": 0}, ValueError, "n_classes of at least 1, got 0"),
        ({"in_channels": 0}, ValueError, "in_channels of at least 1, got 0"),
        ({"blocks": 3}, TypeError, "blocks to be whole numbers, got 3"),
        ({"widths": (8, 2.5)}, TypeError, "widths to be a whole number, got 2.5"),
        ({"n_classes": True}, TypeError, "n_classes to be a whole number, got True"),
        ({"large_stem": "no"}, TypeError, "large_stem to be True or False, got 'no'"),
    ],
)
def test_bad_options_of_the_net_are_refused(options, error, text):
    with pytest.raises(error, match=f"FixupResNet: expected {text}"):
        FixupResNet(**{"blocks": (1, 1), "widths": (8, 16)} | options)


@pytest.mark.parametrize("value", ["a", True, None])
def test_what_is_no_number_is_refused_as_one(value):
    net = FixupResNet((1,), widths=(4,))
    for name in ("lr", "weight_decay", "scalar_lr_ratio"):
        with pytest.raises(TypeError, match=f"fixup_param_groups: expected {name} to be a number"):
            fixup_param_groups(net, **{"lr": 0.1, "weight_decay": 0.1} | {name: value})
    for arguments in ((value, 2), (3, value), (math.nan, 2), (3, 2.5)):
        with pytest.raises(
            TypeError, match=r"fixup_scale: expected n_.* to be a whole number, got"
        ):
            fixup_scale(*arguments)
    for options in ({"depth": value}, {"depth": 8.0}, {"depth": 8, "width": value}):
        with pytest.raises(TypeError, match=r"for_small_images: .* to be a whole number, got"):
            FixupResNet.for_small_images(**options)


def test_numbers_of_numpy_count_as_numbers():
    net = FixupResNet.for_small_images(np.int64(8), width=np.int32(4), n_classes=np.int64(3))
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert fixup_scale(np.int64(4), np.int32(2)) == 0.5
    groups = fixup_param_groups(
        net, lr=np.float32(0.5), weight_decay=np.float64(0.1), scalar_lr_ratio=np.float32(0.25)
    )
    assert [group["lr"] for group in groups] == [0.5, 0.5, 0.125]


def test_only_modules_are_initialised():
    with pytest.raises(TypeError, match="fixup_init_: expected model to be a Module, got list"):
        fixup_init_([FixupResNet((1,), widths=(4,))])
    with pytest.raises(TypeError, match="expected model to be a Module, got list"):
        fixup_param_groups([ScalarBias()], lr=0.1, weight_decay=0.1)
