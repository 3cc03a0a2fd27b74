"""The learning-rate range test leaves no trace in model, optimizer, scaler and random numbers."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from fusedtricks import optim
from fusedtricks.amp import GradScaler
from fusedtricks.lr_scheduler.range_test import lr_range_test
from tests.noisy_model import build_model, loss_fn, seed_all, short_test


def trained(model):
    return [param for param in model.parameters() if param.requires_grad]


def adamw(model):
    return optim.AdamW(
        trained(model),
        lr=2e-3,
        weight_decay=0.1,
        master_weights=True,
        clip_grad_norm=0.5,
        skip_nonfinite=True,
    )


def lr_tensors(model):
    groups = [
        {"params": model[:2].parameters(), "lr": torch.tensor(0.02)},
        {"params": model[7].parameters(), "lr": torch.tensor(0.01)},
    ]
    return optim.SGD(groups, momentum=0.8)


# Name -> (dtype, optimizer of a model).
OPTIMIZERS = {
    "AdamW bf16": (torch.bfloat16, adamw),
    "SGD": (torch.float32, lr_tensors),
    "reference": (
        torch.float32,
        lambda model: optim.RMSprop(trained(model), lr=1e-3, backend="reference"),
    ),
    "torch SGD": (
        torch.float32,
        lambda model: torch.optim.SGD(trained(model), lr=0.01, momentum=0.9),
    ),
    "torch Adam": (torch.float32, lambda model: torch.optim.Adam(trained(model), lr=1e-3)),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def build(name):
    dtype, make = OPTIMIZERS[name]
    model = build_model(dtype)
    generator = torch.Generator(device="cpu").manual_seed(8)
    data = TensorDataset(
        torch.randn(20, 1, 8, 8, generator=generator).to(dtype),
        torch.randint(5, (20,), generator=generator),
    )
    return model, make(model), DataLoader(data, batch_size=4, shuffle=True, generator=generator)


def train(model, optimizer, loader, n_steps, *, poisons=()):
    """Take steps; the gradients of those in `poisons` have a NaN."""
    batches = [batch for _ in range(-(-n_steps // len(loader))) for batch in loader]
    for step, (inputs, targets) in enumerate(batches[:n_steps]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs).float(), targets).backward()
        if step in poisons:
            model[7].bias.grad[0] = torch.nan
        optimizer.step()


def tensors_of(model, optimizer):
    """Return every tensor of a training run by a name."""
    found = {}
    for path, module in model.named_modules():
        for kind in (module._parameters, module._buffers):
            found |= {f"{path}.{name}": value for name, value in kind.items() if value is not None}
    for param_name, param in model.named_parameters():
        if param.grad is not None:
            found[f"{param_name}.grad"] = param.grad
        state = optimizer.state.get(param, {})
        found |= {f"{param_name}.{key}": v for key, v in state.items() if isinstance(v, Tensor)}
    for index, group in enumerate(optimizer.param_groups):
        found |= {f"{index}.{k}": v for k, v in group.items() if isinstance(v, Tensor)}
    return found


def other_values(model, optimizer):
    """Return what is no tensor."""
    groups = [
        {k: v for k, v in group.items() if k != "params" and not isinstance(v, Tensor)}
        for group in optimizer.param_groups
    ]
    modes = [module.training for module in model.modules()]
    record = [getattr(optimizer, name, None) for name in ("skipped_steps", "grad_norm")]
    attributes = sorted(vars(optimizer).keys() - {"_plan"})
    return groups, modes, record, attributes, list(model[2].calls), model[2].nothing


def random_numbers():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def bits(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8).clone()


def assert_untouched(model, optimizer, action):
    """Check that `action` leaves every object there, with the same bits."""
    states = set(optimizer.state)
    objects = tensors_of(model, optimizer)
    before = {name: bits(tensor) for name, tensor in objects.items()}
    others = copy.deepcopy(other_values(model, optimizer))
    action()
    after = tensors_of(model, optimizer)
    assert after.keys() == objects.keys()
    for name, tensor in after.items():
        assert tensor is objects[name], name
        assert bits(tensor).equal(before[name]), name
    assert other_values(model, optimizer) == others
    assert set(optimizer.state) == states


# All of it. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_before", [0, 4])
@each_optimizer
def test_everything_is_as_before(name, n_before):
    model, optimizer, loader = build(name)
    train(model, optimizer, loader, n_before)
    assert_untouched(model, optimizer, lambda: short_test(model, optimizer, loader, repeats=2))
    assert (len(optimizer.state) == 0) == (n_before == 0)
    assert getattr(optimizer, "_plan", None) is None
    assert all((p.grad is None) == (n_before == 0) for p in model[7].parameters())


@pytest.mark.parametrize("n_before", [0, 4])
@each_optimizer
def test_training_goes_on_as_if_nothing_had_been(name, n_before):
    results = []
    for tests in (False, True):
        model, optimizer, loader = build(name)
        train(model, optimizer, loader, n_before, poisons=(1,) if name == "AdamW bf16" else ())
        if tests:
            # With overflow, as large rates give it.
            short_test(model, optimizer, loader, end_lr=1e30, smoothing=0, divergence=1e30)
        train(model, optimizer, loader, 6)
        tensors = {key: bits(value) for key, value in tensors_of(model, optimizer).items()}
        results.append((tensors, other_values(model, optimizer), random_numbers()))
    without, after = results
    assert without[1:] == after[1:]
    assert without[0].keys() == after[0].keys()
    for key, value in without[0].items():
        assert value.equal(after[0][key]), key
    if name == "AdamW bf16":
        assert without[1][2][0] == (1 if n_before else 0)


class FillingSGD(torch.optim.SGD):
    """Keeps the gradients' memory, as wrappers of others do."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=False)


class Filling(nn.Sequential):
    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=False)


def test_gradients_that_are_written_to_come_back():
    model, _, loader = build("torch SGD")
    model = Filling(*model)
    optimizer = FillingSGD(trained(model), lr=0.1)
    train(model, optimizer, loader, 1)
    assert model[7].weight.grad.abs().max() > 0
    assert_untouched(model, optimizer, lambda: short_test(model, optimizer, loader))


def test_parameters_and_buffers_outside_of_the_model_come_back():
    model, _, loader = build("torch SGD")
    outside = nn.Parameter(torch.ones(3))
    criterion = nn.Sequential(nn.BatchNorm1d(5, dtype=torch.float32))
    criterion.eval()
    optimizer = optim.SGD([*model.parameters(), *criterion.parameters(), outside], lr=0.1)
    outside.grad = torch.ones(3)
    before = copy.deepcopy([*criterion.state_dict().values(), outside.detach(), outside.grad])

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = criterion[0]
            self.norm.train()

        def forward(self, outputs, targets):
            return loss_fn(self.norm(outputs) * outside.sum(), targets)

    lr_range_test(model, optimizer, Loss(), loader, n_updates=3, end_lr=0.1, progress=False)
    after = [*criterion.state_dict().values(), outside.detach(), outside.grad]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    assert all(param.grad is None for param in criterion.parameters())


def test_a_model_in_evaluation_mode_trains_and_is_put_back():
    model, optimizer, loader = build("torch SGD")
    model.eval()
    model[3].train()
    seen = []
    model[1].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    assert_untouched(model, optimizer, lambda: short_test(model, optimizer, loader))
    assert all(seen)
    # A model in training mode keeps its parts in evaluation mode.
    model, optimizer, loader = build("torch SGD")
    model[5].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    seen.clear()
    short_test(model, optimizer, loader)
    assert seen
    assert not any(seen)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("n_done", [1, 10])
@each_optimizer
def test_an_interruption_undoes_everything(name, n_done, error):
    model, optimizer, loader = build(name)
    train(model, optimizer, loader, 2)
    state = loader.generator.get_state()

    def interrupt(done, *_):
        if done == n_done:
            raise error

    def act():
        with pytest.raises(error):
            short_test(model, optimizer, loader, repeats=2, progress=interrupt)

    seed_all(4)
    expected = random_numbers()
    seed_all(4)
    assert_untouched(model, optimizer, act)
    assert random_numbers() == expected
    assert loader.generator.get_state().equal(state)


def test_under_no_grad():
    model, optimizer, loader = build("SGD")
    with torch.no_grad():
        short_test(model, optimizer, loader)
        assert not torch.is_grad_enabled()


def test_schedulers_are_not_advanced():
    model, optimizer, loader = build("torch SGD")
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer, loader, 1)
    scheduler.step()
    before = copy.deepcopy(scheduler.state_dict())
    short_test(model, optimizer, loader)
    assert scheduler.state_dict() == before
    assert optimizer.param_groups[0]["lr"] == 0.005
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 3)
    # Whether the optimizer has stepped before its scheduler is for the scheduler to complain about.
    model, optimizer, loader = build("torch SGD")
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    short_test(model, optimizer, loader)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


@pytest.mark.parametrize("optimizer_cls", [torch.optim.SGD, optim.SGD])
@pytest.mark.parametrize("scaler_cls", [torch.amp.GradScaler, GradScaler])
@pytest.mark.parametrize("used", [False, True])
def test_the_scaler_comes_back(used, scaler_cls, optimizer_cls):
    model, _, loader = build("torch SGD")
    optimizer = optimizer_cls(trained(model), lr=1e-3)
    scaler = scaler_cls("cpu", init_scale=2.0**126, growth_interval=3)
    if used:
        scaler.scale(model(torch.ones(2, 1, 8, 8)).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    tensors = scaler._scale, scaler._growth_tracker
    values = copy.deepcopy(tensors)
    state, per_optimizer = scaler.state_dict(), copy.deepcopy(scaler._per_optimizer_states)
    result = short_test(model, optimizer, loader, scaler=scaler, n_updates=20, repeats=2)
    assert result.curves[0].skipped
    assert scaler._scale is tensors[0]
    assert scaler._growth_tracker is tensors[1]
    assert tensors == values
    assert scaler.state_dict() == state
    assert scaler._per_optimizer_states == per_optimizer


def test_a_wrapped_optimizer_comes_back():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__([p for g in inner.param_groups for p in g["params"]], {"lr": 1e-3})
            self.inner = inner
            self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
            self.n_steps = 0

        def step(self):
            self.inner.step()
            self.n_steps += 1
            for slow, param in zip(self.slow, self.param_groups[0]["params"], strict=True):
                slow.lerp_(param.detach(), 0.5)

    model, inner, loader = build("AdamW bf16")
    optimizer = Wrapper(inner)
    slow = copy.deepcopy(optimizer.slow)
    assert_untouched(model, inner, lambda: short_test(model, optimizer, loader))
    assert len(inner.state) == 0
    assert optimizer.n_steps == 0
    assert all(a.equal(b) for a, b in zip(optimizer.slow, slow, strict=True))
