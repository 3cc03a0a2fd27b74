"""Decides whether the CUDA backend is compiled, with which toolkit and for which GPUs.

setup.py asks here. Only torch's own CUDA version and the toolkit found count, never a GPU: an image
is often built on a machine without one. Nothing here imports torch; the caller passes the module.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

SWITCH = ("auto", "0", "1")
DEFAULT_ROOT = Path("/usr/local/cuda")
# Turing to Blackwell. GPUs newer than the last one compile its PTX when they first run it.
DEFAULT_ARCHS = ("75", "80", "86", "89", "90", "100", "120")


class Toolkit(NamedTuple):
    """An nvcc that runs.

    Attributes:
        root: The folder above bin/nvcc.
        version: Major and minor, such as "13.0".
        archs: The architectures it compiles for, such as "90".
    """

    root: Path
    version: str
    archs: tuple[str, ...]

    @property
    def major(self) -> str:
        """The part of the version that must be torch's."""
        return _major(self.version)

    @property
    def nvcc(self) -> Path:
        """The compiler itself."""
        return self.root / "bin" / "nvcc"


class CudaBuild(NamedTuple):
    """What is compiled: with `toolkit`, for `archs` (ascending; the last one also as PTX)."""

    toolkit: Toolkit
    archs: tuple[str, ...]


def read_switch(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the environment variable `name`: auto (also if unset or empty), 0 or 1.

    Raises:
        ValueError: If it is anything else.
    """
    value = environ.get(name) or "auto"
    if value not in SWITCH:
        raise ValueError(f"{name}: expected one of {', '.join(SWITCH)}, got {value!r}")
    return value


def decide(torch: ModuleType, environ: Mapping[str, str] = os.environ) -> CudaBuild | None:
    """Return how to compile the CUDA backend, or None, which says why if nobody asked for that.

    Args:
        torch: The module torch, of which only versions are read.
        environ: The environment variables.

    Raises:
        RuntimeError: If FUSEDTRICKS_CUDA=1 cannot be done, or if nvcc and torch are of different
            CUDA majors; with the remedy.
        ValueError: If FUSEDTRICKS_CUDA or FUSEDTRICKS_CUDA_ARCHS is not understood.
    """
    switch = read_switch("FUSEDTRICKS_CUDA", environ)
    if switch == "0":
        return None
    toolkits: list[Toolkit] = []
    obstacle = _torch_obstacle(torch)
    if not obstacle:
        toolkits, broken = find_toolkits(environ, torch.version.cuda)
        fitting = [t for t in toolkits if t.major == _major(torch.version.cuda)]
        if fitting:
            build = CudaBuild(fitting[0], choose_archs(fitting[0], environ))
            _say(
                f"compiling the CUDA backend for {';'.join(build.archs)} with {build.toolkit.nvcc}"
            )
            return build
        obstacle = _no_nvcc(torch, toolkits, broken)
    problem, remedy = obstacle
    if switch == "1" or toolkits:
        raise RuntimeError(
            f"FUSEDTRICKS_CUDA={switch}: {problem}; {remedy}, or set FUSEDTRICKS_CUDA=0 to "
            "go on without the CUDA backend"
        )
    _say(f"compiling without the CUDA backend: {problem} (to have it: {remedy})")
    return None


def find_toolkits(environ: Mapping[str, str], version: str) -> tuple[list[Toolkit], list[str]]:
    """Return the toolkits found, the preferred one first, and what is wrong with broken ones.

    Args:
        environ: The environment variables. A CUDA_HOME or CUDA_PATH with an nvcc ends the search.
        version: torch's CUDA version, whose pip packages are searched.
    """
    homes = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    chosen = [path for home in homes if (path := Path(home, "bin", "nvcc")).is_file()]
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    paths = chosen[:1] or [
        *([Path(on_path)] if on_path else []),
        *(
            path
            for root in (DEFAULT_ROOT, *_pip_roots(version))
            if (path := root / "bin" / "nvcc").is_file()
        ),
    ]
    toolkits, broken = [], []
    for path in paths:
        try:
            toolkits.append(_ask(path))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            broken.append(f"{path} does not work: {error}")
    return toolkits, broken


def choose_archs(toolkit: Toolkit, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return FUSEDTRICKS_CUDA_ARCHS in ascending order, or those of the default `toolkit` knows.

    Raises:
        ValueError: If it is not a list of numbers such as 80;90.
        RuntimeError: If `toolkit` does not know one of them.
    """
    text = environ.get("FUSEDTRICKS_CUDA_ARCHS")
    if not text:
        return tuple(arch for arch in DEFAULT_ARCHS if arch in toolkit.archs)
    archs = [arch.strip() for arch in text.split(";")]
    if not all(re.fullmatch(r"\d{2,3}", arch) for arch in archs):
        raise ValueError(f"FUSEDTRICKS_CUDA_ARCHS: expected numbers such as 80;90, got {text!r}")
    unknown = [arch for arch in archs if arch not in toolkit.archs]
    if unknown:
        raise RuntimeError(
            f"FUSEDTRICKS_CUDA_ARCHS: {toolkit.nvcc} {toolkit.version} does not compile "
            f"for {';'.join(unknown)}, only for {';'.join(toolkit.archs)}; name some of these, or "
            f"install another CUDA toolkit {toolkit.major}"
        )
    return tuple(sorted(set(archs), key=int))


def nvcc_flags(
    build: CudaBuild, *, n_files: int, environ: Mapping[str, str] = os.environ
) -> list[str]:
    """Return nvcc's flags, but for those that torch adds.

    Args:
        build: The decision.
        n_files: Number of .cu files, which are compiled side by side.
        environ: The environment variables.
    """
    codes = [(arch, f"sm_{arch}") for arch in build.archs]
    codes.append((build.archs[-1], f"compute_{build.archs[-1]}"))
    jobs = environ.get("MAX_JOBS", "")
    n_jobs = int(jobs) if jobs.isdigit() else len(os.sched_getaffinity(0))
    n_threads = max(1, min(len(codes), -(-n_jobs // max(1, n_files))))
    flags = [
        "-std=c++20",
        # CPU and GPU give the same bits: no fused multiply-adds.
        "-fmad=false",
        "-lineinfo",
        # The kernels are much alike: the extension for all seven takes 6 MB instead of 48.
        "-Xfatbin=-compress-all",
        "-Xcompiler=-fvisibility=hidden,-ffp-contract=off,-Wno-psabi",
        f"--threads={n_threads}",
        # With these torch does not look for a GPU to compile for.
        *(f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes),
    ]
    # The compiler of the C++ files, the remedy where the default one is too new for nvcc.
    compiler = environ.get("CXX", "").split()
    if len(compiler) == 1 and "NVCC_CCBIN" not in environ:
        flags.append(f"-ccbin={compiler[0]}")
    return flags


def definitions(build: CudaBuild) -> list[str]:
    """Return the macros that tell the C++ files of the CUDA backend and what made it."""
    return [
        "-DFUSEDTRICKS_CUDA",
        f'-DFUSEDTRICKS_CUDA_VERSION="{build.toolkit.version}"',
        f'-DFUSEDTRICKS_CUDA_ARCHS="{";".join(build.archs)}"',
    ]


def pip_folders(version: str, kind: str) -> list[str]:
    """Return the folders "include" or "lib" of NVIDIA's pip packages of CUDA `version`.

    torch's wheels require some of them, so that most installations have them without a toolkit.
    """
    return [str(path) for root in _pip_roots(version) if (path := root / kind).is_dir()]


def more_headers(toolkit: Toolkit) -> list[str]:
    """Return folders with headers that ATen's headers include and the toolkit's folder may lack.

    A small toolkit has no libraries such as cuSPARSE, but the pip packages that torch requires
    bring their headers. Since CUDA 13 a part of the toolkit's own headers lies a folder deeper,
    where nvcc looks by itself but a C++ compiler does not.
    """
    deeper = toolkit.root / "include" / "cccl"
    found = pip_folders(toolkit.version, "include")
    return [*found, *([str(deeper)] if deeper.is_dir() else [])]


def _say(text: str) -> None:
    print(f"fusedtricks: {text}", file=sys.stderr)


def _major(version: str) -> str:
    return version.split(".")[0]


def _torch_obstacle(torch: ModuleType) -> tuple[str, str] | None:
    """Return why no toolkit fits this torch, and the remedy."""
    if torch.version.cuda and not torch.version.hip:
        return None
    kind = "ROCm" if torch.version.hip else "CPU"
    return (
        f"torch {torch.__version__} is a {kind} build",
        "install one for CUDA, see https://pytorch.org/get-started/locally",
    )


def _no_nvcc(torch: ModuleType, toolkits: list[Toolkit], broken: list[str]) -> tuple[str, str]:
    """Return that no nvcc fits torch, and the remedy."""
    version = torch.version.cuda
    problem = "; ".join([f"no nvcc found for torch {torch.__version__}", *broken])
    remedy = f"install the CUDA toolkit {_major(version)} and set CUDA_HOME to it"
    # The packages of CUDA 12 lack nvcc itself.
    if int(_major(version)) >= 13:
        remedy += f', or pip install "cuda-toolkit[nvcc,cccl]=={version}.*"'
    if toolkits:
        other = toolkits[0]
        problem = (
            f"{other.nvcc} is of CUDA {other.version}, torch {torch.__version__} of CUDA {version}"
        )
        remedy += f", or a torch for CUDA {other.major}"
    return problem, remedy


def _pip_roots(version: str) -> list[Path]:
    """Return the folders into which NVIDIA's pip packages of CUDA `version` install."""
    spec = importlib.util.find_spec("nvidia")
    parents = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    if int(_major(version)) >= 13:
        roots = [parent / f"cu{_major(version)}" for parent in parents]
    else:
        # One for each library.
        paths = (path for parent in parents for path in parent.iterdir())
        roots = [path for path in paths if not re.fullmatch(r"cu\d+", path.name)]
    return sorted(path for path in roots if path.is_dir())


def _ask(nvcc: Path) -> Toolkit:
    """Return what `nvcc` says of itself: it may be a script outside its toolkit."""
    # Called through a link it does not find its parts. ccache's link does not lead to an nvcc.
    nvcc = real if (real := nvcc.resolve()).name == "nvcc" else nvcc

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(nvcc), *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout + done.stderr

    version = re.search(r"release (\d+\.\d+)", run("--version"))
    folder = re.search(r"_HERE_=(.+)", run("--dryrun", "-c", "any.cu"))
    if not (version and folder):
        raise ValueError("it does not say its version or its folder")
    archs = re.findall(r"compute_(\d+)\b", run("--list-gpu-arch"))
    return Toolkit(Path(folder[1].strip()).parent, version[1], tuple(sorted(archs, key=int)))
