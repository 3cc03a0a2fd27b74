"""The ops of fusedtricks: their schemas, and the loading of their compiled implementations.

Every optimizer is one op `fusedtricks::<algorithm>_` with one common schema, so that a driver never
names an algorithm and profilers, `torch.compile` and `opcheck` see named ops. The implementations
come from the compiled extension (CPU), which may be missing: `missing_reason` then says why.
"""

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
    "Tensor? grad_scale, float? clip_value, Tensor? found_inf) -> ()"
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
    smallest_ndims = [
        c for c, size in zip(centralize, group_sizes, strict=True) for _ in range(size)
    ]
    n_rows = sum(
        g.shape[0]
        for g, ndim in zip(grads, smallest_ndims, strict=True)
        if 0 < ndim <= g.ndim and g.numel() > 0
    )
    return (
        grads[0].new_empty(n_rows, dtype=torch.float64),
        grads[0].new_empty(2, dtype=torch.float64),
    )


@torch.library.register_fake("fusedtricks::finalize_statistics", lib=_library)
def _finalize_statistics_fake(
    totals: list[Tensor], max_norm: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    norm = totals[0].new_empty(())
    return norm, torch.empty_like(norm), torch.empty_like(norm, dtype=torch.float32)


try:
    # Loads after the schemas exist: the extension registers implementations for them.
    from fusedtricks import _C as native

    missing_reason = ""
except ImportError as error:
    native = None
    missing_reason = (
        f"the extension fusedtricks._C did not load ({error}); install a C++ compiler and "
        "reinstall with FUSEDTRICKS_CPP=1 pip install --no-build-isolation ."
    )
