"""Every trick on images says what it does and where it is from, and its example is true."""

import doctest
import importlib
import importlib.util
import inspect

import pytest

from tests.devices import DEVICE

MODULES = [
    # By name: the package has a function of the name of one of them.
    importlib.import_module(f"fusedtricks.data.{name}")
    for name in ("applying", "batch_tricks", "colour", "holes", "image_ops", "mixing", "pipelines")
]
PUBLIC = [getattr(module, name) for module in MODULES for name in module.__all__]
PUBLIC = [each for each in PUBLIC if callable(each)]
MADE_OF_OTHERS = {"BatchTrick", "Chain", "apply_plan", "planned_images"}


@pytest.mark.parametrize("each", PUBLIC, ids=lambda each: each.__name__)
def test_every_argument_is_described(each):
    text = inspect.getdoc(each)
    assert each.__name__ in MADE_OF_OTHERS or "Source: " in text
    for argument in inspect.signature(each).parameters:
        assert f"\n    {argument}: " in text, argument


@pytest.mark.skipif(DEVICE.type != "cpu", reason="examples print tensors on the CPU")
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module):
    if module.__name__.endswith("pipelines") and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)
