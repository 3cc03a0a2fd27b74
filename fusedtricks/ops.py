"""The ops of fusedtricks: their schemas, and the loading of their compiled implementations.

Every optimizer is one op `fusedtricks::<algorithm>_` with one common schema, so that a driver never
names an algorithm and profilers, `torch.compile` and `opcheck` see named ops. The implementations
come from the compiled extension, which may be missing: `missing_reason` then says why.
"""

import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["ALGORITHMS", "missing_reason", "native"]

ALGORITHMS = ("adagrad", "adam", "rmsprop", "sgd")

# n tensors in n_groups groups, each group's tensors next to each other. csrc/step_args.h says what
# each argument is.
_STEP_SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor(c!)[] model_params, "
    "int[] model_index, Tensor(d!)[] steps, Tensor[] lr, float[] hyper, int[] variants, "
    "int[] group_sizes, int[] maximize, int[] centralize, Tensor? row_means, Tensor? coefficient, "
    "Tensor? grad_scale, float? clip_value, Tensor? found_inf, Tensor(e!)? skipped_steps) -> ()"
)

_library = torch.library.Library("fusedtricks", "DEF")
for _name in ALGORITHMS:
    _library.define(f"{_name}_{_STEP_SCHEMA}")
_library.define(
    "grad_statistics(Tensor[] grads, int[] group_sizes, int[] centralize, Tensor? grad_scale, "
    "float? clip_value) -> (Tensor row_means, Tensor totals)"
)
_library.define(
    "finalize_statistics(Tensor[] totals, float? max_norm) "
    "-> (Tensor norm, Tensor coefficient, Tensor nonfinite)"
)


@torch.library.register_fake("fusedtricks::grad_statistics", lib=_library)
def _grad_statistics_fake(
    grads: list[Tensor],
    group_sizes: list[int],
    centralize: list[int],
    grad_scale: Tensor | None,
    clip_value: float | None,
) -> tuple[Tensor, Tensor]:
    torch._check_value(
        sum(group_sizes) == len(grads) and len(group_sizes) == len(centralize),
        lambda: (
            f"grad_statistics: expected group_sizes to sum to {len(grads)} and one centralize "
            f"for each, got {group_sizes} and {centralize}"
        ),
    )
    smallest_ndims = [
        c for c, size in zip(centralize, group_sizes, strict=True) for _ in range(size)
    ]
    n_rows = sum(
        g.shape[0]
        for g, ndim in zip(grads, smallest_ndims, strict=True)
        if 0 < ndim <= g.ndim and g.numel() > 0
    )
    needs_double = grads[0].device.type == "cpu" or any(g.dtype == torch.float64 for g in grads)
    return (
        grads[0].new_empty(n_rows, dtype=torch.float64 if needs_double else torch.float32),
        grads[0].new_empty(2, dtype=torch.float64),
    )


@torch.library.register_fake("fusedtricks::finalize_statistics", lib=_library)
def _finalize_statistics_fake(
    totals: list[Tensor], max_norm: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    norm = totals[0].new_empty(())
    return norm, torch.empty_like(norm), torch.empty_like(norm, dtype=torch.float32)


_REINSTALL = "reinstall with: FUSEDTRICKS_CPP=1 pip install --no-build-isolation ."


def _load_native() -> tuple[ModuleType | None, str]:
    """Return the compiled extension, or None and why it is missing and what to do."""
    try:
        extension = importlib.import_module("fusedtricks._C")
    except ModuleNotFoundError:
        return None, f"the extension was not compiled; install a C++ compiler and {_REINSTALL}"
    except ImportError as error:
        return _unusable(f"the extension fusedtricks._C does not load ({error}); {_REINSTALL}")
    try:
        built_for = extension.build_info()["torch"]
    except ValueError as error:
        return _unusable(f"environment variable FUSEDTRICKS_ISA: {error}; correct or unset it")
    if built_for.split(".")[:2] != torch.__version__.split(".")[:2]:
        return _unusable(
            f"the extension was compiled for torch {built_for}, torch {torch.__version__} is "
            f"installed; {_REINSTALL}"
        )
    return extension, ""


def _unusable(reason: str) -> tuple[None, str]:
    warnings.warn(f"fusedtricks falls back to plain torch: {reason}", stacklevel=3)
    return None, reason


# After the schemas, for which the extension registers implementations.
native, missing_reason = _load_native()
