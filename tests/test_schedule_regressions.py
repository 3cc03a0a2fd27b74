"""Where torch's schedulers are wrong, and the schedulers that torch does not have."""

import math

import pytest
from torch.optim import lr_scheduler as torch_schedulers

import fusedtricks.lr_scheduler as our_schedulers
from tests import schedule_formulas as formulas
from tests.schedule_formulas import close
from tests.schedule_walks import LRS, follows, make_optimizer, rates, values, walk

pytestmark = pytest.mark.filterwarnings("ignore:.*the schedule ended:UserWarning")


def test_one_cycle_whose_rise_takes_one_update():
    """torch divides by zero."""
    with pytest.raises(ZeroDivisionError):
        make_one = torch_schedulers.OneCycleLR
        make_one(make_optimizer(), 0.4, total_steps=10, pct_start=0.1)
    found = rates(lambda m, o: m.OneCycleLR(o, 0.4, total_steps=10, pct_start=0.1), 12)
    for t, (first, second) in enumerate(found):
        value = formulas.half_cosine(t, 0, 9, 0.4, 0.4 / 25 / 1e4)
        assert (first, second) == (close(value), close(value)), t


def test_one_cycle_holds_after_its_end():
    """torch raises two steps after it, and goes on below the last value one step after it."""
    for three_phase in (False, True):

        def make(module, optimizer, three_phase=three_phase):
            return module.OneCycleLR(
                *(optimizer, 0.4),
                total_steps=10,
                pct_start=0.3,
                three_phase=three_phase,
                base_momentum=0.77,
                max_momentum=0.91,
            )

        with pytest.raises(ValueError, match="Tried to step"):
            walk(torch_schedulers, make, 11)
        seen = walk(our_schedulers, make, 40)
        assert seen[9][0] == (close(0.4 / 25 / 1e4), close(0.91))
        assert all(at_t == seen[9] for at_t in seen[9:])


def test_the_cosine_holds_after_its_end():
    """torch climbs up again."""

    def make(module, optimizer):
        return module.CosineAnnealingLR(optimizer, T_max=6, eta_min=0.02)

    assert walk(torch_schedulers, make, 12)[12][0][0] > 0.29
    follows(make, 40, lambda t, base: formulas.half_cosine(t, 0, 6, base, 0.02))


def test_the_polynomial_and_the_line_hold_after_their_end():
    follows(
        lambda m, o: m.PolynomialLR(o, total_iters=6, power=1.7),
        *(40, lambda t, base: base * formulas.polynomial(t, 6, 1.7, 0.0)),
    )
    follows(
        lambda m, o: m.LinearLR(o, start_factor=0.9, end_factor=0.0, total_iters=6),
        *(40, lambda t, base: base * formulas.line(t, 0, 6, 0.9, 0.0)),
    )


def test_a_line_from_zero():
    """torch refuses, because it multiplies."""

    def make(module, optimizer):
        return module.LinearLR(optimizer, start_factor=0.0, end_factor=0.8, total_iters=6)

    with pytest.raises(ValueError, match="greater than 0"):
        make(torch_schedulers, make_optimizer())
    follows(make, 20, lambda t, base: base * formulas.line(t, 0, 6, 0.0, 0.8))


def test_a_constant_of_zero_ends():
    """torch divides by zero at the end."""

    def make(module, optimizer):
        return module.ConstantLR(optimizer, factor=0.0, total_iters=6)

    with pytest.raises(ZeroDivisionError):
        walk(torch_schedulers, make, 11)
    follows(make, 10, lambda t, base: base if t >= 6 else 0.0)


RESTARTS = [(3, 5), (3, 10), (10, 3), (10, 6), (10, 9), (2, 10), (1, 7), (5, 4)]


@pytest.mark.parametrize(("T_mult", "T_0"), RESTARTS)
def test_restarts_are_where_they_are_also_after_a_jump(T_mult, T_0):
    """torch finds the cycle with a logarithm, and misses restarts by one update."""
    optimizer = make_optimizer()
    scheduler = our_schedulers.CosineAnnealingWarmRestarts(optimizer, T_0, T_mult, eta_min=0.013)
    start, length = 0, T_0
    for _ in range(40):
        start, length = start + length, length * T_mult
        if start >= 2**50:
            break
        scheduler.step(start)
        assert [lr for lr, *_ in values(optimizer)] == [close(base) for base in LRS], start
        scheduler.step(start - 1)
        before = formulas.half_cosine(length // T_mult - 1, 0, length // T_mult, 1.0, 0.0)
        for (lr, *_), base in zip(values(optimizer), LRS, strict=True):
            assert lr == close(0.013 + (base - 0.013) * before), start


@pytest.mark.parametrize(("T_mult", "T_0"), [(3, 5), (3, 10), (10, 3), (10, 6), (10, 9), (1, 4)])
def test_jumps_give_what_single_steps_give(T_mult, T_0):
    def make(module, optimizer):
        return module.CosineAnnealingWarmRestarts(optimizer, T_0, T_mult, 0.013)

    stepped = walk(our_schedulers, make, 140)
    optimizer = make_optimizer()
    scheduler = make(our_schedulers, optimizer)
    for t in [*range(141), 77, 5, 133, 0, 99]:
        scheduler.step(t)
        assert values(optimizer) == stepped[t], t
    # On from where the jump led.
    scheduler.step()
    assert values(optimizer) == stepped[100]


def test_jumps_between_whole_updates():
    optimizer = make_optimizer()
    scheduler = our_schedulers.CosineAnnealingWarmRestarts(optimizer, 5, 2, eta_min=0.013)
    for t in (0.25, 4.75, 5.5, 14.9, 15.1, 40.5):
        scheduler.step(t)
        share = formulas.warm_restarts(t, 5, 2, 0.0, 1.0)
        for (lr, *_), base in zip(values(optimizer), LRS, strict=True):
            assert lr == close(0.013 + (base - 0.013) * share), t


def test_warm_up_restarts_step_by_step():
    def make(module, optimizer):
        return module.CosineAnnealingWarmUpRestarts(
            optimizer, T_0=10, T_mult=2, eta_max=0.9, T_up=4, gamma=0.5
        )

    options = (10, 2, 0.9, 4, 0.5)
    follows(make, 120, lambda t, base: formulas.warm_up_restarts(t, base, *options))


OTHERS = [
    (
        lambda m, o: m.PiecewiseLR(o, [3, 8], [1.0, 0.4, 0.1]),
        lambda t: formulas.piecewise(t, [3, 8], [1.0, 0.4, 0.1]),
    ),
    (lambda m, o: m.InverseSqrtLR(o, 7), lambda t: formulas.inverse_sqrt(t, 7)),
    (
        lambda m, o: m.WarmupStableDecayLR(o, 15, 3, 6, "sqrt", 0.2),
        lambda t: formulas.warmup_stable_decay(t, 15, 3, 6, "sqrt", 0.2),
    ),
    (lambda m, o: m.WarmupLR(o, 6, 0.1, 1), lambda t: formulas.line(t + 1, 0, 6, 0.1, 1.0)),
]


@pytest.mark.parametrize(("make", "formula"), OTHERS)
def test_schedulers_that_torch_does_not_have(make, formula):
    follows(make, 30, lambda t, base: base * formula(t))


@pytest.mark.parametrize("bad", [-1, math.nan])
def test_wrong_jumps(bad):
    optimizer = make_optimizer()
    scheduler = our_schedulers.CosineAnnealingWarmRestarts(optimizer, 5, 2, eta_min=0.013)
    with pytest.raises(ValueError, match=str(bad)):
        scheduler.step(bad)
    assert [lr for lr, *_ in values(optimizer)] == list(LRS)
