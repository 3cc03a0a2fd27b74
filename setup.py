"""Builds the compiled part of fusedtricks; the rest of the metadata is in pyproject.toml.

Environment variables:
    FUSEDTRICKS_CPP: auto (default; without a compiler the package is pure Python), 1 (a build that
        cannot be done is an error) or 0 (never compile, CUDA included).
    FUSEDTRICKS_CUDA: auto (default; the CUDA backend is compiled if torch is a CUDA build and an
        nvcc is found, which must be of the same CUDA major; a GPU is not asked for), 1 (a build
        that cannot be done is an error) or 0 (CPU only).
    FUSEDTRICKS_CUDA_ARCHS: GPU architectures to compile for, such as "80;90"; by default all of 75,
        80, 86, 89, 90, 100 and 120 that nvcc knows. Fewer compile faster.
    CUDA_HOME or CUDA_PATH: the CUDA toolkit; by default that of the nvcc on PATH, /usr/local/cuda
        or the one from pip.
    DEBUG: 1 compiles with assertions and debug symbols.
    MAX_JOBS: number of compiler processes, all cores by default.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
# pip does not put it there.
sys.path.insert(0, str(ROOT))

import build_cuda  # noqa: E402


def has_compiler() -> bool:
    wanted = os.environ.get("CXX", "").split()
    return any(shutil.which(name) for name in (wanted[:1] or ["g++", "clang++", "c++"]))


def is_compiled() -> bool:
    """Whether fusedtricks._C is built; prints why not if that was not asked for."""
    cpp, cuda = (build_cuda.read_switch(f"FUSEDTRICKS_{name}") for name in ("CPP", "CUDA"))
    if cpp == "0":
        if cuda == "1":
            raise RuntimeError("FUSEDTRICKS_CUDA=1 cannot be had with FUSEDTRICKS_CPP=0; unset one")
        return False
    if not has_compiler():
        problem = "no C++ compiler found"
        if "1" in (cpp, cuda):
            name = "FUSEDTRICKS_CPP" if cpp == "1" else "FUSEDTRICKS_CUDA"
            raise RuntimeError(f"{name}=1: {problem}; install g++ or set CXX")
        print(f"fusedtricks: {problem}, installing without compiled backends", file=sys.stderr)
        return False
    return True


def find_sources(*endings: str) -> list[str]:
    paths = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in endings)
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def make_extension(cuda: build_cuda.CudaBuild | None) -> Extension:
    from torch.utils.cpp_extension import CppExtension

    debug = os.environ.get("DEBUG") == "1"
    cpp = find_sources(".cpp")
    arguments = {
        "name": "fusedtricks._C",
        "sources": cpp if cuda else [file for file in cpp if not file.startswith("csrc/cuda/")],
        # All of them, whatever is compiled here: a source distribution takes its files from this.
        "depends": ["build_cuda.py", *find_sources(".h", ".cuh", ".cpp", ".cu")],
        "extra_compile_args": {
            "cxx": [
                *(["-O0", "-g"] if debug else ["-O3", "-g0", "-DNDEBUG"]),
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
            ]
        },
        "extra_link_args": ["-fopenmp"],
    }
    return make_cuda_extension(cuda, arguments, debug) if cuda else CppExtension(**arguments)


def make_cuda_extension(cuda: build_cuda.CudaBuild, arguments: dict, debug: bool) -> Extension:
    """Add to the `arguments` of the extension for CPUs what the CUDA backend needs.

    CUDAExtension knows how to call nvcc and what of torch to link, but not where toolkits from pip
    or behind a wrapper script lie: these two are corrected.
    """
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = str(cuda.toolkit.root)
    sources = find_sources(".cu")
    arguments["sources"] += sources
    arguments["extra_compile_args"]["cxx"] += build_cuda.definitions(cuda)
    arguments["extra_compile_args"]["nvcc"] = [
        *(["-O0", "-g"] if debug else ["-O3", "-DNDEBUG"]),
        "-DFUSEDTRICKS_CUDA",
        *build_cuda.nvcc_flags(cuda, n_files=len(sources)),
    ]
    extension = cpp_extension.CUDAExtension(**arguments)
    # The libcudart that torch loads, by its full name because its package has no libcudart.so. It
    # needs no rpath: torch has loaded it before this extension.
    extension.libraries.remove("cudart")
    extension.extra_link_args.append(f"-l:libcudart.so.{cuda.toolkit.major}")
    extension.library_dirs[:0] = build_cuda.pip_folders(cuda.toolkit.version, "lib")
    # After the toolkit's own headers: these fill its gaps only.
    extension.include_dirs += build_cuda.more_headers(cuda.toolkit)
    return extension


def extension_arguments() -> dict:
    """The keyword arguments of setup() that build fusedtricks._C, none if it is not built."""
    if not is_compiled():
        return {}
    import torch
    from torch.utils.cpp_extension import BuildExtension

    return {
        "ext_modules": [make_extension(build_cuda.decide(torch))],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)},
    }


try:
    keywords = extension_arguments()
except (RuntimeError, ValueError) as error:
    sys.exit(str(error))
setup(**keywords)
