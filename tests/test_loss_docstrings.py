"""Every loss says what it computes and where it is from, and its example is true."""

import doctest
import importlib
import inspect

import pytest

from fusedtricks import losses
from tests.devices import DEVICE

PUBLIC = [getattr(losses, name) for name in losses.__all__]
MODULES = sorted({each.__module__ for each in PUBLIC})


@pytest.mark.parametrize("each", PUBLIC, ids=lambda each: each.__name__)
def test_every_argument_is_described(each):
    text = inspect.getdoc(each)
    assert each.__name__ in ("Targets", "as_targets") or "Source: " in text
    for name in inspect.signature(each).parameters:
        assert f"\n    {name}: " in text, name


@pytest.mark.skipif(DEVICE.type != "cpu", reason="examples print tensors on the CPU")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert (result.failed, result.attempted > 0) == (0, True)
