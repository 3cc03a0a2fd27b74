"""The trainer: both steppers, and going on after a stop."""

import copy
import itertools
import math

import pytest
import torch

from fusedtricks.data import load_digits
from fusedtricks.lr_scheduler import ScheduledLR
from fusedtricks.nn import SmallResNet
from fusedtricks.train import STEPPERS, Batches, Trainer
from fusedtricks.train.cases import build_trainer, lr_schedule
from fusedtricks.train.files import read_checkpoint, write_atomically, write_checkpoint
from fusedtricks.train.settings import Settings
from fusedtricks.train.trainer import DivergedError, accuracy, percentile, weights_sha256

EPOCHS = 3
BATCHES_PER_EPOCH = 4


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)


def make_trainer(
    optimizer="fusedtricks",
    *,
    lr=3e-3,
    dtype=torch.float32,
    n_images=100,
    batch_size=30,
    epochs=EPOCHS,
):
    """Build a tiny case: by default 4 batches per epoch, the last one shorter."""
    digits = load_digits(seed=1, train_size=n_images)
    torch.manual_seed(1)
    model = SmallResNet(widths=(8, 16), blocks=(1, 1)).to(dtype)
    stepper = STEPPERS[optimizer](model, lr, 0.07)
    batches = Batches(
        digits.train_images.to(dtype), digits.train_labels, batch_size=batch_size, seed=1
    )
    n_steps = EPOCHS * len(batches)
    scheduler = ScheduledLR(stepper.optimizer, lr_schedule(n_steps))
    tests = digits.test_images.to(dtype), digits.test_labels
    return Trainer(model, stepper, scheduler, batches, *tests, epochs=epochs, label_smoothing=0.1)


def stop_after(n_batches):
    """Return a `should_stop` that says yes after so many batches."""
    calls = iter(range(1, 10**6))
    return lambda: next(calls) == n_batches


# The two steppers. --------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["clean", "noisy"])
def test_both_optimizers_start_alike_and_see_the_same_batches(data):
    settings = Settings(epochs=1, train_size=64, batch_size=32, threads=2)
    ours, theirs = (build_trainer(data, optimizer, settings) for optimizer in STEPPERS)
    assert weights_sha256(ours.model) == weights_sha256(theirs.model)
    for _ in range(5):
        for mine, other in zip(ours.batches.next(), theirs.batches.next(), strict=True):
            assert mine.equal(other)
    sizes = [
        [(len(g["params"]), g["weight_decay"], g["lr"], g["betas"], g["eps"]) for g in groups]
        for groups in (ours.stepper.optimizer.param_groups, theirs.stepper.optimizer.param_groups)
    ]
    assert sizes[0] == sizes[1]


def test_another_seed_starts_elsewhere():
    settings = [Settings(epochs=1, train_size=64, threads=2, seed=seed) for seed in (0, 1)]
    first, other = (build_trainer("clean", "torch", s) for s in settings)
    assert weights_sha256(first.model) != weights_sha256(other.model)


def test_both_optimizers_make_the_same_updates():
    # In fp64, where Adam's division does not blow rounding errors of tiny gradients up.
    trainers = [make_trainer(optimizer, dtype=torch.float64) for optimizer in STEPPERS]
    before = [param.detach().clone() for param in trainers[0].model.parameters()]
    norms = []
    for trainer in trainers:
        with torch.no_grad():
            trainer.model.head.weight *= 30
        trainer.run(
            should_stop=stop_after(3),
            on_batch=lambda loss: norms.append(trainers[0].stepper.optimizer.grad_norm.item()),
        )
    # One factor for all batches would go unseen, Adam does not care about scale.
    assert min(norms[:3]) > 1
    assert max(norms[:3]) > 1.05 * min(norms[:3])
    for start, ours, theirs in zip(
        before, *(trainer.model.parameters() for trainer in trainers), strict=True
    ):
        assert not ours.equal(start)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_torch_stepper_centralizes_and_clips():
    trainer = make_trainer("torch")
    trainer.run(should_stop=stop_after(1))
    grads = [param.grad for param in trainer.model.parameters()]
    for grad in grads:
        if grad.ndim > 1:
            assert grad.flatten(1).mean(dim=1).abs().max() < 1e-6
    assert torch.stack([grad.norm() for grad in grads]).norm() <= 1 + 1e-5


# Training. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", STEPPERS)
def test_the_model_learns(optimizer):
    trainer = make_trainer(optimizer, lr=1e-2, n_images=1000, batch_size=32)
    start = accuracy(trainer.model, trainer.test_images, trainer.test_labels)
    assert trainer.run()
    losses = [record["loss"] for record in trainer.history]
    assert losses == sorted(losses, reverse=True)
    assert start < 0.3
    assert trainer.history[-1]["accuracy"] > 0.5


def test_records_and_times():
    trainer = make_trainer()
    losses = []
    trainer.run(on_batch=losses.append)
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3]
    assert len(losses) == len(trainer.step_s) == len(trainer.train_s) == EPOCHS * BATCHES_PER_EPOCH
    assert all(
        0 < step < train for step, train in zip(trainer.step_s, trainer.train_s, strict=True)
    )
    sizes = [30, 30, 30, 10]
    first = sum(loss * size for loss, size in zip(losses[:4], sizes, strict=True)) / 100
    assert trainer.history[0]["loss"] == pytest.approx(first, rel=1e-12)
    assert trainer.history[0]["step_ms"] == pytest.approx(
        1e3 * percentile(trainer.step_s[:4], 50), rel=1e-12
    )
    assert trainer.history[-1]["lr"] == pytest.approx(0, abs=1e-12)
    again = accuracy(trainer.model, trainer.test_images, trainer.test_labels)
    assert trainer.history[-1]["accuracy"] == again


def test_percentiles():
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([4.0, 1.0, 3.0, 2.0, 5.0], 10) == pytest.approx(1.4)


def test_schedule():
    factors = lr_schedule(100).preview(101)
    assert factors[0] == pytest.approx(1 / 15)
    assert max(factors) == factors[14] == factors[15] == 1
    assert factors[100] == pytest.approx(0)
    assert all(late < early for early, late in itertools.pairwise(factors[15:]))
    assert lr_schedule(1).preview(2) == [1, 1]


def test_a_loss_that_is_not_finite_stops_the_run():
    trainer = make_trainer()
    trainer.batches.images[:] = math.inf
    with pytest.raises(DivergedError, match="the loss is nan in epoch 1, batch 1"):
        trainer.run()


# Stopping and going on. ---------------------------------------------------------------------------


def weights_and_states(trainer):
    """Return all tensors that the run has made."""
    states = trainer.stepper.optimizer.state_dict()["state"]
    return [
        *trainer.model.state_dict().values(),
        *(value for index in sorted(states) for value in states[index].values()),
    ]


def without_times(history):
    """Drop what differs from run to run."""
    return [{k: v for k, v in record.items() if k != "step_ms"} for record in history]


# In the first epoch, in the middle of one, after its last batch, and after the last batch of all.
@pytest.mark.parametrize("n_batches", [1, 6, 8, 12])
@pytest.mark.parametrize("optimizer", STEPPERS)
def test_a_stopped_run_goes_on_to_the_same_bits(optimizer, n_batches, tmp_path):
    whole = make_trainer(optimizer)
    assert whole.run()

    stopped = make_trainer(optimizer)
    assert not stopped.run(should_stop=stop_after(n_batches))
    assert len(stopped.step_s) == n_batches
    write_checkpoint(tmp_path / "checkpoint.pt", stopped.state_dict())

    torch.manual_seed(999)
    resumed = make_trainer(optimizer)
    resumed.load_state_dict(read_checkpoint(tmp_path / "checkpoint.pt"))
    assert resumed.run()
    for expected, got in zip(weights_and_states(whole), weights_and_states(resumed), strict=True):
        assert got.equal(expected)
    assert weights_sha256(resumed.model) == weights_sha256(whole.model)
    assert without_times(resumed.history) == without_times(whole.history)
    assert len(resumed.step_s) == len(whole.step_s)


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_goes_on_with_fewer_epochs_is_finished(epochs):
    stopped = make_trainer()
    stopped.run(should_stop=stop_after(2 * BATCHES_PER_EPOCH + 1))
    resumed = make_trainer(epochs=epochs)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.is_finished and len(resumed.history) == 2
    assert resumed.run(should_stop=lambda: pytest.fail("it goes on"))
    assert make_trainer(epochs=0).run()


@pytest.mark.parametrize(
    ("epochs", "error", "text"),
    [
        (-1, ValueError, "expected epochs of at least 0, got -1"),
        (2.5, TypeError, "expected epochs to be a whole number, got 2.5"),
        ("3", TypeError, "expected epochs to be a (whole )?number, got '3'"),
    ],
)
def test_bad_lengths_of_a_run(epochs, error, text):
    with pytest.raises(error, match="Trainer: " + text):
        make_trainer(epochs=epochs)
    text = "Settings: " + text if error is TypeError else "--epochs: expected at least 1, got -1"
    with pytest.raises(error, match=text):
        Settings(epochs=epochs)


def test_settings_of_another_kind():
    for name in ("epochs", "batch_size", "seed", "threads", "train_size"):
        for bad in (64.5, "64"):
            with pytest.raises(TypeError, match=f"Settings: expected {name} to be a .*{bad}"):
                Settings(**{name: bad})
    for name in ("lr", "weight_decay"):
        for bad in ("0.1", True):
            with pytest.raises(TypeError, match=f"Settings: expected {name} to be a number"):
                Settings(**{name: bad})
    assert Settings(lr=1, weight_decay=0).lr == 1


@pytest.mark.parametrize("key", ["model", "batches", "loss_sum"])
def test_a_state_without_a_part_changes_nothing(key):
    other = make_trainer()
    other.run(should_stop=stop_after(1))
    state = other.state_dict()
    del state[key]
    trainer = make_trainer()
    digest = weights_sha256(trainer.model)
    with pytest.raises(ValueError, match=f"load_state_dict: .* got no '{key}'"):
        trainer.load_state_dict(state)
    assert weights_sha256(trainer.model) == digest and trainer.batches.position == 0
    assert not trainer.stepper.optimizer.state_dict()["state"]


WRONG_PARTS = {
    "model: of another network": ("model", lambda v: v | {"fc.weight": torch.zeros(3, 2)}),
    "model: less": ("model", lambda v: {k: x for k, x in v.items() if k != "fc.bias"}),
    "optimizer: of another network": ("optimizer", lambda v: v | {"param_groups": []}),
    "scheduler": ("scheduler", lambda v: 3),
    "batches": ("batches", lambda v: {}),
    "history": ("history", lambda v: 3.5),
}


@pytest.mark.parametrize("wrong", WRONG_PARTS)
def test_a_state_of_another_run_changes_nothing(wrong):
    other, trainer = make_trainer(), make_trainer()
    other.run(should_stop=stop_after(6))
    trainer.run(should_stop=stop_after(2))
    before = copy.deepcopy(trainer.state_dict())
    digest = weights_sha256(trainer.model)
    key, change = WRONG_PARTS[wrong]
    state = other.state_dict()
    with pytest.raises((ValueError, RuntimeError, TypeError, KeyError, AttributeError)):
        trainer.load_state_dict(state | {key: change(state[key])})
    after = trainer.state_dict()
    assert weights_sha256(trainer.model) == digest
    for name in before.keys() - {"model", "optimizer", "batches"}:
        assert after[name] == before[name], name
    assert trainer.batches.position == 2
    assert trainer.run(should_stop=stop_after(1)) is False
    expected = make_trainer()
    expected.run(should_stop=stop_after(3))
    for mine, its in zip(weights_and_states(trainer), weights_and_states(expected), strict=True):
        assert torch.equal(mine, its)


def test_the_digest_sees_every_bit():
    model = make_trainer().model
    digest = weights_sha256(model)
    with torch.no_grad():
        bias = model.head.bias
        bias[3] = torch.nextafter(bias[3], torch.tensor(math.inf))
    assert weights_sha256(model) != digest


# Files. -------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"weights": torch.arange(5.0)})
    assert read_checkpoint(path)["weights"].equal(torch.arange(5.0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint or is damaged"):
        read_checkpoint(path)
