"""Builds the compiled part of fusedtricks; the rest of the metadata is in pyproject.toml.

Environment variables:
    FUSEDTRICKS_CPP: auto (default; without a compiler the package is pure Python), 1 (a build that
        cannot be done is an error) or 0 (never compile).
    DEBUG: 1 compiles with assertions and debug symbols.
    MAX_JOBS: number of compiler processes, all cores by default.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
MODES = ("auto", "0", "1")


def cpp_mode() -> str:
    mode = os.environ.get("FUSEDTRICKS_CPP", "auto")
    if mode not in MODES:
        sys.exit(f"FUSEDTRICKS_CPP: expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


def has_compiler() -> bool:
    wanted = os.environ.get("CXX", "").split()
    return any(shutil.which(name) for name in (wanted[:1] or ["g++", "clang++", "c++"]))


def extension_arguments() -> dict:
    """The keyword arguments of setup() that build fusedtricks._C, none if it is not built."""
    mode = cpp_mode()
    if mode == "0":
        return {}
    if not has_compiler():
        if mode == "1":
            sys.exit("FUSEDTRICKS_CPP=1: no C++ compiler found; install g++ or set CXX")
        print(
            "fusedtricks: no C++ compiler found, installing without the CPU backend",
            file=sys.stderr,
        )
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    debug = os.environ.get("DEBUG") == "1"
    flags = ["-O0", "-g"] if debug else ["-O3", "-g0", "-DNDEBUG"]
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    extension = CppExtension(
        "fusedtricks._C",
        sources,
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")),
        extra_compile_args=[
            *flags,
            "-std=c++20",
            "-fopenmp",
            "-fvisibility=hidden",
            # Every backend and instruction set gives the same bits: no fused multiply-adds.
            "-ffp-contract=off",
            # Lets sqrt and selections vectorise; neither changes a result.
            "-fno-math-errno",
            "-fno-trapping-math",
            "-Wall",
            # Vectors are passed between always-inlined functions only.
            "-Wno-psabi",
            "-Wno-unknown-pragmas",
        ],
        extra_link_args=["-fopenmp"],
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)},
    }


setup(**extension_arguments())
