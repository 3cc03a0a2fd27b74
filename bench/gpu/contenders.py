"""Build the steps that are measured against each other on a GPU.

As in `bench.contenders`: a contender's step is whatever a training loop would call between
`backward()` and `zero_grad()`, and every contender owns its tensors.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import contenders
from bench.contenders import MAX_NORM, OPTIONS, centralize_
from bench.gpu import ours
from bench.gpu.cases import Case
from bench.workloads import Shape
from fusedtricks import optim

# Small enough for fp16: a gradient of five standard deviations times this is far below 65504.
SCALE = 1024.0

# The backend of each contender of ours.
BACKENDS = {"ours": "cuda", "ours-triton": "triton"}

LABELS = {
    "ours": "ours",
    "ours-triton": "ours (triton)",
    "torch-fused": "torch fused=True",
    "torch-foreach": "torch foreach=True",
    # apex itself is not installed: one multi-tensor norm, the clipping factor handed to the fused
    # step as its grad_scale, as apex hands its multi_tensor_l2norm to multi_tensor_adam.
    "apex-style": "apex-style stand-in",
}


@dataclass(frozen=True)
class Contender(contenders.Contender):
    """A way to take a step.

    Attributes:
        optimizer: What takes the step, or a part of it.
    """

    optimizer: torch.optim.Optimizer


def make_parameters(
    shapes: Sequence[Shape],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    seed: int = 0,
) -> list[Tensor]:
    """Return parameters with gradients, made on the device, the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)
    parameters = []
    for shape in shapes:
        weight = torch.randn(shape, generator=generator, device=device).mul_(0.02).to(dtype)
        parameter = torch.nn.Parameter(weight)
        grad = torch.randn(shape, generator=generator, device=device)
        parameter.grad = grad.mul_(scale).to(dtype)
        parameters.append(parameter)
    return parameters


def _model(case: Case, shapes: Sequence[Shape], device: torch.device) -> list[Tensor]:
    scale = SCALE if case.scaled else 1.0
    return make_parameters(shapes, device=device, dtype=case.dtype, scale=scale)


def capturable_option(optimizer_class: type, wanted: bool) -> dict[str, bool]:
    """Return `capturable=True` for a class that has the option, if it is wanted."""
    has_it = "capturable" in inspect.signature(optimizer_class).parameters
    return {"capturable": True} if wanted and has_it else {}


def build_ours(
    case: Case, shapes: Sequence[Shape], *, device: torch.device, capturable: bool, backend: str
) -> Contender:
    """Return our step: everything around the optimizer is an option of it."""
    parameters = _model(case, shapes, device)
    optimizer_class = getattr(optim, case.algorithm)
    options: dict[str, Any] = dict(OPTIONS[case.algorithm]) | {"backend": backend}
    options |= capturable_option(optimizer_class, capturable)
    if case.combined:
        options |= {"clip_grad_norm": MAX_NORM, "centralize_grad": True}
    if case.masters:
        options["master_weights"] = True
    if case.scaled:
        # torch's composition searches for non-finite values too, while it unscales.
        options["skip_nonfinite"] = True
    optimizer = optimizer_class(parameters, **options)
    if case.scaled:
        optimizer.grad_scale = torch.tensor(SCALE, device=device)
        optimizer.found_inf = torch.tensor(0.0, device=device)
    taken = contenders.Contender(optimizer.step, parameters)
    if case.averaged:
        taken = contenders.averaged_by_ours(optimizer, parameters)
    return Contender(taken.step, taken.parameters, optimizer)


def build_torch(
    case: Case,
    shapes: Sequence[Shape],
    *,
    device: torch.device,
    capturable: bool,
    implementation: str,
    apex_style: bool = False,
) -> Contender:
    """Return torch's step with the usual clipping, centralization and masters around it.

    Args:
        case: What to do.
        shapes: Of the parameters.
        device: Of the parameters.
        capturable: Build for the capture in a CUDA graph.
        implementation: "fused" or "foreach".
        apex_style: Clip by the fused step's grad_scale instead of a pass over the gradients.
    """
    model = _model(case, shapes, device)
    parameters = model
    if case.masters:
        parameters = [torch.nn.Parameter(parameter.detach().float()) for parameter in model]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    optimizer_class = getattr(torch.optim, case.algorithm)
    optimizer = optimizer_class(
        parameters,
        **OPTIONS[case.algorithm],
        **{implementation: True},
        **capturable_option(optimizer_class, capturable),
    )
    before = _apex_style(optimizer, parameters) if apex_style else _clip_by_torch(parameters)
    step = optimizer.step
    if case.scaled:
        unscale, step = _unscaling(optimizer, parameters, implementation)
    model_grads = [parameter.grad for parameter in model]
    grads = [parameter.grad for parameter in parameters]

    @torch.no_grad()
    def whole_step() -> None:
        if case.masters:
            torch._foreach_copy_(grads, model_grads)
        if case.scaled:
            unscale()
        if case.combined:
            before()
            centralize_(parameters)
        step()
        if case.masters:
            torch._foreach_copy_(model, parameters)

    step_of_all = whole_step if case.combined or case.masters else optimizer.step
    taken = contenders.Contender(step_of_all, model)
    if case.averaged:
        taken = contenders.averaged_by_torch(step_of_all, model)
    return Contender(taken.step, taken.parameters, optimizer)


def _clip_by_torch(parameters: list[Tensor]) -> Callable[[], object]:
    return lambda: torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM, foreach=True)


def _apex_style(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> Callable[[], object]:
    """Return the computation of the norm, which leaves the factor to the fused step."""
    grads = [parameter.grad for parameter in parameters]
    divisor = torch.ones((), device=grads[0].device)
    optimizer.grad_scale = divisor

    def leave_factor() -> None:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        divisor.copy_(((norm + 1e-6) / MAX_NORM).clamp(min=1.0))

    return leave_factor


def _unscaling(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], implementation: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the two halves of what `GradScaler.unscale_` and `GradScaler.step` do."""
    grads = [parameter.grad for parameter in parameters]
    found_inf = torch.zeros((), device=grads[0].device)
    inverse = torch.full((), 1 / SCALE, device=grads[0].device)

    def unscale() -> None:
        found_inf.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found_inf, inverse)

    def step_unless_found() -> None:
        if not found_inf.item():
            optimizer.step()

    if implementation == "fused":
        optimizer.found_inf = found_inf
        return unscale, optimizer.step
    return unscale, step_unless_found


def why_missing(name: str, device: torch.device) -> str:
    """Return why a contender cannot run here, empty if it can."""
    if name not in BACKENDS:
        return ""
    backend = ours.name_on(BACKENDS[name], device)
    return "" if backend == "auto" else ours.missing(backend, device)


def build(
    name: str,
    case: Case,
    shapes: Sequence[Shape],
    *,
    device: torch.device,
    capturable: bool = False,
) -> Contender:
    """Return one contender; on a CPU, with what a rehearsal has in the place of the GPU's."""
    common = {"device": device, "capturable": capturable and device.type == "cuda"}
    if name in BACKENDS:
        return build_ours(case, shapes, backend=ours.name_on(BACKENDS[name], device), **common)
    implementation = "foreach" if name == "torch-foreach" else "fused"
    apex_style = name == "apex-style" and case.combined
    return build_torch(case, shapes, implementation=implementation, apex_style=apex_style, **common)
