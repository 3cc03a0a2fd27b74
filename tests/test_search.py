"""Borders and finer ranges of hyper-parameter searches, on studies that are made by hand."""

import math

import pytest

from fusedtricks.train.search import best_on_border, refine

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)
Float = optuna.distributions.FloatDistribution
Int = optuna.distributions.IntDistribution
Category = optuna.distributions.CategoricalDistribution


def make_study(distributions, trials, direction="minimize"):
    """Return a study with finished trials, given as pairs of value and parameters."""
    study = optuna.create_study(direction=direction)
    for value, params in trials:
        used = {name: distributions[name] for name in params}
        trial = optuna.trial.create_trial(params=params, distributions=used, value=value)
        study.add_trial(trial)
    return study


def one_trial(distribution, value):
    return make_study({"x": distribution}, [(1.0, {"x": value})])


# Borders. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "value", "side"),
    [
        # By hand: 10 % of -3 to 5 ends at -2.2 and begins at 4.2.
        (Float(-3.0, 5.0), -2.25, "low"),
        (Float(-3.0, 5.0), -2.15, None),
        (Float(-3.0, 5.0), 4.15, None),
        (Float(-3.0, 5.0), 4.25, "high"),
        # Five decades: 10 % are half of one, a factor of 3.16.
        (Float(1e-6, 1e-1, log=True), 3.1e-6, "low"),
        (Float(1e-6, 1e-1, log=True), 3.3e-6, None),
        (Float(1e-6, 1e-1, log=True), 3.0e-2, None),
        (Float(1e-6, 1e-1, log=True), 3.3e-2, "high"),
        # On a linear scale, the same value would be at the lower border.
        (Float(1e-6, 1e-1), 3.3e-6, "low"),
        (Int(1, 4), 1, "low"),
        (Int(1, 4), 2, None),
        (Int(1, 4), 4, "high"),
        (Int(0, 100), 11, None),
        (Int(0, 100), 10, "low"),
        # Ten doublings: 10 % are one.
        (Int(1, 1024, log=True), 2, "low"),
        (Int(1, 1024, log=True), 3, None),
        (Int(8, 72, step=16), 24, None),
        (Int(8, 72, step=16), 72, "high"),
        (Float(0.0, 0.6, step=0.2), 0.6, "high"),
        (Category([1, 2, 3]), 1, None),
        (Float(0.5, 0.5), 0.5, None),
        # Of two values, each is at a border.
        (Int(0, 1), 1, None),
        (Int(8, 24, step=16), 8, None),
        (Float(0.1, 0.4, step=0.3), 0.4, None),
        (Int(0, 2), 2, "high"),
        (Float(0.0, 1e-3), 1e-3, "high"),
    ],
)
def test_borders_by_hand(distribution, value, side):
    found = best_on_border(one_trial(distribution, value), margin=0.1)
    assert [entry.side for entry in found] == ([] if side is None else [side])
    for entry in found:
        assert (entry.name, entry.value) == ("x", value)
        assert (entry.low, entry.high) == (distribution.low, distribution.high)


def test_only_the_exact_border_without_margin():
    for value, n in ((2.0, 1), (2.001, 0), (7.0, 1)):
        assert len(best_on_border(one_trial(Float(2.0, 7.0), value), margin=0)) == n


@pytest.mark.parametrize(("direction", "side"), [("minimize", "high"), ("maximize", "low")])
def test_the_best_trial_decides(direction, side):
    ranges = {"lr": Float(1e-4, 1.0, log=True), "depth": Int(2, 9), "act": Category(["a", "b"])}
    trials = [
        (0.3, {"lr": 0.01, "depth": 5, "act": "a"}),
        (0.2, {"lr": 0.9, "depth": 6, "act": "b"}),
        (0.4, {"lr": 2e-4, "depth": 4, "act": "b"}),
    ]
    (found,) = best_on_border(make_study(ranges, trials, direction), margin=0.09)
    assert (found.name, found.side) == ("lr", side)
    texts = {
        "high": "The best lr, 0.9, is at the upper border of 0.0001 to 1: search larger values",
        "low": "The best lr, 0.0002, is at the lower border of 0.0001 to 1: search smaller values",
    }
    assert found.message == texts[side] + " too, unless there are none."


def test_integers_are_written_in_full():
    (found,) = best_on_border(one_trial(Int(1000, 3333), 3301), margin=0.1)
    assert "The best x, 3301, is at the upper border of 1000 to 3333: search" in found.message


def test_ranges_of_all_trials_count():
    study = make_study({"x": Float(2.0, 3.0)}, [(0.1, {"x": 2.01})])
    assert [entry.side for entry in best_on_border(study, margin=0.03)] == ["low"]
    # An earlier stage, a later one, or a trial that failed has searched below.
    trials = [
        optuna.trial.create_trial(
            params={"x": x}, distributions={"x": Float(low, high)}, state=state, value=value
        )
        for state, low, high, x, value in (
            (optuna.trial.TrialState.PRUNED, 0.0, 1.0, 0.5, 0.01),
            (optuna.trial.TrialState.FAIL, 3.0, 9.0, 4.0, None),
            (optuna.trial.TrialState.COMPLETE, 2.0, 3.0, 2.01, 0.1),
        )
    ]
    for order in (trials, trials[::-1]):
        wider = optuna.create_study()
        wider.add_trials(order)
        assert best_on_border(wider, margin=0.2) == []
        (found,) = best_on_border(wider, margin=0.23)
        assert (found.low, found.high) == (0.0, 9.0)


def test_a_searched_optimum_at_the_border_is_found():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=4))

    def loss(trial):
        lr = trial.suggest_float("lr", 1e-5, 1e-2, log=True)
        decay = trial.suggest_float("decay", 1e-6, 1e-1, log=True)
        return (math.log10(lr) + 1) ** 2 + (math.log10(decay) + 3.5) ** 2

    study.optimize(loss, n_trials=150)
    (found,) = best_on_border(study, margin=0.1)
    assert (found.name, found.side) == ("lr", "high")


# Refining. ----------------------------------------------------------------------------------------


def check(distribution, expected):
    assert type(distribution) is type(expected)
    assert (distribution.log, distribution.step) == (expected.log, expected.step)
    assert distribution.low == pytest.approx(expected.low, rel=1e-12)
    assert distribution.high == pytest.approx(expected.high, rel=1e-12)


@pytest.mark.parametrize(
    ("distribution", "values", "shrink", "expected"),
    [
        # The middle of the best is 3, the new width 0.25 * 8 = 2.
        (Float(-2.0, 6.0), [3.5, 2.5], 0.25, Float(2.0, 4.0)),
        # The best need more than that.
        (Float(-2.0, 6.0), [4.5, 0.5], 0.25, Float(0.5, 4.5)),
        # Moved inside at a border.
        (Float(-2.0, 6.0), [5.9], 0.25, Float(4.0, 6.0)),
        (Float(-2.0, 6.0), [-2.0], 0.25, Float(-2.0, 0.0)),
        # Four decades become one, around 1e-3.
        (Float(1e-5, 1e-1, log=True), [1e-3], 0.25, Float(10**-3.5, 10**-2.5, log=True)),
        (Float(1e-5, 1e-1, log=True), [1e-4, 1e-2], 0.25, Float(1e-4, 1e-2, log=True)),
        (Float(1e-5, 1e-1, log=True), [5e-2], 0.25, Float(1e-2, 1e-1, log=True)),
        # 10 to 100 becomes 45 wide: 27.5 to 72.5, rounded outwards.
        (Int(10, 100), [50], 0.5, Int(27, 73)),
        (Int(1, 5), [3], 0.1, Int(2, 4)),
        # The grid is 8, 24, 40, 56, 72; the new range 27.2 to 52.8 is rounded outwards on it.
        (Int(8, 72, step=16), [40], 0.4, Int(24, 56, step=16)),
        (Float(0.0, 1.0, step=0.1), [0.3], 0.2, Float(0.2, 0.4, step=0.1)),
        # 1 to 1024 are ten doublings; two of them around 32 are 16 to 64.
        (Int(1, 1024, log=True), [32], 0.2, Int(16, 64, log=True)),
        (Int(1, 1024, log=True), [1024], 0.2, Int(256, 1024, log=True)),
    ],
)
def test_finer_ranges_by_hand(distribution, values, shrink, expected):
    bad = [(9.0, {"x": distribution.low}), (9.0, {"x": distribution.high})]
    good = [(0.1 * i, {"x": value}) for i, value in enumerate(values)]
    study = make_study({"x": distribution}, bad + good)
    ranges = refine(study, shrink=shrink, n_best=len(values))
    assert list(ranges) == ["x"]
    check(ranges["x"], expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("distribution", "value", "expected"),
    [
        # 3 * 0.3 is 0.8999999999999999, and 6 * 0.1 is 0.6000000000000001.
        (Float(0.0, 0.9, step=0.3), 0.8999999999999999, (0.3, 0.9)),
        (Float(0.0, 0.9, step=0.3), 0.3, (0.0, 0.6)),
        (Float(0.1, 0.8, step=0.1), 0.1 + 6 * 0.1, (0.4, 0.8)),
        (Float(-0.3, 0.6, step=0.1), 0.0, (-0.3, 0.3)),
        (Int(3, 31, step=7), 31, (17, 31)),
    ],
)
def test_steps_are_counted_exactly(distribution, value, expected):
    found = refine(one_trial(distribution, value), shrink=0.5, n_best=1)["x"]
    assert (found.low, found.high) == expected
    assert type(found.low) is type(distribution.low)


@pytest.mark.filterwarnings("error")
def test_a_sampled_best_value_on_a_grid_is_kept():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: -trial.suggest_float("n", 0, 0.9, step=0.3), n_trials=12)
    assert study.best_params["n"] == 0.8999999999999999
    found = refine(study, shrink=0.5, n_best=5)["n"]
    assert found.high == 0.9 and found._contains(study.best_params["n"])


@pytest.mark.filterwarnings("error")
def test_a_later_grid_stays_inside_what_was_searched():
    study = one_trial(Int(0, 9, step=3), 9)
    later = {"params": {"x": 4}, "distributions": {"x": Int(0, 8, step=4)}, "value": 2.0}
    study.add_trial(optuna.trial.create_trial(**later))
    # 9 is between 8 and 12, which was never searched.
    check(refine(study, shrink=0.5, n_best=1)["x"], Int(4, 8, step=4))


def test_all_parameters_of_the_best_trials_are_there():
    ranges = {"a": Float(0.0, 8.0), "b": Int(0, 64), "c": Category(["x", "y"])}
    trials = [
        (3.0, {"a": 1.0}),
        (1.0, {"a": 6.0, "c": "y"}),
        (2.0, {"a": 2.0, "b": 32}),
        (math.inf, {"a": 0.0, "b": 0}),
    ]
    study = make_study(ranges, trials)
    found = refine(study, shrink=0.25, n_best=2)
    assert list(found) == ["a", "c", "b"]
    check(found["a"], Float(2.0, 6.0))
    check(found["b"], Int(24, 40))
    assert found["c"] == ranges["c"]
    check(refine(study, shrink=0.25, n_best=1)["a"], Float(5.0, 7.0))
    # More than there are: all with a finite value.
    check(refine(study, shrink=0.25, n_best=9)["a"], Float(1.0, 6.0))
    study = make_study(ranges, trials[:3], "maximize")
    check(refine(study, shrink=0.25, n_best=1)["a"], Float(0.0, 2.0))


def test_stages_of_one_study_go_on_from_the_last_one():
    study = make_study({"x": Float(0.0, 16.0)}, [(0.5, {"x": 7.0})])
    fine = Float(5.0, 9.0)
    study.add_trial(
        optuna.trial.create_trial(params={"x": 8.0}, distributions={"x": fine}, value=1)
    )
    check(refine(study, shrink=0.5, n_best=1)["x"], Float(6.0, 8.0))


def test_coarse_to_fine_finds_what_the_coarse_stage_missed():
    def loss(lr):
        return abs(math.log10(lr) + 3.21)

    coarse = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    coarse.optimize(lambda t: loss(t.suggest_float("lr", 1e-6, 1.0, log=True)), n_trials=15)
    study, widths = coarse, [6.0]
    for stage in range(3):
        ranges = refine(study, shrink=0.4, n_best=3)
        widths.append(math.log10(ranges["lr"].high / ranges["lr"].low))
        assert ranges["lr"].low <= study.best_params["lr"] <= ranges["lr"].high
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=stage))
        for _ in range(15):
            trial = study.ask(fixed_distributions=ranges)
            study.tell(trial, loss(**trial.params))
    assert widths == sorted(widths, reverse=True) and widths[-1] < 1
    assert study.best_value < min(0.05, coarse.best_value)
