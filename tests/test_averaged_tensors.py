"""ModelEMA: which tensors are averaged, and how."""

import copy

import pytest
import torch
from torch import nn

from fusedtricks.nn.averaging import ModelEMA
from tests.averages import (
    assert_same,
    norm_model,
    scalar_model,
    set_weight,
    tensors,
)
from tests.devices import DEVICE
from tests.small_models import TinyTransformer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_averages_move_although_steps_are_below_their_spacing(dtype):
    model = scalar_model(dtype)
    model.register_buffer("mean", torch.ones(1, dtype=dtype))
    set_weight(model, 1)
    ema = ModelEMA(model, decay=0.9995)
    ema.update_parameters(model)
    set_weight(model, 2)
    model.mean.fill_(2)
    for _ in range(500):
        ema.update_parameters(model)
    assert ema.module.weight.dtype == ema.module.mean.dtype == torch.float32
    assert ema.module.weight.item() == pytest.approx(2 - 0.9995**500, rel=1e-4)
    assert ema.module.mean.item() == pytest.approx(2 - 0.9995**500, rel=1e-4)
    with ema.applied_to(model):
        assert model.weight.dtype == dtype
        assert model.weight.item() == torch.tensor(2 - 0.9995**500, dtype=dtype).item()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert ema(torch.ones(3, 1)).dtype == torch.bfloat16


def test_masks_and_integers_are_copied():
    model = scalar_model()
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    model.register_buffer("count", torch.tensor(5))
    model.register_buffer("flags", torch.tensor([True, False]))
    model.register_buffer("nothing", None)
    model.index = nn.Parameter(torch.tensor([3]), requires_grad=False)
    ema = ModelEMA(model, decay=0.9)
    for count in range(6, 9):
        model.count.fill_(count)
        model.flags.logical_not_()
        model.index.data.add_(1)
        model.mask[2, 0] = count
        ema.update_parameters(model)
    assert_same(tensors(ema.module), {**tensors(model), "weight": model.weight})


def test_frozen_parameters_are_copied_until_they_are_released():
    model = scalar_model()
    model.mask = nn.Parameter(torch.tensor([0.5, -torch.inf]), requires_grad=False)
    ema = ModelEMA(model, decay=0.75)
    for _ in range(3):
        ema.update_parameters(model)
        assert torch.equal(ema.module.mask, model.mask)
    model.mask.data.copy_(torch.tensor([4.0, 8.0]))
    ema.update_parameters(model)
    model.mask.data.zero_()
    model.mask.requires_grad_(True)
    ema.update_parameters(model)
    assert ema.module.mask.tolist() == [3, 6]


def test_parameters_that_are_frozen_later_and_copies_without_gradients_are_averaged():
    model = scalar_model()
    set_weight(model, 8)
    ema = ModelEMA(model, decay=0.75)
    ema.update_parameters(model)
    frozen = copy.deepcopy(model).requires_grad_(False)
    set_weight(frozen, 4)
    ema.update_parameters(frozen)
    assert ema.module.weight.item() == 7


def test_a_buffer_that_is_infinite_for_a_while_is_averaged_again():
    model = scalar_model()
    model.register_buffer("shift", torch.tensor([4.0, 2.0]))
    ema = ModelEMA(model, decay=0.75)
    found = []
    for value in (4.0, -torch.inf, -torch.inf, 8.0, 16.0):
        model.shift[0] = value
        ema.update_parameters(model)
        found.append(ema.module.shift.tolist())
    assert found == [[4, 2], [-torch.inf, 2], [-torch.inf, 2], [8, 2], [10, 2]]


def test_weights_that_are_nan_are_not_hidden():
    model = scalar_model()
    model.append = nn.BatchNorm1d(1)
    ema = ModelEMA(model, decay=0.75)
    ema.update_parameters(model)
    for tensor in (model.weight.data, model.append.running_mean):
        tensor.fill_(torch.nan)
        ema.update_parameters(model)
        tensor.fill_(1)
        ema.update_parameters(model)
    assert ema.module.weight.isnan().all() and ema.module.append.running_mean.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_shared_buffer_is_averaged_once_and_may_be_shared_no_more(dtype):
    model = nn.Sequential(scalar_model(dtype), scalar_model(dtype))
    rope = torch.tensor([8.0], dtype=dtype)
    model[0].register_buffer("rope", rope)
    model[1].register_buffer("rope", rope)
    ema = ModelEMA(model, decay=0.75)
    ema.update_parameters(model)
    rope.zero_()
    ema.update_parameters(model)
    assert [layer.rope.item() for layer in ema.module] == [6, 6]
    # Buffers are separate after this.
    ema.update_parameters(model.double())
    assert [layer.rope.item() for layer in ema.module] == [4.5, 4.5]
    with ema.applied_to(model):
        assert [layer.rope.item() for layer in model] == [4.5, 4.5]
    assert [layer.rope.item() for layer in model] == [0, 0]


@pytest.mark.parametrize("is_compiled_first", [True, False])
def test_compiled_submodules_have_the_names_of_plain_ones(is_compiled_first):
    model = norm_model()
    plain = nn.Sequential(*model)
    model[0] = torch.compile(model[0])
    first, second = (model, plain) if is_compiled_first else (plain, model)
    ema = ModelEMA(first, decay=0.75)
    reference = ModelEMA(plain, decay=0.75)
    for each in (first, second):
        set_weight(plain[0], torch.rand(()).item())
        ema.update_parameters(each)
        reference.update_parameters(plain)
    with ema.applied_to(second), reference.applied_to(copy.deepcopy(plain)) as expected:
        assert_same(tensors(plain), tensors(expected))


def test_a_constant_buffer_stays_exactly_what_it_is():
    model = scalar_model()
    model.register_buffer("scale", torch.tensor([0.1, 1 / 3, 7e-9]))
    ema = ModelEMA(model, decay=0.97)
    for _ in range(50):
        ema.update_parameters(model)
    assert torch.equal(ema.module.scale, model.scale)


def test_a_shared_parameter_is_averaged_once():
    model = TinyTransformer()
    ema = ModelEMA(model, decay=0.75)
    ema.update_parameters(model)
    first = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight.zero_()
    ema.update_parameters(model)
    assert ema.module.head.weight is ema.module.tokens.weight
    torch.testing.assert_close(ema.module.head.weight, 0.75 * first)


def test_strides_are_kept_and_may_differ():
    model = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    ema = ModelEMA(model, decay=0.75)
    ema.update_parameters(model)
    first = model.weight.detach().clone()
    other = nn.Conv2d(3, 5, 3)
    ema.update_parameters(other)
    assert ema.module.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ema.module.weight, 0.75 * first + 0.25 * other.weight)
