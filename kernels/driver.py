"""The ops of `fusedtricks.ops`, implemented by Triton kernels."""

from typing import Any

from .statistics import finalize_statistics, grad_statistics
from .update import step
from .update_plan import StepArgs

__all__ = ["run"]

_STATISTICS = {"grad_statistics": grad_statistics, "finalize_statistics": finalize_statistics}


def run(op: str, *arguments: Any) -> Any:
    """Run an op with the arguments of its schema."""
    if op in _STATISTICS:
        return _STATISTICS[op](*arguments)
    return step(op, StepArgs(*arguments))
