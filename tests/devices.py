"""Where the generic suites run: on the CPU backend, or with the same tests on the CUDA kernels.

FUSEDTRICKS_TEST_SHIM is the path of an extension that tests/cuda_shim/build.py made: the CUDA
kernels then take the CPU backend's place.
"""

import os
from pathlib import Path

SHIM = os.environ.get("FUSEDTRICKS_TEST_SHIM", "")
# Whether the compiled backend decides on the device to skip a step. The state that the step would
# have used exists then, untouched.
SKIPS_ON_DEVICE = bool(SHIM)


def install_shim() -> None:
    """Replace the extension by the one of the shim, if there is one; before any other import."""
    if not SHIM:
        return
    from tests.cuda_shim import build

    build.install(Path(SHIM))
