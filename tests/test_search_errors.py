"""Bad arguments of the functions for hyper-parameter searches."""

import math

import pytest

from fusedtricks import _extras
from fusedtricks.train.search import best_on_border, refine

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)
Float = optuna.distributions.FloatDistribution


def one_trial(distribution, value, loss=1.0):
    """Return a study with one finished trial."""
    study = optuna.create_study()
    parts = {"params": {"x": value}, "distributions": {"x": distribution}, "value": loss}
    study.add_trial(optuna.trial.create_trial(**parts))
    return study


@pytest.mark.parametrize("function", [best_on_border, refine])
def test_studies_without_a_best_trial(function):
    name = function.__name__
    with pytest.raises(TypeError, match=f"{name}: expected an optuna.Study, got list"):
        function([])
    with pytest.raises(ValueError, match=f"{name}: expected a study with one objective, got 2"):
        function(optuna.create_study(directions=["minimize", "maximize"]))
    text = f"{name}: .* finite value, got 0 trials without one; run study.optimize first"
    with pytest.raises(ValueError, match=text):
        function(optuna.create_study())
    study = one_trial(Float(0.0, 1.0), 0.5, math.inf)
    with pytest.raises(ValueError, match="got 1 trials without one"):
        function(study)


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (best_on_border, {"margin": 0.5}, r"expected margin in \[0, 0.5\), got 0.5"),
        (best_on_border, {"margin": -0.1}, r"expected margin in \[0, 0.5\), got -0.1"),
        (refine, {"shrink": 1.0}, r"expected shrink in \(0, 1\), got 1.0"),
        (refine, {"shrink": 0}, r"expected shrink in \(0, 1\), got 0"),
        (refine, {"shrink": math.nan}, "expected shrink to be a finite number, got nan"),
        (refine, {"n_best": 0}, "expected n_best of at least 1, got 0"),
    ],
)
def test_bad_arguments(function, arguments, text):
    study = one_trial(Float(0.0, 1.0), 0.5)
    with pytest.raises(ValueError, match=f"{function.__name__}: .*{text}"):
        function(study, **arguments)


@pytest.mark.parametrize(("function", "name"), [(best_on_border, "margin"), (refine, "shrink")])
@pytest.mark.parametrize("bad", ["a", True, None])
def test_shares_are_numbers(function, name, bad):
    text = f"{function.__name__}: expected {name} to be a number, got {bad!r}"
    with pytest.raises(TypeError, match=text):
        function(one_trial(Float(0.0, 1.0), 0.5), **{name: bad})


@pytest.mark.parametrize("bad", [2.0, True, "2"])
def test_the_number_of_trials_is_whole(bad):
    text = f"refine: expected n_best to be a whole number, got {bad!r}"
    with pytest.raises(TypeError, match=text):
        refine(one_trial(Float(0.0, 1.0), 0.5), n_best=bad)


def test_numbers_of_numpy():
    numpy = pytest.importorskip("numpy")
    study = one_trial(Float(0.0, 1.0), 0.5)
    expected = refine(study, shrink=0.5, n_best=2)
    assert refine(study, shrink=numpy.float32(0.5), n_best=numpy.int64(2)) == expected
    assert best_on_border(study, margin=numpy.float32(0.25)) == []


def test_without_optuna(monkeypatch):
    def fail(name):
        raise ImportError("gone")

    study = one_trial(Float(0.0, 1.0), 0.5)
    monkeypatch.setattr(_extras.importlib, "import_module", fail)
    with pytest.raises(_extras.MissingExtraError, match=r"pip install 'fusedtricks\[search\]'"):
        refine(study)
