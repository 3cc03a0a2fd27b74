"""Several tasks learned together: shared encoders, and losses weighted against each other."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusedtricks._checks import check_module
from fusedtricks.nn.model_tensors import check_same_tensors, list_of_models, unwrap_model

__all__ = ["HardSharing", "UncertaintyWeighting", "soft_sharing_penalty"]

# Kind of a loss -> its factor beside exp(-s), for s = log(variance).
_KINDS = {"regression": 0.5, "classification": 1.0}


class HardSharing(nn.Module):
    """One encoder for several tasks, and a head for each.

    output[task] = heads[task](encoder(x)), with the encoder run once.

    A task left out of a batch gives its head no gradients, which DistributedDataParallel only
    allows with find_unused_parameters=True, and only with the same tasks on all ranks.

    Args:
        encoder: What the tasks share.
        heads: Task -> module that takes what the encoder returns. Names as in a ModuleDict.

    Raises:
        TypeError: If something is no module.
        ValueError: If there is no head.

    Example:
        >>> model = HardSharing(nn.Linear(8, 4), {"kind": nn.Linear(4, 3), "age": nn.Linear(4, 1)})
        >>> {task: list(output.shape) for task, output in model(torch.zeros(5, 8)).items()}
        {'kind': [5, 3], 'age': [5, 1]}

    Source: Caruana 1997, "Multitask Learning".
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not heads:
            raise ValueError("HardSharing: expected at least one head, got none")
        for name, module in [("encoder", encoder), *heads.items()]:
            check_module("HardSharing", name, module)
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, *inputs: Any, tasks: Iterable[str] | None = None) -> dict[str, Any]:
        """Return what the heads return, by task.

        Args:
            *inputs: What the encoder takes.
            tasks: Tasks of this batch. Default: all.

        Raises:
            TypeError: If tasks is one string.
            ValueError: If a task is unknown.
        """
        if isinstance(tasks, str):
            raise TypeError(f"HardSharing: expected a list of tasks, got {tasks!r}")
        tasks = list(self.heads if tasks is None else tasks)
        _check_tasks("HardSharing", tasks, self.heads)
        features = self.encoder(*inputs)
        return {task: self.heads[task](features) for task in tasks}


def soft_sharing_penalty(models: Iterable[nn.Module]) -> Tensor:
    """Return how far apart the parameters of models are, to be added to their losses.

    penalty = sum over pairs (a, b) of models, over parameters, of ||w_a - w_b||^2. Buffers do not
    count. Only what is given is compared: pass the encoders of models with different heads. With a
    frozen copy of pre-trained weights as one of two models it is the penalty of L2-SP.

    Args:
        models: At least two modules with parameters of the same names and shapes, on the same
            device.

    Returns:
        A scalar, float32 or float64, with gradients towards all models; multiply it by a weight.

    Raises:
        TypeError: If it is one model, whose layers would count as models, or a model is no module.
        ValueError: If there are fewer than two, a name, a shape or a device differs, or no
            parameter is there.

    Example:
        >>> first, second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(first.weight, 1.0), nn.init.constant_(second.weight, 4.0)
        >>> soft_sharing_penalty([first, second]).item()
        18.0

    Source: Duong et al. 2015, "Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in
        a Neural Network Parser"; Ruder 2017, "An Overview of Multi-Task Learning in Deep
        Neural Networks", section 3.2.
    """
    models = list_of_models("soft_sharing_penalty", models)
    states = [dict(unwrap_model(model).named_parameters()) for model in models]
    if len(states) < 2:
        raise ValueError(f"soft_sharing_penalty: expected at least two models, got {len(states)}")
    if not states[0]:
        raise ValueError("soft_sharing_penalty: expected models with parameters, got none")
    for state in states[1:]:
        check_same_tensors("soft_sharing_penalty", states[0], state)
        for name, parameter in states[0].items():
            if parameter.device != state[name].device:
                raise ValueError(
                    f"soft_sharing_penalty: expected models on the same device, but {name!r} is on "
                    f"{parameter.device} in the first one and on {state[name].device} in another; "
                    "move one with .to(device)"
                )
    distances = [
        (_wide(a[name]) - _wide(b[name])).square().sum()
        for a, b in itertools.combinations(states, 2)
        for name in a
    ]
    return torch.stack(distances).sum()


class UncertaintyWeighting(nn.Module):
    """Add the losses of tasks, each weighted by a noise that is learned with the model.

    total = sum over tasks of c * exp(-s) * loss + s / 2, with s = log(sigma^2) a parameter of the
    task, 0 at first, and c = 1/2 for regression, 1 for classification. s instead of sigma cannot
    become negative and needs no division.

    Give `parameters()` to the optimizer, without weight decay, which would pull all sigma to 1.

    Args:
        tasks: Task -> "regression", whose loss is a mean squared error, or "classification", whose
            loss is a cross-entropy. Names as in a ParameterDict, which `log_variances` is, so that
            a checkpoint fits whatever the order.

    Raises:
        ValueError: If there is no task, or another kind.

    Example:
        >>> weighting = UncertaintyWeighting({"depth": "regression", "class": "classification"})
        >>> weighting({"depth": torch.tensor(3.0), "class": torch.tensor(0.5)}).item()
        2.0

    Source: Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics", equation 10.
    """

    def __init__(self, tasks: Mapping[str, str]) -> None:
        super().__init__()
        if not tasks:
            raise ValueError("UncertaintyWeighting: expected at least one task, got none")
        for task, kind in tasks.items():
            if kind not in _KINDS:
                raise ValueError(
                    f"UncertaintyWeighting: expected the kind of {task!r} to be one of "
                    f"{list(_KINDS)}, got {kind!r}"
                )
        self.tasks = dict(tasks)
        # Not scalars, which FSDP refuses.
        self.log_variances = nn.ParameterDict({task: torch.zeros(1) for task in tasks})

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum, a scalar, of the losses of a batch, by task.

        Args:
            losses: Task -> scalar; tasks may be missing.

        Raises:
            ValueError: If a task is unknown, a loss is no scalar, or there is no loss.
        """
        _check_tasks("UncertaintyWeighting", losses, self.tasks)
        if not losses:
            raise ValueError("UncertaintyWeighting: expected at least one loss, got none")
        terms = []
        for task, loss in losses.items():
            if isinstance(loss, Tensor) and loss.ndim > 0:
                raise ValueError(
                    f"UncertaintyWeighting: expected the loss of {task!r} to be a scalar, got "
                    f"shape {list(loss.shape)}; take its mean"
                )
            s = _wide(self.log_variances[task])
            terms.append(_KINDS[self.tasks[task]] * torch.exp(-s) * loss + s / 2)
        return torch.cat(terms).sum()


def _check_tasks(owner: str, tasks: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for task in tasks:
        if task not in known:
            raise ValueError(f"{owner}: expected tasks to be some of {known}, got {task!r}")


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or float64 if it is that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
