"""The parts of bench/gpu_check.sh, each a module that runs alone: `python -m bench.gpu.<part>`."""

import importlib.util
import os
import sys


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


# A rehearsal with the Triton kernels: in Triton's interpreter, as the tests set it up.
if os.environ.get("TRITON_INTERPRET") == "1" and "triton" not in sys.modules and _has_triton():
    from tests import triton_interpreter

    triton_interpreter.prepare()
