"""Describe the GPU, its driver and clocks, the versions, and the state of the source tree."""

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.gpu import ours
from bench.gpu.part import ROOT, Result, make_parser, run_part

EXAMPLE = "python -m bench.gpu.environment --dry-run"
PACKAGES = ("triton", "pytest", "pytest-xdist", "pytest-timeout", "ninja", "pybind11", "timm")
# Triton compiles its launchers with a C compiler.
TOOLS = (
    ("nvcc", "--version"),
    ("compute-sanitizer", "--version"),
    ("g++", "--version"),
    ("gcc", "--version"),
)
SMI_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "utilization.gpu",
)
# What decides what is measured; results and documents do not.
HASHED = ("setup.py", "pyproject.toml", "csrc", "fusedtricks", "kernels", "tests", "bench")
HASHED_SUFFIXES = {".py", ".sh", ".toml", ".h", ".cpp", ".cu", ".cuh"}


def find_tool(name: str) -> str | None:
    """Return the path of a tool of the CUDA toolkit, None if it is not there."""
    folders = [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    folders.append("/usr/local/cuda/compute-sanitizer")
    return shutil.which(name, path=os.pathsep.join(folders))


def output_of(*command: str) -> str:
    """Return what a command prints, or why it could not be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not available ({type(error).__name__})"
    return (done.stdout or done.stderr).strip() or f"exit status {done.returncode}"


def tree_hash(root: Path = ROOT) -> str:
    """Return a hash of the sources, the same with and without git."""
    digest = hashlib.sha256()
    for name in HASHED:
        top = root / name
        files = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in files:
            if path.is_file() and path.suffix in HASHED_SUFFIXES:
                digest.update(f"{path.relative_to(root)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def smi_facts() -> dict[str, str]:
    """Return what nvidia-smi says about the first GPU."""
    query = f"--query-gpu={','.join(SMI_FIELDS)}"
    line = output_of("nvidia-smi", query, "--format=csv,noheader").splitlines()[0]
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(SMI_FIELDS):
        return {"nvidia-smi": line}
    return dict(zip(SMI_FIELDS, values, strict=True))


def device_facts(device: torch.device) -> dict[str, Any]:
    """Return what torch says about the device."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info()
    return {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
        "memory_gib": total / 2**30,
        "memory_free_gib": free / 2**30,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tool_version(name: str, flag: str) -> str:
    path = find_tool(name)
    if path is None:
        return "not available"
    lines = output_of(path, flag).splitlines()
    telling = [line for line in lines if "ersion" in line or "release" in line] or lines[:1]
    return f"{telling[-1].strip()} ({path})"


def describe(device: torch.device) -> dict[str, Any]:
    """Return everything that a result depends on."""
    facts = report.environment()
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else facts["device"],
        **({"nvidia_smi": smi_facts()} if device.type == "cuda" else {}),
        **device_facts(device),
        "cuda_of_torch": torch.version.cuda,
        **{"cpu": facts.pop("device")},
        **facts,
        "tree": tree_hash(),
    }
    facts["backend triton"] = ours.missing("triton", device) or "available"
    facts |= {package: _version(package) for package in PACKAGES}
    facts |= {name: _tool_version(name, flag) for name, flag in TOOLS}
    return facts


def work(options: argparse.Namespace, result: Result) -> str:
    """Fill the result's environment; fail if there is no device."""
    result.environment = describe(options.device)
    facts = "\n".join(
        f"- {key.replace('_', ' ')}: {value}" for key, value in result.environment.items()
    )
    result.add("Environment", facts)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe; return the exit status."""
    return run_part(work, make_parser(__doc__, EXAMPLE), arguments)


if __name__ == "__main__":
    sys.exit(main())
