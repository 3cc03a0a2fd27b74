"""Compiles the Triton kernels ahead of time, without a GPU, and reads what came out.

Not for a process in which TRITON_INTERPRET is set: tests/test_triton_code.py starts another.
"""

import json
import multiprocessing
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
import triton.language as tl
from fusedtricks.kernels import (
    adagrad,
    adam,
    combine_kernel,
    launch,
    rmsprop,
    sgd,
    statistics_kernel,
    statistics_plan,
    update_kernel,
    update_plan,
)
from fusedtricks.kernels.choices import Choices, size_of
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ALGORITHMS = {"adam": adam, "adagrad": adagrad, "rmsprop": rmsprop, "sgd": sgd}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ARITHMETIC = "add|sub|mul|fma|mad|div|rcp|sqrt|rsqrt|neg|abs|min|max|setp|ex2"
# dtypes of gradient, parameter, 16-bit copy and states.
STORAGE = {
    "fp32": (tl.float32, tl.float32, None, tl.float32),
    "bf16": (tl.bfloat16, tl.bfloat16, None, tl.bfloat16),
    "fp16": (tl.float16, tl.float16, None, tl.float16),
    "bf16-masters": (tl.bfloat16, tl.float32, tl.bfloat16, tl.float32),
    "fp16-masters": (tl.float16, tl.float32, tl.float16, tl.float32),
    "fp64": (tl.float64, tl.float64, None, tl.float64),
}


def update_body(
    algorithm: ModuleType, flags: int, storage: str, averages: bool = False
) -> update_kernel.Body:
    """Return the body for one variant of an algorithm; an average is stored as states are."""
    grad, param, model, state = STORAGE[storage]
    smallest = min(4, *(size_of(dtype) for dtype in (grad, param, state)))
    return update_kernel.Body(
        flags=flags,
        block=launch.N_THREADS * 16 // smallest,
        compute=tl.float64 if param == tl.float64 else tl.float32,
        is_centralized=True,
        grad=grad,
        param=param,
        model=model,
        average=state if averages else None,
        states=Choices((state,) * algorithm.n_states(flags)),
        step=tl.float32,
        lr=None,
    )


def compile_kernel(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    target: str,
    registers: int,
    **replaced: Any,
) -> Any:
    """Compile for arguments as the host passes them: tables begin at multiples of 16."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = [name for name, kind in types.items() if kind.startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = launch.options(launch.N_THREADS, registers, amd=target.startswith("gfx"))
    return triton.compile(source, target=TARGETS[target], options=options | replaced)


def compile_update(
    algorithm: ModuleType, body: update_kernel.Body, target: str, **options: Any
) -> Any:
    """Compile the update kernel with all arguments; `options` replace those of launches."""
    types = {
        "addresses_ptr": "*i64",
        "tensors_ptr": "*i64",
        "items_ptr": "*i32",
        "groups_ptr": "*fp64",
        "means_ptr": "*fp32",
        "coefficient_ptr": "*fp64",
        "scale_ptr": "*fp32",
        "limit_bits": "i64",
        **({} if body.average is None else {"average_weight_bits": "i64"}),
        "found_inf_ptr": "*fp32",
        "skipped_ptr": "*i64",
        "ticket_ptr": "*i32",
        "n_tensors": "i32",
        "n_items": "i32",
    }
    constants = {
        **({"average_weight_bits": None} if body.average is None else {}),
        "PREPARE": algorithm.prepare,
        "UPDATE": algorithm.update,
        "N_CONSTANTS": algorithm.N_CONSTANTS,
        "BODIES": Choices((body,)),
        "STEP_DTYPES": Choices((tl.float32,)),
        "ITEM": update_plan.ITEM,
    }
    registers = update_plan.max_registers([body])
    kernel = update_kernel.update_kernel
    return compile_kernel(kernel, types, constants, target, registers, **options)


def compile_statistics(body: statistics_kernel.Body, target: str) -> Any:
    """Compile the statistics kernel."""
    types = {
        "addresses_ptr": "*i64",
        "tensors_ptr": "*i64",
        "items_ptr": "*i32",
        "long_rows_ptr": "*i64",
        "scale_ptr": "*fp32",
        "limit_bits": "i64",
        "means_ptr": "*fp32",
        "pieces_ptr": "*fp64",
        "partial_ptr": "*fp64",
        "totals_ptr": "*fp64",
        "ticket_ptr": "*i32",
        "n_items": "i32",
        "n_long_rows": "i32",
    }
    constants = {
        "BODIES": Choices((body,)),
        "TILE": statistics_plan.TILE,
        "PIECE": statistics_plan.PIECE,
    }
    kernel = statistics_kernel.statistics_kernel
    return compile_kernel(kernel, types, constants, target, statistics_plan.max_registers([body]))


def compile_finalize(target: str) -> Any:
    """Compile the kernel between the sweeps."""
    types = {
        "totals_ptr": "*fp64",
        "norm_ptr": "*fp64",
        "coefficient_ptr": "*fp64",
        "nonfinite_ptr": "*fp32",
        "max_norm_bits": "i64",
        "n": "i32",
    }
    kernel = combine_kernel.finalize_kernel
    return compile_kernel(kernel, types, {"BLOCK": 4}, target, 255, num_warps=1)


@dataclass(frozen=True)
class Variant:
    """A kernel to compile; `flags` of -1 and a width stand for the statistics kernel."""

    target: str
    storage: str
    algorithm: str = ""
    flags: int = 0
    width: int = 0
    averages: bool = False

    @property
    def name(self) -> str:
        """Name it in reports."""
        kernel = f"update {self.algorithm} {self.flags}" if self.algorithm else "statistics"
        averaged = " average" if self.averages else ""
        return f"{self.target} {kernel} {self.storage} {self.width}{averaged}"

    def report(self) -> dict[str, Any]:
        """Compile it and read the result."""
        if self.algorithm:
            algorithm = ALGORITHMS[self.algorithm]
            body = update_body(algorithm, self.flags, self.storage, self.averages)
            per_thread = body.block // launch.N_THREADS
            average = [body.average] if self.averages else []
            stored = [body.param, *body.states.values, *average]
            stored += [body.model] if body.model is not None else []
            loaded = [body.grad, body.param, *body.states.values, *average]
            registers = update_plan.max_registers([body])
            compiled = compile_update(algorithm, body, self.target)
        else:
            grad = STORAGE[self.storage][0]
            compute = tl.float64 if grad == tl.float64 else tl.float32
            body = statistics_kernel.Body(grad, compute, self.width)
            per_thread = statistics_plan.TILE // launch.N_THREADS
            stored, loaded = [], [grad]
            registers = statistics_plan.max_registers([body])
            compiled = compile_statistics(body, self.target)
        read = read_amd if self.target.startswith("gfx") else read_nvidia
        return {
            "target": self.target,
            "storage": self.storage,
            "max_registers": registers,
            "expected_loads": sum(per_thread * size_of(dtype) for dtype in loaded) // 16,
            "expected_stores": sum(per_thread * size_of(dtype) for dtype in stored) // 16,
        } | read(compiled)


def read_nvidia(compiled: Any) -> dict[str, Any]:
    """Return what PTX and machine code show."""
    ptx = compiled.asm["ptx"]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [str(tool), option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    # What follows the ticket is done by one program only.
    before_ticket = ptx[: ptx.index("atom.")]
    float64 = re.findall(rf"\b(?:{ARITHMETIC})\.(?:\w+\.)*f64\b", before_ticket)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        # Not the size of the stack: float64 division is a call, which needs some.
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)),
        "wide_loads": count_wide(ptx, "ld"),
        "wide_stores": count_wide(ptx, "st"),
        "float64_before_ticket": sorted(set(float64)),
        "contracted": sorted(
            set(re.findall(r"\b(?:fma|mad)\.(?:\w+\.)*f32\b", ptx))
            | set(re.findall(r"\b(?:div|sqrt|rsqrt|rcp)\.(?:approx|full)\S*", ptx))
        ),
    }


def count_wide(ptx: str, operation: str) -> int:
    """Count accesses of global memory of 16 bytes; one of 32 counts twice."""
    sizes = re.findall(rf"\b{operation}\.global(?:\.\w+)*\.v(\d)\.[bfu](\d+)", ptx)
    return sum(int(n) * int(bits) // 128 for n, bits in sizes)


def read_amd(compiled: Any) -> dict[str, Any]:
    """Return what the assembly shows."""
    text = compiled.asm["amdgcn"]
    spills = {kind: int(n) for kind, n in re.findall(r"\.([vs]gpr)_spill_count:\s*(\d+)", text)}
    return {
        "bytes": len(text),
        "spills": spills["vgpr"],
        "scalar_spills": spills["sgpr"],
        "wide_loads": len(re.findall(r"_load_dwordx4", text)),
        "wide_stores": len(re.findall(r"_store_dwordx4", text)),
    }


def controls() -> dict[str, dict[str, Any]]:
    """Return reports of kernels that the checks must refuse."""
    body = update_body(adam, 0, "fp32")
    few_registers = compile_update(adam, body, "sm_90", maxnreg=32)
    fused = compile_update(adam, body, "sm_90", enable_fp_fusion=True)
    return {"few registers": read_nvidia(few_registers), "fused": read_nvidia(fused)}


def variants() -> list[Variant]:
    """Return all flags in fp32, all storages and widths; for AMD a part of them."""
    found = []
    for target in TARGETS:
        is_amd = target.startswith("gfx")
        for name, algorithm in ALGORITHMS.items():
            # Without momentum, sgd has no nesterov.
            flags = [f for f in range(algorithm.N_VARIANTS) if name != "sgd" or f & 3 != 2]
            found += [Variant(target, "fp32", name, f) for f in (flags[-1:] if is_amd else flags)]
            found += [Variant(target, "bf16-masters", name, flags[-1])]
            found += [
                Variant(target, storage, name, flags[-1], averages=True)
                for storage in ("fp32", "bf16-masters", *(() if is_amd else ("fp64",)))
            ]
        for storage in ("fp32", "bf16") if is_amd else ("fp32", "bf16", "fp16", "fp64"):
            found += [Variant(target, storage, "", -1, width) for width in (0, 16, 64, 256, 1024)]
        found += [Variant(target, s, "adam", 0) for s in ("bf16", "fp16", "fp16-masters", "fp64")]
    return found


def main() -> None:
    """Compile everything, on all cores, and print the reports as JSON."""
    chosen = variants()
    with multiprocessing.get_context("spawn").Pool() as pool:
        found = pool.map(Variant.report, chosen, chunksize=4)
    pairs = zip(chosen, found, strict=True)
    reports = {variant.name: report for variant, report in pairs}
    finalize = {target: sorted(compile_finalize(target).asm) for target in TARGETS}
    print(json.dumps({"variants": reports, "controls": controls(), "finalize": finalize}))


if __name__ == "__main__":
    main()
