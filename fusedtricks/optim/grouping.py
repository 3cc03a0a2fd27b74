"""Sort a model's parameters into groups with and without weight decay."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fusedtricks.optim.layers import EMBEDDING_TYPES, assign_layers, find_layers

# _NormBase is the base of every BatchNorm and InstanceNorm, lazy and synchronised ones included.
# LocalResponseNorm has no parameters.
NORM_TYPES = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
CATEGORIES = ("norm", "bias", "embedding")
# torch's only biases that are neither called `bias` nor vectors: their shape is (1, 1, E).
_ATTENTION_BIASES = ("bias_k", "bias_v")


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    lr: float | Tensor | None = None,
    no_decay: Sequence[str | type[nn.Module]] = CATEGORIES,
    layer_decay: float | None = None,
    layers: Sequence[nn.Module] | None = None,
    verbose: bool = True,
) -> list[dict[str, Any]]:
    """Build the parameter groups of an optimizer, with weight decay only where it belongs.

    The type of the module that owns a parameter decides, never the parameter's name. Every
    parameter has one category, the first that fits:

    - "norm": any parameter of a torch normalisation layer, its bias included.
    - "embedding": any parameter of `nn.Embedding` or `nn.EmbeddingBag`.
    - "bias": registered as `bias`; or with at most one dimension (biases of recurrent layers
      and of attention, but also per-channel scales, `nn.PReLU`, and the vectors and scalars
      that a module of yours holds); or `bias_k`, `bias_v` of `nn.MultiheadAttention`.
    - none of these: a weight, decayed. A `cls_token` of shape (1, 1, C) is one.

    A shared parameter appears once. It is not decayed if any of its owners is in `no_decay`:
    an output layer tied to an embedding follows the embedding. Parameters that do not require
    gradients are left out.

    With `layer_decay`, layer i of n (0 is the stem, n - 1 the head) learns at
    `lr * layer_decay ** (n - 1 - i)`. Layers are found in the order of registration: containers
    (`nn.Sequential`, `nn.ModuleList`, `nn.ModuleDict`) give one layer per element, modules that
    hold a stack of blocks are opened, every other module is one layer. What is no layer by
    itself belongs to the layer registered last before it, or to the stem: parameters held
    directly by an opened module (position embeddings), modules without a weight (a
    normalisation after a convolution) and an embedding after another one. The same rule places
    what an explicit list of `layers` leaves out. A shared parameter stays with its first layer.

    Args:
        model: The model; wrappers such as DistributedDataParallel and torch.compile may stay.
        weight_decay: Decay of the decayed groups, >= 0.
        lr: Learning rate, >= 0; with `layer_decay` that of the last layer, and required.
        no_decay: Categories, and further module classes (say, a norm of your own) none of whose
            parameters, those of their children included, is decayed. Default: all categories.
        layer_decay: Factor in (0, 1] per layer towards the input. Default: one rate for all.
        layers: Modules of the model, input to output, in place of the layers found by structure.
        verbose: Print the table of `format_table`.

    Returns:
        Groups for any torch-style optimizer, with the keys `params` (list of tensors),
        `param_names`, `weight_decay`, `name`, also `lr` if given, and `lr_scale` with
        `layer_decay`.

    Raises:
        ValueError: If an argument is out of range, a category is unknown, a listed layer is
            not in the model or inside another one, or the model has nothing to train.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> groups = param_groups(net, 0.01, verbose=False)
        >>> [(g["name"], g["param_names"], g["weight_decay"]) for g in groups]
        [('decay', ['0.weight'], 0.01), ('no_decay', ['0.bias', '1.weight', '1.bias'], 0.0)]

    Source: He et al. 2019, "Bag of Tricks for Image Classification with Convolutional Neural
        Networks", section 3.1 (no bias decay); Clark et al. 2020, "ELECTRA", appendix A, and
        Bao et al. 2022, "BEiT", appendix (layer-wise learning rate decay).
    """
    _check_arguments(weight_decay, lr, no_decay, layer_decay, layers)
    exempt = _exempt_parameters(model, no_decay)
    names = _trainable_parameters(model)
    layer_of, n_layers = {}, 1
    if layer_decay is not None:
        found = find_layers(model) if layers is None else list(layers)
        layer_of, n_layers = assign_layers(model, found), max(len(found), 1)

    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for parameter, name in names.items():
        key = (layer_of.get(parameter, 0), parameter in exempt)
        if key not in groups:
            groups[key] = _new_group(key, n_layers, weight_decay, lr, layer_decay)
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(name)
    ordered = [groups[key] for key in sorted(groups)]
    if verbose:
        print(format_table(ordered))
    return ordered


def format_table(groups: Sequence[dict[str, Any]], *, n_examples: int = 3) -> str:
    """Describe parameter groups as a plain-text table, one line per group and a total.

    Args:
        groups: Groups made by `param_groups`, or an optimizer's `param_groups`.
        n_examples: Number of parameter names to show per group, spread over the group.

    Returns:
        The table, without a final newline.
    """
    rows = [("group", "lr", "weight decay", "tensors", "parameters", "examples")]
    n_tensors = n_parameters = 0
    for index, group in enumerate(groups):
        size = sum(parameter.numel() for parameter in group["params"])
        n_tensors, n_parameters = n_tensors + len(group["params"]), n_parameters + size
        lr = f"{float(group['lr']):.4g}" if "lr" in group else "default"
        rows.append(
            (
                str(group.get("name", index)),
                lr,
                f"{group['weight_decay']:g}",
                f"{len(group['params']):,}",
                f"{size:,}",
                ", ".join(_spread(group.get("param_names", ()), n_examples)),
            )
        )
    rows.append(("total", "", "", f"{n_tensors:,}", f"{n_parameters:,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = []
    for name, *numbers, examples in rows:
        cells = [name.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:5], strict=True)]
        lines.append("  ".join([*cells, examples]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _spread(names: Sequence[str], n_shown: int) -> list[str]:
    if len(names) <= n_shown:
        return list(names)
    # First, last and evenly between: the start of a group alone would show one kind only.
    step = (len(names) - 1) / max(n_shown - 1, 1)
    return [names[round(i * step)] for i in range(n_shown)] + ["..."]


def _new_group(
    key: tuple[int, bool],
    n_layers: int,
    weight_decay: float,
    lr: float | Tensor | None,
    layer_decay: float | None,
) -> dict[str, Any]:
    layer, is_exempt = key
    name = "no_decay" if is_exempt else "decay"
    group: dict[str, Any] = {
        "params": [],
        "param_names": [],
        "weight_decay": 0.0 if is_exempt else weight_decay,
        "name": name if layer_decay is None else f"layer{layer}_{name}",
    }
    scale = 1.0 if layer_decay is None else layer_decay ** (n_layers - 1 - layer)
    if lr is not None:
        group["lr"] = lr * scale
    if layer_decay is not None:
        group["lr_scale"] = scale
    return group


def _check_arguments(
    weight_decay: float,
    lr: float | Tensor | None,
    no_decay: Sequence[str | type[nn.Module]],
    layer_decay: float | None,
    layers: Sequence[nn.Module] | None,
) -> None:
    # `not x >= 0` also refuses NaN.
    if not weight_decay >= 0:
        raise ValueError(f"param_groups: expected weight_decay >= 0, got {weight_decay}")
    if lr is not None and not lr >= 0:
        raise ValueError(f"param_groups: expected lr >= 0, got {lr}")
    if isinstance(no_decay, str | type):
        raise ValueError(f"param_groups: expected no_decay to be a tuple, got {no_decay!r}")
    for entry in no_decay:
        is_module_type = isinstance(entry, type) and issubclass(entry, nn.Module)
        if entry not in CATEGORIES and not is_module_type:
            raise ValueError(
                f"param_groups: expected no_decay to hold {', '.join(map(repr, CATEGORIES))} or "
                f"subclasses of nn.Module, got {entry!r}"
            )
    if layer_decay is None:
        if layers is not None:
            raise ValueError("param_groups: layers has no effect without layer_decay; pass both")
        return
    if not 0 < layer_decay <= 1:
        raise ValueError(f"param_groups: expected layer_decay in (0, 1], got {layer_decay}")
    if lr is None:
        raise ValueError(f"param_groups: layer_decay={layer_decay} needs lr, got lr=None")


def _owned_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield (owner, attribute, parameter), a shared parameter once for each owner."""
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield module, attribute, parameter
        if parametrize.is_parametrized(module):
            # The parametrised module is the owner, not the list that stores the original.
            for attribute, store in module.parametrizations.items():
                for _, parameter in store.named_parameters(recurse=False):
                    yield module, attribute, parameter


def _category(owner: nn.Module, attribute: str, parameter: nn.Parameter) -> str:
    if isinstance(owner, NORM_TYPES):
        return "norm"
    if isinstance(owner, EMBEDDING_TYPES):
        return "embedding"
    if attribute == "bias" or parameter.ndim <= 1:
        return "bias"
    if isinstance(owner, nn.MultiheadAttention) and attribute in _ATTENTION_BIASES:
        return "bias"
    return "weight"


def _exempt_parameters(
    model: nn.Module, no_decay: Sequence[str | type[nn.Module]]
) -> set[nn.Parameter]:
    """Return the parameters with at least one owner that `no_decay` names."""
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"param_groups: {name} has no shape yet; run the model once before grouping"
            )
    categories = {entry for entry in no_decay if isinstance(entry, str)}
    types = tuple(entry for entry in no_decay if not isinstance(entry, str))
    exempt = {
        parameter
        for owner, attribute, parameter in _owned_parameters(model)
        if _category(owner, attribute, parameter) in categories
    }
    for module in model.modules():
        if isinstance(module, types):
            exempt.update(module.parameters())
    return exempt


def _trainable_parameters(model: nn.Module) -> dict[nn.Parameter, str]:
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    if not names:
        raise ValueError(
            f"param_groups: expected model to have parameters with requires_grad=True, got none in "
            f"{type(model).__name__}"
        )
    return names
