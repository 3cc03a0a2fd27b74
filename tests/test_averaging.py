"""ModelEMA: the averages, and which tensors are averaged."""

import copy
import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fusedtricks.nn.averaging import ModelEMA
from tests.devices import DEVICE
from tests.small_models import TinyTransformer


def scalar_model(dtype=torch.float32):
    return nn.Linear(1, 1, bias=False, dtype=dtype)


def set_weight(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def averages_of(values, **options):
    model = scalar_model(torch.float64)
    ema = ModelEMA(model, **options)
    found = []
    for value in values:
        set_weight(model, value)
        ema.update_parameters(model)
        found.append(ema.module.weight.item())
    return found


def norm_model():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def train_step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(7, 3)).square().sum().backward()
    optimizer.step()


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# Values. ------------------------------------------------------------------------------------------


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
        ({"half_life": 0}, ValueError, "expected half_life above 0, got 0"),
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
