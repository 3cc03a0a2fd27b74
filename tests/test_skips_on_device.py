"""Steps that the kernels skip: what the optimizer keeps, saves and counts without asking them."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from fusedtricks import backends, optim
from tests import devices
from tests.pairs import leaf

# In the interpreter the Triton kernels can be asked to skip, as they do on a GPU.
BACKEND = "auto" if devices.SKIPS_ON_DEVICE else "triton"
pytestmark = pytest.mark.skipif(
    not devices.SKIPS_ON_DEVICE and not devices.HAS_TRITON,
    reason="needs Triton, a CUDA device or FUSEDTRICKS_TEST_SHIM",
)
KWARGS = {"lr": 0.05, "momentum": 0.83, "dampening": 0.23, "weight_decay": 0.19}


@pytest.fixture(autouse=True)
def _kernels_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    if not devices.SKIPS_ON_DEVICE:
        monkeypatch.setattr(devices, "SKIPS_ON_DEVICE", True)
        monkeypatch.setattr(backends, "skips_on_device", lambda device: True)


def skipped(**kwargs: object) -> tuple[list[Tensor], optim.SGD]:
    """Return parameters and an optimizer whose only step was skipped."""
    params = [leaf(torch.randn(shape)) for shape in [(5, 3), (7,), (2, 2)]]
    ours = optim.SGD(params, skip_nonfinite=True, backend=BACKEND, **KWARGS, **kwargs)
    step(ours, torch.nan)
    return params, ours


def step(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, value)
    optimizer.step()


def test_saving_leaves_the_state_alone() -> None:
    params, ours = skipped()
    # A captured graph would go on to write these buffers.
    buffers = [ours.state[p]["momentum_buffer"] for p in params]
    for saved in (ours.state_dict()["state"], copy.deepcopy(ours).state, pickle_twin(ours).state):
        assert len(saved) == 0
    assert all(ours.state[p]["momentum_buffer"] is b for p, b in zip(params, buffers, strict=True))


def pickle_twin(optimizer: optim.SGD) -> optim.SGD:
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("way", [copy.deepcopy, pickle_twin], ids=["copied", "pickled"])
def test_a_copy_starts_with_a_first_step(way: type) -> None:
    params, ours = skipped()
    twin = way(ours)
    theirs = [leaf(p.detach().clone()) for p in params]
    torch_sgd = torch.optim.SGD(theirs, **KWARGS)
    for value in (0.3, -0.7):
        for optimizer in (ours, twin, torch_sgd):
            step(optimizer, value)
    for mine, copied, its in zip(params, twin.param_groups[0]["params"], theirs, strict=True):
        assert torch.equal(mine, copied)
        torch.testing.assert_close(mine, its, rtol=3e-6, atol=3e-6)


def test_the_count_goes_on_after_it_was_set() -> None:
    _, ours = skipped()
    step(ours, torch.inf)
    assert ours.skipped_steps == 2
    counter = ours._record.skipped_on_device
    ours.skipped_steps = 0
    assert ours.skipped_steps == 0
    step(ours, torch.inf)
    step(ours, 0.5)
    assert ours.skipped_steps == 1
    assert ours._record.skipped_on_device is counter
    ours.skipped_steps = 40
    step(ours, torch.nan)
    assert ours.skipped_steps == 41
    assert pickle_twin(ours).skipped_steps == 41


def test_used_state_is_saved() -> None:
    params, ours = skipped()
    step(ours, 0.5)
    step(ours, torch.nan)
    saved = ours.state_dict()["state"]
    assert [state["momentum_buffer"] for state in saved.values()] == [
        ours.state[p]["momentum_buffer"] for p in params
    ]


def test_the_lr_that_decouple_lr_refers_to_is_read_from_the_cpu() -> None:
    param = leaf(torch.randn(5, 3))
    lr = torch.tensor(0.03)
    ours = optim.AdamW([param], lr=lr, weight_decay=0.11, decouple_lr=True, backend=BACKEND)
    initial_lr = ours.param_groups[0]["initial_lr"]
    assert initial_lr.device.type == "cpu" and initial_lr is not lr
    lr.fill_(0.015)
    assert initial_lr.item() == pytest.approx(0.03)
    twin = leaf(param.detach().clone())
    torch_adamw = torch.optim.AdamW([twin], lr=0.015, weight_decay=0.11 / 0.03)
    for optimizer in (ours, torch_adamw):
        step(optimizer, 0.4)
    torch.testing.assert_close(param, twin, rtol=3e-6, atol=3e-6)
