"""Build fusedtricks._C with the CUDA kernels and their host code, executed on the CPU by the shim.

The extension takes the place of the real one (`install`), so that the tests of the CPU backend run
the CUDA kernels instead, under the address and undefined-behaviour sanitizers where asked for.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize=vptr")
# Sources outside csrc/cuda that the extension needs; the CPU's drivers are left out.
SHARED = ("algorithms", "module", "plan", "snapshot", "step_args", "cpu/isa", "cpu/stream")


def compile_all(folder: Path, *, sanitize: bool, kernels: Path | None = None) -> Path:
    """Compile what changed and link it.

    Args:
        folder: Where objects and the extension go.
        sanitize: Whether to watch addresses and undefined behaviour.
        kernels: A copy of csrc whose kernels are taken, for tests that plant faults in it.

    Returns:
        The path of the extension.

    Raises:
        RuntimeError: With the compiler's words if it fails.
    """
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        *("-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
        *("-fopenmp", "-Wno-psabi", "-Wno-unknown-pragmas", "-DTORCH_EXTENSION_NAME=_C"),
        *("-DFT_CUDA_SHIM", "-DFUSEDTRICKS_CUDA"),
        *('-DFUSEDTRICKS_CUDA_VERSION="shim"', '-DFUSEDTRICKS_CUDA_ARCHS="0"'),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{HERE}",
        f"-I{sysconfig.get_path('include')}",
        *(f"-I{path}" for path in include_paths()),
        *(SANITIZE if sanitize else ()),
    ]
    sources = [CSRC / f"{name}.cpp" for name in SHARED]
    sources += [*sorted((CSRC / "cuda").glob("*.cpp")), HERE / "engine.cpp"]
    objects = {path: folder / f"{path.parent.name}_{path.stem}.o" for path in sources}
    for path in sorted(((kernels or CSRC) / "cuda").glob("*.cu")):
        objects[path] = folder / ("planted" if kernels else "") / f"kernels_{path.stem}.o"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: _compile(path, objects[path], flags), objects))
    extension = objects[path].parent / "_C.so"
    if not extension.exists() or _newest(objects.values()) > extension.stat().st_mtime:
        libraries = [f"-L{path}" for path in library_paths()]
        libraries += ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
        _run([*_compiler(), "-shared", "-fopenmp", *map(str, objects.values()), *libraries,
              *(SANITIZE if sanitize else ()), "-o", str(extension)])  # fmt: skip
    return extension


def _newest(paths: Sequence[Path]) -> float:
    return max(path.stat().st_mtime for path in paths)


def _compile(source: Path, target: Path, flags: list[str]) -> None:
    tree = next(parent for parent in source.parents if parent.name in ("csrc", "cuda_shim"))
    files = [*tree.rglob("*"), *CSRC.rglob("*"), *HERE.glob("*")]
    code = [path for path in files if path.suffix in (".h", ".cpp", ".cuh", ".cu")]
    if target.exists() and target.stat().st_mtime > _newest(code):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    started = time.time()
    _run([*_compiler(), *flags, *language, "-c", str(source), "-o", str(target)])
    # Outdated too if a header changed while the compiler was at work.
    os.utime(target, (started, started))


def _compiler() -> list[str]:
    return os.environ.get("CXX", "g++").split()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-6000:]}")


def runtime_environment(*, sanitize: bool) -> dict[str, str]:
    """Return the environment variables that a Python with the extension needs."""
    if not sanitize:
        return {}
    libraries = [
        subprocess.run(
            [*_compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        # Python leaks by design; the quarantine bounds memory, swapcontext is known.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=64:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def install(extension: Path) -> None:
    """Make fusedtricks use the extension; nothing of fusedtricks may be imported yet."""
    finder = _Finder(extension)
    sys.meta_path.insert(0, finder)
    from fusedtricks import backends, ops

    if ops.native is None or ops.native.build_info().get("cuda") != "shim":
        raise RuntimeError(f"fusedtricks did not load {extension}: {ops.missing_reason}")
    # As on a GPU, so that this path is tested.
    backends.skips_on_device = lambda device: True


class _Finder:
    """Finds fusedtricks._C in a given file."""

    def __init__(self, extension: Path) -> None:
        self.extension = extension

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != "fusedtricks._C":
            return None
        return importlib.util.spec_from_file_location(name, self.extension)


def main() -> None:
    """Build from the command line; prints the path of the extension."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python tests/cuda_shim/build.py --sanitize build/cuda-shim",
    )
    parser.add_argument("folder", type=Path, help="where objects and the extension go")
    parser.add_argument("--sanitize", action="store_true", help="with ASAN and UBSan")
    arguments = parser.parse_args()
    if shutil.which(_compiler()[0]) is None:
        sys.exit("no C++ compiler found; install g++ or set CXX")
    print(compile_all(arguments.folder, sanitize=arguments.sanitize))


if __name__ == "__main__":
    main()
