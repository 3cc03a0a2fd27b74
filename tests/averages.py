"""Small models for the tests of ModelEMA, and what they read of them."""

import torch
from torch import nn

from fusedtricks.nn.averaging import ModelEMA


def scalar_model(dtype=torch.float32):
    return nn.Linear(1, 1, bias=False, dtype=dtype)


def set_weight(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def averages_of(values, **options):
    model = scalar_model(torch.float64)
    ema = ModelEMA(model, **options)
    found = []
    for value in values:
        set_weight(model, value)
        ema.update_parameters(model)
        found.append(ema.module.weight.item())
    return found


def norm_model():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def train_step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(7, 3)).square().sum().backward()
    optimizer.step()


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
