"""A monitor neither waits nor disturbs, is off between, and works with the rest of torch."""

import copy
import gc
import io
import json
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fusedtricks import optim
from fusedtricks.train import monitor as monitor_module
from fusedtricks.train.activations import TensorStatistics
from fusedtricks.train.monitor import Monitor
from tests.devices import DEVICE
from tests.monitored import build_model, by_hand, check_record, train
from tests.processes import in_two_processes

# No waiting, no disturbing. -----------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Fail on what makes a GPU and its host wait for each other."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "bincount", "lift_fresh", "equal", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert not any(f"::{word}" in name for word in self.FORBIDDEN), name
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_until_somebody_asks():
    model = build_model().to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Monitor(model, every=1) as monitor:
        for _ in range(3):
            # A meta tensor has no values: reading one fails.
            loss = model(torch.empty(11, 3, 5, 5, device="meta")).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            monitor.records()


def test_no_operation_waits_for_the_device():
    model = build_model()
    images = torch.randn(11, 3, 5, 5)
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoReading(), Monitor(model, every=1) as monitor:
            for _ in range(3):
                loss = model(images).square().mean()
                loss.backward()
                monitor.step(loss)
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert len(monitor.records()) == 3
    with NoReading(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        images.mean().item()


def test_statistics_are_deterministic():
    found = TensorStatistics()
    torch.use_deterministic_algorithms(True)
    try:
        found.add(torch.randn(7, 11))
    finally:
        torch.use_deterministic_algorithms(False)
    assert sum(found.tensors()[1].tolist()) == 77


@pytest.mark.parametrize("n_parts", [1, 3])
def test_training_is_the_same_with_a_monitor(n_parts):
    plain = build_model()
    watched = copy.deepcopy(plain)
    with Monitor(watched, every=2) as monitor:
        train(plain, None, 5, n_parts)
        train(watched, monitor, 5, n_parts)
    for before, after in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(before, after)


def test_only_every_kth_update_has_hooks():
    model = build_model()
    monitor = Monitor(model, every=3, layers=["3", "0"])
    n_hooks = []
    for _ in range(7):
        assert monitor.is_due == any(layer._forward_hooks for layer in model)
        n_hooks.append([len(layer._forward_hooks) for layer in model])
        train(model, monitor)
    on, off = [1, 0, 0, 1, 0], [0] * 5
    assert n_hooks == [on, off, off, on, off, off, on]
    assert [record["update"] for record in monitor.records()] == [0, 3, 6]
    monitor.close()
    for _ in range(3):
        train(model, monitor)
        assert not monitor.is_due and not any(layer._forward_hooks for layer in model)
    assert len(monitor.records()) == 3 and len(monitor.losses()) == 10


def test_long_runs_do_not_fill_the_device(monkeypatch):
    monkeypatch.setattr(monitor_module, "_MAX_WAITING", 10)
    model = build_model()
    monitor = Monitor(model, every=2)
    for _ in range(23):
        train(model, monitor)
        assert len(monitor._waiting_losses) < 10 and len(monitor._waiting) * 5 < 10
        assert not any(update.weights for update in monitor._waiting)
    assert len(monitor.losses()) == 23
    assert [record["update"] for record in monitor.records()] == list(range(0, 23, 2))


def test_copies_of_the_model_are_not_watched():
    model = build_model()
    monitor = Monitor(model, every=1)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    twins.append(torch.load(file, weights_only=False))
    for twin in twins:
        twin(torch.randn(2, 3, 5, 5)).sum().backward()
    with pytest.raises(RuntimeError, match="none of the layers ran"):
        monitor.step()
    is_alive = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert is_alive() is None
    model(torch.randn(2, 3, 5, 5)).sum().backward()


# With the rest of torch. --------------------------------------------------------------------------


def test_autocast_and_loss_scaling():
    model = build_model()
    plain = copy.deepcopy(model)
    images = torch.randn(11, 3, 5, 5)
    records = []
    for scale in (1.0, 512.0):
        with Monitor(model, every=1) as monitor:
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                loss = model(images).square().mean()
            (loss * scale).backward()
            monitor.step(loss)
            records.append(monitor.records()[0]["layers"]["3"])
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        outputs = plain[:4](images)
    check_record(records[0]["activation"], by_hand(outputs.double().flatten().tolist()), 1e-5)
    scaled, unscaled = records[1]["gradient"]["std"], records[0]["gradient"]["std"]
    assert scaled == pytest.approx(512 * unscaled, rel=1e-6)


def test_compiled_models_run_uncompiled_when_due():
    model = build_model()
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    records = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for watched, run in ((model, compiled), (plain, plain)):
            with Monitor(watched, every=3) as monitor:
                for seed in range(8):
                    torch.manual_seed(seed)
                    images = torch.randn(11, 3, 5, 5)
                    loss = (watched if monitor.is_due else run)(images).square().mean()
                    loss.backward()
                    monitor.step(loss)
                records.append(monitor.state_dict())
    assert records[0]["n_updates"] == 8 and len(records[0]["records"]) == 3
    for found, expected in zip(records[0]["records"], records[1]["records"], strict=True):
        assert found["layers"] == expected["layers"]


class Wrapped(nn.Module):
    """A class of our own: torch 2.13 leaves nn.Sequential uncompiled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = build_model()

    def forward(self, images):
        return self.layers(images)


def test_a_model_compiled_in_place_and_one_that_is_never_run_uncompiled():
    model = Wrapped()
    torch._dynamo.reset()
    model.compile(fullgraph=True, backend="aot_eager")
    monitor = Monitor(model, every=2)
    for _ in range(4):
        with torch.compiler.set_stance("force_eager" if monitor.is_due else "default"):
            train(model, monitor)
    assert [len(record["layers"]) for record in monitor.records()] == [5, 5]
    loss = model(torch.randn(2, 3, 5, 5)).sum()
    loss.backward()
    before = monitor.state_dict()
    with pytest.raises(RuntimeError, match=r"run it uncompiled while monitor\.is_due"):
        monitor.step(loss)
    assert monitor.state_dict() == before


@pytest.mark.parametrize("cut", [1, 4])
def test_a_resumed_run_records_the_same(cut):
    plain = build_model()
    model = copy.deepcopy(plain)
    with Monitor(plain, every=3) as monitor:
        train(plain, monitor, 8)
        expected = monitor.state_dict()
    with Monitor(model, every=3) as first:
        train(model, first, cut)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    state = json.loads(json.dumps(state, allow_nan=False))
    with Monitor(model, every=3) as second:
        second.load_state_dict(state)
        train(model, second, 8 - cut, seed=cut)
        assert second.state_dict() == expected
    assert [record["update"] for record in expected["records"]] == [0, 3, 6]


def monitor_one_rank(rank):
    torch.manual_seed(5)
    inner = build_model()
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    # One on the wrapped model in both processes, one on the inner model in the first only.
    monitors = [Monitor(model, every=1)] + ([Monitor(inner, every=2)] if rank == 0 else [])
    for seed in range(3):
        images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(10 * seed + rank))
        loss = functional.mse_loss(model(images), torch.zeros(4, 7))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for monitor in monitors:
            monitor.step(loss)
    return [monitor.state_dict() for monitor in monitors]


def test_each_process_records_its_part(tmp_path):
    first, second = in_two_processes(monitor_one_rank, tmp_path)
    wrapped, inner = first[0]["records"], first[1]["records"]
    assert [len(wrapped), len(inner), len(second[0]["records"])] == [3, 2, 3]
    for name, layer in inner[1]["layers"].items():
        assert wrapped[2]["layers"][f"module.{name}"] == layer
        other = second[0]["records"][2]["layers"][f"module.{name}"]
        assert other["activation"]["mean"] != layer["activation"]["mean"]
        assert other["update_ratio"] == layer["update_ratio"]
