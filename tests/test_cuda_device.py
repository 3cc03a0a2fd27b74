"""On a real GPU: no waiting for the device, captured graphs, streams, launches, several devices."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedtricks import optim
from fusedtricks.amp import GradScaler
from fusedtricks.nn import ModelEMA
from tests.cases import Case
from tests.test_device import (
    DEVICE,
    OPTIONS,
    build,
    check,
    every_case,
    give,
    leaf,
    main_case,
    make,
    twins_of,
)
from tests.values import transform_by_hand

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """Return a function that makes every synchronisation an error from its call on."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@main_case
def test_a_step_does_not_wait_for_the_device(case: Case, scaled: bool, no_waiting: Any) -> None:
    params = make(torch.float32)
    lr = torch.tensor(case.kwargs["lr"], device=DEVICE)
    ours = case.cls(params, skip_nonfinite=True, **OPTIONS["combined"], **{**case.kwargs, "lr": lr})
    scaler = GradScaler("cuda", init_scale=8.0)
    scaler.scale(torch.ones((), device=DEVICE))
    give(params, twins_of(params), 0)
    ours.step()
    no_waiting()
    for _ in range(3):
        if scaled:
            scaler.step(ours)
            scaler.update()
        else:
            ours.step()
    torch.cuda.set_sync_debug_mode("default")
    assert ours.skipped_steps == 0


@needs_gpu
@every_case
def test_a_captured_step_follows_lr_and_skips(case: Case) -> None:
    def prepare() -> tuple[list[Tensor], Tensor, Tensor, optim.FusedOptimizer]:
        params = make(torch.float32)
        for param in params:
            param.grad = torch.zeros_like(param)
        lr = torch.tensor(0.02, device=DEVICE)
        ours = case.cls(params, **OPTIONS["combined"], **{**case.kwargs, "lr": lr})
        flag = torch.zeros((), device=DEVICE)
        ours.found_inf = flag
        return params, lr, flag, ours

    params, lr, flag, ours = prepare()
    twins, twin_lr, twin_flag, eager = prepare()
    ours.step()
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for number in range(6):
        torch.manual_seed(number)
        for param, twin in zip(params, twins, strict=True):
            grad = torch.randn(param.shape, device=DEVICE)
            param.grad.copy_(grad)
            twin.grad.copy_(grad)
        for rate, found in ((lr, flag), (twin_lr, twin_flag)):
            rate.fill_(0.01 * (number + 1))
            found.fill_(float(number == 3))
        graph.replay()
        eager.step()
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)
    for mine, its in zip(ours.state.values(), eager.state.values(), strict=True):
        assert all(torch.equal(mine[name], its[name]) for name in its)


@needs_gpu
@main_case
def test_a_captured_step_moves_averages(case: Case) -> None:
    model = nn.ParameterList(make(torch.float32))
    for param in model:
        param.grad = torch.randn_like(param)
    ours = case.cls(model.parameters(), **OPTIONS["combined"], **case.kwargs)
    ema = ModelEMA(model, decay=0.83)
    ema.follow(ours, model)
    for _ in range(2):
        ours.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    expected = [average.double() for average in ema.module]
    for _ in range(4):
        for param in model:
            param.grad.copy_(torch.randn_like(param))
        graph.replay()
        values = [param.detach().double() for param in model]
        expected = [torch.lerp(*pair, 0.17) for pair in zip(expected, values, strict=True)]
    for average, wanted in zip(ema.module, expected, strict=True):
        torch.testing.assert_close(average.double(), wanted, rtol=2e-6, atol=2e-6)


@needs_gpu
def test_a_capture_must_not_create_state() -> None:
    param = leaf(torch.randn(7))
    param.grad = torch.ones_like(param)
    ours = optim.AdamW([param], lr=0.01)
    with (
        pytest.raises(RuntimeError, match=r"take a step .* before capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        ours.step()


@needs_gpu
@pytest.mark.parametrize("name", OPTIONS)
def test_launches_per_step(name: str) -> None:
    params = make(torch.float32, [(64, 9)] * 560)
    for param in params:
        param.grad = torch.randn_like(param)
    ours = optim.AdamW(params, lr=0.01, **OPTIONS[name])
    ours.step()
    torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        ours.step()
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == (1 if name == "plain" else 3), kernels


@needs_gpu
@main_case
def test_a_side_stream(case: Case) -> None:
    params = make(torch.float32)
    twins = twins_of(params)
    ours = build(case, params, **OPTIONS["combined"])
    theirs = case.torch_cls(twins, **case.torch_kwargs)
    stream = torch.cuda.Stream()
    for seed in range(4):
        give(params, twins, seed)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            ours.step()
        torch.cuda.current_stream().wait_stream(stream)
        transform_by_hand(twins, 0.9, 0.7, 2)
        case.torch_step(theirs)
    check(params, twins)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@main_case
def test_parameters_on_two_devices(case: Case) -> None:
    params = make(torch.float32)
    params = [p.detach().to(f"cuda:{i % 2}").requires_grad_() for i, p in enumerate(params)]
    twins = twins_of(params)
    ours = build(case, params, **OPTIONS["combined"])
    theirs = case.torch_cls(twins, **case.torch_kwargs)
    for seed in range(3):
        give(params, twins, seed)
        ours.step()
        transform_by_hand(twins, 0.9, 0.7, 2)
        case.torch_step(theirs)
    check(params, twins)


@needs_gpu
def test_parameters_on_the_cpu_and_the_gpu() -> None:
    params = make(torch.float32)
    params = [p.detach().to("cpu" if i % 2 else "cuda") for i, p in enumerate(params)]
    params = [p.requires_grad_() for p in params]
    twins = twins_of(params)
    kwargs = {"lr": 0.03, "betas": (0.81, 0.93), "eps": 2e-3, "weight_decay": 0.13}
    ours = optim.AdamW(params, **OPTIONS["combined"], **kwargs)
    theirs = torch.optim.AdamW(twins, **kwargs)
    for seed in range(3):
        give(params, twins, seed)
        ours.step()
        transform_by_hand(twins, 0.9, 0.7, 2)
        theirs.step()
    check(params, twins)


@needs_gpu
@pytest.mark.parametrize("row_length", [None, 1 << 20], ids=["flat", "rows"])
def test_more_than_two_to_the_31_elements(row_length: int | None) -> None:
    n = (1 << 31) + (1 << 21) + 5 * (row_length is None)
    if torch.cuda.mem_get_info()[0] < 12 * n:
        pytest.skip("needs 25 GB of free GPU memory")
    shape = (n,) if row_length is None else (n // row_length, row_length)
    param = torch.ones(shape, dtype=torch.bfloat16, device=DEVICE).requires_grad_()
    param.grad = torch.full_like(param, 0.5)
    param.grad.view(-1)[-3:] = 2.0
    ours = optim.SGD([param], lr=0.25, clip_grad_norm=1e9, centralize_grad=row_length is not None)
    ours.step()
    norm = (0.25 * (n - 3) + 3 * 4.0) ** 0.5
    assert abs(ours.grad_norm.item() - norm) < 1e-5 * norm
    flat = param.detach().view(-1)
    mean = 0.5 if row_length is not None else 0.0
    assert torch.all(flat[: 1 << 30] == 1 - 0.25 * (0.5 - mean))
    assert torch.all(flat[(1 << 31) : -(1 << 21)] == 1 - 0.25 * (0.5 - mean))
    assert torch.all((flat[-3:] - (1 - 0.25 * (2.0 - mean))).abs() < 0.01)
