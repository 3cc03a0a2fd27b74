"""The anti-aliased pooling layers."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fusedtricks.nn.blur_pool import BlurPool, ConvBlurPool, MaxBlurPool


def blurred(features, filt_size, stride):
    """Return the paper's formula in float64, one tap of the filter after the other."""
    values = features.detach().cpu().double().numpy()
    row = [math.comb(filt_size - 1, k) / 2 ** (filt_size - 1) for k in range(filt_size)]
    pads = (math.floor((filt_size - 1) / 2), math.ceil((filt_size - 1) / 2))
    padded = np.pad(values, [(0, 0), (0, 0), pads, pads], mode="reflect")
    result = np.zeros_like(values)
    height, width = values.shape[-2:]
    for i, at_row in enumerate(row):
        for j, at_column in enumerate(row):
            result += at_row * at_column * padded[:, :, i : i + height, j : j + width]
    return torch.from_numpy(result[:, :, ::stride, ::stride]).to(features.device)


# The filter. --------------------------------------------------------------------------------------


def test_an_impulse_gives_the_filter():
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    response = BlurPool(1, filt_size=4, stride=1)(impulse)
    # By hand: (1, 3, 3, 1) / 8 in both directions, from two pixels before to one after.
    expected = torch.zeros(9, 9)
    expected[2:6, 2:6] = torch.tensor(
        [[1.0, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]],
    )
    assert response[0, 0].equal(expected / 64)


@pytest.mark.parametrize(
    ("filt_size", "row"),
    [
        (1, [1.0]),
        (2, [1 / 2, 1 / 2]),
        (3, [1 / 4, 2 / 4, 1 / 4]),
        (5, [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]),
        (7, [1 / 64, 6 / 64, 15 / 64, 20 / 64, 15 / 64, 6 / 64, 1 / 64]),
    ],
)
def test_filters_are_binomial(filt_size, row):
    row = torch.tensor(row)
    blur = BlurPool(3, filt_size=filt_size, stride=2)
    assert blur.filter.equal((row[:, None] * row).expand(3, 1, filt_size, filt_size))


def test_the_lectures_call():
    assert BlurPool(10, filt_size=4, stride=2)(torch.zeros(1, 10, 128, 128)).shape == (
        1,
        10,
        64,
        64,
    )


@pytest.mark.parametrize("filt_size", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_any_size_is_the_papers_formula(filt_size, stride):
    blur = BlurPool(2, filt_size=filt_size, stride=stride).double()
    for height, width in [(128, 31), (7, 8), (5, 4)]:
        features = torch.randn(3, 2, height, width, dtype=torch.float64)
        result = blur(features)
        assert result.shape == (3, 2, math.ceil(height / stride), math.ceil(width / stride))
        torch.testing.assert_close(result, blurred(features, filt_size, stride))


@pytest.mark.parametrize("filt_size", [2, 3, 4, 7])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 1), (2, 2), (2, 3), (3, 2)])
def test_sides_too_short_for_torchs_reflection(filt_size, size):
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    blur = BlurPool(3, filt_size=filt_size, stride=2).double()
    torch.testing.assert_close(blur(features), blurred(features, filt_size, 2))
    torch.testing.assert_close(blur(features[0]), blur(features)[0])
    torch.autograd.gradcheck(blur, features)


@pytest.mark.parametrize("filt_size", [2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_constant_image_stays_constant(filt_size, dtype):
    blur = BlurPool(5, filt_size=filt_size, stride=2).to(dtype)
    for size in [(13, 10), (2, 1)]:
        features = torch.full((2, 5, *size), 0.75, dtype=dtype)
        result = blur(features)
        assert result.dtype == dtype
        assert (result == 0.75).all()


def test_two_pixels_are_averaged():
    features = torch.randn(2, 3, 10, 6)
    result = BlurPool(3, filt_size=2, stride=2)(features)
    torch.testing.assert_close(result, nn.functional.avg_pool2d(features, 2))


@pytest.mark.parametrize("filt_size", [3, 5, 7])
def test_odd_filters_are_those_of_timm(filt_size):
    layers = pytest.importorskip("timm.layers")
    features = torch.randn(2, 6, 23, 16)
    expected = layers.BlurPool2d(6, filt_size=filt_size, stride=2)(features)
    torch.testing.assert_close(BlurPool(6, filt_size=filt_size, stride=2)(features), expected)


def test_gradients():
    features = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(BlurPool(3, filt_size=4, stride=2).double(), features)


# Pooling and convolution. -------------------------------------------------------------------------


def test_max_pooling_of_the_papers_signal():
    # Figure 4 of the paper, the signal in both rows: shifted by one pixel, max pooling gives 0 1 0
    # 1 or 1 1 1 1, the blurred one 1/2 1 1/2 1 or 3/4 everywhere. The middle is free of borders.
    signal = torch.tensor([0.0, 0, 1, 1]).repeat(6).expand(1, 1, 24, 24)
    shifted = signal.roll(-1, dims=3)
    plain = nn.MaxPool2d(2)
    assert plain(signal)[0, 0, 5, 4:8].tolist() == [0, 1, 0, 1]
    assert plain(shifted)[0, 0, 5, 4:8].tolist() == [1, 1, 1, 1]
    pool = MaxBlurPool(1, 2, stride=2, filt_size=3)
    assert pool(signal)[0, 0, 5, 4:8].tolist() == [0.5, 1, 0.5, 1]
    assert pool(shifted)[0, 0, 5, 4:8].tolist() == [0.75, 0.75, 0.75, 0.75]


@pytest.mark.parametrize(("kernel_size", "padding"), [(2, 0), (3, 1), (5, 1)])
@pytest.mark.parametrize("stride", [2, 3])
def test_max_pooling_without_a_blur_is_torchs(kernel_size, padding, stride):
    pool = MaxBlurPool(4, kernel_size, stride=stride, padding=padding, filt_size=1)
    expected = nn.MaxPool2d(kernel_size, stride, padding)
    for size in [(17, 12), (9, 10)]:
        features = torch.randn(3, 4, *size) - 5
        assert pool(features).equal(expected(features))
        assert MaxBlurPool(4, kernel_size, stride=stride, padding=padding, filt_size=6)(
            features
        ).shape == (pool(features).shape)


def test_max_pooling_blurs_the_maxima():
    features = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    dense = nn.functional.max_pool2d(features, 3, stride=1, padding=1)
    pool = MaxBlurPool(3, 3, stride=2, padding=1, filt_size=5).double()
    torch.testing.assert_close(pool(features), blurred(dense, 5, 2))


@pytest.mark.parametrize(("kernel_size", "bias"), [(1, True), (3, False), (5, True)])
def test_convolution_without_a_blur_is_a_strided_one(kernel_size, bias):
    layer = ConvBlurPool(
        3, 6, kernel_size, stride=3, filt_size=1, bias=bias, activation=nn.Sigmoid
    ).double()
    expected = nn.Conv2d(3, 6, kernel_size, 3, padding=kernel_size // 2, bias=bias).double()
    expected.load_state_dict(layer.conv.state_dict())
    for size in [(17, 12), (9, 10)]:
        features = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(layer(features), expected(features).sigmoid())


def test_convolution_blurs_after_norm_and_activation():
    layer = ConvBlurPool(2, 5, 3, stride=2, filt_size=4, bias=False, norm=nn.BatchNorm2d)
    layer = layer.double()
    assert layer.conv.bias is None
    features = torch.randn(3, 2, 9, 8, dtype=torch.float64)
    dense = nn.functional.conv2d(features, layer.conv.weight, padding=1)
    mean, variance = dense.mean((0, 2, 3), True), dense.var((0, 2, 3), False, True)
    dense = ((dense - mean) / (variance + 1e-5).sqrt()).relu()
    torch.testing.assert_close(layer(features), blurred(dense, 4, 2))


# As a module. -------------------------------------------------------------------------------------


def test_the_filter_is_in_no_state_dict_and_survives_the_meta_device():
    with torch.device("meta"):
        blur = BlurPool(3, filt_size=5, stride=2)
    assert blur.state_dict() == {}
    blur = blur.to_empty(device="cpu")
    blur.filter.fill_(math.nan)
    blur.reset_parameters()
    assert blur.filter.equal(BlurPool(3, filt_size=5, stride=2).filter.cpu())


def test_copies():
    blur = BlurPool(3, filt_size=5, stride=3)
    features = torch.randn(2, 3, 7, 7)
    for twin in (copy.deepcopy(blur), pickle.loads(pickle.dumps(blur))):
        assert twin(features).equal(blur(features))
    assert repr(blur) == "BlurPool(3, filt_size=5, stride=3)"


def test_autocast_and_channels_last():
    layer = ConvBlurPool(3, 8, 3, stride=2, filt_size=4)
    features = torch.randn(2, 3, 11, 8)
    expected = layer(features)
    last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(last), expected)
    with torch.autocast(features.device.type, dtype=torch.bfloat16):
        result = layer(features)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [(11, 8), (2, 2)])
def test_compiles_as_one_graph(size):
    layer = MaxBlurPool(3, 2, stride=2, padding=1, filt_size=4)
    features = torch.randn(2, 3, *size)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), layer(features))


def test_an_empty_batch():
    assert BlurPool(3, filt_size=3, stride=2)(torch.zeros(0, 3, 7, 5)).shape == (0, 3, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"channels": 0}, "BlurPool: expected channels of at least 1, got 0"),
        ({"filt_size": 0}, "BlurPool: expected filt_size of at least 1, got 0"),
        ({"stride": -2}, "BlurPool: expected stride of at least 1, got -2"),
    ],
)
def test_errors(arguments, text):
    with pytest.raises(ValueError, match=text):
        BlurPool(**{"channels": 3, "filt_size": 3, "stride": 3} | arguments)


@pytest.mark.parametrize("name", ["channels", "filt_size", "stride"])
@pytest.mark.parametrize("value", [1.5, float("nan"), "a", True])
def test_what_is_no_whole_number_is_refused(name, value):
    with pytest.raises(TypeError, match=f"BlurPool: expected {name} to be a whole number, got"):
        BlurPool(**{"channels": 3, "filt_size": 3, "stride": 3} | {name: value})


def test_whole_numbers_of_numpy_count_as_such():
    layer = BlurPool(np.int64(3), filt_size=np.int32(4), stride=np.int64(2))
    images = torch.rand(2, 3, 8, 9)
    assert torch.equal(layer(images), BlurPool(3, filt_size=4, stride=2)(images))
    assert layer.extra_repr() == "3, filt_size=4, stride=2"


def test_bias_is_true_or_false():
    with pytest.raises(TypeError, match="ConvBlurPool: expected bias to be True or False, got 'no"):
        ConvBlurPool(3, 4, bias="no")


def test_features_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\), got \[3\]"):
        BlurPool(3, filt_size=3, stride=2)(torch.rand(3))
