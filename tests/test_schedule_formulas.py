"""The values of the schedules against the formulas of the papers, between whole updates too."""

import pytest

from fusedtricks.lr_scheduler import (
    Constant,
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
    Step,
    WarmRestarts,
    WarmUpRestarts,
    WarmupStableDecay,
)
from tests import schedule_formulas as formulas
from tests.schedule_formulas import close

FORMULAS = {
    Constant: lambda t, factor: factor,
    Step: formulas.step_decay,
    Piecewise: formulas.piecewise,
    Exponential: formulas.exponential,
    Linear: lambda t, total, start, end: formulas.line(t, 0, total, start, end),
    Polynomial: formulas.polynomial,
    InverseSqrt: formulas.inverse_sqrt,
    Cosine: lambda t, total, end: formulas.half_cosine(t, 0, total, 1.0, end),
    WarmRestarts: formulas.warm_restarts,
    LinearWarmup: lambda t, total, start, offset: formulas.line(t + offset, 0, total, start, 1.0),
    ConstantWarmup: lambda t, total, factor: factor if t < total else 1.0,
    GradualWarmup: lambda t, total, k: formulas.line(t, 0, total, 1 / k, 1.0),
    Cyclic: formulas.cyclic,
    OneCycle: formulas.one_cycle,
    WarmupStableDecay: formulas.warmup_stable_decay,
}
ARGUMENTS = [
    (Constant, 0.71),
    (Constant, 0.0),
    (Step, 7, 0.37),
    (Step, 31, 1.02),
    (Piecewise, (3, 4, 29), (0.2, 0.0, 1.3, 0.11)),
    (Exponential, 0.93, 3),
    (Exponential, 1.013, 11),
    (Linear, 13, 0.23, 0.91),
    (Linear, 37, 1.7, 0.03),
    (Linear, 1, 0.9, 0.2),
    (Polynomial, 23, 2.3, 0.07),
    (Polynomial, 41, 0.9, 0.0),
    (InverseSqrt, 17),
    (InverseSqrt, 3),
    (Cosine, 19, 0.13),
    (Cosine, 2, 0.0),
    (Cosine, 1, 0.4),
    (WarmRestarts, 7, 3, 0.09, 0.83),
    (WarmRestarts, 1, 2, 0.2, 0.9),
    (WarmRestarts, 11, 1, 0.05, 0.7),
    (WarmRestarts, 3, 10, 0.01, 1.2),
    (LinearWarmup, 9, 0.12, 0),
    (LinearWarmup, 9, 0.12, 1),
    (LinearWarmup, 1, 0.3, 1),
    (LinearWarmup, 1, 0.3, 0),
    (ConstantWarmup, 12, 0.31),
    (GradualWarmup, 15, 8),
    (GradualWarmup, 6, 2.5),
    *[
        (Cyclic, up, down, mode, 0.97, window)
        for up, down in [(5, 11), (13, 4), (1, 1)]
        for mode in ("triangular", "triangular2", "exp_range")
        for window in ("triangular", "welch", "hann")
    ],
    *[
        (OneCycle, total, pct, 0.07, 0.93, 0.002, anneal, three)
        for total, pct in [(30, 0.27), (50, 0.4), (17, 0.125), (64, 0.499)]
        for anneal in ("cos", "linear")
        for three in (False, True)
    ],
    *[
        (WarmupStableDecay, total, warmup, decay, shape, 0.06)
        for total, warmup, decay in [(40, 7, 11), (12, 5, 7), (9, 0, 4), (9, 0, 9)]
        for shape in ("linear", "cosine", "sqrt")
    ],
]
TIMES = [0.0, *(k / 4 for k in range(1, 520)), *(k / 7 for k in range(1, 260, 5))]


def label(arguments):
    return "-".join(getattr(value, "__name__", str(value)) for value in arguments)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=label)
def test_formulas(arguments):
    cls, *options = arguments
    schedule = cls(*options)
    formula = FORMULAS[cls]
    for t in TIMES:
        value = formula(t, *options)
        for base in (1.0, 0.037, 2.5):
            assert schedule(t, base) == close(base * value, base), (t, base)


@pytest.mark.parametrize("base", [0.003, 0.02, 0.0])
@pytest.mark.parametrize("gamma", [1.0, 0.81])
@pytest.mark.parametrize("T_up", [0, 1, 4])
@pytest.mark.parametrize(("T_0", "T_mult"), [(5, 1), (7, 2), (6, 3)])
def test_formula_of_warm_up_restarts(T_0, T_mult, T_up, gamma, base):
    schedule = WarmUpRestarts(T_0, T_mult=T_mult, eta_max=0.47, T_up=T_up, gamma=gamma)
    for t in TIMES:
        value = formulas.warm_up_restarts(t, base, T_0, T_mult, 0.47, T_up, gamma)
        assert schedule(t, base) == close(value), t


@pytest.mark.parametrize("stepsize", [1, 4, 9])
def test_cyclic_is_the_formula_of_clr(stepsize):
    schedule = Cyclic(stepsize).between(low=0.013, high=0.61)
    for t in TIMES:
        assert schedule(t, 0.5) == close(formulas.clr(t, stepsize, 0.013, 0.61)), t


@pytest.mark.parametrize("warmup", [1, 7, 40])
def test_the_schedule_of_the_transformer(warmup):
    schedule = LinearWarmup(warmup).then(InverseSqrt(warmup))
    for t in range(300):
        assert schedule(t, 0.7) == close(0.7 * formulas.transformer(t, warmup), 0.7), t


@pytest.mark.parametrize("k", [2, 8, 32])
def test_gradual_warmup_is_linear_from_one_kth(k):
    gradual, linear = GradualWarmup(9, k), LinearWarmup(9, 1 / k)
    assert [gradual(t) for t in TIMES] == [linear(t) for t in TIMES]
    assert gradual(0, k * 0.1) == close(0.1)
    assert gradual(9, k * 0.1) == close(k * 0.1)
