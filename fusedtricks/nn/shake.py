"""Random weights of residual branches that the backward pass replaces: Shake-Shake, ShakeDrop."""

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd import Function

from fusedtricks._checks import check_bool, check_number, check_whole
from fusedtricks._host import moved

__all__ = ["ShakeDrop", "ShakeShake", "linear_keep_probabilities", "shake_shake"]

# Number of leading dimensions along which a weight differs.
_LEVELS = {"batch": 0, "image": 1}

# Note [Two weights]
# alpha counts in the forward pass, beta in the backward pass. The expression
# beta * x + ((alpha - beta) * x).detach() does that, but rounds alpha * x in pieces, which shows in
# 16 bits, and reads a branch several times. A Function does either pass exactly, in one sweep, and
# keeps only beta; it compiles without a graph break and works under grad and vmap of torch.func.
# jvp and jacfwd raise: forward-mode differentiation knows no backward pass to take beta for.
#
# beta is drawn in one go with alpha, not when the gradient arrives: the order in which autograd
# visits branches does not matter then, and torch.utils.checkpoint draws the same pair again,
# because it puts torch's default generators back. Two draws would not do: torch.compile moves what
# only the backward pass uses into it.


def shake_shake(
    first: Tensor,
    second: Tensor,
    *,
    training: bool,
    forward: str = "shake",
    backward: str = "shake",
    per: str = "image",
    generator: Generator | None = None,
) -> Tensor:
    """Blend two residual branches with random weights, others in the backward pass.

    In training, with alpha, beta ~ U[0, 1)::

        y = alpha * first + (1 - alpha) * second
        dL/dfirst = beta * dL/dy,  dL/dsecond = (1 - beta) * dL/dy

    Otherwise both are 0.5, with their usual gradients.

    Args:
        first: Output of one branch, shape (N, ...), floating point.
        second: Output of the other, of the same shape.
        training: Whether weights are drawn.
        forward: "shake" draws alpha, "even" takes 0.5. Default "shake".
        backward: "shake" draws beta, "even" takes 0.5, "keep" takes alpha. Default "shake".
        per: "image" for weights of each image, "batch" for weights of the whole batch. Default
            "image", the best of the source.
        generator: Where both weights come from, as one draw of shape (2, N or 1, 1, ...). Default:
            torch's for the device. torch.utils.checkpoint restores torch's alone: with your own, a
            recomputation would draw other weights.

    Returns:
        The blend, in the wider dtype of both.

    Raises:
        TypeError: If `training` is neither True nor False.
        ValueError: If shapes differ, or an option is none of those above.

    Example:
        >>> shake_shake(torch.tensor([[1.0]]), torch.tensor([[3.0]]), training=False)
        tensor([[2.]])

    Source: Gastaldi 2017, "Shake-Shake regularization", eq. 2, section 1.3 and figure 1.
    """
    _check_shake("shake_shake", forward, backward, per)
    check_bool("shake_shake", "training", training)
    if first.shape != second.shape:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise ValueError(f"shake_shake: expected branches of one shape, got {shapes}")
    dtype = torch.promote_types(first.dtype, second.dtype)
    first, second = first.to(dtype), second.to(dtype)
    if not training:
        return torch.lerp(second, first, 0.5)
    shape = (2, *_shape(first, per))
    even = drawn = torch.full(shape, 0.5, dtype=torch.float32, device=first.device)
    if "shake" in (forward, backward):
        drawn = _draw(shape, first.device, generator)
    alpha = (drawn if forward == "shake" else even)[0]
    beta = {"shake": drawn[1], "even": even[1], "keep": alpha}[backward]
    return _Blend.apply(first, second, alpha, beta)


def linear_keep_probabilities(n_blocks: int, last: float = 0.5) -> list[float]:
    """Return p_l = 1 - l / n_blocks * (1 - last) for the blocks l = 1 to n_blocks.

    Args:
        n_blocks: Number of residual blocks of the network, at least 1.
        last: p of the last block, in [0, 1]. Default 0.5.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is out of range.

    Example:
        >>> linear_keep_probabilities(4, last=0.5)
        [0.875, 0.75, 0.625, 0.5]

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", eq. 4; ShakeDrop takes it.
    """
    check_whole("linear_keep_probabilities", "n_blocks", n_blocks, 1)
    check_number("linear_keep_probabilities", "last", last, low=0, high=1)
    return [1 - block / n_blocks * (1 - last) for block in range(1, n_blocks + 1)]


class ShakeShake(nn.Module):
    """`shake_shake` as a module; it draws in training mode.

    It holds options alone, so that all blocks of a network may share one. Copies, by pickle as
    well, have a generator of their own in the same state.

    Args:
        forward: "shake" or "even". Default "shake".
        backward: "shake", "even" or "keep". Default "shake".
        per: "image" or "batch". Default "image".
        generator: Not part of `state_dict()`. Default: torch's for the device.

    Raises:
        ValueError: If an option is none of those.
    """

    def __init__(
        self,
        *,
        forward: str = "shake",
        backward: str = "shake",
        per: str = "image",
        generator: Generator | None = None,
    ) -> None:
        _check_shake("ShakeShake", forward, backward, per)
        super().__init__()
        self.forward_weights = forward
        self.backward_weights = backward
        self.per = per
        self.generator = generator

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Blend two branches of shape (N, ...)."""
        return shake_shake(
            first,
            second,
            training=self.training,
            forward=self.forward_weights,
            backward=self.backward_weights,
            per=self.per,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{self.forward_weights}, {self.backward_weights}, per {self.per}"


class ShakeDrop(nn.Module):
    """Scale a residual branch by a random number, if a coin says so, another one backwards.

    In training, with b ~ Bernoulli(keep_probability), alpha ~ U(alpha_range) and
    beta ~ U(beta_range)::

        y = (b + alpha - b * alpha) * branch,  dL/dbranch = (b + beta - b * beta) * dL/dy

    Otherwise y = (p + (1 - p) * mean(alpha_range)) * branch, p = keep_probability: the expectation.
    A block is `features + shake_drop(branch(features))`. b is one for the whole batch, as
    implementations of the source have it; `per` is about alpha and beta.

    Args:
        keep_probability: p, in [0, 1]: how often a branch is left alone; see
            `linear_keep_probabilities`.
        alpha_range: Bounds of alpha, finite, ascending. Default (-1, 1): then y is p * branch.
        beta_range: Bounds of beta, finite, ascending. Default (0, 1).
        per: "image" or "batch", see `shake_shake`. Default "image".
        generator: Where numbers come from, a draw for b and one of shape (2, N or 1, 1, ...) for
            alpha and beta; see `shake_shake`. Not part of `state_dict()`; copies have one of their
            own in the same state.

    Raises:
        TypeError: If a number is none.
        ValueError: If an option is out of range.

    Example:
        >>> ShakeDrop(0.75).eval()(torch.tensor([[2.0]]))
        tensor([[1.5000]])

    Source: Yamada et al. 2018, "ShakeDrop Regularization for Deep Residual Learning".
    """

    def __init__(
        self,
        keep_probability: float,
        *,
        alpha_range: tuple[float, float] = (-1.0, 1.0),
        beta_range: tuple[float, float] = (0.0, 1.0),
        per: str = "image",
        generator: Generator | None = None,
    ) -> None:
        check_number("ShakeDrop", "keep_probability", keep_probability, low=0, high=1)
        for name, bounds in (("alpha_range", alpha_range), ("beta_range", beta_range)):
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise ValueError(f"ShakeDrop: expected {name} (low, high), got {bounds!r}")
            check_number("ShakeDrop", f"low of {name}", bounds[0])
            check_number("ShakeDrop", f"high of {name}", bounds[1], low=bounds[0])
        _check_choice("ShakeDrop", "per", per, tuple(_LEVELS))
        super().__init__()
        self.keep_probability = float(keep_probability)
        self.alpha_range = alpha_range
        self.beta_range = beta_range
        self.per = per
        self.generator = generator

    def forward(self, branch: Tensor) -> Tensor:
        """Scale a branch of shape (N, ...), floating point."""
        p = self.keep_probability
        if not self.training:
            return branch * (p + (1 - p) * sum(self.alpha_range) / 2)
        is_kept = _draw(_shape(branch, "batch"), branch.device, self.generator) < p
        pair = _draw((2, *_shape(branch, self.per)), branch.device, self.generator)
        scales = [
            torch.where(is_kept, 1.0, low + (high - low) * drawn)
            for (low, high), drawn in zip((self.alpha_range, self.beta_range), pair, strict=True)
        ]
        return _Rescale.apply(branch, *scales)

    def extra_repr(self) -> str:
        """Return the options."""
        ranges = f"alpha in {self.alpha_range}, beta in {self.beta_range}"
        return f"{self.keep_probability}, {ranges}, per {self.per}"


class _Blend(Function):
    """alpha * first + (1 - alpha) * second, differentiated as if alpha were beta."""

    generate_vmap_rule = True

    @staticmethod
    def forward(first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.lerp(second, first, alpha.to(first.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (beta,) = ctx.saved_tensors
        return grad * beta.to(grad.dtype), grad * (1 - beta).to(grad.dtype), None, None


class _Rescale(Function):
    """scale * branch, differentiated as if scale were another one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(branch: Tensor, scale: Tensor, backward_scale: Tensor) -> Tensor:
        return branch * scale.to(branch.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (backward_scale,) = ctx.saved_tensors
        return grad * backward_scale.to(grad.dtype), None, None


def _shape(branch: Tensor, per: str) -> tuple[int, ...]:
    n_own = _LEVELS[per]
    return (*branch.shape[:n_own], *[1] * (branch.ndim - n_own))


def _draw(shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
    """Return float32 numbers from U[0, 1); 16 bits would be coarse."""
    if generator is None:
        return torch.rand(shape, dtype=torch.float32, device=device)
    # torch.compile breaks its graph at generators.
    drawn = torch.rand(shape, dtype=torch.float32, generator=generator, device=generator.device)
    return moved(drawn, device)


def _check_shake(what: str, forward: str, backward: str, per: str) -> None:
    _check_choice(what, "forward", forward, ("shake", "even"))
    _check_choice(what, "backward", backward, ("shake", "even", "keep"))
    _check_choice(what, "per", per, tuple(_LEVELS))


def _check_choice(what: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"{what}: expected {name} to be {' or '.join(map(repr, choices))}, got {value!r}"
        )
