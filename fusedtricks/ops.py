"""The ops of fusedtricks: their schemas, and the loading of their compiled implementations.

Every optimizer is one op `fusedtricks::<algorithm>_` with one common schema, so that a driver never
names an algorithm and profilers, `torch.compile` and `opcheck` see named ops. The implementations
come from the compiled extension, which may be missing: `missing_reason` then says why.

The Triton kernels implement the same ops: those of the library `fusedtricks` on GPUs, if no CUDA
kernels were compiled, and always those of `fusedtricks_triton`, where they can be called beside
the compiled ones.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fusedtricks import _triton

__all__ = ["ALGORITHMS", "LIBRARY", "TRITON_LIBRARY", "missing_reason", "native"]

LIBRARY = "fusedtricks"
TRITON_LIBRARY = "fusedtricks_triton"

ALGORITHMS = ("adagrad", "adam", "rmsprop", "sgd")

# n tensors in n_groups groups, each group's tensors next to each other. csrc/step_args.h says what
# each argument is.
_STEP_SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor(c!)[] model_params, "
    "int[] model_index, Tensor(d!)[] averages, int[] average_index, Tensor(e!)[] steps, "
    "Tensor[] lr, float[] hyper, int[] variants, int[] group_sizes, int[] maximize, "
    "int[] centralize, Tensor? row_means, Tensor? coefficient, Tensor? grad_scale, "
    "float? clip_value, float average_weight, Tensor? found_inf, Tensor(f!)? skipped_steps) -> ()"
)

_SCHEMAS = {f"{name}_": _STEP_SCHEMA for name in ALGORITHMS} | {
    "grad_statistics": (
        "(Tensor[] grads, int[] group_sizes, int[] centralize, Tensor? grad_scale, "
        "float? clip_value) -> (Tensor row_means, Tensor totals)"
    ),
    "finalize_statistics": (
        "(Tensor[] totals, float? max_norm) -> (Tensor norm, Tensor coefficient, Tensor nonfinite)"
    ),
}


def _grad_statistics_fake(
    grads: list[Tensor],
    group_sizes: list[int],
    centralize: list[int],
    grad_scale: Tensor | None,
    clip_value: float | None,
    *,
    double_means: bool,
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
    double_means |= any(g.dtype == torch.float64 for g in grads)
    return (
        grads[0].new_empty(n_rows, dtype=torch.float64 if double_means else torch.float32),
        grads[0].new_empty(2, dtype=torch.float64),
    )


def _grad_statistics_fake_of_devices(grads: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    # The means of the CPU backend are float64 throughout.
    return _grad_statistics_fake(grads, *rest, double_means=grads[0].device.type == "cpu")


def _finalize_statistics_fake(
    totals: list[Tensor], max_norm: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    norm = totals[0].new_empty(())
    return norm, torch.empty_like(norm), torch.empty_like(norm, dtype=torch.float32)


def _define(
    name: str, statistics_fake: Callable[..., Any], tags: tuple[torch.Tag, ...] = ()
) -> torch.library.Library:
    library = torch.library.Library(name, "DEF")
    for op, schema in _SCHEMAS.items():
        library.define(op + schema, tags=tags)
    fakes = {"grad_statistics": statistics_fake, "finalize_statistics": _finalize_statistics_fake}
    for op, fake in fakes.items():
        torch.library.register_fake(f"{name}::{op}", fake, lib=library)
    return library


_library = _define(LIBRARY, _grad_statistics_fake_of_devices)
# torch.compile's own CUDA graphs allow no memory that outlives a call, as the tables do. Graphs
# that users capture are not affected.
_triton_library = _define(
    TRITON_LIBRARY,
    functools.partial(_grad_statistics_fake, double_means=False),
    (torch.Tag.cudagraph_unsafe,),
)


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


def _implement_with_triton(library: torch.library.Library, key: str) -> None:
    """Register the Triton kernels, which are imported when the first op runs."""
    for op in _SCHEMAS:
        library.impl(op, functools.partial(_triton.run, op), key)


_implement_with_triton(_triton_library, "CPU" if _triton.INTERPRETS else "CUDA")
if native is None or "cuda" not in native.build_info():
    _implement_with_triton(_library, "CUDA")
