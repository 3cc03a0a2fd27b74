"""Flooding acts on the mean loss of an update, however the update is computed."""

import copy
import math
import pickle

import pytest
import torch

from fusedtricks.losses import Flooding, smallest_cross_entropy
from tests import small_updates
from tests.devices import DEVICE
from tests.processes import in_two_processes
from tests.small_updates import gradients, mean_loss

# Row 3 of the tricks: four losses, whose mean is 0.095.
FOUR = (0.02, 0.04, 0.30, 0.02)


INPUTS, TARGETS = small_updates.INPUTS.to(DEVICE), small_updates.TARGETS.to(DEVICE)


def make_model():
    return small_updates.make_model().to(DEVICE)


def expected_gradients(level):
    """The formula on the whole batch, by autograd."""
    model = make_model()
    loss = mean_loss(model, INPUTS, TARGETS)
    flooded = (loss - level).abs() + level
    flooded.backward()
    return gradients(model), flooded.item(), loss.item()


def levels():
    """One level below the loss, where gradients stay, and one above, where they turn around."""
    loss = mean_loss(make_model(), INPUTS, TARGETS).item()
    return [0.7 * loss, 1.6 * loss]


def test_flooding_the_parts_is_something_else():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    losses = weight * torch.tensor(FOUR, dtype=torch.float64)
    by_part = torch.stack([Flooding(0.08)(loss) for loss in losses]).mean()
    # (0.14 + 0.12 + 0.30 + 0.14) / 4; d/dweight = (-0.02 - 0.04 + 0.30 - 0.02) / 4.
    assert by_part.item() == pytest.approx(0.175, rel=1e-14)
    assert torch.autograd.grad(by_part, weight, retain_graph=True)[0].item() == pytest.approx(0.055)
    flooding = Flooding(0.08)
    flooded = flooding(losses.mean())
    assert flooded.item() == pytest.approx(0.095, rel=1e-14)
    flooded.backward()
    assert weight.grad.item() == pytest.approx(0.095, rel=1e-14)
    # Accumulated, it is that of the mean.
    weight.grad = None
    for loss in weight * torch.tensor(FOUR, dtype=torch.float64):
        flooding.add(loss / 4).backward(retain_graph=True)
    flooding.flip_([weight])
    assert weight.grad.item() == pytest.approx(0.095, rel=1e-14)
    assert flooding.loss.item() == pytest.approx(0.095, rel=1e-14)


def test_one_batch():
    for level in levels():
        expected, value, unflooded = expected_gradients(level)
        model, flooding = make_model(), Flooding(level)
        loss = flooding(mean_loss(model, INPUTS, TARGETS))
        loss.backward()
        assert loss.item() == pytest.approx(value, rel=1e-14)
        assert gradients(model) == pytest.approx(expected, rel=1e-14)
        assert flooding.loss.item() == unflooded
        assert not flooding.loss.requires_grad


@pytest.mark.parametrize("n_parts", [1, 2, 6])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_accumulation(n_parts, scale):
    for level in levels():
        expected, _, unflooded = expected_gradients(level)
        model, flooding = make_model(), Flooding(level)
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=scale)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        # Twice, because a sum that is not forgotten shows in the second update.
        for _ in range(2):
            optimizer.zero_grad()
            parts = zip(INPUTS.chunk(n_parts), TARGETS.chunk(n_parts), strict=True)
            for inputs, targets in parts:
                loss = mean_loss(model, inputs, targets) / n_parts
                assert flooding.add(loss) is loss
                scaler.scale(loss).backward()
            flooding.flip_(model.parameters())
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            assert gradients(model) == pytest.approx(expected, rel=1e-12)
            assert flooding.loss.item() == pytest.approx(unflooded, rel=1e-14)


def test_at_the_level_the_gradient_is_zero_as_torchs():
    weight = torch.tensor(0.25, requires_grad=True)
    flooded = Flooding(0.25)(weight)
    flooded.backward()
    assert (flooded.item(), weight.grad.item()) == (0.25, 0.0)
    flooding = Flooding(0.25)
    flooding.add(weight).backward()
    flooding.flip_([weight])
    assert weight.grad.item() == 0.0


def test_nan_stays_nan():
    weight = torch.tensor(1.0, requires_grad=True)
    flooding = Flooding(0.1)
    flooded = flooding(weight * math.nan)
    flooded.backward()
    assert flooded.isnan() and weight.grad.isnan() and flooding.loss.isnan()
    # Only the loss is, not the gradient.
    weight.grad = None
    flooding.add(weight).backward()
    flooding.add(torch.tensor(math.nan))
    flooding.flip_([weight])
    assert weight.grad.isnan()


def test_16_bit_losses_are_added_in_float32():
    # In bf16, 1 + 2^-9 is 1.
    flooding, weight = Flooding(1.1), torch.zeros((), requires_grad=True)
    weight.grad = torch.ones(())
    for value in [1.0] + [2.0**-9] * 100:
        flooding.add(torch.tensor(value, dtype=torch.bfloat16))
    flooding.flip_([weight])
    assert flooding.loss.item() == 1 + 100 / 512
    assert weight.grad.item() == 1.0


def test_what_is_added_does_not_follow_the_loss():
    flooding = Flooding(0.1)
    loss = torch.tensor(0.2)
    flooding.add(loss).mul_(1024)
    flooding.flip_([with_gradient()])
    assert flooding.loss.item() == pytest.approx(0.2)


def with_gradient():
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.tensor([1.0, -2.0, 0.5])
    return weight


def test_every_parameter_is_flipped_once():
    weight, flooding = with_gradient(), Flooding(0.3)
    for parameters in (weight, [weight, weight], iter([weight])):
        weight.grad = torch.tensor([1.0, -2.0, 0.5])
        flooding.add(torch.tensor(0.2))
        flooding.flip_(parameters)
        assert weight.grad.tolist() == [-1.0, 2.0, -0.5]


@pytest.mark.parametrize(
    ("parameters", "error", "text"),
    [
        (lambda weight: iter([]), ValueError, "none of the 0 parameters has a gradient to flip"),
        (lambda weight: [weight.detach()], ValueError, "none of the 1 parameters has a gradient"),
        (lambda weight: [weight, ("b", weight)], TypeError, r"got tuple; use model.parameters\("),
        (lambda weight: [{"params": [weight]}], TypeError, "to be tensors, got dict; use model"),
    ],
)
def test_what_cannot_be_flipped_changes_nothing(parameters, error, text):
    weight, flooding = with_gradient(), Flooding(0.3)
    flooding.add(torch.tensor(0.2))
    with pytest.raises(error, match=text):
        flooding.flip_(parameters(weight))
    assert weight.grad.tolist() == [1.0, -2.0, 0.5] and flooding.loss.isnan()
    flooding.flip_([weight])
    assert weight.grad.tolist() == [-1.0, 2.0, -0.5]
    assert flooding.loss.item() == pytest.approx(0.2)
    with pytest.raises(RuntimeError, match="flip_ without a loss"):
        flooding.flip_([weight])


def test_in_evaluation_mode_the_loss_stays():
    flooding = Flooding(0.3).eval()
    loss = torch.tensor(0.2)
    assert flooding(loss).item() == loss.item()
    assert flooding.loss.isnan()
    assert flooding.train()(loss).item() == pytest.approx(0.4)
    flooding.eval()(torch.tensor(0.7))
    assert flooding.loss.item() == loss.item()


def test_an_update_that_is_not_over():
    flooding, weight, loss = Flooding(0.3), with_gradient(), torch.tensor(0.2)
    flooding.add(loss)
    with pytest.raises(RuntimeError, match=r"not over; call flip_\(parameters\) .* or reset\(\)"):
        flooding(loss)
    # A validation in between is none of its business, and nothing was lost.
    assert flooding.eval()(loss) is loss and flooding.train().loss.isnan()
    flooding.flip_([weight])
    assert flooding(loss).item() == pytest.approx(0.4)
    flooding.add(torch.tensor(7.0))
    flooding.reset()
    assert flooding.loss.item() == loss.item()
    with pytest.raises(RuntimeError, match="flip_ without a loss"):
        flooding.flip_([weight])
    flooding.reset()
    assert flooding(loss).item() == pytest.approx(0.4)


def test_gradients_of_all_kinds_are_flipped():
    params = [torch.zeros(3, requires_grad=True) for _ in range(4)]
    params[0].grad = torch.tensor([1.0, -2.0, 0.0])
    params[2].grad = torch.tensor([4.0, 1.0, 2.0]).to_sparse()
    half = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    half.grad = torch.tensor([3.0, 5.0], dtype=torch.bfloat16)
    same = [params[0].grad, half.grad]
    flooding = Flooding(0.3)
    flooding.add(torch.tensor(0.2))
    flooding.flip_(each for each in [*params, half])
    assert params[0].grad.tolist() == [-1.0, 2.0, 0.0]
    assert params[2].grad.to_dense().tolist() == [-4.0, -1.0, -2.0]
    assert half.grad.tolist() == [-3.0, -5.0]
    assert params[1].grad is None
    assert same == [params[0].grad, half.grad] and half.grad.dtype == torch.bfloat16


@pytest.mark.skipif(DEVICE.type != "cuda", reason="waiting needs a GPU")
def test_the_host_does_not_wait():
    model, flooding = make_model(), Flooding(0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        flooding(mean_loss(model, INPUTS, TARGETS)).backward()
        flooding.add(mean_loss(model, INPUTS, TARGETS)).backward()
        flooding.flip_(model.parameters())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast():
    for level in levels():
        model, flooding = make_model().float(), Flooding(level)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = mean_loss(model, INPUTS.float(), TARGETS.float())
            flooded = flooding(loss)
        assert flooded.dtype == torch.float32
        assert flooded.item() == pytest.approx(abs(loss.item() - level) + level)


def test_compiled_in_one_graph():
    for level in levels():
        expected, value, unflooded = expected_gradients(level)
        model, flooding = make_model(), Flooding(level)
        parts = list(zip(INPUTS.chunk(2), TARGETS.chunk(2), strict=True))

        def whole(model=model, flooding=flooding):
            return flooding(mean_loss(model, INPUTS, TARGETS))

        def part(inputs, targets, model=model, flooding=flooding):
            return flooding.add(mean_loss(model, inputs, targets) / 2)

        loss = torch.compile(whole, fullgraph=True, backend="aot_eager")()
        loss.backward()
        assert loss.item() == pytest.approx(value)
        assert gradients(model) == pytest.approx(expected)
        model.zero_grad()
        compiled = torch.compile(part, fullgraph=True, backend="aot_eager")
        for each in parts:
            compiled(*each).backward()
        flooding.flip_(model.parameters())
        assert gradients(model) == pytest.approx(expected)
        assert flooding.loss.item() == pytest.approx(unflooded)


def test_a_level_that_smoothed_labels_cannot_reach():
    # The entropy of (0.8, 0.1, 0.1) is 0.639.
    bound = smallest_cross_entropy(0.3, 3)
    assert Flooding(0.64, smallest_loss=bound).level == 0.64
    for level in (0.63, bound):
        with pytest.raises(ValueError, match=r"expected level above smallest_loss=0\.639.*, got"):
            Flooding(level, smallest_loss=bound)
    # Level 0 is the usual way to switch it off in a search.
    assert Flooding(0.0)(torch.tensor(0.3)).item() == pytest.approx(0.3)


def test_copies_and_text():
    flooding = Flooding(0.3, smallest_loss=0.2)
    assert flooding.loss.isnan()
    flooding.add(torch.tensor(0.1))
    for twin in (copy.deepcopy(flooding), pickle.loads(pickle.dumps(flooding))):
        assert repr(twin) == "Flooding(level=0.3, smallest_loss=0.2)"
        twin.flip_([with_gradient()])
        assert twin.loss.item() == pytest.approx(0.1)
    assert flooding.loss.isnan()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Flooding(-0.1), ValueError, "level to be a finite number of at least 0, got -"),
        (lambda: Flooding(math.nan), ValueError, "level to be a finite number of at least"),
        (lambda: Flooding(0.1, smallest_loss=-1.0), ValueError, "smallest_loss to be a finite"),
        (lambda: Flooding("a"), TypeError, "expected level to be a number, got 'a'"),
        (lambda: Flooding(0.1)(0.2), TypeError, "expected loss to be a tensor, got float"),
        (lambda: Flooding(0.1).add(0.2), TypeError, "expected loss to be a tensor, got float"),
        (lambda: Flooding(0.1)(torch.ones(2)), ValueError, r"a scalar, got shape \[2\]; use"),
        (lambda: Flooding(0.1).add(torch.ones(1)), ValueError, r"a scalar, got shape \[1\]"),
        (lambda: Flooding(0.1).flip_([]), RuntimeError, r"flip_ without a loss; call add\(loss\)"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


# Several processes. -------------------------------------------------------------------------------


def test_two_processes_flood_the_mean_of_both(tmp_path):
    ranks = in_two_processes(small_updates.updates_of_a_rank, tmp_path, levels())
    for index, level in enumerate(levels()):
        expected, value, unflooded = expected_gradients(level)
        for found in ranks:
            for how in ("one batch", "accumulated", "process group", "compiled"):
                assert found[how][index]["gradients"] == pytest.approx(expected, rel=1e-12), how
                assert found[how][index]["unflooded"] == pytest.approx(unflooded, rel=1e-14)
        values = [found["one batch"][index]["value"] for found in ranks]
        assert sum(values) / 2 == pytest.approx(value, rel=1e-14)
    # The loss of one process is above the middle level, that of the other is below, so that each
    # by itself would go another way.
    own = [found["own loss"] for found in ranks]
    assert min(own) < levels()[0] < max(own)
    assert [found["evaluated"] for found in ranks] == [0.25, False]
    # A NaN in one process is one in all.
    assert [found["nan"] for found in ranks] == [[True, True]] * 2
