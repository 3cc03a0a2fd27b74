"""A pytest plugin that runs the suites on the Triton kernels: `-p bench.gpu.triton_plugin`.

The suites ask for the compiled backend of the device, or for the best. Both are answered with the
Triton kernels, so that no test has to know of them.
"""

from typing import Any

import pytest
import torch

STANDS_FOR = ("auto", "cpu", "cuda", "triton")


def pytest_configure(config: pytest.Config) -> None:
    """Let the Triton kernels stand for the compiled ones.

    Raises:
        pytest.UsageError: If they cannot run here.
    """
    # Not before tests/conftest.py has prepared what fusedtricks looks for when it is imported.
    from fusedtricks import _triton, backends

    choose, missing = backends._library_for, backends.missing

    def choose_triton(backend: str, device: torch.device) -> Any:
        return choose("triton" if backend in STANDS_FOR else backend, device)

    def missing_of_triton(name: str) -> str:
        return missing("triton" if name in STANDS_FOR else name)

    device = torch.device("cpu" if _triton.INTERPRETS else "cuda")
    reason = missing("triton") or choose("triton", device)[1]
    if reason:
        raise pytest.UsageError(f"no Triton kernels for the tests: {reason}")
    backends._library_for, backends.missing = choose_triton, missing_of_triton
