"""An optimizer of ours next to the torch.optim class that defines it, fed with equal gradients."""

import io
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.cases import Case
from tests.devices import BACKENDS as BACKENDS
from tests.devices import HOST_BACKENDS as HOST_BACKENDS

# Small, because these tests are about the protocol: empty, scalar, prime, matrices, a convolution.
SHAPES = ((0,), (), (101,), (5, 3), (2, 0), (4, 3, 3, 3))
# A few roundings per step on values of about 1.
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12}


def case_name(case: Case) -> str:
    """Name a case in a test's id."""
    return case.name


def leaf(value: Tensor) -> Tensor:
    """Return `value` as a tensor that an optimizer takes."""
    return value.detach().requires_grad_()


def make_params(
    dtype: torch.dtype = torch.float64, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> list[Tensor]:
    """Return leaf tensors with values of about 1."""
    return [leaf(torch.randn(shape).to(dtype)) for shape in shapes]


def give_grads(params: list[Tensor], seed: int) -> None:
    """Give gradients that depend on `seed` alone."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for param in params:
        grad = torch.randn(param.shape, generator=generator, device="cpu")
        param.grad = grad.to(param.device, param.dtype)


def train(optimizer: torch.optim.Optimizer, first: int, n_steps: int) -> None:
    """Take steps whose gradients depend on their number alone."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number in range(first, first + n_steps):
        give_grads(params, number)
        optimizer.step()


def through_file(saved: Any) -> Any:
    """Save and load the way torch advises."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def clones(params: list[Tensor]) -> list[Tensor]:
    """Return independent leaf tensors with the same values."""
    return [leaf(p.detach().clone()) for p in params]


def add_missing_state(optimizer: torch.optim.Optimizer) -> None:
    """Create what torch.optim.Adagrad before 2.12 creates in its constructor only."""
    if type(optimizer) is not torch.optim.Adagrad or torch.__version__ >= (2, 12):
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            if param.grad is not None and not state:
                state["step"] = torch.tensor(0.0)
                state["sum"] = torch.full_like(param, group["initial_accumulator_value"])


class Pair:
    """Ours on `params`, torch's on a float64 copy of them."""

    def __init__(
        self,
        case: Case,
        backend: str = "auto",
        *,
        params: list[Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        lr: float | Tensor | None = None,
        **extras: Any,
    ) -> None:
        self.case = case
        self.params = make_params(dtype) if params is None else params
        self.twins = [leaf(p.detach().double().clone()) for p in self.params]
        ours, theirs = dict(case.kwargs), dict(case.torch_kwargs)
        if lr is not None:
            ours["lr"], theirs["lr"] = lr, lr.clone() if isinstance(lr, Tensor) else lr
        self.ours = case.cls(self.params, backend=backend, **ours, **extras)
        self.theirs = case.torch_cls(self.twins, **theirs)

    @property
    def both(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """The two optimizers, ours first."""
        return self.ours, self.theirs

    def add(self, params: list[Tensor], **options: Any) -> None:
        """Add a parameter group to both."""
        twins = [leaf(p.detach().double().clone()) for p in params]
        self.params += params
        self.twins += twins
        self.ours.add_param_group({"params": params, **options})
        self.theirs.add_param_group({"params": twins, **options})

    def set_grads(self, without: Collection[int] = ()) -> None:
        """Give equal gradients to both, none to the parameters at the positions `without`."""
        for index, (param, twin) in enumerate(zip(self.params, self.twins, strict=True)):
            grad = torch.randn(param.shape).to(param.dtype)
            param.grad = None if index in without else grad
            twin.grad = None if index in without else grad.double()

    def set_option(self, name: str, value: Any) -> None:
        """Change an option of all groups."""
        for group in self.ours.param_groups:
            group[name] = value
        if name == "weight_decay" and self.case.decays_by_hand:
            self.case = replace(self.case, decays_by_hand=value)
            return
        for group in self.theirs.param_groups:
            group[name] = value

    def step(self, without: Collection[int] = ()) -> None:
        """Take a step of both with new gradients."""
        self.set_grads(without)
        self.ours.step()
        add_missing_state(self.theirs)
        self.case.torch_step(self.theirs)

    def check(self) -> None:
        """Compare the parameters and the state of both."""
        for index, (param, twin) in enumerate(zip(self.params, self.twins, strict=True)):
            close(param, twin, param.dtype)
            mine, other = self.ours.state.get(param, {}), self.theirs.state.get(twin, {})
            assert mine.keys() == other.keys(), f"parameter {index}"
            for name, value in mine.items():
                close(value, other[name], param.dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare values with the tolerance of `dtype`."""
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual.detach().double(),
        expected.detach().double(),
        rtol=bound,
        atol=bound,
        equal_nan=True,
    )
