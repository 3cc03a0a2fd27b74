"""Build the optimizer steps that are measured against each other.

A contender's step is whatever a training loop would call between `backward()` and `zero_grad()`.
Every contender owns its tensors, so that one's work never warms the caches for another.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cases import Case
from .workloads import Shape

MAX_NORM = 1.0
# Short, so that tests of what contenders do see every average move.
AVERAGE_DECAY = 0.9
# Small rates: gradients stay the same over thousands of steps, and the weights must stay finite.
OPTIONS = {
    "AdamW": {"lr": 1e-5, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.02},
    "SGD": {"lr": 1e-5, "momentum": 0.9, "weight_decay": 0.02},
    "SGDW": {"lr": 1e-5, "momentum": 0.9, "weight_decay": 0.02},
    "RMSprop": {"lr": 1e-5, "alpha": 0.98, "eps": 1e-8},
    "Adagrad": {"lr": 1e-5, "eps": 1e-9},
}


@dataclass(frozen=True)
class Contender:
    """A way to take a step.

    Attributes:
        step: Takes one whole step.
        parameters: What the model would hold, and its averages; the same values at the start for
            every contender.
    """

    step: Callable[[], object]
    parameters: list[Tensor]


def make_parameters(
    shapes: list[Shape], *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Return parameters with gradients, normally distributed, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for shape in shapes:
        weight = torch.randn(shape, generator=generator).mul_(0.02).to(dtype)
        parameter = torch.nn.Parameter(weight)
        parameter.grad = torch.randn(shape, generator=generator).to(dtype)
        parameters.append(parameter)
    return parameters


def centralize_(parameters: list[Tensor]) -> None:
    """Subtract from each gradient its mean over all dimensions but the first.

    Source: Yong et al. 2020, "Gradient Centralization", eq. 1, as in the authors' optimizers.
    """
    for parameter in parameters:
        if parameter.ndim > 1:
            dims = tuple(range(1, parameter.ndim))
            parameter.grad.sub_(parameter.grad.mean(dim=dims, keepdim=True))


def averaged_by_ours(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], *, separately: bool = False
) -> Contender:
    """Return a step with our average of the parameters, in its own pass or in the step's."""
    model = nn.ParameterList(parameters)
    ema = importlib.import_module("fusedtricks.nn").ModelEMA(model, decay=AVERAGE_DECAY)
    kept = [*parameters, *ema.module.parameters()]
    if not separately:
        ema.follow(optimizer, model)
        return Contender(optimizer.step, kept)

    def averaged_step() -> None:
        optimizer.step()
        ema.update_parameters(model)

    return Contender(averaged_step, kept)


def averaged_by_torch(step: Callable[[], object], parameters: list[Tensor]) -> Contender:
    """Return a step with torch's quickest average of the parameters after it.

    It is what `torch.optim.swa_utils.get_ema_multi_avg_fn` calls, without the module around it.
    """
    averages = [parameter.detach().clone() for parameter in parameters]
    averages_are_new = True

    @torch.no_grad()
    def averaged_step() -> None:
        nonlocal averages_are_new
        step()
        weight = 1.0 if averages_are_new else 1 - AVERAGE_DECAY
        torch._foreach_lerp_(averages, parameters, weight)
        averages_are_new = False

    return Contender(averaged_step, [*parameters, *averages])


def build_ours(
    case: Case, shapes: list[Shape], *, algorithm: str | None = None, separately: bool = False
) -> Contender:
    """Return our step: clipping, centralization and masters are options of the optimizer."""
    algorithm = algorithm or case.algorithm
    optim = importlib.import_module("fusedtricks.optim")
    parameters = make_parameters(shapes, dtype=torch.bfloat16 if case.masters else torch.float32)
    options: dict[str, object] = dict(OPTIONS[algorithm])
    if case.combined:
        options |= {"clip_grad_norm": MAX_NORM, "centralize_grad": True}
    if case.masters:
        options["master_weights"] = True
    optimizer = getattr(optim, algorithm)(parameters, **options)
    if case.averaged:
        return averaged_by_ours(optimizer, parameters, separately=separately)
    return Contender(optimizer.step, parameters)


def build_torch(case: Case, shapes: list[Shape], **implementation: bool) -> Contender:
    """Return torch's step with the usual clipping and centralization before it."""
    if case.masters:
        return _build_torch_masters(case, shapes, implementation)
    parameters = make_parameters(shapes)
    step = _torch_step(case, parameters, implementation)
    return averaged_by_torch(step, parameters) if case.averaged else Contender(step, parameters)


def _torch_step(
    case: Case, parameters: list[Tensor], implementation: dict[str, bool]
) -> Callable[[], object]:
    optimizer_class = getattr(torch.optim, case.algorithm)
    optimizer = optimizer_class(parameters, **OPTIONS[case.algorithm], **implementation)
    if not case.combined:
        return optimizer.step

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        centralize_(parameters)
        optimizer.step()

    return step


def _build_torch_masters(
    case: Case, shapes: list[Shape], implementation: dict[str, bool]
) -> Contender:
    """Return the usual way with float32 masters.

    Copy the bfloat16 gradients to float32 buffers, step on the float32 parameters, copy these
    back to the model, each by one multi-tensor copy.
    """
    model = make_parameters(shapes, dtype=torch.bfloat16)
    masters = [torch.nn.Parameter(parameter.detach().float()) for parameter in model]
    for master in masters:
        master.grad = torch.zeros_like(master)
    model_grads = [parameter.grad for parameter in model]
    master_grads = [master.grad for master in masters]
    step = _torch_step(case, masters, implementation)

    @torch.no_grad()
    def step_with_masters() -> None:
        torch._foreach_copy_(master_grads, model_grads)
        step()
        torch._foreach_copy_(model, masters)

    return Contender(step_with_masters, model)


BUILDERS: dict[str, Callable[[Case, list[Shape]], Contender]] = {
    "ours": build_ours,
    "ours-separate": lambda case, shapes: build_ours(case, shapes, separately=True),
    "ours-sgd": lambda case, shapes: build_ours(case, shapes, algorithm="SGD"),
    "torch-fused": lambda case, shapes: build_torch(case, shapes, fused=True),
    "torch-foreach": lambda case, shapes: build_torch(case, shapes, foreach=True),
    "torch-loop": lambda case, shapes: build_torch(case, shapes, foreach=False),
}


def why_missing(contender: str) -> str | None:
    """Return why a contender cannot run here, or None if it can."""
    if not contender.startswith("ours"):
        return None
    try:
        importlib.import_module("fusedtricks.optim").AdamW  # noqa: B018
    except (ImportError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def build_all(
    case: Case, shapes: list[Shape], *, only: tuple[str, ...] | None = None
) -> dict[str, Contender]:
    """Return the contenders of a case that can run here, by name.

    Args:
        case: The case.
        shapes: Parameter shapes of the workload.
        only: Contenders to keep; those the case does not have are ignored. Default: all.
    """
    names = [name for name in case.contenders if only is None or name in only]
    return {name: BUILDERS[name](case, shapes) for name in names if why_missing(name) is None}


def build_steps(
    case: Case, shapes: list[Shape], *, only: tuple[str, ...] | None = None
) -> dict[str, Callable[[], object]]:
    """Return the bare steps of `build_all`, for timing without a layer between."""
    return {name: built.step for name, built in build_all(case, shapes, only=only).items()}
