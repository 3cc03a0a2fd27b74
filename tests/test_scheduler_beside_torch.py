"""Schedulers beside those of torch."""

import pytest
import torch

import fusedtricks
from fusedtricks import lr_scheduler
from fusedtricks.lr_scheduler import Cosine, Linear, LinearWarmup, ScheduledLR, Sequence, Step
from tests.small_optimizers import make_param, sgd, update


def test_chained_and_sequential_take_schedulers_and_schedules() -> None:
    optimizer = sgd()
    parts = [lr_scheduler.WarmupLR(optimizer, 3), lr_scheduler.CosineAnnealingLR(optimizer, 5, 0.1)]
    chained = lr_scheduler.ChainedScheduler([*parts, Step(2, 0.5)])
    sequential = lr_scheduler.SequentialLR(optimizer, [*parts, Step(2, 0.5)], [3, 8])
    product = LinearWarmup(3) * Cosine(5).between(0.1) * Step(2, 0.5)
    body = LinearWarmup(3).then(Cosine(5).between(0.1)).then(Step(2, 0.5), 8)
    for t in range(12):
        assert chained.values(t=t) == pytest.approx([product(t, 0.4)], rel=1e-14)
        assert sequential.values(t=t) == pytest.approx([body(t, 0.4)], rel=1e-14)
    assert optimizer.param_groups[0]["initial_lr"] == 0.4


def test_sequences_of_schedulers_with_one_schedule_per_group() -> None:
    groups = [{"params": [make_param()], "lr": lr} for lr in (0.4, 0.03)]
    optimizer = fusedtricks.optim.SGD(groups, lr=1.0)
    parts = [lr_scheduler.CosineAnnealingLR(optimizer, 4, [0.1, 0.02]), Step(2, 0.5)]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, [3])
    for t in range(6):
        expected = [
            Cosine(4).between(low).then(Step(2, 0.5), 3)(t, lr)
            for low, lr in ((0.1, 0.4), (0.02, 0.03))
        ]
        assert scheduler.values(t=t) == pytest.approx(expected, rel=1e-14)
    parts[0].schedules["lr"].pop()
    with pytest.raises(ValueError, match="param group 1 was added"):
        lr_scheduler.SequentialLR(optimizer, parts, [3])


def test_other_options_come_along() -> None:
    """Parts that do not schedule the momentum have the optimizer's own."""
    optimizer = sgd()
    parts = [
        lr_scheduler.WarmupLR(optimizer, 3, 0.1),
        lr_scheduler.OneCycleLR(optimizer, 1.0, 10, base_momentum=0.61, max_momentum=0.92),
    ]
    assert optimizer.param_groups[0]["momentum"] == 0.92
    sequential = lr_scheduler.SequentialLR(optimizer, parts, [3])
    assert optimizer.param_groups[0]["momentum"] == 0.7
    for scheduler, shift in ((sequential, 3), (lr_scheduler.ChainedScheduler(parts), 0)):
        momenta = [scheduler.values("momentum", t)[0] for t in range(12)]
        cycle = [parts[1].values("momentum", t)[0] for t in range(12)]
        assert momenta == pytest.approx([0.7] * shift + cycle[: 12 - shift], rel=1e-14)
        assert len(set(cycle)) > 5
    momentum_only = ScheduledLR(optimizer, None, momentum=Linear(4, 1.0, 0.5))
    both = lr_scheduler.ChainedScheduler([momentum_only, Cosine(9)])
    assert both.values("lr", 3) == [Cosine(9)(3, 0.4)]
    assert both.values("momentum", 2) == [Linear(4, 1.0, 0.5)(2, 0.7)]


def test_epochs_are_counted_once() -> None:
    optimizer = sgd()
    units = {"unit": "epoch", "steps_per_epoch": 10}
    parts = [lr_scheduler.WarmupLR(optimizer, 5, **units), Cosine(20)]
    assert lr_scheduler.SequentialLR(optimizer, parts, [5], **units).schedules == {
        "lr": Sequence([LinearWarmup(50), Cosine(200)], [50])
    }
    assert lr_scheduler.ChainedScheduler(parts, optimizer, **units).schedules == {
        "lr": LinearWarmup(50) * Cosine(200)
    }
    one_cycle = lr_scheduler.OneCycleLR(optimizer, 1.0, epochs=6, pct_start=0.4, **units)
    assert one_cycle.schedules["lr"].schedule.total == 60
    assert Cosine(3).resolve(**units).resolve(**units) == Cosine(30)


def test_schedulers_of_torch_are_not_taken_apart() -> None:
    optimizer = sgd()
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with pytest.raises(TypeError, match=r"got StepLR; make all of them those of fusedtricks"):
        lr_scheduler.ChainedScheduler([theirs], optimizer)
    with pytest.raises(TypeError, match=r"got StepLR; torch.optim.lr_scheduler.Seq\w+ takes both"):
        lr_scheduler.SequentialLR(optimizer, [Cosine(3), theirs], [3])
    with pytest.raises(ValueError, match="expected schedulers of the same optimizer"):
        lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(sgd(), 2)], optimizer)
    with pytest.raises(TypeError, match="expected an optimizer, got None"):
        lr_scheduler.ChainedScheduler([Cosine(3)])
    with pytest.raises(ValueError, match="expected at least one scheduler, got none"):
        lr_scheduler.ChainedScheduler([], optimizer)


def test_one_cycle_inside_torch_sequential() -> None:
    """torch's OneCycleLR rewrites initial_lr there, so that the warm-up has another height."""
    optimizer = sgd(1.0)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.WarmupLR(optimizer, 2, 0.1),
            lr_scheduler.OneCycleLR(optimizer, 1.0, 10, pct_start=0.3),
        ],
        milestones=[2],
    )
    lrs = []
    for _ in range(8):
        lrs.append(optimizer.param_groups[0]["lr"])
        update(optimizer)
        scheduler.step()
    expected = LinearWarmup(2, 0.1).then(lr_scheduler.OneCycle(10, 0.3).between(0.0, 1.0))
    assert lrs == pytest.approx(expected.preview(8, 1.0), rel=1e-12)


def test_plateau_of_torch_after_ours() -> None:
    assert lr_scheduler.ReduceLROnPlateau is torch.optim.lr_scheduler.ReduceLROnPlateau
    assert lr_scheduler.MultiplicativeLR is torch.optim.lr_scheduler.MultiplicativeLR


def test_every_name_of_torch_is_there() -> None:
    theirs = set(torch.optim.lr_scheduler.__all__)
    assert theirs <= set(lr_scheduler.__all__)
