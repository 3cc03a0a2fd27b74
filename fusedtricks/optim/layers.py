"""Find the layers of a model, input to output, for layer-wise learning rates."""

from collections.abc import Iterator, Sequence

from torch import nn

CONTAINER_TYPES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
EMBEDDING_TYPES = (nn.Embedding, nn.EmbeddingBag)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model in the order in which it registers them.

    Containers are opened, one layer per element, and so is every module that holds a stack of
    blocks. A module without a weight (only vectors, as in a normalisation), an embedding after
    another one, and a module whose parameters all appeared before (a tied output layer) are
    not layers by themselves.

    Args:
        model: The model; wrappers with a single child (DistributedDataParallel) are opened.

    Returns:
        Modules that do not contain each other.
    """
    layers: list[nn.Module] = []
    seen: set[nn.Parameter] = set()
    for module in _open(_unwrap(model)):
        parameters = set(module.parameters())
        new = parameters - seen
        seen |= parameters
        if all(parameter.ndim <= 1 for parameter in new):
            continue
        after_embedding = bool(layers) and isinstance(layers[-1], EMBEDDING_TYPES)
        if after_embedding and isinstance(module, EMBEDDING_TYPES):
            continue
        layers.append(module)
    return layers


def assign_layers(model: nn.Module, layers: Sequence[nn.Module]) -> dict[nn.Parameter, int]:
    """Map every parameter of a model to the index of its layer.

    A parameter outside all layers joins the layer registered last before it, or layer 0.

    Args:
        model: The model.
        layers: Modules of the model, input to output, none inside another one.

    Returns:
        Index in `layers` of each parameter; a shared parameter stays with its first layer.

    Raises:
        ValueError: If a layer is not a module of the model or is listed, or contained, twice.
    """
    _check_layers(model, layers)
    index_of = {id(module): index for index, module in enumerate(layers)}
    layer_of: dict[nn.Parameter, int] = {}
    # Before any layer: the stem. A model without layers is one layer.
    last = 0

    def visit(module: nn.Module, inside: int | None) -> None:
        nonlocal last
        inside = index_of.get(id(module), inside)
        if inside is not None:
            last = inside
        for parameter in module.parameters(recurse=False):
            layer_of.setdefault(parameter, last)
        for child in module.children():
            visit(child, inside)

    visit(model, None)
    return layer_of


def _check_layers(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    known = {id(module) for module in model.modules()}
    claimed: set[int] = set()
    for index, layer in enumerate(layers):
        if not isinstance(layer, nn.Module) or id(layer) not in known:
            raise ValueError(
                f"param_groups: expected layers to hold modules of the model, got "
                f"{type(layer).__name__} at index {index}"
            )
        inside = {id(module) for module in layer.modules()}
        if claimed & inside:
            raise ValueError(
                f"param_groups: expected layers that do not contain each other, got "
                f"{type(layer).__name__} at index {index}, which shares modules with an earlier one"
            )
        claimed |= inside


def _unwrap(model: nn.Module) -> nn.Module:
    """Follow single children down to the module that names the parts of the network."""
    while not isinstance(model, CONTAINER_TYPES):
        children = list(model.children())
        if len(children) != 1 or not list(children[0].children()):
            break
        model = children[0]
    return model


def _open(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a module, those of containers and of holders of stacks in their place."""
    # An element of a container is a block: it stays whole, whatever it is built of.
    opens_holders = not isinstance(module, CONTAINER_TYPES)
    for child in module.children():
        if isinstance(child, CONTAINER_TYPES) or (opens_holders and _holds_stack(child)):
            yield from _open(child)
        else:
            yield child


def _holds_stack(module: nn.Module) -> bool:
    """Tell whether a module has a container of two or more composite blocks.

    A block's own containers (the two layers of an MLP, the convolution and normalisation of a
    shortcut) have plain elements and do not count.
    """
    for child in module.children():
        if not isinstance(child, CONTAINER_TYPES):
            if _holds_stack(child):
                return True
        elif sum(bool(list(element.children())) for element in child.children()) >= 2:
            return True
    return False
