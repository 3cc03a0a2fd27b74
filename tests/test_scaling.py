"""Rules for learning rates and betas: tables from the formulas, round trips, errors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedtricks.lr_scheduler.scaling import (
    beta_from_half_life,
    beta_from_time_constant,
    half_life,
    noise_scale,
    scale_beta,
    scale_lr,
    time_constant,
)
from tests.schedule_strategies import SETTINGS


def close(value):
    return pytest.approx(value, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("rule", "batch", "base_batch", "expected"),
    [
        ("linear", 8192, 256, 3.2),
        ("linear", 32, 256, 0.0125),
        ("linear", 96, 64, 0.15),
        ("sqrt", 512, 256, 0.1414213562373095),
        ("sqrt", 1024, 64, 0.4),
        ("sqrt", 16, 64, 0.05),
        ("none", 1024, 64, 0.1),
    ],
)
def test_learning_rates_for_other_batch_sizes(rule, batch, base_batch, expected):
    assert scale_lr(0.1, batch, base_batch, rule) == close(expected)


def test_a_learning_rate_of_zero_stays():
    assert scale_lr(0, 512, 64, "linear") == 0


@pytest.mark.parametrize(
    ("lr", "batch", "size", "momentum", "exact", "approximate"),
    [
        (0.1, 128, 50_000, 0.9, 389.625, 390.625),
        (0.1, 128, 50_000, 0.0, 38.9625, 39.0625),
        (0.5, 640, 50_000, 0.9, 385.625, 390.625),
        (0.1, 640, 50_000, 0.98, 385.625, 390.625),
        (0.3, 100, 100, 0.5, 0, 0.6),
        (0, 10, 100, 0.5, 0, 0),
    ],
)
def test_noise_scales(lr, batch, size, momentum, exact, approximate):
    assert noise_scale(lr, batch, size, momentum, exact=True) == close(exact)
    assert noise_scale(lr, batch, size, momentum, exact=False) == close(approximate)


def test_the_approximate_noise_scale_is_also_for_batches_beyond_the_data():
    assert noise_scale(0.1, 400, 100, 0.5, exact=False) == close(0.05)
    with pytest.raises(ValueError, match="batch of at most dataset_size=100, got 400"):
        noise_scale(0.1, 400, 100, 0.5, exact=True)


# beta, -1 / ln(beta), ln(1 / 2) / ln(beta)
MEMORIES = [
    (0.0, 0.0, 0.0),
    (0.5, 1.442695040888963, 1.0),
    (0.25, 0.7213475204444817, 0.5),
    (0.9, 9.491221581029903, 6.578813478960585),
    (0.99, 99.49916247342191, 68.96756393652842),
    (0.999, 999.4999166249736, 692.8005491785009),
]


@pytest.mark.parametrize(("beta", "constant", "half"), MEMORIES)
def test_memories_of_betas(beta, constant, half):
    assert time_constant(beta) == close(constant)
    assert half_life(beta) == close(half)


@pytest.mark.parametrize(("beta", "constant", "half"), MEMORIES)
def test_betas_of_memories(beta, constant, half):
    assert beta_from_time_constant(constant) == close(beta)
    assert beta_from_half_life(half) == close(beta)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (10, 0.9330329915368074),
        (100, 0.9930924954370359),
        ("10ba", 0.9330329915368074),
        ("0.5ep", 0.9330329915368074),
        ("0.1dur", 0.9930924954370359),
        # 1.26 updates are rounded to 1.
        ("0.063ep", 0.5),
    ],
)
def test_betas_of_half_lives_in_any_unit(time, expected):
    assert beta_from_half_life(time, steps_per_epoch=20, total_steps=1000) == close(expected)


@given(st.floats(1e-3, 1 - 1e-6))
@SETTINGS
def test_round_trips(beta):
    # The logarithm of a beta near 1 has few digits: a millionth from 1 leaves ten.
    assert beta_from_time_constant(time_constant(beta)) == pytest.approx(beta, rel=1e-12)
    assert beta_from_half_life(half_life(beta)) == pytest.approx(beta, rel=1e-12)
    assert half_life(beta) == pytest.approx(time_constant(beta) * 0.6931471805599453, rel=1e-9)


@pytest.mark.parametrize(
    ("beta", "batch", "base_batch", "expected"),
    [
        (0.999, 2048, 256, 0.992027944069944),  # 0.999^8
        (0.9, 128, 256, 0.9486832980505138),  # the root of 0.9
        (0.9, 768, 512, 0.8538149682454624),  # 0.9^1.5
        (0.7, 64, 64, 0.7),
        (0.0, 128, 64, 0.0),
    ],
)
def test_betas_for_other_batch_sizes(beta, batch, base_batch, expected):
    assert scale_beta(beta, batch, base_batch) == close(expected)


def test_scaled_betas_keep_their_memory_in_samples():
    in_samples = 64 * time_constant(0.95)
    assert 192 * time_constant(scale_beta(0.95, 192, 64)) == close(in_samples)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_lr(-0.1, 64, 32, "linear"), "base_lr of at least 0, got -0.1"),
        (lambda: scale_lr(0.1, 0, 32, "linear"), "batch above 0, got 0"),
        (lambda: scale_lr(0.1, 64, -1, "linear"), "base_batch above 0, got -1"),
        (lambda: scale_lr(0.1, 64, 32, "cubic"), r"\['linear', 'none', 'sqrt'\], got 'cubic'"),
        (lambda: scale_lr(0.1, math.inf, 32, "linear"), "batch to be finite, got inf"),
        (lambda: noise_scale(-1, 1, 2, 0.5), "lr of at least 0, got -1"),
        (lambda: noise_scale(1, 0, 2, 0.5), "batch above 0, got 0"),
        (lambda: noise_scale(1, 1, 0, 0.5), "dataset_size above 0, got 0"),
        (lambda: noise_scale(1, 1, 2, 1.0), r"momentum in \[0, 1\), got 1.0"),
        (lambda: time_constant(1.0), r"time_constant: expected beta in \[0, 1\), got 1.0"),
        (lambda: time_constant(-0.1), r"time_constant: expected beta in \[0, 1\), got -0.1"),
        (lambda: half_life(1.5), r"half_life: expected beta in \[0, 1\), got 1.5"),
        (lambda: beta_from_time_constant(-2), "time of at least 0, got -2"),
        (lambda: beta_from_time_constant(math.nan), "time to be finite, got nan"),
        (lambda: beta_from_half_life(-2), "time of at least 0, got -2"),
        (lambda: beta_from_half_life("2ep"), "time='2ep' needs steps_per_epoch, got None"),
        (lambda: beta_from_half_life("0.1dur"), "time='0.1dur' needs total_steps, got None"),
        (lambda: beta_from_half_life("2 weeks"), "expected time to be a number or a time"),
        (lambda: beta_from_half_life("0.4ba"), "time='0.4ba' is less than half an update"),
        (lambda: scale_beta(1.0, 2, 1), r"scale_beta: expected beta in \[0, 1\), got 1.0"),
        (lambda: scale_beta(0.9, -2, 1), "scale_beta: expected batch above 0, got -2"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_number_is_a_type_error():
    with pytest.raises(TypeError, match=r"expected beta to be a number, got '0.9'"):
        time_constant("0.9")
    with pytest.raises(TypeError, match="expected batch to be a number, got None"):
        scale_lr(0.1, None, 32, "linear")
