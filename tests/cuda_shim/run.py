"""Run the generic suites on the CUDA kernels, executed on the CPU under ASAN and UBSan."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.cuda_shim import build

# What steps optimizers; the other suites have nothing to do with kernels.
SUITES = (
    *("amp", "amp_training", "checkpoint", "cuda_kernels", "cuda_kernel_memory"),
    *("cuda_kernel_values", "cuda_launches", "determinism", "exchange", "follower"),
    *("follower_changes", "fused_averages", "layouts", "mixed_groups", "numerics"),
    *("outside_writes", "param_groups", "peer_defects", "pickling", "raw_ops", "schedules"),
    *("skips_on_device", "state", "step_protocol"),
)


def main() -> int:
    """Build, run, and return pytest's exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m tests.cuda_shim.run --plain -- tests/test_numerics.py -k AdamW",
    )
    parser.add_argument("--plain", action="store_true", help="without sanitizers: quicker")
    parser.add_argument("--folder", type=Path, default=build.ROOT / "build" / "cuda-shim")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest (default: all suites)")
    arguments = parser.parse_args()
    sanitize = not arguments.plain
    import torch

    kind = "sanitized" if sanitize else "plain"
    folder = arguments.folder / f"{kind}-torch-{torch.__version__}"
    print(f"== compiling the CUDA kernels for the CPU ({kind}): about a minute", flush=True)
    extension = build.compile_all(folder, sanitize=sanitize)
    environment = os.environ | {"FUSEDTRICKS_TEST_SHIM": str(extension)}
    environment |= build.runtime_environment(sanitize=sanitize)
    given = arguments.pytest or [f"tests/test_{name}.py" for name in SUITES]
    # Under sanitizers a few tests take long: idle workers take over the queues of others.
    command = [sys.executable, "-m", "pytest", "-n", "auto", "--dist", "worksteal", *given]
    return subprocess.run(command, cwd=build.ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
