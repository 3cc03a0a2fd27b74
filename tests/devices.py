"""Where the generic suites run: on the CPU with the compiled and the Triton kernels, or on a GPU.

On the CPU, the Triton kernels run in Triton's interpreter. FUSEDTRICKS_TEST_TRITON=0 leaves them
out.

FUSEDTRICKS_TEST_DEVICE=cuda makes every tensor of the suites on the GPU, which then runs the CUDA
backend. FUSEDTRICKS_TEST_SHIM is the path of an extension that tests/cuda_shim/build.py made: its
CUDA kernels take the CPU backend's place, on the CPU. FUSEDTRICKS_TEST_PLAN=python makes the
optimizers plan their steps in Python, as they do without the compiled extension.
"""

import importlib.util
import os
from pathlib import Path

import torch

SHIM = os.environ.get("FUSEDTRICKS_TEST_SHIM", "")
DEVICE = torch.device(os.environ.get("FUSEDTRICKS_TEST_DEVICE", "cpu"))
# The compiled backend of the device, and the one that takes everything.
NATIVE = DEVICE.type
HAS_TRITON = (
    not SHIM
    and os.environ.get("FUSEDTRICKS_TEST_TRITON") != "0"
    and importlib.util.find_spec("triton") is not None
)
BACKENDS = [NATIVE, *(["triton"] if HAS_TRITON else []), "reference"]
# For what happens outside the kernels, over many steps: Triton's interpreter would take minutes.
HOST_BACKENDS = [NATIVE, "reference"]
# The libraries of ops that run on DEVICE: see fusedtricks/ops.py.
LIBRARIES = ["fusedtricks", *(["fusedtricks_triton"] if HAS_TRITON else [])]
# Whether the compiled backend decides on the device to skip a step. The state that the step would
# have used exists then, untouched.
SKIPS_ON_DEVICE = bool(SHIM) or DEVICE.type != "cpu"


def prepare() -> None:
    """Set up what the environment asks for, before fusedtricks is imported."""
    if SHIM:
        from tests.cuda_shim import build

        build.install(Path(SHIM))
    if HAS_TRITON and DEVICE.type == "cpu":
        from tests import triton_interpreter

        triton_interpreter.prepare()
    if DEVICE.type != "cpu":
        torch.set_default_device(DEVICE)
    if os.environ.get("FUSEDTRICKS_TEST_PLAN", "") == "python":
        from fusedtricks.optim import native, plan

        native._planner = plan
