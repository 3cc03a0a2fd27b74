"""Several models as one: their predictions averaged, or their weights."""

import copy
import functools
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from fusedtricks._checks import check_bool, check_tensor
from fusedtricks.nn.model_tensors import check_same_tensors, list_of_models, unwrap_model

__all__ = ["Ensemble", "average_weights"]

_AVERAGES = ("probabilities", "logits")
# Attributes of modules that say what they compute.
_OPTIONS = (
    bool,
    int,
    float,
    str,
    tuple,
    list,
    dict,
    functools.partial,
    types.FunctionType,
    types.BuiltinFunctionType,
)


class Ensemble(nn.Module):
    """Average the predictions of models.

    With the logits z_m of M models::

        y = log(sum_m softmax(z_m) / M)          average="probabilities"
        y = log_softmax(sum_m z_m / M)           average="logits", the geometric mean

    y are log-probabilities: argmax, a cross-entropy (which takes them as logits) and exp work on
    them. They are float32, or float64 for such logits.

    Args:
        models: At least one; each maps the inputs to logits, shape (N, K, ...).
        average: What is averaged, "probabilities" or "logits". Default "probabilities".
        stacked: Whether models of the same architecture run as one, by `torch.vmap`, which is
            faster where each alone does not fill the device. Their weights are copied: to change
            them, change `models`, whose tensors have one more dimension in front. Tied weights are
            not tied in the copy, so training would let them drift apart. Default False.

    Raises:
        TypeError: If it is one model, whose layers would count as models, or a model is no module.
        ValueError: If there is no model, the average is unknown, or architectures that are to be
            stacked differ.

    Example:
        >>> fair, sure = (nn.Linear(1, 2) for _ in range(2))
        >>> for layer, odds in ((fair, 1.0), (sure, 9.0)):
        ...     _ = nn.init.zeros_(layer.weight)
        ...     layer.bias = nn.Parameter(torch.tensor([odds, 1.0]).log())
        >>> [round(p, 3) for p in Ensemble([fair, sure])(torch.zeros(1, 1)).exp()[0].tolist()]
        [0.7, 0.3]

    Source: Hansen & Salamon 1990, "Neural Network Ensembles"; Lakshminarayanan et al. 2017, "Simple
        and Scalable Predictive Uncertainty Estimation using Deep Ensembles", section 2.4, for the
        average of probabilities.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        *,
        average: str = "probabilities",
        stacked: bool = False,
    ) -> None:
        super().__init__()
        models = list_of_models("Ensemble", models)
        if not models:
            raise ValueError("Ensemble: expected at least one model, got none")
        check_bool("Ensemble", "stacked", stacked)
        if average not in _AVERAGES:
            raise ValueError(
                f"Ensemble: expected average to be one of {_AVERAGES}, got {average!r}"
            )
        self.average = average
        self.stacked = stacked
        self.models = _stack(models) if stacked else nn.ModuleList(models)

    def forward(self, *inputs: Any) -> Tensor:
        """Return the log-probabilities, shape (N, K, ...), of what every model is called with.

        Raises:
            TypeError: If a model returns no tensor.
            ValueError: If a model returns fewer than 2 classes, or models differ in the shape.
        """
        if self.stacked:
            logits = self._stacked_logits(*inputs)
        else:
            logits = _stacked_outputs([model(*inputs) for model in self.models])
        _check_classes(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Shape (M, N, K, ...).
        if self.average == "logits":
            return logits.mean(dim=0).log_softmax(dim=1)
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))

    def _stacked_logits(self, *inputs: Any) -> Tensor:
        def call(tensors: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.models, tensors, inputs)

        return torch.vmap(call, randomness="different")(_all_tensors(self.models))


def _stacked_outputs(outputs: list[Any]) -> Tensor:
    for index, output in enumerate(outputs):
        check_tensor("Ensemble", f"the output of model {index}", output)
        if output.shape != outputs[0].shape:
            raise ValueError(
                f"Ensemble: expected logits of the same shape from all models, got "
                f"{list(outputs[0].shape)} from model 0 and {list(output.shape)} from model {index}"
            )
    return torch.stack(outputs)


def _check_classes(logits: Any) -> None:
    check_tensor("Ensemble", "the output of the models", logits)
    if logits.ndim < 3 or logits.shape[2] < 2:
        raise ValueError(
            "Ensemble: expected the models to return logits of shape (N, K, ...) with K of at "
            f"least 2, got {list(logits.shape[1:])}; a softmax needs at least 2 classes"
        )


def _stack(models: list[nn.Module]) -> nn.Module:
    """Return a copy of the first model whose tensors are those of all models, stacked."""
    models = [unwrap_model(model) for model in models]
    states = [_all_tensors(model) for model in models]
    for index, (model, state) in enumerate(zip(models, states, strict=True)):
        check_same_tensors("Ensemble", states[0], state)
        difference = _difference(models[0], model)
        if difference:
            raise ValueError(
                "Ensemble: expected models of the same architecture to stack, but model "
                f"{index} has another {difference} than the first; use stacked=False"
            )
    stacked = copy.deepcopy(models[0])
    for name, tensor in states[0].items():
        # Tied parameters are stacked twice, because others may not be tied.
        together = torch.stack([state[name].detach() for state in states])
        if isinstance(tensor, nn.Parameter):
            together = nn.Parameter(together, tensor.requires_grad)
        path, _, own_name = name.rpartition(".")
        setattr(stacked.get_submodule(path), own_name, together)
    return stacked


def _difference(first: nn.Module, other: nn.Module) -> str:
    """Return what differs between the code of two models, "" if nothing does."""
    ours, theirs = (dict(each.named_modules(remove_duplicate=False)) for each in (first, other))
    if ours.keys() != theirs.keys():
        return "set of submodules"
    for path, module in ours.items():
        # Strides, heads and activations are in no shape of a tensor. A parametrized module has a
        # class of its own.
        if type_before_parametrizations(module) is not type_before_parametrizations(theirs[path]):
            return f"class of {path or 'model'}"
        options, others = _options(module), _options(theirs[path])
        for name in [*options, *others]:
            if options.get(name, "") != others.get(name, ""):
                return f"{path}.{name}".strip(".")
    return "" if repr(first) == repr(other) else "text in print"


def _options(module: nn.Module) -> dict[str, str]:
    """Return the public attributes of a module that are no tensors and modules, as text."""
    return {
        name: repr(value)
        for name, value in vars(module).items()
        if name != "training" and name[0] != "_" and isinstance(value, _OPTIONS)
    }


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, shared ones under all their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


@torch.no_grad()
def average_weights(models: Iterable[nn.Module | Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of the weights of models, a "soup", as a state_dict.

    w = sum_m w_m / M, computed in float64 and returned in the dtype, and on the device, of the
    first model. Integers, and what is no tensor, are those of the first model.

    It works for models trained from the same pre-trained weights, or from one run; others lie in
    different basins, with nothing good in between. Models with batch normalisation need their
    statistics computed again afterwards, by `torch.optim.swa_utils.update_bn`.

    Args:
        models: At least one; or their state_dicts.

    Raises:
        TypeError: If it is one model or one state_dict, or something in it is neither.
        ValueError: If there is none, a name or a shape differs, or one has nothing to average, as a
            checkpoint {"model": state_dict, "epoch": 3}.

    Example:
        >>> first, second = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 8.0])}
        >>> average_weights([first, second])["w"].tolist()
        [2.0, 5.0]

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models
        improves accuracy without increasing inference time", section 2, the uniform soup.
    """
    is_one_model = isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)
    if is_one_model or isinstance(models, Mapping) or not hasattr(models, "__iter__"):
        raise TypeError(
            f"average_weights: expected a list of models or state_dicts, got one "
            f"{type(models).__name__}; pass [first, second]"
        )
    states = [
        unwrap_model(model).state_dict() if isinstance(model, nn.Module) else model
        for model in models
    ]
    if not states:
        raise ValueError("average_weights: expected at least one model, got none")
    for state in states:
        if not isinstance(state, Mapping):
            raise TypeError(
                f"average_weights: expected models or state_dicts, got {type(state).__name__}"
            )
        check_same_tensors("average_weights", states[0], state)
    for index, state in enumerate(states):
        if not _has_weights(state):
            remedy = next(
                (f"checkpoint[{name!r}]" for name, value in state.items() if _has_weights(value)),
                "models with weights",
            )
            raise ValueError(
                f"average_weights: expected floating-point tensors to average, got none in model "
                f"{index}; pass {remedy}"
            )
    # A copy keeps the version numbers that a state_dict carries.
    average = copy.copy(states[0])
    for name, value in average.items():
        if isinstance(value, Tensor):
            average[name] = _mean([state[name] for state in states])
    return average


def _has_weights(state: Any) -> bool:
    values = state.values() if isinstance(state, Mapping) else ()
    return isinstance(state, nn.Module) or any(_is_averaged(value) for value in values)


def _is_averaged(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _mean(tensors: list[Tensor]) -> Tensor:
    first = tensors[0]
    if not _is_averaged(first):
        return first.clone()
    total = first.to(torch.promote_types(first.dtype, torch.float64))
    for tensor in tensors[1:]:
        total = total + tensor.to(first.device)
    return (total / len(tensors)).to(first.dtype)
