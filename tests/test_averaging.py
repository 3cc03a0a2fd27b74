"""ModelEMA: the averages."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fusedtricks.nn.averaging import ModelEMA
from tests.averages import (
    assert_same,
    averages_of,
    norm_model,
    scalar_model,
    set_weight,
    tensors,
    train_step,
)
from tests.devices import DEVICE


def test_averages_computed_by_hand():
    assert averages_of([8, 4, 0, 16], decay=0.75) == [8, 7, 5.25, 7.9375]


def test_averages_with_warmup_computed_by_hand():
    # d = 2/11, 3/12, 4/13 for n = 1, 2, 3.
    expected = [8, Fraction(52, 11), Fraction(13, 11), Fraction(1636, 143)]
    found = averages_of([8, 4, 0, 16], decay=0.75, warmup=True)
    assert found == pytest.approx([float(each) for each in expected], rel=1e-15)


def test_warmup_ends_where_it_reaches_the_decay():
    # d = 2/11, then 0.2 and not 3/12, 4/13.
    expected = [8, 52 / 11, 0.2 * 52 / 11, 0.04 * 52 / 11 + 12.8]
    found = averages_of([8, 4, 0, 16], decay=0.2, warmup=True)
    assert found == pytest.approx(expected, rel=1e-15)


def test_after_the_half_life_the_first_weights_count_half():
    found = averages_of([1] + 14 * [0], half_life=7)
    assert found[7] == pytest.approx(0.5, rel=1e-12)
    assert found[14] == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_average_is_the_weighted_sum_of_all_weights(dtype):
    model = nn.Linear(3, 5, dtype=dtype)
    ema = ModelEMA(model, decay=0.8)
    history = []
    for _ in range(6):
        for parameter in model.parameters():
            nn.init.normal_(parameter) if not dtype.is_complex else parameter.data.normal_()
        history.append(copy.deepcopy(model))
        ema.update_parameters(model)
    shares = [0.8**5] + [0.2 * 0.8 ** (5 - i) for i in range(1, 6)]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for name, average in ema.module.named_parameters():
        values = [dict(each.named_parameters())[name].to(wide) for each in history]
        expected = sum(share * value for share, value in zip(shares, values, strict=True))
        torch.testing.assert_close(average, expected.to(dtype))


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_equals_torchs_averaged_model_bit_for_bit(buffers):
    model = norm_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ema = ModelEMA(model, decay=0.7, buffers=buffers)
    of_torch = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=buffers == "average"
    )
    for _ in range(5):
        train_step(model, optimizer)
        ema.update_parameters(model)
        of_torch.update_parameters(model)
    expected = of_torch.state_dict()
    # torch truncates the average of integers.
    expected["module.1.num_batches_tracked"] = model[1].num_batches_tracked
    expected["n_averaged"] = expected["n_averaged"].cpu()
    assert_same(ema.state_dict(), expected)
    is_copied = torch.equal(ema.module[1].running_mean, model[1].running_mean)
    assert is_copied == (buffers == "copy")


def test_nothing_is_averaged_before_the_first_update():
    model = scalar_model()
    set_weight(model, 3)
    ema = ModelEMA(model, decay=0.75)
    set_weight(model, 5)
    assert ema.module.weight.item() == 3
    ema.update_parameters(model)
    assert ema.module.weight.item() == 5


# Tensors. -----------------------------------------------------------------------------------------


def test_wrappers_are_left_out():
    model = norm_model()
    compiled = torch.compile(nn.DataParallel(torch.compile(model)))
    ema = ModelEMA(compiled, decay=0.75)
    assert type(ema.module) is nn.Sequential
    reference = ModelEMA(model, decay=0.75)
    for wrapped in (compiled, model, compiled):
        set_weight(model[0], torch.rand(()).item())
        ema.update_parameters(wrapped)
        reference.update_parameters(model)
    assert_same(ema.state_dict(), reference.state_dict())
    with ema.applied_to(compiled):
        assert_same(tensors(model), tensors(ema.module))


def test_the_copy_is_in_evaluation_mode_and_has_no_gradients():
    model = norm_model()
    ema = ModelEMA(model, decay=0.75)
    assert not ema.training and not ema.module[1].training
    assert not ema(torch.ones(2, 3)).requires_grad
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_averages_can_be_on_a_device_of_their_own():
    model = norm_model()
    ema = ModelEMA(model, decay=0.75, device="cpu")
    for _ in range(2):
        ema.update_parameters(model)
    assert all(tensor.device.type == "cpu" for tensor in tensors(ema).values())
    assert ema.to("meta").n_averaged.item() == 2


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device, which can be waited for")
def test_an_update_does_not_wait_for_the_device():
    model = norm_model().bfloat16()
    ema = ModelEMA(model, decay=0.75, warmup=True).to(DEVICE)
    ema.load_state_dict(ema.state_dict())
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            ema.update_parameters(model)
        with ema.applied_to(model):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


# State. -------------------------------------------------------------------------------------------


def interrupted(ema, way):
    if way == "state_dict":
        fresh = ModelEMA(norm_model(), decay=0.7, warmup=True)
        fresh.load_state_dict(ema.state_dict())
        return fresh
    return copy.deepcopy(ema) if way == "deepcopy" else pickle.loads(pickle.dumps(ema))


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_goes_on_exactly_after_an_interruption(way):
    model = norm_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ema = ModelEMA(model, decay=0.7, warmup=True)
    for step in range(6):
        train_step(model, optimizer)
        ema.update_parameters(model)
        if step == 2:
            resumed = interrupted(ema, way)
        elif step > 2:
            resumed.update_parameters(model)
    assert_same(resumed.state_dict(), ema.state_dict())
    assert resumed.n_averaged.item() == 6


def test_the_state_is_that_of_torchs_averaged_model():
    model = norm_model()
    ema, of_torch = ModelEMA(model, decay=0.7), AveragedModel(model)
    ema.update_parameters(model)
    of_torch.load_state_dict(ema.state_dict())
    fresh = ModelEMA(norm_model(), decay=0.7)
    fresh.load_state_dict(of_torch.state_dict())
    assert_same(fresh.state_dict(), ema.state_dict())


# Errors. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, ValueError, "expected either decay or half_life, got decay=None and half_life=None"),
        ({"decay": 0.5, "half_life": 3}, ValueError, "got decay=0.5 and half_life=3"),
        ({"decay": 1}, ValueError, r"expected decay in \[0, 1\), got 1"),
        ({"decay": -0.1}, ValueError, r"expected decay in \[0, 1\), got -0.1"),
        ({"decay": float("nan")}, ValueError, "expected decay to be finite, got nan"),
        ({"decay": "0.9"}, TypeError, "expected decay to be a number, got '0.9'"),
        ({"half_life": 0}, ValueError, "half_life to be a finite number above 0, got 0"),
        ({"decay": True}, TypeError, "expected decay to be a number, got True"),
        ({"decay": 0.5, "warmup": "no"}, TypeError, "warmup to be True or False, got 'no'"),
        ({"half_life": "5ep"}, TypeError, "expected half_life to be a number, got '5ep'"),
        ({"decay": 0.5, "buffers": "mean"}, ValueError, "buffers to be one of .*, got 'mean'"),
    ],
)
def test_bad_options_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        ModelEMA(scalar_model(), **options)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(TypeError, match="expected model to be a Module, got dict"):
        ModelEMA({}, decay=0.5)
    model = scalar_model()
    ema = ModelEMA(model, decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for use in (
        lambda: ema.update_parameters(model.state_dict()),
        lambda: ema.applied_to(model.state_dict()).__enter__(),
        lambda: ema.follow(optimizer, model.state_dict()),
    ):
        with pytest.raises(TypeError, match="ModelEMA: expected model to be a Module, got Ordered"):
            use()


def test_numbers_of_numpy_are_taken():
    assert averages_of([8, 4, 0, 16], decay=np.float32(0.75)) == [8, 7, 5.25, 7.9375]
    assert averages_of([8, 4], half_life=np.int64(1)) == [8, 6]


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (nn.Linear(3, 5, bias=False), "'bias' is in the first one and not in the other"),
        (nn.BatchNorm1d(5), "'running_mean' is in the other one and not in the first"),
        (nn.Linear(1, 5), r"'weight' has shape \[5, 3\] in the first one and \[5, 1\] in the oth"),
    ],
)
def test_another_model_is_refused_and_nothing_changes(other, text):
    model = nn.Linear(3, 5)
    ema = ModelEMA(model, decay=0.75)
    before = copy.deepcopy(ema.state_dict())
    for use in (ema.update_parameters, lambda model: ema.applied_to(model).__enter__()):
        with pytest.raises(ValueError, match=text):
            use(other)
    assert_same(ema.state_dict(), before)
