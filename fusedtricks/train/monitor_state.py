"""What `Monitor.state_dict()` returns, checked before a monitor takes it over."""

from typing import Any

from fusedtricks._checks import check_number, check_whole
from fusedtricks.train.activations import HISTOGRAM_EDGES

__all__ = ["check_monitor_state"]

_OWNER = "load_state_dict"
_KEYS = ("n_updates", "losses", "records", "edges")
_KINDS = ("activation", "gradient")


def check_monitor_state(state: Any) -> None:
    """Refuse what a monitor of this version cannot have returned, or `draw_monitor` cannot draw.

    Raises:
        ValueError: If a part is missing, a number is out of range, or the bins are others.
        TypeError: If a part is of another kind.
    """
    _check_keys("the state", state, _KEYS)
    if list(state["edges"]) != list(HISTOGRAM_EDGES):
        raise ValueError(
            f"{_OWNER}: expected what Monitor.state_dict() of this version returned, got other "
            "bins of the histograms"
        )
    check_whole(_OWNER, "n_updates", state["n_updates"], 0)
    for index, loss in enumerate(_list("losses", state["losses"])):
        _check_value(f"losses[{index}]", loss)
    for index, record in enumerate(_list("records", state["records"])):
        name = f"records[{index}]"
        _check_keys(name, record, ("update", "layers"))
        check_whole(_OWNER, f"{name}['update']", record["update"], 0)
        _check_keys(f"{name}['layers']", record["layers"])
        for layer, found in record["layers"].items():
            _check_layer(f"{name}['layers'][{layer!r}]", found)


def _check_layer(name: str, found: Any) -> None:
    _check_keys(name, found, (*_KINDS, "update_ratio"))
    _check_value(f"{name}['update_ratio']", found["update_ratio"])
    for kind in _KINDS:
        if found[kind] is not None:
            _check_statistics(f"{name}[{kind!r}]", found[kind])


def _check_statistics(name: str, found: Any) -> None:
    _check_keys(name, found, ("std", "zero", "histogram"))
    _check_value(f"{name}['std']", found["std"])
    check_number(_OWNER, f"{name}['zero']", found["zero"])
    histogram = _list(f"{name}['histogram']", found["histogram"])
    if len(histogram) != len(HISTOGRAM_EDGES) + 1:
        raise ValueError(
            f"{_OWNER}: expected {name}['histogram'] to have {len(HISTOGRAM_EDGES) + 1} bins, got "
            f"{len(histogram)}"
        )
    # There are many: those that are what they should be are not looked at one by one.
    if set(map(type, histogram)) != {int} or min(histogram) < 0:
        for count in histogram:
            check_number(_OWNER, f"what is in {name}['histogram']", count, low=0)


def _check_value(name: str, value: Any) -> None:
    """Refuse what is neither a finite number nor None, which stands for those that are not."""
    if value is not None:
        check_number(_OWNER, name, value)


def _check_keys(name: str, value: Any, keys: tuple[str, ...] = ()) -> None:
    if not isinstance(value, dict):
        raise TypeError(
            f"{_OWNER}: expected {name} to be a dict, as in what Monitor.state_dict() returned, "
            f"got {type(value).__name__}"
        )
    for key in keys:
        if key not in value:
            raise ValueError(
                f"{_OWNER}: expected what Monitor.state_dict() of this version returned, got no "
                f"{key!r} in {name}"
            )


def _list(name: str, value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{_OWNER}: expected {name} to be a list, got {type(value).__name__}")
    return value
