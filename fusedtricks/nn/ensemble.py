"""Several models as one: their predictions averaged, or their weights."""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusedtricks.nn.model_tensors import check_same_tensors, unwrap_model

__all__ = ["Ensemble", "average_weights"]

_AVERAGES = ("probabilities", "logits")


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
            them, change `models`, whose tensors have one more dimension in front. Default False.

    Raises:
        TypeError: If something is no module.
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
        models = list(models)
        if not models:
            raise ValueError("Ensemble: expected at least one model, got none")
        for model in models:
            if not isinstance(model, nn.Module):
                raise TypeError(f"Ensemble: expected models, got {type(model).__name__}")
        if average not in _AVERAGES:
            raise ValueError(
                f"Ensemble: expected average to be one of {_AVERAGES}, got {average!r}"
            )
        self.average = average
        self.stacked = stacked
        self.models = _stack(models) if stacked else nn.ModuleList(models)

    def forward(self, *inputs: Any) -> Tensor:
        """Return the log-probabilities, shape (N, K, ...), of what every model is called with."""
        if self.stacked:
            logits = self._stacked_logits(*inputs)
        else:
            logits = torch.stack([model(*inputs) for model in self.models])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Shape (M, N, K, ...).
        if self.average == "logits":
            return logits.mean(dim=0).log_softmax(dim=1)
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))

    def _stacked_logits(self, *inputs: Any) -> Tensor:
        def call(tensors: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.models, tensors, inputs)

        return torch.vmap(call, randomness="different")(_all_tensors(self.models))


def _stack(models: list[nn.Module]) -> nn.Module:
    """Return a copy of the first model whose tensors are those of all models, stacked."""
    models = [unwrap_model(model) for model in models]
    states = [_all_tensors(model) for model in models]
    for index, (model, state) in enumerate(zip(models, states, strict=True)):
        check_same_tensors("Ensemble", states[0], state)
        # Strides and activations are in no shape, but in the text.
        if type(model) is not type(models[0]) or repr(model) != repr(models[0]):
            raise ValueError(
                "Ensemble: expected models of the same architecture to stack, but print shows "
                f"another for model {index} than for the first; use stacked=False"
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
        ValueError: If there is none, or a name or a shape differs.

    Example:
        >>> first, second = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 8.0])}
        >>> average_weights([first, second])["w"].tolist()
        [2.0, 5.0]

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models
        improves accuracy without increasing inference time", section 2, the uniform soup.
    """
    states = [
        unwrap_model(model).state_dict() if isinstance(model, nn.Module) else model
        for model in models
    ]
    if not states:
        raise ValueError("average_weights: expected at least one model, got none")
    for state in states:
        check_same_tensors("average_weights", states[0], state)
    # A copy keeps the version numbers that a state_dict carries.
    average = copy.copy(states[0])
    for name, value in average.items():
        if isinstance(value, Tensor):
            average[name] = _mean([state[name] for state in states])
    return average


def _mean(tensors: list[Tensor]) -> Tensor:
    first = tensors[0]
    if not (first.is_floating_point() or first.is_complex()):
        return first.clone()
    total = first.to(torch.promote_types(first.dtype, torch.float64))
    for tensor in tensors[1:]:
        total = total + tensor.to(first.device)
    return (total / len(tensors)).to(first.dtype)
