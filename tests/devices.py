"""Where the generic suites run: the CPU backend, a GPU, or the CUDA kernels on the CPU.

FUSEDTRICKS_TEST_DEVICE=cuda makes every tensor of the suites on the GPU, which then runs the CUDA
backend. FUSEDTRICKS_TEST_SHIM is the path of an extension that tests/cuda_shim/build.py made: its
CUDA kernels take the CPU backend's place, on the CPU.
"""

import os
from pathlib import Path

import torch

SHIM = os.environ.get("FUSEDTRICKS_TEST_SHIM", "")
DEVICE = torch.device(os.environ.get("FUSEDTRICKS_TEST_DEVICE", "cpu"))
# The compiled backend of the device, and the one that takes everything.
NATIVE = DEVICE.type
BACKENDS = [NATIVE, "reference"]
# Whether the compiled backend decides on the device to skip a step. The state that the step would
# have used exists then, untouched.
SKIPS_ON_DEVICE = bool(SHIM) or DEVICE.type != "cpu"


def prepare() -> None:
    """Set up what the environment asks for, before fusedtricks is imported."""
    if SHIM:
        from tests.cuda_shim import build

        build.install(Path(SHIM))
    if DEVICE.type != "cpu":
        torch.set_default_device(DEVICE)
