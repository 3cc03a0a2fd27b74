"""What other fused optimizers get, or got, wrong: ours are right. One test per defect."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtricks import optim
from fusedtricks.amp import GradScaler
from tests.cases import CASES, MAIN_CASES, Case
from tests.devices import NATIVE
from tests.pairs import BACKENDS, case_name, leaf

each_case = pytest.mark.parametrize("case", MAIN_CASES, ids=case_name)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
with_momentum = pytest.mark.parametrize(
    "case", [c for c in CASES if c.kwargs.get("momentum")], ids=case_name
)
# A few roundings per step on values of about 1; 16 bits: a unit in the last place per step.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-12}


class Beside:
    """Ours beside torch's for-loop in float64, fed with the same gradients."""

    def __init__(self, case: Case, params: list[Tensor], backend: str = "auto", **extras: Any):
        self.case = case
        self.params = params
        self.twins = [leaf(p.detach().double().clone()) for p in params]
        self.ours = case.cls(params, backend=backend, **case.kwargs, **extras)
        self.theirs = case.torch_cls(self.twins, foreach=False, **case.torch_kwargs)

    def set_grads(self, grads: list[Tensor | None]) -> None:
        for param, twin, grad in zip(self.params, self.twins, grads, strict=True):
            if grad is not None and grad.dtype != param.dtype:
                param.grad_dtype = grad.dtype
            param.grad = grad
            twin.grad = None if grad is None else grad.double()

    def step(self, grads: list[Tensor | None]) -> None:
        self.set_grads(grads)
        self.ours.step()
        self.case.torch_step(self.theirs)

    def check(self) -> None:
        for param, twin in zip(self.params, self.twins, strict=True):
            bound = TOLERANCE[param.dtype]
            torch.testing.assert_close(
                param.detach().double(), twin.detach(), rtol=bound, atol=bound
            )


def random_grads(params: list[Tensor]) -> list[Tensor]:
    return [torch.randn(p.shape).to(p.dtype) for p in params]


@each_backend
@each_case
def test_torch_fused_permuted_gradient(case: Case, backend: str) -> None:
    """torch fused, CPU: a gradient of permuted memory was read in the wrong order."""
    beside = Beside(case, [leaf(torch.randn(5, 7)), leaf(torch.randn(3, 4, 5))], backend)
    for _ in range(2):
        beside.step([torch.randn(7, 5).t(), torch.randn(5, 3, 4).permute(1, 2, 0)])
    beside.check()


@each_backend
@each_case
def test_torch_fused_channels_last_parameter(case: Case, backend: str) -> None:
    """torch fused, CPU: a channels_last parameter with a contiguous gradient was scrambled."""
    weight = torch.randn(6, 5, 4, 3).to(memory_format=torch.channels_last)
    beside = Beside(case, [leaf(weight)], backend)
    for _ in range(2):
        beside.step([torch.randn(6, 5, 4, 3)])
    beside.check()
    assert beside.params[0].is_contiguous(memory_format=torch.channels_last)


@each_backend
@each_case
def test_torch_fused_sliced_parameter(case: Case, backend: str) -> None:
    """torch fused, CPU: a sliced parameter was updated in its neighbours' memory."""
    storage = torch.randn(9, 20)
    kept = storage.clone()
    beside = Beside(case, [leaf(storage[:, 3:14])], backend)
    for _ in range(2):
        beside.step([torch.randn(9, 11)])
    beside.check()
    storage[:, 3:14] = kept[:, 3:14]
    assert torch.equal(storage, kept)


@pytest.mark.parametrize("scaler_cls", [torch.amp.GradScaler, GradScaler], ids=["torch", "ours"])
@each_backend
@with_momentum
def test_torch_fused_sgd_skipped_first_step(case: Case, backend: str, scaler_cls: type) -> None:
    """torch fused SGD: a skipped first step left momentum uninitialised: parameters of 1e21."""
    beside = Beside(case, [leaf(torch.randn(1009)), leaf(torch.randn(5, 3))], backend)
    scaler = scaler_cls(NATIVE, init_scale=64.0, growth_interval=100)
    scaler.scale(torch.ones(()))
    bad = random_grads(beside.params)
    bad[1][2, 1] = torch.inf
    beside.set_grads(bad)
    scaler.step(beside.ours)
    scaler.update()
    for _ in range(2):
        grads = random_grads(beside.params)
        beside.set_grads(grads)
        for param in beside.params:
            param.grad = param.grad * scaler.get_scale()
        scaler.step(beside.ours)
        scaler.update()
        case.torch_step(beside.theirs)
    beside.check()


@each_backend
@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_torch_fused_sgd_late_first_gradient(case: Case, backend: str) -> None:
    """torch fused SGD: a parameter whose first gradient came late raised TypeError."""
    beside = Beside(
        case, [leaf(torch.randn(7)), leaf(torch.randn(5, 3)), leaf(torch.randn(4))], backend
    )
    for n_late in (2, 1, 0, 0):
        grads: list[Tensor | None] = list(random_grads(beside.params))
        grads[3 - n_late :] = [None] * n_late
        beside.step(grads)
    beside.check()


@each_backend
@each_case
def test_torch_fused_found_inf_of_two_devices(case: Case, backend: str) -> None:
    """torch fused: found_inf == 2 counted as finite; NaN parameters and step -1 followed."""
    beside = Beside(case, [leaf(torch.randn(7))], backend)
    beside.step(random_grads(beside.params))
    kept = [beside.params[0].detach().clone()]
    kept += [v.clone() for v in beside.ours.state[beside.params[0]].values()]
    beside.set_grads([torch.full((7,), torch.nan)])
    beside.ours.found_inf, beside.ours.grad_scale = torch.tensor(2.0), torch.tensor(8.0)
    beside.ours.step()
    now = [beside.params[0].detach(), *beside.ours.state[beside.params[0]].values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


@each_backend
@pytest.mark.parametrize("case", [c for c in CASES if c.kwargs.get("nesterov")], ids=case_name)
def test_torch_foreach_nesterov_overwrites_gradients(case: Case, backend: str) -> None:
    """torch foreach: Nesterov momentum was added to .grad in place."""
    beside = Beside(case, [leaf(torch.randn(7)), leaf(torch.randn(5, 3))], backend)
    for _ in range(3):
        grads = random_grads(beside.params)
        kept = [g.clone() for g in grads]
        beside.step(grads)
        for param, grad, before in zip(beside.params, grads, kept, strict=True):
            assert param.grad is grad and torch.equal(grad, before)
    beside.check()


@each_case
def test_torch_fused_one_launch_per_group_and_region_per_tensor(case: Case) -> None:
    """torch fused: a kernel set per parameter group, on the CPU a parallel region per tensor."""
    params = [leaf(torch.randn(3)) for _ in range(161)]
    groups = [{"params": params[i::7], "lr": 0.01 + 0.01 * i} for i in range(7)]
    optimizer = case.cls(groups, **case.kwargs)
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    with torch.profiler.profile() as profile:
        optimizer.step()
    names = [event.name for event in profile.events()]
    assert names.count(f"fusedtricks::{case.cls.algorithm}_") == 1


@pytest.mark.parametrize("grad_dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@each_backend
@each_case
def test_gradient_dtype_differs_from_the_parameters(
    case: Case, backend: str, dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    """All fused peers raise when grad_dtype is not the parameter's dtype."""
    param = leaf(torch.randn(101).to(dtype))
    if dtype != grad_dtype and not hasattr(param, "grad_dtype"):
        pytest.skip("this torch has no Tensor.grad_dtype")
    beside = Beside(case, [param], backend)
    for _ in range(2):
        beside.step([torch.randn(101).to(grad_dtype)])
    beside.check()


@each_backend
@each_case
def test_apex_master_weights_of_bf16_and_checkpoints(case: Case, backend: str) -> None:
    """Apex: no masters for bf16, masters not in the state dict, torch checkpoints do not load."""
    params = [leaf(torch.randn(101).bfloat16())]
    beside = Beside(case, params, backend, master_weights=True)
    for _ in range(6):
        beside.step(random_grads(params))
    saved = copy.deepcopy(beside.ours.state_dict())
    master = saved["state"][0]["master_param"]
    torch.testing.assert_close(master.double(), beside.twins[0].detach(), rtol=3e-6, atol=3e-6)
    resumed = leaf(params[0].detach().clone())
    other = case.cls([resumed], backend=backend, master_weights=True, **case.kwargs)
    other.load_state_dict(saved)
    grad = random_grads(params)
    beside.step(grad)
    resumed.grad = grad[0].clone()
    other.step()
    assert torch.equal(resumed, params[0])
    assert torch.equal(
        other.state[resumed]["master_param"], beside.ours.state[params[0]]["master_param"]
    )


@each_backend
@each_case
def test_apex_torch_checkpoint_loads(case: Case, backend: str) -> None:
    """Apex: a checkpoint of torch.optim could not be loaded."""
    beside = Beside(case, [leaf(torch.randn(101, dtype=torch.float64))], backend)
    beside.step(random_grads(beside.params))
    theirs = copy.deepcopy(beside.theirs.state_dict())
    beside.ours.load_state_dict(theirs)
    for group in beside.ours.param_groups:
        group["weight_decay"] = case.kwargs.get("weight_decay", 0)
    beside.step(random_grads(beside.params))
    beside.check()


@each_backend
@each_case
def test_deepspeed_cpu_adam_non_contiguous_parameter(case: Case, backend: str) -> None:
    """DeepSpeed CPUAdam: a non-contiguous parameter was copied, and only the copy updated."""
    beside = Beside(case, [leaf(torch.randn(7, 5).t()), leaf(torch.randn(40)[::3])], backend)
    before = [p.detach().clone() for p in beside.params]
    beside.step(random_grads(beside.params))
    assert not any(torch.equal(p, b) for p, b in zip(beside.params, before, strict=True))
    beside.check()


@each_backend
@pytest.mark.parametrize("case", [c for c in CASES if c.cls.has_step], ids=case_name)
def test_deepspeed_fused_adam_steps_of_all_parameters(case: Case, backend: str) -> None:
    """DeepSpeed FusedAdam: only the last parameter's step count advanced."""
    beside = Beside(case, [leaf(torch.randn(n)) for n in (3, 5, 7)], backend)
    for _ in range(3):
        beside.step(random_grads(beside.params))
    assert [beside.ours.state[p]["step"].item() for p in beside.params] == [3.0] * 3
    beside.check()


@pytest.mark.parametrize("dampening,nesterov", [(0.23, False), (0.0, True)])
@pytest.mark.parametrize("decay", [0.0, 0.19])
@each_backend
def test_bitsandbytes_sgd_options(
    backend: str, decay: float, dampening: float, nesterov: bool
) -> None:
    """bitsandbytes SGD: dampening and nesterov were accepted and ignored."""
    kwargs = {
        "lr": 0.04,
        "momentum": 0.83,
        "dampening": dampening,
        "nesterov": nesterov,
        "weight_decay": decay,
    }
    case = Case("SGD", optim.SGD, torch.optim.SGD, kwargs)
    beside = Beside(case, [leaf(torch.randn(101))], backend)
    for _ in range(4):
        beside.step(random_grads(beside.params))
    beside.check()


@each_backend
@pytest.mark.parametrize("cls", [optim.SGDW, optim.AdamW])
def test_timm_sgdw_decays_once(cls: type, backend: str) -> None:
    """timm SGDW, foreach: the decay acted once per dtype group, 0.9025 instead of 0.95."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    params = [leaf(torch.ones(6, dtype=dtype)) for dtype in dtypes]
    optimizer = cls(params, lr=0.5, weight_decay=0.1, backend=backend)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param in params:
        assert torch.equal(param, torch.full_like(param, 0.95))


@each_backend
def test_pytorch_optimizer_sgdw_momentum(backend: str) -> None:
    """pytorch_optimizer SGDW, foreach: momentum was ignored, the buffer began as the weights."""
    param = leaf(torch.tensor([2.0, -3.0]))
    optimizer = optim.SGDW([param], lr=0.5, momentum=0.75, weight_decay=0.25, backend=backend)
    param.grad = torch.tensor([1.0, 0.5])
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.tensor([1.0, 0.5]))
    first = torch.tensor([2.0, -3.0]) * 0.875 - 0.5 * param.grad
    assert torch.equal(param, first)
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.tensor([1.75, 0.875]))
    assert torch.equal(param, first * 0.875 - 0.5 * torch.tensor([1.75, 0.875]))


@pytest.mark.parametrize("position", ["first", "between", "last", "only"])
@each_backend
@each_case
def test_transformer_engine_empty_tensor(case: Case, backend: str, position: str) -> None:
    """Transformer Engine, Apex: an empty tensor in the last slot was read out of bounds."""
    empty = leaf(torch.zeros(0, 3))
    lists = {
        "first": [empty, leaf(torch.randn(7)), leaf(torch.randn(5, 3))],
        "between": [leaf(torch.randn(7)), empty, leaf(torch.randn(5, 3))],
        "last": [leaf(torch.randn(7)), leaf(torch.randn(5, 3)), empty],
        "only": [empty],
    }
    beside = Beside(
        case,
        lists[position],
        backend,
        centralize_grad=True,
        clip_grad_norm=1e6,
        skip_nonfinite=True,
    )
    for _ in range(2):
        grads = random_grads(beside.params)
        for grad in grads:
            if grad.ndim > 1 and grad.numel():
                grad -= grad.mean(dim=1, keepdim=True)
        beside.step(grads)
    beside.check()
    assert beside.ours.skipped_steps == 0


@each_backend
@each_case
def test_optimi_strides_of_gradient_and_parameter(case: Case, backend: str) -> None:
    """optimi (Triton): no check of strides, a transposed gradient was read in memory order."""
    params = [
        leaf(torch.randn(5, 7)),
        leaf(torch.randn(7, 5).t()),
        leaf(torch.randn(5, 14)[:, ::2]),
    ]
    beside = Beside(case, params, backend)
    for _ in range(2):
        beside.step([torch.randn(7, 5).t(), torch.randn(5, 7), torch.randn(1, 7).expand(5, 7)])
    beside.check()
