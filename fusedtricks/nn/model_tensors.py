"""The tensors of models by name, and whether those of two models fit each other."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fusedtricks._checks import check_module

__all__ = [
    "MatchedTensors",
    "buffers_without_statistics",
    "check_same_tensors",
    "copy_tensors",
    "like",
    "list_of_models",
    "model_tensors",
    "replace_infinite",
    "restored_after_error",
    "restored_modes",
    "unwrap_model",
]


def unwrap_model(model: nn.Module, what: str = "unwrap_model") -> nn.Module:
    """Return the model inside the wrappers of torch.compile and for several devices.

    Raises:
        TypeError: If it is no module.
    """
    check_module(what, "model", model)
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's, whose class is slow to import
            model = model._orig_mod
        else:
            return model


def list_of_models(what: str, models: Iterable[nn.Module]) -> list[nn.Module]:
    """Return several models as a list.

    Raises:
        TypeError: If it is one model, whose layers would count as models, or a model is no module.
    """
    is_one_model = isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)
    if is_one_model or not hasattr(models, "__iter__"):
        raise TypeError(
            f"{what}: expected a list of models, got one {type(models).__name__}; pass "
            "[first, second]"
        )
    models = list(models)
    for index, model in enumerate(models):
        check_module(what, f"model {index}", model)
    return models


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters by name, shared ones once, and buffers, shared ones under all names.

    `to`, `float` and their like keep parameters shared, but not buffers. Names are those without
    torch.compile around submodules.

    In less time than `named_parameters` and `named_buffers` take, which is more than averaging the
    tensors takes.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, prefix: str) -> None:
        for name, tensor in module._parameters.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[prefix + name] = tensor
        for name, tensor in module._buffers.items():
            if tensor is not None:
                found[prefix + name] = tensor
        for name, child in module._modules.items():
            if child is not None:
                visit(child, prefix if name == "_orig_mod" else f"{prefix}{name}.")

    visit(model, "")
    return found


def check_same_tensors(owner: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse two models whose tensors differ in name or shape; values that are none may differ.

    Raises:
        ValueError: If they do.
    """
    if first.keys() != other.keys():
        name = next(name for name in [*first, *other] if name not in first or name not in other)
        has_it, lacks_it = ("first", "other") if name in first else ("other", "first")
        raise ValueError(
            f"{owner}: expected models of the same architecture, but {name!r} is in the {has_it} "
            f"one and not in the {lacks_it}"
        )
    for name, tensor in first.items():
        if isinstance(tensor, Tensor) != isinstance(other[name], Tensor):
            raise ValueError(
                f"{owner}: expected models of the same architecture, but {name!r} is a "
                f"{type(tensor).__name__} in the first one and a {type(other[name]).__name__} in "
                "the other"
            )
        if isinstance(tensor, Tensor) and tensor.shape != other[name].shape:
            raise ValueError(
                f"{owner}: expected models of the same architecture, but {name!r} has shape "
                f"{list(tensor.shape)} in the first one and {list(other[name].shape)} in the other"
            )


class MatchedTensors:
    """The tensors of two models by name, matched again only once one was replaced."""

    def __init__(self, owner: str, models: Callable[[], tuple[nn.Module, nn.Module]]) -> None:
        """Match those that `models` returns; raises as `check_same_tensors`, now and in `get`."""
        self._owner, self._get_models = owner, models
        self._match()

    def get(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors of both, the same dicts as long as nothing is replaced."""
        dicts = self._find_dicts()
        names, values = list(chain.from_iterable(dicts)), chain.from_iterable(map(_VALUES, dicts))
        first, other = self._tensors
        # Not ==, which compares the values of tensors.
        if (
            not all(map(is_, self._get_models(), self._models))
            or names != self._names
            or not all(map(is_, values, self._values))
            or list(map(Tensor.size, first.values())) != list(map(Tensor.size, other.values()))
        ):
            self._match()
        return self._tensors

    def _match(self) -> None:
        self._models = self._get_models()
        first, other = (model_tensors(model) for model in self._models)
        check_same_tensors(self._owner, first, other)
        # In the same order.
        self._tensors = first, {name: other[name] for name in first}
        self._modules = [module for model in self._models for module in model.modules()]
        dicts = self._find_dicts()
        self._names = list(chain.from_iterable(dicts))
        self._values = list(chain.from_iterable(map(_VALUES, dicts)))

    def _find_dicts(self) -> list[dict[str, Any]]:
        return list(chain.from_iterable(map(_DICTS, map(vars, self._modules))))


_DICTS = itemgetter("_parameters", "_buffers", "_modules")
_VALUES = dict.values


@torch.no_grad()
def copy_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy the sources with the targets' names into the targets, whatever dtype and device."""
    if targets:
        torch._foreach_copy_(list(targets.values()), [sources[name] for name in targets])


def like(targets: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """Return the sources in the dtypes and on the devices of the targets."""
    pairs = zip(targets, sources, strict=True)
    if all(t.dtype == s.dtype and t.device == s.device for t, s in pairs):
        return sources
    converted = [torch.empty_like(target) for target in targets]
    torch._foreach_copy_(converted, sources)
    return converted


@torch.no_grad()
def replace_infinite(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy the sources to where the targets are inf or NaN."""
    for name, target in targets.items():
        target.copy_(torch.where(target.isfinite(), target, sources[name].to(target)))


def buffers_without_statistics(model: nn.Module) -> set[str]:
    """Return the names of the buffers that are not of batch or instance normalisation."""
    statistics = {
        id(buffer)
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    }
    return {
        name
        for name, tensor in model_tensors(model).items()
        if not isinstance(tensor, nn.Parameter) and id(tensor) not in statistics
    }


@contextlib.contextmanager
def restored_after_error(model: nn.Module) -> Iterator[None]:
    """Restore modes at the end of a `with` block, and after an error buffers and momenta."""
    momenta = {each: each.momentum for each in model.modules() if isinstance(each, _BatchNorm)}
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with restored_modes(model):
        try:
            yield
        except BaseException:
            copy_tensors(dict(model.named_buffers()), kept)
            for module, momentum in momenta.items():
                module.momentum = momentum
            raise


@contextlib.contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Restore at the end of a `with` block which modules are in training mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
