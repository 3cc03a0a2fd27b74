"""Times in epochs, updates and shares of the run; and arguments that are wrong."""

import math

import pytest
import torch

from fusedtricks.lr_scheduler import (
    ConstantWarmup,
    Cosine,
    Cyclic,
    Exponential,
    GradualWarmup,
    InverseSqrt,
    Linear,
    LinearWarmup,
    OneCycle,
    Piecewise,
    Polynomial,
    ScheduledLR,
    Sequence,
    Step,
    WarmRestarts,
    WarmUpRestarts,
    WarmupStableDecay,
    parse,
)
from tests.schedule_formulas import close, half_cosine

NAN = math.nan
pytestmark = pytest.mark.filterwarnings("ignore:.*the schedule ended:UserWarning")

# The product is the exact one of the decimal fraction; halves go up.
RESOLVED = [
    ("5ep", 5 * 7),
    ("1ep", 7),
    ("0.5ep", 4),
    ("2.5ep", 18),
    ("1.5ep", 11),
    ("500ba", 500),
    ("1ba", 1),
    ("2.5ba", 3),
    ("1dur", 50),
    ("0.1dur", 5),
    ("0.05dur", 3),
    ("0.03dur", 2),
    ("0.07dur", 4),
    ("0.09dur", 5),
    ("0.29dur", 15),
    ("0.57dur", 29),
    ("0.289dur", 14),
    (".5dur", 25),
    (12, 12),
]


@pytest.mark.parametrize(("time", "updates"), RESOLVED)
def test_time_strings(time, updates):
    expected = Linear(updates, start=0.9, end=0.2)
    resolved = Linear(time, start=0.9, end=0.2).resolve(steps_per_epoch=7, total_steps=50)
    assert resolved == expected
    assert resolved.length == updates
    assert type(resolved.total) is int


@pytest.mark.parametrize("hundredths", range(1, 101))
@pytest.mark.parametrize("total_steps", [50, 150, 1000])
def test_shares_round_half_up_without_errors_of_floats(hundredths, total_steps):
    share = Cosine(f"{hundredths / 100}dur").resolve(total_steps=total_steps)
    assert share.total == (hundredths * total_steps * 2 + 100) // 200


@pytest.mark.parametrize("halves", range(1, 20))
def test_epochs_round_half_up(halves):
    assert Cosine(f"{halves / 2}ep").resolve(steps_per_epoch=3).total == (halves * 3 + 1) // 2


EVERY_TIME = [
    (Step("2ep", gamma=0.5), Step(20, gamma=0.5)),
    (
        Piecewise(["1ep", "25ba", "0.4dur"], [1, 0.5, 0.2, 0.1]),
        Piecewise([10, 25, 40], [1, 0.5, 0.2, 0.1]),
    ),
    (Exponential(0.9, every="1ep"), Exponential(0.9, every=10)),
    (Linear("3ep", end=0.1), Linear(30, end=0.1)),
    (Polynomial("0.3dur", power=2.0), Polynomial(30, power=2.0)),
    (InverseSqrt("3ep"), InverseSqrt(30)),
    (Cosine("1dur"), Cosine(100)),
    (WarmRestarts("1ep", T_mult=3), WarmRestarts(10, T_mult=3)),
    (WarmUpRestarts("1ep", T_mult=3, T_up="4ba"), WarmUpRestarts(10, T_mult=3, T_up=4)),
    (LinearWarmup("0.05dur", offset=1), LinearWarmup(5, offset=1)),
    (ConstantWarmup("0.5ep", 0.3), ConstantWarmup(5, 0.3)),
    (GradualWarmup("5ep", 8), GradualWarmup(50, 8)),
    (Cyclic("1ep", "2ep"), Cyclic(10, 20)),
    (OneCycle("1dur", pct_start=0.4), OneCycle(100, pct_start=0.4)),
    (WarmupStableDecay("1dur", "1ep", "0.2dur"), WarmupStableDecay(100, 10, 20)),
    (Linear("1ep").then(Cosine("5ba"), after="0.2dur"), Linear(10).then(Cosine(5), after=20)),
    (Linear("1ep").then(Cosine("5ba")), Linear(10).then(Cosine(5))),
    (Linear("1ep") * Cosine("5ba"), Linear(10) * Cosine(5)),
    (Linear("1ep").between(low=0.1, high=0.7), Linear(10).between(low=0.1, high=0.7)),
    (
        Sequence([Linear("1ep"), Step("5ba"), Cosine("1ep")], ["1ep", "0.5dur"]),
        Sequence([Linear(10), Step(5), Cosine(10)], [10, 50]),
    ),
    (
        Cosine("1dur").with_warmup("1ep", budget="inside"),
        Cosine(100).with_warmup(10, budget="inside"),
    ),
    (
        Cosine("1dur").with_warmup(LinearWarmup("5ba"), budget="before"),
        Cosine(100).with_warmup(LinearWarmup(5), budget="before"),
    ),
]


@pytest.mark.parametrize(("schedule", "expected"), EVERY_TIME, ids=lambda s: repr(s)[:50])
def test_every_time_is_resolved(schedule, expected):
    resolved = schedule.resolve(steps_per_epoch=10, total_steps=100)
    values = [expected(t, 0.3) for t in range(130)]
    assert [resolved(t, 0.3) for t in range(130)] == values
    assert resolved.length == expected.length
    assert parse(repr(schedule)) == schedule
    assert schedule.preview(130, base=0.3, steps_per_epoch=10, total_steps=100) == values


IN_EPOCHS = [
    (Step(2, gamma=0.5), Step(20, gamma=0.5)),
    (Piecewise([1, 3], [1, 0.5, 0.2]), Piecewise([10, 30], [1, 0.5, 0.2])),
    (Exponential(0.9), Exponential(0.9, every=10)),
    (InverseSqrt(3), InverseSqrt(30)),
    (Cosine(4.25), Cosine(43)),
    (WarmRestarts(2, T_mult=3), WarmRestarts(20, T_mult=3)),
    (WarmUpRestarts(2, T_mult=3, T_up=1), WarmUpRestarts(20, T_mult=3, T_up=10)),
    (WarmupStableDecay(9, 1, 2), WarmupStableDecay(90, 10, 20)),
    (OneCycle(4), OneCycle(40)),
    (Cyclic(1, 2), Cyclic(10, 20)),
    (GradualWarmup(5, 8), GradualWarmup(50, 8)),
    (LinearWarmup(1).then(Cosine(4)), LinearWarmup(10).then(Cosine(40))),
    (Linear(2).then(Cosine(4), after=1), Linear(20).then(Cosine(40), after=10)),
    (Linear(2).then(Cosine("7ba"), after="5ba"), Linear(20).then(Cosine(7), after=5)),
    (Sequence([Linear(2), Cosine(4)], [1]), Sequence([Linear(20), Cosine(40)], [10])),
    (Cosine(4).with_warmup(1, budget="inside"), Cosine(40).with_warmup(10, budget="inside")),
]


@pytest.mark.parametrize(("schedule", "expected"), IN_EPOCHS, ids=lambda s: repr(s)[:50])
def test_plain_numbers_may_count_epochs(schedule, expected):
    resolved = schedule.resolve(steps_per_epoch=10, unit="epoch")
    values = [expected(t, 0.3) for t in range(130)]
    assert [resolved(t, 0.3) for t in range(130)] == values
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    scheduler = ScheduledLR(optimizer, schedule, unit="epoch", steps_per_epoch=10)
    rates = []
    for _ in range(70):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == values[:70]


def test_the_scheduler_resolves_the_strings():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    scheduler = ScheduledLR(optimizer, Cosine("0.5dur", end=0.2), total_steps=16)
    for t in range(12):
        assert optimizer.param_groups[0]["lr"] == close(0.3 * half_cosine(t, 0, 8, 1, 0.2))
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("schedule", "given", "missing", "value"),
    [
        (Cosine("5ep"), {}, "steps_per_epoch", "5ep"),
        (Cosine("5ep"), {"total_steps": 50}, "steps_per_epoch", "5ep"),
        (Cosine("0.1dur"), {"steps_per_epoch": 5}, "total_steps", "0.1dur"),
        (Cosine(5), {"unit": "epoch"}, "steps_per_epoch", "epoch"),
        (Linear(3).then(Step("7ep")), {}, "steps_per_epoch", "7ep"),
        (Linear(3).then(Step(3), after="0.7dur"), {}, "total_steps", "0.7dur"),
    ],
)
def test_what_is_missing_is_named(schedule, given, missing, value):
    for use in (
        lambda: schedule.resolve(**given),
        lambda: ScheduledLR(torch.optim.SGD([torch.zeros(1)], lr=0.3), schedule, **given),
    ):
        with pytest.raises(ValueError, match=missing) as caught:
            use()
        assert value in str(caught.value)


def test_values_need_resolved_times():
    with pytest.raises((TypeError, ValueError), match="resolve") as caught:
        Cosine("5ep")(3)
    assert "5ep" in str(caught.value)


@pytest.mark.parametrize(
    "time",
    [
        "5",
        "ep",
        "",
        "5 epochs",
        "5eps",
        "-5ep",
        "-0.1dur",
        "nanep",
        "infba",
        "5ep3",
        "1/2dur",
        "0xep",
    ],
)
def test_malformed_times(time):
    with pytest.raises(ValueError, match="total") as caught:
        Cosine(time).resolve(steps_per_epoch=7, total_steps=50)
    assert repr(time) in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("steps_per_epoch", 0),
        ("steps_per_epoch", -3),
        ("steps_per_epoch", NAN),
        ("total_steps", 0),
        ("total_steps", -1),
        ("unit", "epochs"),
        ("unit", None),
    ],
)
def test_wrong_arguments_of_resolve(argument, value):
    schedule = Linear("2ep").then(Cosine("0.5dur"))
    given = {"steps_per_epoch": 3, "total_steps": 9, "unit": "update"} | {argument: value}
    with pytest.raises((TypeError, ValueError), match=argument) as caught:
        schedule.resolve(**given)
    assert repr(value) in str(caught.value)
