"""Residual blocks that start as the identity."""

import torch
from torch import nn

from fusedtricks._checks import check_module
from fusedtricks.nn.resnet_blocks import find_residual_blocks
from fusedtricks.optim.grouping import NORM_TYPES

__all__ = ["zero_gamma_"]


@torch.no_grad()
def zero_gamma_(model: nn.Module) -> list[str]:
    """Set the weight of the last normalisation of every residual branch to 0, in place.

    With gamma = 0 and the bias of a fresh model, 0, a branch adds nothing: each block is
    relu(shortcut(x)) at the start, and the network is as deep as its shortcuts. The gammas learn at
    the first update, what is before them in their branches from the second one on.

    Blocks of fusedtricks, torchvision and timm ResNets are known by their classes, their
    subclasses included; a model without any raises. Where several layers took the place of the last
    normalisation, as nn.Sequential(norm, ShakeDrop(0.5)), it is the last one in them. Biases are
    left alone. timm does the same by default, torchvision with `zero_init_residual=True`. Call it
    before training, before or after `apply_blurpool`. Weight decay on the gammas holds them back at
    0: leave it out, as `param_groups` does. timm's training script warns that synchronised batch
    normalisation had trouble with gammas of 0.

    Args:
        model: A fresh model, or a module that contains it.

    Returns:
        The names of the weights that are 0 now, in the order of `model.named_modules()`.

    Raises:
        TypeError: If `model` is no module.
        ValueError: If no known block is found, or a last normalisation has no trainable weight;
            nothing is changed then.

    Example:
        >>> from fusedtricks.nn import ResNet
        >>> zero_gamma_(ResNet("basic", (1, 2), widths=(8, 16)))
        ['layer1.0.bn2.weight', 'layer2.0.bn2.weight', 'layer2.1.bn2.weight']

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1; He et al. 2019, "Bag of
        Tricks for Image Classification with Convolutional Neural Networks", section 3.1.
    """
    check_module("zero_gamma_", "model", model)
    weights = {}
    for block_name, block in find_residual_blocks(model).items():
        last = "bn3" if hasattr(block, "bn3") else "bn2"
        path, norm = _last_norm(f"{block_name}.{last}".removeprefix("."), getattr(block, last))
        name, weight = f"{path}.weight", getattr(norm, "weight", None)
        if not isinstance(weight, nn.Parameter) or not weight.requires_grad:
            raise ValueError(
                f"zero_gamma_: expected {name} to be a parameter that is trained, else its branch "
                f"would stay 0; got {type(norm).__name__}"
            )
        weights[name] = weight
    if not weights:
        raise ValueError(
            f"zero_gamma_: found no residual block of fusedtricks, torchvision or timm in "
            f"{type(model).__name__}; set the last normalisation of its branches yourself with "
            "torch.nn.init.zeros_"
        )
    for weight in weights.values():
        weight.zero_()
    return list(weights)


def _last_norm(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """Return the last normalisation in a module, and its name; the module if there is none."""
    if hasattr(module, "weight"):
        return path, module
    norms = [item for item in module.named_modules(prefix=path) if isinstance(item[1], NORM_TYPES)]
    return norms[-1] if norms else (path, module)
