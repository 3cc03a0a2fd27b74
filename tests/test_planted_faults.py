"""Proof that the tests of the CUDA kernels can fail: each planted fault makes them fail.

A fault is a small change in a copy of the kernels, which then run on the CPU. Most runs plant a few
faults; FUSEDTRICKS_PLANTED_FAULTS=all plants every one, those for the sanitizers too.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import devices
from tests.cuda_shim import build
from tests.cuda_shim.faults import FAULTS, Fault

PLANTS_ALL = os.environ.get("FUSEDTRICKS_PLANTED_FAULTS") == "all"
COMPILER = os.environ.get("CXX", "g++").split()[0]
BUILDS = build.ROOT / "build" / "cuda-shim"
REPORT = re.compile(r"(ERROR: AddressSanitizer: \S+|runtime error: .*)")

needs_compiler = pytest.mark.skipif(
    bool(devices.SHIM) or shutil.which(COMPILER) is None,
    reason=f"needs the compiler {COMPILER}, and no FUSEDTRICKS_TEST_SHIM",
)


def chosen(fault: Fault) -> bool:
    return PLANTS_ALL or fault.quick


def faultless(sanitize: bool) -> Path:
    """Return the folder of the extension without a fault and its objects, built where outdated."""
    kind = "sanitized" if sanitize else "plain"
    BUILDS.mkdir(parents=True, exist_ok=True)
    # Test workers wait for the one that builds.
    with open(BUILDS / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build.compile_all(
            BUILDS / f"{kind}-torch-{torch.__version__}", sanitize=sanitize
        ).parent


def plant(fault: Fault, folder: Path) -> Path:
    """Return a copy of csrc with the fault in it."""
    copy = folder / "csrc"
    shutil.copytree(build.CSRC, copy)
    path = copy / "cuda" / fault.file
    times = path.stat()
    text = path.read_text()
    assert text.count(fault.old) == 1
    path.write_text(text.replace(fault.old, fault.new))
    # So that the objects of the kernels that do not include the file are not outdated.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return copy


def build_with(fault: Fault, folder: Path) -> Path:
    """Return the extension with the fault; all objects but the fault's kernels are reused."""
    source = faultless(fault.sanitize)
    target = folder / "objects"
    (target / "planted").mkdir(parents=True)
    for path in source.glob("*.o"):
        is_kernel = path.stem.startswith("kernels_")
        if path.stem.removeprefix("kernels_") not in fault.kernels:
            (target / ("planted" if is_kernel else "") / path.name).symlink_to(path)
    return build.compile_all(target, sanitize=fault.sanitize, kernels=plant(fault, folder))


def run_tests(extension: Path, tests: tuple[str, ...], sanitize: bool) -> tuple[int, str]:
    """Return the exit status of pytest with the extension, and what it printed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment = build.runtime_environment(sanitize=sanitize)
    # What a sanitizer says before it ends the process must not get lost.
    capture = ["--capture=no"] if sanitize else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rf", *capture, *tests],
        cwd=build.ROOT,
        env=inherited | environment | {"FUSEDTRICKS_TEST_SHIM": str(extension)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout


def has_failed(test: str, output: str) -> bool:
    return re.search(rf"^FAILED {re.escape(test)}( - .*)?$", output, re.MULTILINE) is not None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_can_be_planted(fault: Fault) -> None:
    text = (build.CSRC / "cuda" / fault.file).read_text()
    assert text.count(fault.old) == 1
    assert fault.new != fault.old
    assert fault.tests


@needs_compiler
@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
def test_the_tests_pass_without_a_fault(sanitize: bool) -> None:
    faults = [fault for fault in FAULTS if chosen(fault) and fault.sanitize == sanitize]
    tests = sorted({test for fault in faults for test in fault.tests})
    if not tests:
        pytest.skip("FUSEDTRICKS_PLANTED_FAULTS=all runs it")
    status, output = run_tests(faultless(sanitize) / "_C.so", tuple(tests), sanitize)
    assert status == 0, output[-4000:]
    assert f"{len(tests)} passed" in output


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_noticed(fault: Fault, tmp_path: Path) -> None:
    if not chosen(fault):
        pytest.skip("FUSEDTRICKS_PLANTED_FAULTS=all plants it")
    extension = build_with(fault, tmp_path)
    status, output = run_tests(extension, fault.tests, fault.sanitize)
    if fault.sanitize:
        assert status != 0 and REPORT.search(output), output[-4000:]
    else:
        unaware = [test for test in fault.tests if not has_failed(test, output)]
        assert status == 1 and not unaware, f"{unaware}\n{output[-4000:]}"
