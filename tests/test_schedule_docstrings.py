"""Every schedule and scheduler says what it computes, in which units, and where it is from."""

import inspect

import pytest

from fusedtricks import lr_scheduler
from fusedtricks.lr_scheduler import Schedule, ScheduledLR

# What is made of others has no source but itself.
MADE_OF_OTHERS = {"Between", "ChainedScheduler", "Function", "Product", "ScheduledLR", "Sequence"}
MADE_OF_OTHERS |= {"SequentialLR", "Schedule"}
PUBLIC = [
    each
    for each in (getattr(lr_scheduler, name) for name in lr_scheduler.__all__)
    if inspect.isclass(each) and issubclass(each, (Schedule, ScheduledLR))
]


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_formula_units_and_source(kind: type) -> None:
    text = inspect.getdoc(kind)
    if kind.__name__ in MADE_OF_OTHERS:
        return
    assert any(formula in text for formula in ("value(t) =", "lr(t) =", "lr = ", "factor goes"))
    assert any(unit in text.lower() for unit in ("time", "update", "length", "always"))
    assert "Source: " in text


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_argument_is_described(kind: type) -> None:
    text = inspect.getdoc(kind)
    for name, parameter in inspect.signature(kind).parameters.items():
        stars = {parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        described = f"\n    {stars}{name}: " in text or f"{name}: " in text
        assert described or kind.__name__ in ("ScheduledLR", "Schedule"), name
