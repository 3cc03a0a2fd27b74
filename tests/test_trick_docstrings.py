"""Losses and tricks on images say what they do and where it is from, and examples are true."""

import doctest
import importlib
import importlib.util
import inspect

import pytest

from fusedtricks import data, losses
from tests.devices import DEVICE

PUBLIC = {
    name: getattr(package, name)
    for package in (data, losses)
    for name in package.__all__
    if callable(getattr(package, name))
}
MODULES = sorted({each.__module__ for each in PUBLIC.values()})
MADE_OF_OTHERS = {
    "BatchPlan",
    "BatchPreparation",
    "BatchTrick",
    "Chain",
    "Digits",
    "Targets",
    "apply_plan",
    "as_targets",
    "load_digits",
    "prepare_batch",
}
WITHOUT_EXAMPLE = {"fusedtricks.data.plan"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_described(name):
    text = inspect.getdoc(PUBLIC[name])
    assert name in MADE_OF_OTHERS or "Source: " in text
    for argument in inspect.signature(PUBLIC[name]).parameters:
        assert f"\n    {argument}: " in text, argument


@pytest.mark.skipif(DEVICE.type != "cpu", reason="examples print tensors on the CPU")
@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    if module.endswith("pipelines") and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    result = doctest.testmod(importlib.import_module(module))
    assert (result.failed, result.attempted > 0) == (0, module not in WITHOUT_EXAMPLE)
