"""How often noise alone seems to be a fall."""

import random

import pytest

from fusedtricks.train.loss_curve import LossCurve

N_CURVES = 4000


@pytest.mark.parametrize(("n", "one_of"), [(8, 50), (20, 50), (60, 400)])
def test_noise_rarely_seems_to_fall(n, one_of):
    numbers = random.Random(n)
    curves = (LossCurve.of([numbers.gauss(2.3, 0.3) for _ in range(n)]) for _ in range(N_CURVES))
    n_falls = sum(curve.is_clear(curve.fall) for curve in curves)
    assert 0 < n_falls <= N_CURVES / one_of
