"""What nvcc makes of the CUDA kernels: registers, memory traffic and arithmetic, without a GPU."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

import build_cuda
from tests.cuda_code import Code, Kernel, Loop

ROOT = Path(__file__).parents[1]
CONTROLS = Path(__file__).with_name("cuda_code_controls.cu")
SOURCES = [ROOT / "csrc/cuda" / f"{name}_kernels.cu" for name in ("update", "statistics")]
N_THREADS = 256
FLOAT64 = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|(F2F|F2I|I2F|FRND)\b.*\.F64|MUFU\.\w+64H")
CONTRACTED = re.compile(r"\b(?:fma|mad)(?:\.\w+)*\.b?f(?:16|32|64)(?:x2)?\b")
INEXACT = re.compile(r"\b\w+(?:\.\w+)*\.(?:approx|ftz)\b")
# The bounds in Note [Float sums] as nvdisasm prints them.
MAGNITUDE = re.compile(r"FSETP\S* .*(1\.00000000362749\d*e-15|9\.9999998430674\d*e\+16)")


class Plan(NamedTuple):
    """What a kernel should be.

    Attributes:
        n_blocks: Blocks of N_THREADS threads on a multiprocessor at a time.
        n_loaded: Streams of 32 bytes that a thread reads in a pass of a hot loop.
        n_stored: The same for those that it writes.
        in_double: Whether it computes in double; then nothing is said about float64 in its loops.
        n_exact: Loops in double that only the magnitude of an element leads to.
        n_argument_bytes: The most that its arguments may take.
        has_table: Whether it reads a table in its arguments.
    """

    n_blocks: int = 2
    n_loaded: int = 0
    n_stored: int = 0
    in_double: bool = False
    n_exact: int = 0
    n_argument_bytes: int = 4096
    has_table: bool = True


def plan_of(symbol: str, arch: str) -> tuple[str, Plan]:
    """Return a short name of a kernel and its plan, as update.cuh and statistics.cuh have it."""
    update = re.search(r"update_kernelINS_\d+(\w+?)ELi(\d)ELb([01])E([fd])\w*ArgsILi(\d+)E", symbol)
    statistics = re.search(r"statistics_kernelI([fd])\w*ArgsILi(\d+)E", symbol)
    if update:
        functor, n_states, averages = update[1], int(update[2]), int(update[3])
        in_double, n_bytes = update[4] == "d", int(update[5])
        # An average is one state more in all of this.
        n_like_states = n_states + averages
        n_in_few_registers = 1 if int(arch) >= 100 else 2
        n_blocks = 3 if n_like_states <= n_in_few_registers and not in_double else 2
        plan = Plan(n_blocks, n_like_states + 2, n_like_states + 1, in_double, 0, n_bytes)
        name = f"{functor}-{n_states}{'-average' * averages}"
    elif statistics:
        in_double, n_bytes = statistics[1] == "d", int(statistics[2])
        plan = Plan(4, 1, 0, in_double, 0 if in_double else 2, n_bytes)
        name = "statistics"
    else:
        assert "finalize_kernel" in symbol
        return "finalize", Plan(in_double=True, has_table=False)
    size = {4096: "small", 32764: "large"}[n_bytes]
    return f"{name}-{'double' if in_double else 'float'}-{size}", plan


Faults = dict[str, object]


def judge_report(code: Code, symbol: str, plan: Plan) -> Faults:
    """Return the faults in what ptxas reports."""
    found = code.resources[symbol]
    # A multiprocessor has 65,536 registers on all GPUs; a thread gets a multiple of eight of them.
    # None has room for fewer than the 1,024 threads (sm_75) that four blocks are.
    most = 65536 // (plan.n_blocks * N_THREADS) // 8 * 8
    return {
        "stack": found["stack"],
        "spills": found["spill"],
        "registers": found["registers"] > most and f"{found['registers']}, not {most}",
        "shared": found["smem"] > 256 and found["smem"],
    }


def judge_ptx(code: Code, symbol: str, plan: Plan) -> Faults:
    """Return the faults in the PTX, where a division and a square root are one instruction each."""
    text = code.ptx[symbol]
    sizes = [int(n) for n in re.findall(r"\.param \.align \d+ \.b8 \w+\[(\d+)\]", text)]
    return {
        "arguments": sum(sizes) > plan.n_argument_bytes and sizes,
        "contraction": CONTRACTED.findall(text)[:3],
        "inexact": INEXACT.findall(text)[:3],
    }


def judge_sass(code: Code, symbol: str, plan: Plan) -> Faults:
    """Return the faults in the machine code.

    All loads of a pass are under way before the first is waited for. Arguments stay in constant
    memory, where a table is read by index: no copy in local memory, no access of unknown space.
    """
    kernel = kernels_of(code)[symbol]
    loops = kernel.hot_loops() if plan.n_loaded else []
    walks = [loop.walk() for loop in loops]
    n_loads = [passage.n_loads for passage, _ in walks]
    n_stores = [passage.n_stores for passage, _ in walks]
    memory = [ins for ins in kernel.instructions if ins.name in ("LDL", "STL", "LD", "ST")]
    # Nothing but sums of integers: a compare-and-swap could hide one of floating-point numbers.
    atomics = [ins for ins in kernel.instructions if re.match(r"(ATOM|RED(?!UX))", ins.opcode)]
    atomics = [ins for ins in atomics if not re.search(r"\.ADD\b(?!.*F(16|32|64))", ins.opcode)]
    reads_table = any(re.search(r"c\[0x0\]\[U?R\d", ins.operands) for ins in kernel.instructions)
    return {
        "loads": plan.n_loaded and min(n_loads, default=0) < 2 * plan.n_loaded and f"{n_loads}",
        "order": [str(ins) for _, late in walks for ins in late],
        "stores": min(n_stores, default=99) < 2 * plan.n_stored and f"{n_stores}",
        "float64": loops and not plan.in_double and float64_in(kernel, loops, plan.n_exact),
        "local": [str(ins) for ins in memory[:3]],
        "atomics": [str(ins) for ins in atomics],
        "table": plan.has_table and not reads_table,
    }


def float64_in(kernel: Kernel, loops: list[Loop], n_exact: int) -> object:
    """Return the float64 instructions in loops that should have none, or wrong numbers of loops.

    A loop may be in double if a test of the magnitude is on every way to it. There must be as many
    loops as those that lead to it.
    """
    hot = {block for loop in loops for block in loop.blocks}
    tests = {b for b, code in kernel.blocks.items() if any(MAGNITUDE.search(str(i)) for i in code)}
    common = kernel.reached_without(tests - hot)
    plain = [loop for loop in loops if loop.blocks & common]
    wrong = [str(ins) for loop in plain for ins in loop.code() if FLOAT64.match(ins.opcode)]
    n_guarded = len(loops) - len(plain)
    is_balanced = n_guarded == n_exact and len(plain) == max(1, n_exact)
    return wrong[:3] or (not is_balanced and f"{len(plain)} loops in float, {n_guarded} in double")


Judge = Callable[[Code, str, Plan], Faults]
JUDGES = (judge_report, judge_ptx, judge_sass)
# The parameter that changes first, so that test workers begin with different ones.
ARCHS = build_cuda.DEFAULT_ARCHS
# The plans of the controls and the faults that must be found in them.
UPDATE, SUMS = Plan(2, 2, 1), Plan(2, 1, n_exact=1)
FAULTS_OF_CONTROLS = {
    "right": (UPDATE, set()),
    "stack": (UPDATE, {"stack", "local", "table"}),
    "spills": (UPDATE, {"stack", "spills", "local"}),
    "registers": (UPDATE, {"registers"}),
    "shared": (UPDATE, {"shared"}),
    "arguments": (UPDATE, {"arguments"}),
    "contraction": (UPDATE, {"contraction"}),
    "inexact": (UPDATE, {"inexact"}),
    "some_loads": (UPDATE, {"loads"}),
    "all_loads": (UPDATE, {"loads"}),
    "order": (UPDATE, {"order"}),
    "stores": (UPDATE, {"stores"}),
    "float64": (UPDATE, {"float64"}),
    "called_float64": (UPDATE, {"float64"}),
    "atomics": (UPDATE, {"atomics"}),
    "returning_atomics": (UPDATE, {"atomics"}),
    "compared_atomics": (UPDATE, {"atomics"}),
    "table": (UPDATE, {"table"}),
    "right_sums": (SUMS, set()),
    "other_sums": (SUMS, {"float64"}),
}


@cache
def toolkit() -> build_cuda.Toolkit:
    """The toolkit that a build would take; of any CUDA version if torch has none."""
    found, broken = build_cuda.find_toolkits(os.environ, torch.version.cuda or "13.0")
    if not found:
        pytest.skip("; ".join(["needs nvcc: install the CUDA toolkit, or set CUDA_HOME", *broken]))
    return found[0]


@cache
def compile_for(arch: str) -> dict[str, Code]:
    """The kernels as the build compiles them, and the controls; once for all processes and runs."""
    tools = toolkit()
    if arch not in tools.archs:
        pytest.skip(f"{tools.nvcc} {tools.version} does not compile for {arch}")
    flags = build_cuda.nvcc_flags(build_cuda.CudaBuild(tools, (arch,)), n_files=1)
    flags = [f for f in flags if not f.startswith(("-gencode", "--threads", "-Xfatbin"))]
    # What setup.py and torch add.
    flags = ["-O3", "-DNDEBUG", "-DFUSEDTRICKS_CUDA", *COMMON_NVCC_FLAGS, *flags]
    flags.append(f"-arch=sm_{arch}")
    said = subprocess.run([tools.nvcc, "--version"], capture_output=True, text=True, check=True)
    key = hashlib.sha256(repr((flags, said.stdout)).encode())
    for path in [CONTROLS, *sorted((ROOT / "csrc").rglob("*"))]:
        if path.suffix in (".h", ".cuh", ".cu"):
            key.update(f"{path}\n{path.read_text()}".encode())
    folder = ROOT / "build" / "cuda-code" / f"{arch}-{key.hexdigest()[:16]}"
    # One of the controls shows that contraction would be seen.
    contracting = ["-fmad=true" if flag == "-fmad=false" else flag for flag in flags]
    return {
        path.stem: Code(
            path, tools.nvcc, contracting if path == CONTROLS else flags, folder / path.stem
        )
        for path in [*SOURCES, CONTROLS]
    }


def find_disassembler() -> Path | None:
    """The toolkit's, the one on PATH or Triton's."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(path) for path in spec.submodule_search_locations or ()] if spec else []
    candidates = [
        toolkit().root / "bin" / "nvdisasm",
        Path(shutil.which("nvdisasm") or "nvdisasm"),
        *(folder / "backends" / "nvidia" / "bin" / "nvdisasm" for folder in folders),
    ]
    return next((path for path in candidates if path.is_file()), None)


# Those of one arch.
@lru_cache(maxsize=3)
def kernels_of(code: Code) -> dict[str, Kernel]:
    try:
        return code.kernels(find_disassembler())
    except FileNotFoundError:
        pytest.skip("needs nvdisasm: install it with the CUDA toolkit, or triton, which has it")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("judge_one", JUDGES)
def test_kernels(arch, judge_one):
    codes = compile_for(arch)
    names, found = set(), {}
    for path in SOURCES:
        for symbol in codes[path.stem].resources:
            name, plan = plan_of(symbol, arch)
            assert name not in names
            names.add(name)
            faults = judge_one(codes[path.stem], symbol, plan)
            found |= {(name, fault): what for fault, what in faults.items() if what}
    assert len(names) >= 20
    assert found == {}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("judge_one", JUDGES)
def test_faults_are_found(arch, judge_one):
    code = compile_for(arch)[CONTROLS.stem]
    assert set(code.resources) == set(FAULTS_OF_CONTROLS)
    for name, (plan, wanted) in FAULTS_OF_CONTROLS.items():
        faults = judge_one(code, name, plan)
        assert {fault for fault, what in faults.items() if what} == wanted & set(faults), name
