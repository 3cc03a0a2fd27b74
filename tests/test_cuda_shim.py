"""The engine that runs CUDA kernels on the CPU: small kernels, right ones and wrong ones."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).parent / "cuda_shim"
COMPILER = os.environ.get("CXX", "g++")
BUILDS = {
    "plain": ["-O2"],
    # Loaded by Python; with the way to switch fibers that any processor has.
    "library": ["-O0", "-DFUSEDTRICKS_SHIM_UCONTEXT", "-fPIC", "-shared"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
LOAD = """import ctypes, sys
arguments = [argument.encode() for argument in sys.argv[1:]]
sys.exit(ctypes.CDLL(sys.argv[1]).main(5, (ctypes.c_char_p * 5)(*arguments)))"""
RIGHT = ["sums", "two_os_threads", "early_return", "garbage", "indices", "shuffles", "big_argument"]
AT = r"at .*samples\.cu:\d+"
# What FT_LAUNCH says about a kernel that breaks a rule.
MISUSES = {
    "block_and_warp": rf"wait for each other for ever\n  50 at __syncthreads, {AT}\n"
    rf"  48 at __syncwarp, mask 0xffffffff, {AT}",
    "two_shuffles": rf"meet at different operations or masks: .* at __shfl_(xor_)?sync, .*{AT}",
    "two_masks": "meet at different operations or masks: .* mask 0x(7|f)fffffff, .* mask 0x",
    "not_in_mask": rf"a mask does not include the lane itself: thread \(\d+, 0, 0\) .*{AT}",
    "two_barriers": rf"threads of a block meet at different barriers: .*{AT} and .*{AT}",
    "width": rf"the width of a shuffle is not a power of two of at most 32, {AT}",
    "error": "thrown by a kernel",
}


def compile_samples(folder: Path) -> None:
    """Start all builds at once; leave the programs and NAME.txt with what the compiler said."""
    sources = [SHIM / "samples.cu", SHIM / "engine.cpp"]
    common = [*COMPILER.split(), "-std=c++20", "-Wall", "-Wextra", "-pthread", f"-I{SHIM}"]
    started = []
    for name, flags in BUILDS.items():
        command = [*common, *flags, "-o", folder / name, "-x", "c++", *sources]
        with open(folder / f"{name}.txt", "w") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
    for process in started:
        process.wait()


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The programs, built once for all test workers."""
    if shutil.which(COMPILER.split()[0]) is None:
        pytest.skip(f"needs the compiler {COMPILER}")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "cuda_shim"
    with open(root / "cuda_shim.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            compile_samples(folder)
    return folder


@pytest.fixture
def sample(folder):
    """Run a sample; the result has `returncode` and `stdout`, which includes the errors."""

    def run(build: str, name: str, *numbers: int, **environment: str):
        said = (folder / f"{build}.txt").read_text()
        if not (folder / build).exists() and "-lasan" in said:
            pytest.skip(f"needs the AddressSanitizer of {COMPILER}")
        assert said == ""
        loader = [sys.executable, "-c", LOAD] if build == "library" else []
        return subprocess.run(
            [*loader, folder / build, name, *map(str, numbers)],
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize("threads", [32, 100, 1024])
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("build", BUILDS)
def test_right_kernels(sample, build, name, threads):
    n_seeds = 20 if build == "plain" else 2
    assert sample(build, name, threads, 3, n_seeds).stdout == "0\n"


@pytest.mark.parametrize("name", ["no_barrier_before_reading", "no_barrier_before_writing"])
def test_a_missing_barrier_gives_wrong_results(sample, name):
    n_wrong = int(sample("plain", name, 256, 1, 50).stdout)
    assert n_wrong >= 10


@pytest.mark.parametrize("name", MISUSES)
@pytest.mark.parametrize("build", BUILDS)
def test_misuse_is_reported(sample, build, name):
    # The last of the four warps is not complete.
    result = sample(build, name, 98, 2, 1)
    assert result.returncode == 1
    assert re.search(MISUSES[name], result.stdout)
    assert name == "error" or "cuda shim: kernel misuse, block (" in result.stdout
    assert result.stdout.endswith("still works\n")


def test_write_past_the_end_is_reported(sample):
    result = sample("sanitized", "overflow", 256, 2, 1)
    assert result.returncode not in (0, 2)
    assert "AddressSanitizer: heap-buffer-overflow" in result.stdout
    assert "write_past_end" in result.stdout


def test_the_seed_decides_the_order(sample):
    orders = [
        sample("plain", "order", 64, 4, 0, FUSEDTRICKS_SHIM_SEED=seed).stdout
        for seed in ("1", "2", "1")
    ]
    assert orders[0] == orders[2] != orders[1]


def test_impossible_launch(sample):
    result = sample("plain", "order", 1025, 1, 0)
    assert "expected a grid and a block that CUDA can launch, got (1, 1, 1) and (1025" in (
        result.stdout
    )
