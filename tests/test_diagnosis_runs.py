"""Diagnosing small real runs."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from fusedtricks.train.diagnosis import diagnose


def kinds(losses, **arguments) -> list[str]:
    return [finding.kind for finding in diagnose(losses, **arguments)]


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    from fusedtricks.data import load_digits

    with torch.device("cpu"):
        return load_digits()


def run(digits, *, lr, model=None, n_train=1280, epochs=10, train=True, weight_decay=0.0):
    """Return the losses of all batches, and validation losses of epochs."""
    torch.manual_seed(7)
    images = digits.train_images.flatten(1)[:n_train].to(torch.get_default_device())
    labels = digits.train_labels[:n_train].to(images.device)
    tests = digits.test_images.flatten(1).to(images.device)
    test_labels = digits.test_labels.to(images.device)
    if model is None:
        model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    # A forgotten optimizer: it has the parameters of a copy.
    parameters = model.parameters() if train else copy.deepcopy(model).parameters()
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    losses, val_losses = [], []
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            val_losses.append(functional.cross_entropy(model(tests), test_labels).item())
    return losses, val_losses


def findings(digits, **arguments) -> list[str]:
    losses, val_losses = run(digits, **arguments)
    return kinds(losses, val_losses=val_losses, n_classes=10)


def test_a_healthy_run(digits):
    assert findings(digits, lr=0.02) == ["fine"]


def test_a_run_whose_optimizer_has_other_parameters(digits):
    assert findings(digits, lr=0.02, train=False) == ["not training"]


def test_a_run_with_a_rate_that_is_far_too_small(digits):
    assert findings(digits, lr=1e-6) == ["not training"]


def test_a_run_with_a_rate_that_is_far_too_large(digits):
    assert findings(digits, lr=300.0) == ["diverged"]


def test_a_run_with_a_small_rate(digits):
    assert findings(digits, lr=3e-4) == ["not converged"]


def test_a_run_of_a_badly_initialised_network(digits):
    sizes = [64, 50, 50, 50, 50]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(50, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.05)
    assert findings(digits, lr=0.05, model=model)[0] == "slow start"


def test_a_run_on_few_images(digits):
    model = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
    assert findings(digits, lr=0.3, model=model, n_train=60, epochs=120)[0] == "overfitting"
