"""States of a monitor that are refused, and losses and records that cannot be fetched."""

import copy
import re

import pytest

from fusedtricks.train import monitor as monitor_module
from fusedtricks.train.monitor import Monitor
from tests.monitored import build_model, train


def changed(state, path, value):
    """Return the state with another value at the path, or without it if value is `del`."""
    state = copy.deepcopy(state)
    *path, last = path
    part = state
    for key in path:
        part = part[key]
    if value == "del":
        del part[last]
    else:
        part[last] = value
    return state


LAYER = ("records", 1, "layers", "0")


@pytest.mark.parametrize(
    ("path", "value", "error", "text"),
    [
        (("n_updates",), -1, ValueError, "n_updates of at least 0, got -1"),
        (("n_updates",), 2.0, TypeError, "n_updates to be a whole number, got 2.0"),
        (("n_updates",), None, TypeError, "n_updates to be a whole number, got None"),
        (("losses",), 3, TypeError, "losses to be a list, got int"),
        (("losses", 1), "1.5", TypeError, "losses[1] to be a number, got '1.5'"),
        (("losses", 1), float("nan"), ValueError, "losses[1] to be a finite number, got nan"),
        (("records",), {}, TypeError, "records to be a list, got dict"),
        (("records", 0), 7, TypeError, "records[0] to be a dict,"),
        (("records", 0, "update"), "del", ValueError, "got no 'update' in records[0]"),
        (("records", 0, "update"), "0", TypeError, "records[0]['update'] to be a whole"),
        (("records", 1, "layers"), "del", ValueError, "got no 'layers' in records[1]"),
        (("records", 1, "layers"), [], TypeError, "records[1]['layers'] to be a dict,"),
        (LAYER, None, TypeError, "records[1]['layers']['0'] to be a dict,"),
        ((*LAYER, "update_ratio"), "del", ValueError, "got no 'update_ratio' in records[1]"),
        ((*LAYER, "gradient"), "del", ValueError, "got no 'gradient' in records[1]"),
        ((*LAYER, "gradient"), 0.5, TypeError, "['0']['gradient'] to be a dict,"),
        ((*LAYER, "gradient", "std"), "a", TypeError, "['gradient']['std'] to be a number,"),
        ((*LAYER, "activation", "zero"), "del", ValueError, "got no 'zero' in records[1]"),
        ((*LAYER, "activation", "histogram"), [1], ValueError, "to have 99 bins, got 1"),
        ((*LAYER, "activation", "histogram", 5), "1", TypeError, "['histogram'] to be a number"),
    ],
)
def test_odd_states_change_nothing(path, value, error, text):
    model = build_model()
    with Monitor(model, every=2) as other:
        train(model, other, 4)
        state = other.state_dict()
    with Monitor(model, every=3) as monitor:
        train(model, monitor, 2)
        before = monitor.state_dict()
        with pytest.raises(error, match="load_state_dict: expected .*" + re.escape(text)):
            monitor.load_state_dict(changed(state, path, value))
        assert monitor.state_dict() == before and not monitor.is_due
        with pytest.raises(TypeError, match=r"the state to be a dict,.* got Monitor"):
            monitor.load_state_dict(other)
        monitor.load_state_dict(changed(state, ("losses", 1), None))
        assert monitor.is_due is False and monitor.losses()[1] is None


def test_numbers_of_numpy():
    numpy = pytest.importorskip("numpy")
    model = build_model()
    with Monitor(model, every=numpy.int64(3), max_values=numpy.int8(100)) as monitor:
        train(model, monitor, 2)
        # 11 samples of 45 values: 100 * 11 is more than 8 bits hold.
        assert monitor.records()[0]["layers"]["0"]["activation"]["n"] == 90
        monitor.step(numpy.float32(0.5))
        assert monitor.losses()[-1] == 0.5


def test_what_cannot_be_fetched_is_not_lost(monkeypatch):
    model = build_model()
    monitor = Monitor(model, every=3)
    train(model, monitor, 4)
    monitor.step(2.5)

    def fail(tensors):
        raise RuntimeError("device gone")

    with monkeypatch.context() as patch:
        patch.setattr(monitor_module, "fetch", fail)
        patch.setattr(monitor_module, "_MAX_WAITING", 6)
        for ask in (monitor.losses, monitor.records, lambda: monitor.step(3.5)):
            with pytest.raises(RuntimeError, match="device gone"):
                ask()
    state = monitor.state_dict()
    assert len(state["losses"]) == state["n_updates"] == 6 and state["losses"][4:] == [2.5, 3.5]
    assert [record["update"] for record in state["records"]] == [0, 3]
