"""All tricks at once, in one training loop: they must get along, and be the same every time."""

import copy
import io
import pickle

import pytest
import torch

from fusedtricks import data, losses, nn, optim
from fusedtricks.lr_scheduler import Cosine, ScheduledLR
from fusedtricks.train import EarlyStopping
from tests import distributed_tricks
from tests.devices import DEVICE
from tests.processes import in_two_processes

N_IMAGES, N_CLASSES = 24, 3


def images_and_labels():
    """Return three patterns with noise: shape (24, 1, 9, 11) and (24,)."""
    labels = torch.arange(N_IMAGES) % N_CLASSES
    patterns = torch.randn(N_CLASSES, 1, 9, 11, generator=torch.Generator().manual_seed(5)).to(
        DEVICE
    )
    return patterns[labels] + 0.1 * torch.randn(N_IMAGES, 1, 9, 11), labels


def build():
    """Return a network with every layer trick."""
    model = nn.ResNet(
        "basic",
        (2, 1),
        widths=(8, 12),
        variant="D",
        stem="small",
        in_channels=1,
        n_classes=N_CLASSES,
        zero_gamma=True,
    )
    for block, keep in zip(model.layer1, nn.linear_keep_probabilities(2, 0.7), strict=True):
        block.bn2 = torch.nn.Sequential(block.bn2, nn.ShakeDrop(keep))
    model.fc = torch.nn.Sequential(nn.ScheduledDropout(0.1), model.fc)
    return nn.apply_blurpool(model, filt_size=3, verbose=False)


class Training:
    """A loop as a user would write it."""

    def __init__(self, *, autocast=False, memory_format=torch.contiguous_format):
        torch.manual_seed(11)
        self.images, self.labels = images_and_labels()
        self.images = self.images.contiguous(memory_format=memory_format)
        self.autocast = autocast
        self.model = build().to(memory_format=memory_format)
        self.generator = torch.Generator().manual_seed(7)
        self.tricks = data.Chain(
            data.OneOf([data.MixUp(0.3), data.CutMix(0.9)], weights=[2, 1]),
            data.Cutout(3, fill=0.2),
        )
        smooth = losses.CrossEntropyLoss(label_smoothing=0.05)
        self.loss = losses.ConfidencePenalty(smooth, beta=0.02)
        self.flooding = losses.Flooding(0.35)
        groups = optim.param_groups(self.model, 0.02, verbose=False)
        self.optimizer = optim.AdamW(
            groups, lr=0.02, betas=(0.8, 0.95), clip_grad_norm=2.0, centralize_grad="conv"
        )
        self.decay = nn.OrthogonalDecay(self.optimizer, self.model, strength=1e-3)
        self.scheduler = ScheduledLR(self.optimizer, Cosine(40).with_warmup(5, "inside"))
        self.dropout = nn.DropoutSchedule(self.model, Cosine(40))
        self.ema = nn.ModelEMA(self.model, half_life=4.0, warmup=True)
        self.values = []

    def step(self):
        self.model.train()
        images, targets = self.tricks(self.images, self.labels, generator=self.generator)
        self.optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(images)
            loss = self.flooding(self.loss(logits, targets))
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.dropout.step()
        self.ema.update_parameters(self.model)
        self.values.append(self.flooding.loss)

    def accuracy(self, model):
        model.eval()
        with torch.no_grad():
            return (model(self.images).argmax(dim=1) == self.labels).double().mean().item()


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_they_learn_together(autocast, memory_format):
    training = Training(autocast=autocast, memory_format=memory_format)
    for _ in range(40):
        training.step()
    first, last = (
        torch.stack(part).mean().item() for part in (training.values[:5], training.values[-5:])
    )
    assert last < 0.8 * first
    assert training.accuracy(training.model) > 0.9
    assert training.accuracy(training.ema) > 0.9


def test_they_are_the_same_every_time():
    runs = []
    for _ in range(2):
        runs.append(Training())
        for _ in range(6):
            runs[-1].step()
    first, second = (run.model.state_dict() for run in runs)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert torch.equal(torch.stack(runs[0].values), torch.stack(runs[1].values))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_changed_model_can_be_copied(how):
    training = Training()
    training.step()
    copied = how(training.model)
    images = training.images
    torch.testing.assert_close(copied.eval()(images), training.model.eval()(images))


def test_a_checkpoint_holds_all_that_is_needed():
    training = Training()
    for _ in range(4):
        training.step()
    parts = ("model", "optimizer", "scheduler", "dropout", "ema")
    file = io.BytesIO()
    state = {name: getattr(training, name).state_dict() for name in parts}
    random = {"torch": torch.get_rng_state(), "own": training.generator.get_state()}
    torch.save(state | random, file)
    for _ in range(3):
        training.step()
    resumed = Training()
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for name in parts:
        getattr(resumed, name).load_state_dict(loaded[name])
    torch.set_rng_state(loaded["torch"])
    resumed.generator.set_state(loaded["own"])
    for _ in range(3):
        resumed.step()
    for name, tensor in training.ema.state_dict().items():
        if DEVICE.type == "cpu":  # other random numbers come from the device
            assert torch.equal(tensor, resumed.ema.state_dict()[name]), name


def test_early_stopping_restores_the_changed_model():
    training = Training()
    stopper = EarlyStopping(2, mode="max")
    states = []
    for value in (1.0, 3.0, 2.0, 1.5):
        training.step()
        states.append(copy.deepcopy(training.model.state_dict()))
        stopped = stopper.step(value, training.model)
    assert stopped
    stopper.restore(training.model)
    restored = training.model.state_dict()
    assert restored.keys() == states[1].keys()
    for name, tensor in restored.items():
        assert torch.equal(tensor, states[1][name]), name
    assert any(not torch.equal(tensor, states[3][name]) for name, tensor in restored.items())


def test_the_changed_model_compiles_in_one_graph():
    training = Training()
    model, images = training.model.eval(), training.images
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    model.train()
    outputs = compiled(images)
    loss = training.loss(outputs, losses.as_targets(training.labels))
    loss.backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.skipif(DEVICE.type != "cpu", reason="two processes with gloo need no device")
def test_two_processes_stay_together(tmp_path):
    first, second = in_two_processes(distributed_tricks.train_with_all_tricks, tmp_path)
    assert first["images"] != second["images"]
    for name in ("model", "ema", "levels"):
        assert first[name] == second[name], name
    assert first["model"] != first["ema"]
    assert min(first["levels"]) < max(first["levels"])
