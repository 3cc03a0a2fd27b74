"""Pull weights towards orthonormal rows: as a penalty, or decoupled from the gradient."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedtricks._checks import check_number
from fusedtricks._host import moved
from fusedtricks.optim.state import StateMixin

__all__ = ["OrthogonalDecay", "orthogonal_penalty", "orthogonal_weights"]

_LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def orthogonal_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of a model that orthogonality makes sense for, each once.

    These are the weights of linear layers and convolutions that require gradients. Convolutions
    with groups are left out, because their matrix is not the flattened weight but has blocks, and
    transposed ones, because dim 0 of their weight is the input. So are layers whose weight is
    computed from other parameters (parametrized, pruned, normalised): it is another tensor in every
    step, and no optimizer has it.

    Args:
        model: Wrappers may stay.
    """
    weights = [
        module.weight
        for module in model.modules()
        if isinstance(module, _LAYER_TYPES)
        and getattr(module, "groups", 1) == 1
        and "weight" in module._parameters
    ]
    return list(dict.fromkeys(weight for weight in weights if weight.requires_grad))


def orthogonal_penalty(source: nn.Module | Iterable[Tensor]) -> Tensor:
    """Return the sum over weights W of ||W W^T - I||_F^2, W flattened to (dim 0, rest).

    Where W has more rows than columns, W W^T cannot be I, and ||W^T W - I||_F^2 takes its place. It
    is less by the constant rows - columns, has the same gradient, and can become 0.

    The coupled form is `loss + strength * orthogonal_penalty(model)`. Its gradient then passes
    through momentum and Adam's denominators; `OrthogonalDecay` does not.

    Args:
        source: A model, of which `orthogonal_weights` count; or weights with at least 2 dimensions,
            also computed ones.

    Returns:
        0-dim, at least float32, also under autocast: 16 bits would lose W W^T - I.

    Raises:
        TypeError: If `source` is a single tensor, which would count as its rows.
        ValueError: If there is no weight, or one with fewer than 2 dimensions.

    Example:
        >>> orthogonal_penalty([torch.tensor([[2.0, 0.0], [0.0, 1.0]])])
        tensor(9.)

    Source: Bansal et al. 2018, "Can We Gain More from Orthogonality Regularizations in Training
        Deep CNNs?", soft orthogonality; its W is our W^T.
    """
    weights = _weights_of("orthogonal_penalty", source)
    total = _excess(_matrix(weights[0])).square().sum()
    for weight in weights[1:]:
        total = total + _excess(_matrix(weight)).square().sum().to(total.device)
    return total


class OrthogonalDecay:
    """Decoupled orthogonal regularisation: what AdamW is to L2, for `orthogonal_penalty`.

    Every step of the optimizer becomes, with the group's current lr::

        W_new = step(W) - lr * strength * 4 * (W W^T - I) W

    The last factor is the gradient of ||W W^T - I||_F^2, taken where the loss's was, in closed
    form. For SGD without momentum this is the coupled form; with momentum, or divided by the roots
    of Adam, it differs. Singular values s move by -4 * lr * strength * (s^2 - 1) s: keep
    8 * lr * strength * s^2 below 1 for the largest. Weights without a gradient of their own are
    pulled as well, as in the coupled form.

    A step that the optimizer leaves out changes nothing here: torch's GradScaler does not call it
    or tells it by `found_inf`, those of fusedtricks note it; both are read on the device. Weights
    in 16 bits are rounded after each step, which loses small ones, as it does for any decay, except
    where the optimizer of fusedtricks has `master_weights`: these are moved.

    Args:
        optimizer: Of torch or fusedtricks; it is hooked. Copies and checkpoints of the optimizer
            alone know nothing of it, copies of this object have a copy of the optimizer.
        source: A model, of which `orthogonal_weights` count; or weights with at least 2 dimensions.
            All are the optimizer's.
        strength: Per unit of lr, >= 0; the attribute may change between steps.

    Raises:
        TypeError: If `optimizer` is none, `source` a single tensor, or `strength` no number.
        ValueError: If a weight is not the optimizer's or has fewer than 2 dimensions, there is
            none, or `strength` is out of range.

    Example:
        >>> model = nn.Linear(3, 3)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> decay = OrthogonalDecay(optimizer, model, strength=1.0)

    Source: Bansal et al. 2018, as `orthogonal_penalty`; the decoupling as in Loshchilov & Hutter
        2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    def __init__(
        self, optimizer: Optimizer, source: nn.Module | Iterable[Tensor], strength: float
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "OrthogonalDecay: expected an optimizer of torch or fusedtricks first, got "
                f"{type(optimizer).__name__}"
            )
        weights = list(dict.fromkeys(_weights_of("OrthogonalDecay", source)))
        check_number("OrthogonalDecay", "strength", strength, low=0)
        known = {param for group in optimizer.param_groups for param in group["params"]}
        for index, weight in enumerate(weights):
            if weight not in known:
                raise ValueError(
                    f"OrthogonalDecay: expected weights of the optimizer, weight {index} of shape "
                    f"{list(weight.shape)} is not; pass the optimizer that trains it"
                )
        self.strength = float(strength)
        self._optimizer = optimizer
        self._weights = weights
        self._listen()

    def remove(self) -> None:
        """Let the optimizer step as before."""
        for handle in self._handles:
            handle.remove()

    def _listen(self) -> None:
        self._pulls: list[tuple[Tensor, dict[str, Any], Tensor]] = []
        before = self._optimizer.register_step_pre_hook(self._before)
        after = self._optimizer.register_step_post_hook(self._after)
        self._handles = [before, after]
        hooks = self._optimizer._optimizer_step_post_hooks
        if isinstance(hooks, OrderedDict):
            # The pull is part of the step: what other hooks read, as ModelEMA's, is to have it.
            hooks.move_to_end(after.id, last=False)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        ours = set(self._weights)
        self._pulls = [
            (weight, group, _gradient(weight))
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight in ours and weight.requires_grad
        ]

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        skipped = _skipped(optimizer)
        for weight, group, pull in self._pulls:
            pull *= group["lr"] * self.strength
            for flag in skipped:
                pull *= moved(flag == 0, pull.device)
            is_ours = isinstance(optimizer, StateMixin)
            master = optimizer.master_of(weight, group) if is_ours else None
            if master is None:
                weight -= pull
            else:
                master -= pull
                weight.copy_(master)
        self._pulls = []

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("strength", "_optimizer", "_weights")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._listen()


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))


def _excess(matrix: Tensor) -> Tensor:
    """Return W W^T - I or W^T W - I, whichever is smaller."""
    rows, columns = matrix.shape
    with torch.autocast(matrix.device.type, enabled=False):
        gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _gradient(weight: Tensor) -> Tensor:
    """Return 4 (W W^T - I) W = 4 W (W^T W - I), in the weight's shape."""
    matrix = _matrix(weight)
    excess = _excess(matrix)
    with torch.autocast(matrix.device.type, enabled=False):
        is_left = len(excess) == len(matrix)
        product = excess @ matrix if is_left else matrix @ excess
    return (4 * product).view(weight.shape)


def _skipped(optimizer: Optimizer) -> list[Tensor]:
    """Return flags that are not 0 if the optimizer left its last step out."""
    if isinstance(optimizer, StateMixin):
        return optimizer.skip_flags()
    flag = getattr(optimizer, "found_inf", None)
    return [] if flag is None else [torch.as_tensor(flag)]


def _weights_of(what: str, source: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(source, Tensor):
        raise TypeError(
            f"{what}: expected a model or several weights, got one tensor of shape "
            f"{list(source.shape)}; pass [weight]"
        )
    weights = orthogonal_weights(source) if isinstance(source, nn.Module) else list(source)
    if not weights:
        raise ValueError(f"{what}: expected at least one weight, got none")
    for index, weight in enumerate(weights):
        if weight.ndim < 2:
            raise ValueError(
                f"{what}: expected weights with at least 2 dimensions, weight {index} has shape "
                f"{list(weight.shape)}; biases and scales have no orthogonality"
            )
    return weights
