"""A model to watch, its training, and records computed in plain Python."""

import bisect
import math
import statistics

import pytest
import torch
from torch import nn

from fusedtricks import optim


def build_model(in_place=True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(in_place), nn.Flatten(), nn.Linear(45, 7), nn.Tanh()
    )


def train(model, monitor, n_updates=1, n_parts=1, seed=0):
    """Train with batches that depend on the number of the update; gradients of parts add up."""
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    for _ in range(n_updates):
        torch.manual_seed(seed)
        seed += 1
        optimizer.zero_grad()
        for _ in range(n_parts):
            images = torch.randn(11, 3, 5, 5)
            loss = model(images).square().mean()
            loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(loss)


def by_hand(values: list[float], bounds=None) -> dict:
    """Compute a record in plain Python."""
    finite = [value for value in values if math.isfinite(value)]
    histogram = [0] * 99
    powers = [2.0**exponent for exponent in range(-32, 17)]
    for value in finite:
        place = bisect.bisect_right(powers, abs(value))
        histogram[49 + (place if value > 0 else -place)] += 1
    is_finite = len(finite) == len(values)
    saturated = None
    if bounds is not None:
        low, high = bounds
        margin = 0.01 * (high - low)
        inside = [low + margin < value < high - margin for value in values]
        saturated = 1 - sum(inside) / len(values)
    return {
        "n": len(values),
        "mean": statistics.fmean(values) if is_finite else None,
        "std": statistics.pstdev(values) if is_finite else None,
        "zero": values.count(0.0) / len(values),
        "saturated": saturated,
        "nonfinite": 1 - len(finite) / len(values),
        "histogram": histogram,
    }


def check_record(record, expected, rel=1e-12):
    assert record.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=rel, abs=1e-15)
        assert record[name] == value, name
