"""Arguments that are wrong raise an error that names the schedule, the argument and the value."""

import inspect
import math

import pytest

from fusedtricks.lr_scheduler import (
    Constant,
    ConstantWarmup,
    Cosine,
    Cyclic,
    Exponential,
    Function,
    GradualWarmup,
    InverseSqrt,
    Linear,
    LinearWarmup,
    OneCycle,
    Piecewise,
    Polynomial,
    Sequence,
    Step,
    WarmRestarts,
    WarmUpRestarts,
    WarmupStableDecay,
    parse,
)

NAN, INF = math.nan, math.inf
FUNCTION = next(iter(inspect.signature(Function).parameters))
WARMUP = "(?i)warm-?up"

GOOD = {
    Constant: {"factor": 0.3},
    Step: {"step_size": 3, "gamma": 0.5},
    Piecewise: {"milestones": [2, 5], "factors": [1.0, 0.5, 0.2]},
    Exponential: {"gamma": 0.9, "every": 2},
    Linear: {"total": 7, "start": 0.9, "end": 0.2},
    Polynomial: {"total": 7, "power": 2.0, "end": 0.2},
    InverseSqrt: {"timescale": 3},
    Cosine: {"total": 7, "end": 0.2},
    WarmRestarts: {"T_0": 5, "T_mult": 2, "end": 0.2, "gamma": 0.9},
    WarmUpRestarts: {"T_0": 9, "T_mult": 2, "eta_max": 0.3, "T_up": 4, "gamma": 0.9},
    LinearWarmup: {"total": 7, "start": 0.2, "offset": 1},
    ConstantWarmup: {"total": 7, "factor": 0.2},
    GradualWarmup: {"total": 7, "k": 8},
    Cyclic: {"step_size_up": 3, "step_size_down": 4, "mode": "exp_range", "gamma": 0.9},
    OneCycle: {"total": 20, "pct_start": 0.4, "start": 0.1, "peak": 0.9, "end": 0.01},
    WarmupStableDecay: {"total": 20, "warmup": 3, "decay": 5, "shape": "sqrt", "end": 0.1},
    Function: {FUNCTION: math.sqrt},
}
NO_NUMBERS = [NAN, INF, None, "much", [1.0]]
NO_TIMES = [0, -1, -2.5, NAN, INF, None, [3], True, 1j]
WRONG = [
    (Constant, "factor", NO_NUMBERS),
    (Step, "step_size", NO_TIMES),
    (Step, "gamma", [*NO_NUMBERS, -0.1]),
    (Piecewise, "milestones", [[5, 2], [2, 2], [2], [2, 5, 9], [-1, 5], [2, NAN], 3, [2, None]]),
    (Piecewise, "factors", [[1.0, 0.5], [1.0] * 4, [], [1.0, NAN, 0.2], [1.0, "a", 0.2], 0.5]),
    (Exponential, "gamma", [*NO_NUMBERS, -0.1]),
    (Exponential, "every", NO_TIMES),
    (Linear, "total", NO_TIMES),
    (Linear, "start", NO_NUMBERS),
    (Linear, "end", NO_NUMBERS),
    (Polynomial, "total", NO_TIMES),
    (Polynomial, "power", [*NO_NUMBERS, -1.0]),
    (Polynomial, "end", NO_NUMBERS),
    (InverseSqrt, "timescale", NO_TIMES),
    (Cosine, "total", NO_TIMES),
    (Cosine, "end", NO_NUMBERS),
    (WarmRestarts, "T_0", NO_TIMES),
    (WarmRestarts, "T_mult", [0, -1, 1.5, NAN, None, "2"]),
    (WarmRestarts, "end", NO_NUMBERS),
    (WarmRestarts, "gamma", [*NO_NUMBERS, -0.1]),
    (WarmUpRestarts, "T_0", [*NO_TIMES, 4, 3]),
    (WarmUpRestarts, "T_mult", [0, -1, 1.5, NAN, None, "2"]),
    (WarmUpRestarts, "eta_max", NO_NUMBERS),
    (WarmUpRestarts, "T_up", [9, 10, -1, NAN, INF, None]),
    (WarmUpRestarts, "gamma", [*NO_NUMBERS, -0.1]),
    (LinearWarmup, "total", NO_TIMES),
    (LinearWarmup, "start", NO_NUMBERS),
    (LinearWarmup, "offset", [-1, NAN, None, "1"]),
    (ConstantWarmup, "total", NO_TIMES),
    (ConstantWarmup, "factor", NO_NUMBERS),
    (GradualWarmup, "total", NO_TIMES),
    (GradualWarmup, "k", [*NO_NUMBERS, 0, -8]),
    (Cyclic, "step_size_up", NO_TIMES),
    (Cyclic, "step_size_down", [v for v in NO_TIMES if v is not None]),
    (Cyclic, "mode", ["triangular3", "", None, 2]),
    (Cyclic, "window", ["cos", "", None, 2]),
    (Cyclic, "gamma", [*NO_NUMBERS, -0.1]),
    (OneCycle, "total", NO_TIMES),
    (OneCycle, "pct_start", [*NO_NUMBERS, -0.1, 1.01, 30]),
    (OneCycle, "start", NO_NUMBERS),
    (OneCycle, "peak", NO_NUMBERS),
    (OneCycle, "end", NO_NUMBERS),
    (OneCycle, "anneal_strategy", ["cosine", "", None]),
    (WarmupStableDecay, "total", [*NO_TIMES, 7]),
    (WarmupStableDecay, "warmup", [16, -1, NAN, None]),
    (WarmupStableDecay, "decay", [18, -1, NAN, None]),
    (WarmupStableDecay, "shape", ["quadratic", "", None]),
    (WarmupStableDecay, "end", NO_NUMBERS),
    (Function, FUNCTION, [0.5, None, "sqrt"]),
]
CASES = [
    pytest.param(cls, argument, value, id=f"{cls.__name__}-{argument}-{value}")
    for cls, argument, values in WRONG
    for value in values
]


@pytest.mark.parametrize(("cls", "argument", "value"), CASES)
def test_wrong_arguments(cls, argument, value):
    names = {cls.__name__, type(cls(**GOOD[cls])).__name__}
    with pytest.raises((TypeError, ValueError)) as caught:
        cls(**GOOD[cls] | {argument: value})
    message = str(caught.value)
    assert any(name in message for name in names)
    assert argument in message


@pytest.mark.parametrize("cls", GOOD, ids=lambda cls: cls.__name__)
def test_schedules_do_not_change(cls):
    schedule = cls(**GOOD[cls])
    for name in GOOD[cls]:
        with pytest.raises(AttributeError):
            setattr(schedule, name, 1)


@pytest.mark.parametrize("time", ["5", "ep", "-5ep"])
def test_wrong_strings_are_found_in_every_time(time):
    for cls, argument in [(Step, "step_size"), (WarmRestarts, "T_0"), (OneCycle, "total")]:
        with pytest.raises(ValueError, match=argument) as caught:
            cls(**GOOD[cls] | {argument: time}).resolve(steps_per_epoch=3, total_steps=9)
        assert cls.__name__ in str(caught.value)
        assert repr(time) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Cosine(5).with_warmup(5, budget="inside")(0), WARMUP),
        (lambda: Cosine(5).with_warmup(7, budget="inside")(0), WARMUP),
        (lambda: Cosine(5).with_warmup(2, budget="after"), "budget"),
        (lambda: Cosine(5).with_warmup(-2), WARMUP),
        (lambda: Step(5).with_warmup(2, budget="inside")(0), "budget|inside"),
        (lambda: Step(5).then(Cosine(3))(0), "after"),
        (lambda: Cosine(5).then(Cosine(3), after=-1), "after"),
        (lambda: Cosine(5).then(Cosine(3), after=NAN), "after"),
        (lambda: Sequence([Cosine(5), Cosine(3)], []), "milestones"),
        (lambda: Sequence([Cosine(5), Cosine(3)], [3, 6]), "milestones"),
        (lambda: Sequence([Cosine(5)] * 3, [6, 3]), "milestones"),
        (
            lambda: Sequence([Cosine(5)] * 3, ["2ep", 5]).resolve(steps_per_epoch=7),
            "milestones",
        ),
        (lambda: Sequence([], []), "schedules"),
        (lambda: Cosine(5).between(low=NAN, high=0.3), "low"),
        (lambda: Cosine(5).between(low=0.1, high="a"), "high"),
        (lambda: Cosine(5).preview(-1), "n"),
    ],
)
def test_wrong_arguments_of_compositions(make, argument):
    with pytest.raises((TypeError, ValueError), match=argument):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cosine(5) * 2,
        lambda: Cosine(5) * "Cosine(5)",
        lambda: Cosine(5).then(2),
        lambda: Sequence([Cosine(5), math.sqrt], [2]),
    ],
)
def test_compositions_take_schedules(make):
    with pytest.raises((TypeError, ValueError)):
        make()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Cosine",
        "Cosine(",
        "Cosine(5) +",
        "Unknown(5)",
        "Cosine(total=__import__('os'))",
        "Cosine(5).__class__",
        "Cosine(5).resolve.__globals__",
        "(lambda: Cosine(5))()",
        "open('/etc/passwd')",
        "[Cosine(5)]",
        "5",
        "'Cosine(5)'",
    ],
)
def test_parse_reads_schedules_only(text):
    with pytest.raises(ValueError):
        parse(text)


def test_parse_reports_wrong_arguments():
    with pytest.raises((TypeError, ValueError), match="total"):
        parse("Cosine(-5)")
