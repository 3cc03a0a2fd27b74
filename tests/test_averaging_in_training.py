"""ModelEMA and torch's AveragedModel in training, evaluation and several processes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from fusedtricks import optim
from fusedtricks.lr_scheduler import CosineAnnealingLR
from fusedtricks.nn.averaging import ModelEMA
from tests.averages import assert_same, norm_model, tensors, train_step
from tests.devices import DEVICE
from tests.processes import in_two_processes


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def trained(n_steps=4, **options):
    """Return a model, its optimizer and an average that differs from it."""
    model = norm_model()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.6)
    ema = ModelEMA(model, **options)
    for _ in range(n_steps):
        train_step(model, optimizer)
        ema.update_parameters(model)
    return model, optimizer, ema


# Applied to the model. ----------------------------------------------------------------------------


def test_averages_are_in_the_model_inside_the_block_only():
    model, _, ema = trained(decay=0.7)
    before = snapshot(model)
    x = torch.randn(4, 3)
    with ema.applied_to(model) as inside:
        assert inside is model
        assert_same(tensors(model), tensors(ema.module))
        torch.testing.assert_close(model.eval()(x), ema(x))
    assert_same(tensors(model), before)


def test_the_model_is_as_it_was_after_an_error_in_the_block():
    model, optimizer, ema = trained(decay=0.7)
    before, average = snapshot(model), snapshot(ema.module)
    with pytest.raises(KeyError, match="from the block"), ema.applied_to(model):
        train_step(model, optimizer)
        raise KeyError("from the block")
    assert_same(tensors(model), before)
    assert_same(tensors(ema.module), average)


def test_blocks_can_be_nested():
    model, _, ema = trained(decay=0.7)
    other = ModelEMA(norm_model(), decay=0.7)
    before = snapshot(model)
    with ema.applied_to(model):
        with other.applied_to(model):
            assert_same(tensors(model), tensors(other.module))
        assert_same(tensors(model), tensors(ema.module))
    assert_same(tensors(model), before)


def test_a_model_that_was_moved_in_the_block_is_restored():
    model, _, ema = trained(decay=0.7)
    before = snapshot(model)
    with ema.applied_to(model):
        model.double()
    assert model[1].running_mean.dtype == torch.float64
    assert_same(tensors(model.float()), before)


def test_training_goes_on_as_if_the_average_had_not_been_applied():
    model, optimizer, ema = trained(decay=0.7)
    torch.manual_seed(6)
    state = copy.deepcopy((model, optimizer.state_dict()))
    with ema.applied_to(model):
        pass
    torch.manual_seed(7)
    train_step(model, optimizer)
    other, other_optimizer = state[0], optim.SGD(state[0].parameters(), lr=0.05, momentum=0.6)
    other_optimizer.load_state_dict(state[1])
    torch.manual_seed(7)
    train_step(other, other_optimizer)
    assert_same(tensors(model), tensors(other))


# Following an optimizer. --------------------------------------------------------------------------


@pytest.mark.parametrize("package", [optim, torch.optim], ids=["fusedtricks", "torch"])
def test_follows_every_step_until_it_is_removed(package):
    model = norm_model()
    optimizer = package.SGD(model.parameters(), lr=0.05)
    ema, by_hand = ModelEMA(model, decay=0.7), ModelEMA(model, decay=0.7)
    handle = ema.follow(optimizer, model)
    for _ in range(3):
        train_step(model, optimizer)
        by_hand.update_parameters(model)
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    # A fused step rounds once less or more.
    torch.testing.assert_close(before, dict(by_hand.state_dict()), rtol=1e-6, atol=1e-6)
    copied = copy.deepcopy(optimizer)
    handle.remove()
    train_step(model, optimizer)
    copied.step()
    assert_same(ema.state_dict(), before)


def test_a_skipped_step_averages_the_same_weights_again():
    model = norm_model()
    optimizer = optim.SGD(model.parameters(), lr=0.05, skip_nonfinite=True)
    ema = ModelEMA(model, decay=0.75, buffers="copy")
    ema.follow(optimizer, model)
    train_step(model, optimizer)
    first = snapshot(model)
    for parameter in model.parameters():
        parameter.grad.fill_(torch.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert_same(tensors(ema.module), first)


def test_bad_partners_are_refused():
    model = norm_model()
    ema = ModelEMA(model, decay=0.7)
    with pytest.raises(TypeError, match="expected optimizer to be an Optimizer, got Sequential"):
        ema.follow(model, model)
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(ValueError, match="optimizer of the model's parameters, but SGD has none"):
        ema.follow(optimizer, norm_model())
    with pytest.raises(ValueError, match=r"'0\.weight' is in the first one"):
        ema.follow(optimizer, model[1])


# Statistics of batch normalisation. ---------------------------------------------------------------


def test_statistics_must_be_recomputed_before_evaluation():
    model, _, ema = trained(decay=0.7, buffers="recompute")
    batches = [(torch.randn(5, 3), None), (torch.randn(5, 3), None)]
    text = "statistics of batch normalisation .* call recompute_buffers"
    with pytest.raises(RuntimeError, match="forward: the " + text):
        ema(batches[0][0])
    with pytest.raises(RuntimeError, match="applied_to: the " + text), ema.applied_to(model):
        pass
    ema.recompute_buffers(batches)
    hidden = ema.module[0](torch.cat([x for x, _ in batches])).double()
    halves = hidden.unflatten(0, (2, 5))
    torch.testing.assert_close(ema.module[1].running_mean, hidden.mean(0).float())
    torch.testing.assert_close(ema.module[1].running_var, halves.var(1).mean(0).float())
    ema(batches[0][0])
    with ema.applied_to(model):
        assert torch.equal(model[1].running_mean, ema.module[1].running_mean)
    assert not torch.equal(model[1].running_mean, ema.module[1].running_mean)
    ema.update_parameters(model)
    with pytest.raises(RuntimeError, match=text):
        ema(batches[0][0])


def test_a_loaded_state_needs_recomputed_statistics_again():
    _, _, ema = trained(decay=0.7, buffers="recompute")
    fresh = ModelEMA(norm_model(), decay=0.7, buffers="recompute")
    fresh(torch.ones(2, 3))
    fresh.load_state_dict(ema.state_dict())
    with pytest.raises(RuntimeError, match="call recompute_buffers"):
        fresh(torch.ones(2, 3))


def test_without_statistics_nothing_is_to_be_recomputed():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=False))
    ema = ModelEMA(model, decay=0.7, buffers="recompute")
    ema.update_parameters(model)
    ema(torch.ones(2, 3))


def test_a_loader_without_batches_or_with_an_error_changes_nothing():
    _, _, ema = trained(decay=0.7, buffers="recompute")
    before = snapshot(ema.module)
    with pytest.raises(ValueError, match="expected a loader of at least one batch, got none"):
        ema.recompute_buffers([])
    assert_same(tensors(ema.module), before)

    def breaking():
        yield torch.randn(5, 3)
        raise KeyError("from the loader")

    ema.module[1].momentum = 0.3
    with pytest.raises(KeyError, match="from the loader"):
        ema.recompute_buffers(breaking())
    assert_same(tensors(ema.module), before)
    assert ema.module[1].momentum == 0.3
    assert not ema.module.training and not ema.module[1].training
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ema.recompute_buffers([torch.randn(5, 3), torch.randn(5, 4)])
    assert_same(tensors(ema.module), before)
    with pytest.raises(RuntimeError, match="call recompute_buffers"):
        ema(torch.ones(2, 3))


# Compiled, and in several processes. --------------------------------------------------------------


def test_the_average_can_be_compiled():
    _, _, ema = trained(decay=0.7)
    x = torch.randn(4, 3)
    expected = ema(x)
    torch.testing.assert_close(torch.compile(ema, backend="aot_eager", fullgraph=True)(x), expected)


def test_an_update_inside_a_compiled_step_gives_the_same_averages():
    model = norm_model()
    ema = ModelEMA(model, decay=0.7, warmup=True)
    reference = copy.deepcopy(ema)
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(backend=counter)
    def step(x):
        loss = model(x).square().sum()
        ema.update_parameters(model)
        return loss

    for _ in range(12):
        step(torch.randn(7, 3)).backward()
        reference.update_parameters(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
    torch.testing.assert_close(ema.state_dict(), reference.state_dict())
    assert counter.frame_count <= 6


def train_one_rank(rank):
    torch.manual_seed(5)
    model = DistributedDataParallel(norm_model())
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    ema = ModelEMA(model, half_life=3)
    ema.follow(optimizer, model)
    torch.manual_seed(rank)
    for _ in range(4):
        train_step(model, optimizer)
    parameters = copy.deepcopy(dict(ema.module.named_parameters()))
    own_mean = ema.module[1].running_mean.clone()
    for buffer in ema.module.buffers():
        torch.distributed.broadcast(buffer, 0)
    return [parameters, own_mean, tensors(ema)]


def test_all_ranks_have_the_same_averages(tmp_path):
    first, second = in_two_processes(train_one_rank, tmp_path)
    assert_same(first[0], second[0])
    assert first[2]["n_averaged"] == 4
    # What the docstring says of statistics: each rank's own, until they are broadcast.
    assert not torch.equal(first[1], second[1])
    assert_same(first[2], second[2])


# Torch's own, with the schedulers of fusedtricks. -------------------------------------------------


def test_stochastic_weight_averaging_by_torch():
    model = norm_model()
    optimizer = optim.SGD(model.parameters(), lr=0.04)
    schedule = CosineAnnealingLR(optimizer, 6)
    swa_schedule = SWALR(optimizer, swa_lr=0.03, anneal_epochs=2)
    average = AveragedModel(model)
    history, rates = [], []
    for epoch in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        train_step(model, optimizer)
        if epoch < 4:
            schedule.step()
            continue
        swa_schedule.step()
        average.update_parameters(model)
        history.append(snapshot(model))
    assert rates[:5] == pytest.approx([0.04, 0.0373205, 0.03, 0.02, 0.01], rel=1e-6)
    assert rates[-3:] == pytest.approx([0.03] * 3)
    for name, parameter in average.module.named_parameters():
        mean = torch.stack([each[name] for each in history]).double().mean(0)
        torch.testing.assert_close(parameter.double(), mean, rtol=1e-5, atol=1e-6)
    batch = torch.randn(50, 3)
    update_bn([batch], average, device=DEVICE)
    expected = average.module[0](batch).mean(0)
    torch.testing.assert_close(average.module[1].running_mean, expected)
