"""Build the extension with its CUDA kernels for the device at hand, in the source tree.

The compiled module is then loaded in a new process, which must report the backend as available. If
the build fails, one without CUDA is tried: the parts for Triton are better off with it.
"""

import argparse
import ast
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from bench.gpu.environment import find_tool
from bench.gpu.part import ROOT, Result, make_parser, run_part

EXAMPLE = "python -m bench.gpu.build --dry-run"
COMMAND = ("setup.py", "build_ext", "--inplace")
PROBE = """
from fusedtricks import backends
entry = backends.info()["backends"]["cuda"]
print(backends.format_info(backends.info()))
raise SystemExit(0 if entry["available"] else f"backend cuda: {entry['reason']}")
"""


def architecture(device: torch.device) -> str:
    """Return the device's architecture as setup.py takes it, such as "90"."""
    if device.type != "cuda":
        return "90"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def build_variables(arch: str) -> dict[str, str]:
    """Return the environment variables of the build."""
    return {
        "FUSEDTRICKS_CUDA": "1",
        "FUSEDTRICKS_CPP": "1",
        "FUSEDTRICKS_CUDA_ARCHS": arch,
        # For torch's own build helper, should it ask.
        "TORCH_CUDA_ARCH_LIST": f"{arch[:-1]}.{arch[-1]}",
    }


def build(variables: dict[str, str]) -> int:
    """Build with these environment variables; return the exit status."""
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, *COMMAND], cwd=ROOT, env=environment, check=False
    ).returncode


def rehearse() -> str:
    """Check what can be checked without building; return what is wrong."""
    path = ROOT / "setup.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    # Names may be assembled, so their absence is only worth a remark.
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    if "FUSEDTRICKS_CUDA" not in names and "FUSEDTRICKS_CUDA" not in str(ast.get_docstring(tree)):
        print("remark: setup.py does not mention FUSEDTRICKS_CUDA: it cannot build kernels yet")
    compile(PROBE, "PROBE", "exec")
    return "" if tree.body else "setup.py is empty"


def work(options: argparse.Namespace, result: Result) -> str:
    """Build and probe; return what went wrong."""
    arch = options.arch or architecture(options.device)
    variables = build_variables(arch)
    shown = " ".join(f"{key}={value}" for key, value in variables.items())
    command = f"{shown} python {' '.join(COMMAND)}"
    print(f"{command}\nnvcc: {find_tool('nvcc') or 'not found'}", flush=True)
    if options.dry_run:
        reason = rehearse()
        result.add("Build", f"not run: `{command}`", [{"command": command, "seconds": None}])
        return reason
    start = time.monotonic()
    status = build(variables)
    seconds = time.monotonic() - start
    row = {"command": command, "seconds": seconds, "status": status}
    if status != 0:
        result.add("Build", f"`{command}` failed after {seconds:.0f} s", [row])
        without = build(variables | {"FUSEDTRICKS_CUDA": "0"})
        print(f"build without CUDA: status {without}")
        return f"setup.py ended with status {status}; see log-build.txt"
    probe = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    row["info"] = probe.stdout.strip()
    text = f"`{command}`: {seconds:.0f} s\n\n```\n{probe.stdout.strip()}\n```"
    result.add("Build", text, [row])
    if probe.returncode != 0:
        lines = probe.stderr.strip().splitlines() or ["no message"]
        return f"built, but: {lines[-1]}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build; return the exit status."""
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--arch", help='architecture, such as "90". Default: that of the device')
    return run_part(work, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
