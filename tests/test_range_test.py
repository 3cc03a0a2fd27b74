"""The learning-rate range test: ramp, losses, repetitions, and when it stops."""

import itertools
import math
import statistics

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fusedtricks import optim
from fusedtricks.amp import GradScaler
from fusedtricks.lr_scheduler.range_test import lr_range_test
from tests.scripted_losses import Line, given_loss, run

LRS = [0.001, 0.01, 0.1, 1.0, 10.0]


# The ramp. ----------------------------------------------------------------------------------------


def lrs_of_steps(groups, optimizer_cls=torch.optim.SGD, **options):
    """Return the learning rates of all groups in every step, and the optimizer."""
    model = Line()
    params = [model.weight], [model.bias]
    groups = [{"params": p, **group} for p, group in zip(params, groups, strict=True)]
    optimizer = optimizer_cls(groups, **options)
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([float(group["lr"]) for group in optimizer.param_groups])
    )
    result = lr_range_test(
        model,
        optimizer,
        None,
        [torch.ones((), dtype=torch.float64)],
        batch_loss=given_loss,
        start_lr=0.001,
        end_lr=10.0,
        n_updates=5,
        progress=False,
    )
    assert result.lrs == pytest.approx(LRS, rel=1e-12)
    return seen, optimizer, result


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_group_is_ramped_and_the_others_keep_their_ratio(order):
    lrs = [0.4, 0.05][::order]
    seen, optimizer, result = lrs_of_steps([{"lr": lr} for lr in lrs], momentum=0.7)
    expected = [[lr, lr / 8][::order] for lr in LRS]
    for got, wanted in zip(seen, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == lrs
    assert result.ratios == [1, 0.125][::order]
    assert result.suggestion_for_groups(0.24) == pytest.approx([0.24, 0.03][::order])


@pytest.mark.parametrize("optimizer_cls", [torch.optim.Adam, optim.Adam])
def test_a_tensor_is_filled_in_place(optimizer_cls):
    lrs = [torch.tensor(0.5), torch.tensor(0.25)]
    in_place, seen = [], []

    class Watched(optimizer_cls):
        # Not by a hook: it would be called twice if the class below has been used before.
        def step(self):
            groups = zip(self.param_groups, lrs, strict=True)
            in_place.append(all(group["lr"] is lr for group, lr in groups))
            seen.append([float(lr) for lr in lrs])
            super().step()

    _, optimizer, _ = lrs_of_steps([{"lr": lr} for lr in lrs], Watched)
    assert in_place == [True] * 5
    for got, lr in zip(seen, LRS, strict=True):
        assert got == pytest.approx([lr, lr / 2], rel=1e-6)
    assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, lrs, strict=True))
    assert [float(lr) for lr in lrs] == [0.5, 0.25]


def test_groups_without_a_learning_rate_all_use_the_ramp():
    seen, optimizer, _ = lrs_of_steps([{"lr": 0.0}, {"lr": 0.0}])
    for got, lr in zip(seen, LRS, strict=True):
        assert got == pytest.approx([lr, lr], rel=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]


def test_ratios_at_the_start_of_a_warm_up_are_those_of_the_initial_learning_rates():
    groups = [{"lr": 0.0, "initial_lr": 0.1}, {"lr": 0.0, "initial_lr": 0.2}]
    seen, _, _ = lrs_of_steps(groups)
    for got, lr in zip(seen, LRS, strict=True):
        assert got == pytest.approx([lr / 2, lr], rel=1e-12)


def test_a_decoupled_decay_does_not_grow_with_the_ramp():
    model = Line()
    optimizer = optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.25, decouple_lr=True)
    result = lr_range_test(
        model,
        optimizer,
        None,
        [None],
        # The gradient is 0: only the decay moves the weight.
        batch_loss=lambda model, _: model.weight[0].detach() + 0 * model.weight.sum(),
        n_updates=6,
        progress=False,
    )
    assert result.losses == pytest.approx([2 * 0.75**i for i in range(6)], rel=1e-6)
    assert optimizer.param_groups[0]["initial_lr"] == 0.01


# The losses. --------------------------------------------------------------------------------------


def test_the_loss_of_an_update_is_measured_before_its_step():
    # d/dw (w^2 / 2) = w: every step multiplies w by (1 - lr).
    model = Line()
    optimizer = torch.optim.SGD([model.weight], lr=1.0)
    result = lr_range_test(
        model,
        optimizer,
        None,
        [None],
        batch_loss=lambda model, _: model.weight[0] ** 2 / 2,
        start_lr=0.1,
        end_lr=0.9,
        n_updates=3,
        smoothing=0,
        progress=False,
    )
    assert result.lrs == pytest.approx([0.1, 0.3, 0.9])
    assert result.losses == pytest.approx([2, 2 * 0.9**2, 2 * 0.9**2 * 0.7**2])


def test_loss_function_of_outputs_and_targets_sees_every_batch_in_order():
    inputs = torch.randn(12, 2, dtype=torch.float64)
    targets = torch.randn(12, dtype=torch.float64)
    model = Line()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=4)
    result = lr_range_test(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        nn.functional.mse_loss,
        loader,
        start_lr=1e-12,  # the weights as good as stay
        divergence=math.inf,
        end_lr=1e-11,
        n_updates=7,
        progress=False,
    )
    errors = (inputs @ torch.tensor([2.0, -1.0], dtype=torch.float64) - targets) ** 2
    expected = errors.view(3, 4).mean(dim=1).tolist()
    assert result.losses == pytest.approx((expected * 3)[:7], rel=1e-9)


def test_gradients_and_losses_of_an_update_are_means_over_its_batches():
    model = Line()
    grads = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.register_step_pre_hook(lambda *_: grads.append(model.bias.grad.item()))
    loader = [1.0, 2.0, 6.0, 5.0, 5.0]  # starts again in the middle of the second update
    result = lr_range_test(
        model,
        optimizer,
        None,
        loader,
        batch_loss=lambda model, batch: batch * (1 + model.bias - model.bias.detach()).sum(),
        n_updates=3,
        accumulate=3,
        progress=False,
    )
    means = [(1 + 2 + 6) / 3, (5 + 5 + 1) / 3, (2 + 6 + 5) / 3]
    assert result.losses == pytest.approx(means, rel=1e-12)
    assert grads == pytest.approx(means, rel=1e-12)


def test_gradients_start_at_zero_in_and_outside_of_the_optimizer():
    model, outside = Line(), nn.Parameter(torch.ones(1, dtype=torch.float64))
    grads = []
    optimizer = torch.optim.SGD([model.weight, outside], lr=1.0)
    optimizer.register_step_pre_hook(
        lambda *_: grads.append([model.bias.grad.item(), outside.grad.item()])
    )
    lr_range_test(
        model,
        optimizer,
        None,
        [3.0],
        batch_loss=lambda model, batch: batch * (model.bias + outside).sum(),
        n_updates=3,
        progress=False,
    )
    assert grads == [[3, 3]] * 3


def test_smoothing_is_a_weighted_mean_of_the_past():
    losses = [5.0, 1.0, 4.0, 2.0, 8.0, 3.0]
    result, _ = run(losses, smoothing=0.8)
    for i, got in enumerate(result.smoothed):
        weights = [0.8 ** (i - j) for j in range(i + 1)]
        expected = sum(w * v for w, v in zip(weights, losses[: i + 1], strict=True)) / sum(weights)
        assert got == pytest.approx(expected, rel=1e-12)
    assert result.losses == losses
    assert run(losses)[0].smoothed == losses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = nn.Linear(3, 1)
    seen = []

    def loss_fn(outputs, targets):
        seen.append(outputs.dtype)
        return (outputs - targets).pow(2).mean()

    optimizer = optim.SGD(model.parameters(), lr=0.1)
    loader = [(torch.ones(2, 3), torch.ones(2, 1))]
    lr_range_test(model, optimizer, loss_fn, loader, n_updates=2, autocast=dtype, progress=False)
    assert seen == [dtype, dtype]


def test_batches_are_moved_at_any_depth():
    model = nn.Linear(3, 1, device="meta")
    seen = []

    class Stop(Exception):
        pass

    def batch_loss(model, batch):
        seen.append((batch["x"][0].device.type, batch["x"][1], batch["y"].device.type))
        raise Stop

    loader = [{"x": (torch.ones(3), "name"), "y": torch.ones(2)}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for device, expected in ((None, "cpu"), ("meta", "meta")):
        with pytest.raises(Stop):
            lr_range_test(model, optimizer, None, loader, batch_loss=batch_loss, device=device)
        assert seen.pop() == (expected, "name", expected)


# When it stops. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_loss_that_is_not_finite_ends_it_without_a_step(bad, position):
    losses = [3.0, 2.0, 2.5, 2.0, 1.0]
    losses[position] = bad
    result, n_steps = run(losses)
    assert result.reason == result.curves[0].reason == "not finite"
    assert result.losses == losses[:position]
    assert result.curves[0].stop_lr == pytest.approx(LRS[position])
    assert n_steps == position
    assert len(result.lrs) == len(result.smoothed) == position


def test_one_bad_batch_of_an_update_is_enough():
    result, n_steps = run([1.0, 2.0, 3.0, math.nan, 4.0, 5.0], n_updates=3, accumulate=2)
    assert (result.reason, result.losses, n_steps) == ("not finite", [1.5], 1)


@pytest.mark.parametrize(
    ("losses", "n_recorded"),
    [
        ([2, 1, 3, 3.1, 1], 4),
        ([2, 1, 3, 3, 1], None),  # not above the limit
        ([1, 2, 2, 0.5, 1.6], 5),
        ([-1, -2, 1.9, 2.1, 0], 4),  # -2 + (3 - 1) * 2 = 2
        ([-3, -2, -1, -2, -1], None),
    ],
)
def test_stops_at_a_multiple_of_the_smallest_loss(losses, n_recorded):
    result, n_steps = run([float(loss) for loss in losses], divergence=3.0)
    if n_recorded is None:
        assert (result.reason, n_steps) == ("end", 5)
        assert result.curves[0].stop_lr is None
        assert result.losses == losses
    else:
        assert (result.reason, n_steps) == ("diverged", n_recorded - 1)
        assert result.losses == losses[:n_recorded]
        assert result.curves[0].stop_lr == pytest.approx(LRS[n_recorded - 1])


def test_it_is_the_smoothed_loss_that_diverges():
    # Smoothed: 1, 6.33.., with the weights 1 : 2.
    assert run([1.0, 9.0, 1.0], smoothing=0.5, divergence=6.4)[0].reason == "end"
    assert run([1.0, 9.0, 1.0], smoothing=0.5, divergence=6.3)[0].reason == "diverged"


# Skipped steps. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_cls", [torch.optim.SGD, optim.SGD])
@pytest.mark.parametrize("scaler_cls", [torch.amp.GradScaler, GradScaler])
def test_overflow_of_scaled_gradients_is_a_skipped_step(scaler_cls, optimizer_cls):
    model = nn.Linear(1, 1, bias=False)
    optimizer = optimizer_cls(model.parameters(), lr=0.1)
    # The gradient is 32: scales of 2^125, 2^124, 2^123 overflow.
    scaler = scaler_cls("cpu", init_scale=2.0**125, growth_interval=100)
    loader = [(torch.ones(1, 1), None)]
    result = lr_range_test(
        model,
        optimizer,
        lambda outputs, _: 32 * (outputs - outputs.detach()).mean() + 7,
        loader,
        n_updates=6,
        repeats=2,
        scaler=scaler,
        progress=False,
    )
    assert result.reason == "end"
    assert result.losses == [7] * 6
    assert [curve.skipped for curve in result.curves] == [[0, 1, 2]] * 2


def test_steps_that_the_optimizer_skips_are_recorded():
    model = Line()
    optimizer = optim.SGD(model.parameters(), lr=0.1, skip_nonfinite=True)
    calls = itertools.count()
    model.bias.register_hook(lambda grad: grad * (math.inf if next(calls) == 1 else 1))
    result = lr_range_test(
        model,
        optimizer,
        None,
        [None],
        batch_loss=lambda model, _: model.bias.sum() + 2,
        n_updates=3,
        progress=False,
    )
    assert result.curves[0].skipped == [1]
    assert (result.reason, len(result.losses)) == ("end", 3)


# Repetitions. -------------------------------------------------------------------------------------


def test_repetitions_start_alike_and_go_on_with_the_data():
    result, n_steps = run([float(loss) for loss in range(1, 13)], n_updates=4, repeats=3)
    assert [c.losses for c in result.curves] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert (result.losses, result.low, result.high) == (
        [5, 6, 7, 8],
        [1, 2, 3, 4],
        [9, 10, 11, 12],
    )
    assert n_steps == 12

    model = Line()
    result = lr_range_test(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        None,
        [None],
        batch_loss=lambda model, _: model.weight.pow(2).sum(),
        n_updates=20,
        repeats=2,
        progress=False,
    )
    assert result.curves[0] == result.curves[1]
    assert result.losses[-1] != result.losses[0]


def test_repetitions_differ_in_shuffling_and_are_reproducible():
    def repeat():
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(0.1)
        loader = DataLoader(TensorDataset(inputs, inputs[:, :1]), batch_size=4, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(5)
        return lr_range_test(
            model, optimizer, nn.functional.mse_loss, loader, repeats=3, n_updates=6, progress=False
        )

    inputs = torch.randn(24, 4)
    first, again = repeat(), repeat()
    assert first == again
    losses = [tuple(curve.losses) for curve in first.curves]
    assert len(set(losses)) == 3
    for i in range(6):
        column = [curve.smoothed[i] for curve in first.curves]
        assert first.smoothed[i] == statistics.median(column)
        assert (first.low[i], first.high[i]) == (min(column), max(column))
