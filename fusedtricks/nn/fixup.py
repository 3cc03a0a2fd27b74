"""Deep residual networks without normalisation: Fixup."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_module, check_number, check_whole
from fusedtricks.optim.grouping import param_groups

__all__ = [
    "FixupBlock",
    "ScalarBias",
    "ScalarScale",
    "check_layer",
    "fixup_init_",
    "fixup_param_groups",
    "fixup_scale",
]

_WEIGHT_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class ScalarBias(nn.Module):
    """Add one learned number, 0 at first, to all features; the result has their dtype."""

    def __init__(self) -> None:
        super().__init__()
        # Shape (1,): FSDP refuses parameters without a dimension.
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return features + bias, shape (N, ...)."""
        # Without the cast, autocast's 16-bit features would become float32.
        return features + self.bias.to(features.dtype)


class ScalarScale(nn.Module):
    """Multiply all features with one learned number, 1 at first; the result has their dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return features * scale, shape (N, ...)."""
        return features * self.scale.to(features.dtype)


class FixupBlock(nn.Module):
    """relu(shortcut + scale * branch + bias), with a scalar bias around every layer of the branch.

    The branch is bias, convolution, bias, ReLU, bias, convolution and so on. Its first bias is the
    projection's as well.

    Args:
        convolutions: Of the branch, in order, at least 2, without biases of their own.
        projection: Of the shortcut; None where the branch keeps the shape. Default None.

    Raises:
        ValueError: If there are fewer convolutions.

    Source: Zhang et al. 2019, "Fixup Initialization", figure 1 right.
    """

    def __init__(
        self, convolutions: Sequence[nn.Conv2d], projection: nn.Conv2d | None = None
    ) -> None:
        if len(convolutions) < 2:
            raise ValueError(
                f"FixupBlock: expected at least 2 convolutions, got {len(convolutions)}"
            )
        super().__init__()
        *others, last = convolutions
        self.bias = ScalarBias()
        self.branch = nn.Sequential()
        for convolution in others:
            self.branch.extend([convolution, ScalarBias(), nn.ReLU(), ScalarBias()])
        self.branch.extend([last, ScalarScale(), ScalarBias()])
        self.projection = projection

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to what the convolutions make of it."""
        biased = self.bias(features)
        shortcut = features if self.projection is None else self.projection(biased)
        return functional.relu(self.branch(biased) + shortcut)


def fixup_scale(n_branches: int, n_layers: int) -> float:
    """Return L^(-1 / (2m - 2)), L = n_branches, m = n_layers.

    Args:
        n_branches: Residual branches of the network, at least 1.
        n_layers: Convolutions and linear layers of a branch, at least 2.

    Raises:
        TypeError: If an argument is no whole number.
        ValueError: If one is too small.

    Source: Zhang et al. 2019, "Fixup Initialization", section 3, rule 2.
    """
    check_whole("fixup_scale", "n_branches", n_branches, 1)
    check_whole("fixup_scale", "n_layers", n_layers, 2)
    return float(n_branches) ** (-1 / (2 * n_layers - 2))


@torch.no_grad()
def fixup_init_(
    model: nn.Module,
    *,
    classifier: nn.Linear | None = None,
    generator: Generator | None = None,
) -> None:
    """Initialise a network of `FixupBlock`s, so that it trains at any depth.

    1. The last layer of every branch and the classifier become 0.
    2. All other weights are drawn as He et al. have it, N(0, 2 / fan_out), and those in a branch
       multiplied with `fixup_scale(L, m)`, L being the number of blocks of the model.
    3. Scalar biases become 0, scalar multipliers 1.

    Biases of layers become 0 as well. Other parameters stay. The authors' code leaves the stem to
    torch's default, U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)); this follows the paper's rule.

    Args:
        model: Blocks are found by their type, wrappers may stay.
        classifier: A layer of the model. Default: the one `nn.Linear` outside of blocks.
        generator: Where weights come from, in the order of `model.modules()`. Default: torch's.

    Raises:
        TypeError: If it is no module.
        ValueError: If there is no block, not exactly one candidate for the classifier, or the
            given one is not of the model; if a weight is parametrized or has no shape yet.

    After an error, the model is as before.

    Source: Zhang et al. 2019, "Fixup Initialization", section 3; He et al. 2015, "Delving Deep
        into Rectifiers", eq. 14.
    """
    check_module("fixup_init_", "model", model)
    blocks = [module for module in model.modules() if isinstance(module, FixupBlock)]
    if not blocks:
        raise ValueError(
            f"fixup_init_: expected a model of FixupBlocks, found none in {type(model).__name__}"
        )
    if classifier is None:
        classifier = _find_classifier(model, blocks)
    elif classifier not in set(model.modules()):
        raise ValueError(
            f"fixup_init_: expected classifier to be a layer of the model, got {classifier}, which "
            "is not in it; copies have layers of their own"
        )
    for name, module in model.named_modules():
        if isinstance(module, _WEIGHT_LAYERS):
            check_layer("fixup_init_", module, name)
    factors: dict[nn.Module, float] = {classifier: 0.0}
    for block in blocks:
        *others, last = (m for m in block.branch.modules() if isinstance(m, _WEIGHT_LAYERS))
        factors |= dict.fromkeys(others, fixup_scale(len(blocks), len(others) + 1))
        factors[last] = 0.0
    for module in model.modules():
        if isinstance(module, _WEIGHT_LAYERS):
            factor = factors.get(module, 1.0)
            if factor == 0:
                module.weight.zero_()
            else:
                _draw_he_(module.weight, factor, generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, ScalarBias):
            module.bias.zero_()
        elif isinstance(module, ScalarScale):
            module.scale.fill_(1.0)


def fixup_param_groups(
    model: nn.Module, *, lr: float | Tensor, weight_decay: float, scalar_lr_ratio: float = 0.1
) -> list[dict[str, Any]]:
    """Build parameter groups in which scalar biases and multipliers learn slower, without decay.

    The smaller rate is from the authors' code, not from the paper. Their code finds parameters by
    parts of their names, hence slows the classifier's bias as well, and decays all; here the type
    of the owner decides, and `fusedtricks.optim.param_groups` sorts what is no scalar.

    Args:
        model: With `ScalarBias` or `ScalarScale` modules, such as a `FixupResNet`.
        lr: Learning rate of all others, >= 0.
        weight_decay: Decay of weights, >= 0.
        scalar_lr_ratio: Learning rate of the scalars over `lr`, >= 0. Default 0.1.

    Returns:
        Groups as of `param_groups`, and one named "fixup_scalars".

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is out of range, or the model has no such scalars to train.

    Source: github.com/hongyi-zhang/Fixup, cifar/cifar_train.py.
    """
    check_module("fixup_param_groups", "model", model)
    numbers = {"weight_decay": weight_decay, "scalar_lr_ratio": scalar_lr_ratio}
    numbers |= {} if isinstance(lr, Tensor) else {"lr": lr}
    for name, value in numbers.items():
        check_number("fixup_param_groups", name, value, low=0)
    owners = [m for m in model.modules() if isinstance(m, ScalarBias | ScalarScale)]
    scalars = {p for owner in owners for p in owner.parameters() if p.requires_grad}
    if not scalars:
        raise ValueError(
            f"fixup_param_groups: expected ScalarBias or ScalarScale modules to train, found none "
            f"in {type(model).__name__}; use fusedtricks.optim.param_groups"
        )
    slow: dict[str, Any] = {
        "params": [],
        "param_names": [],
        "weight_decay": 0.0,
        "name": "fixup_scalars",
        "lr": lr * scalar_lr_ratio,
    }
    groups = param_groups(model, weight_decay, lr=lr, verbose=False)
    for group in groups:
        pairs = list(zip(group["params"], group["param_names"], strict=True))
        group["params"], group["param_names"] = [], []
        for parameter, name in pairs:
            target = slow if parameter in scalars else group
            target["params"].append(parameter)
            target["param_names"].append(name)
    return [group for group in (*groups, slow) if group["params"]]


def check_layer(what: str, module: nn.Module, name: str) -> None:
    """Refuse a layer whose weight or bias is computed from other parameters, or has no shape yet.

    Raises:
        ValueError: If it is such a layer.
    """
    name = name or "the model"
    for kind in ("weight", "bias"):
        # Not the attribute, which spectral_norm changes whenever it is read.
        if kind not in module._parameters:
            raise ValueError(
                f"{what}: expected the {kind} of {name} to be a parameter, it is computed from "
                f"others; call {what} before parametrizing, pruning or normalising weights"
            )
        if nn.parameter.is_lazy(module._parameters[kind]):
            raise ValueError(f"{what}: {name} has no shape yet; run the model once before")


def _draw_he_(weight: Tensor, factor: float, generator: Generator | None) -> None:
    device = weight.device if generator is None else generator.device
    dtype = torch.promote_types(weight.dtype, torch.float32)
    drawn = torch.randn(weight.shape, dtype=dtype, device=device, generator=generator)
    fan_out = weight.numel() // weight.shape[1]
    weight.copy_(drawn * (factor * math.sqrt(2 / fan_out)))


def _find_classifier(model: nn.Module, blocks: list[FixupBlock]) -> nn.Linear:
    inside = {module for block in blocks for module in block.modules()}
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in inside]
    if len(found) != 1:
        raise ValueError(
            f"fixup_init_: expected one nn.Linear outside of the blocks to be the classifier, "
            f"found {len(found)}; pass classifier="
        )
    return found[0]
