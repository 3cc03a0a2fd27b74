"""Compiles the kernel for batches of images ahead of time, without a GPU, and reads what came out.

Not for a process in which TRITON_INTERPRET is set: tests/test_batch_code.py starts another.
"""

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from fusedtricks.kernels import batch, launch
from fusedtricks.kernels.batch_kernel import batch_kernel
from triton.compiler import ASTSource
from triton.runtime import driver

from tests.triton_code import ARITHMETIC, TARGETS, count_wide

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Memory formats in and out, height and width: batches that take each way through the kernel.
FIRST, LAST = torch.contiguous_format, torch.channels_last
WAYS = {
    "last to last": (LAST, LAST, 224, 224),
    "first to last": (FIRST, LAST, 224, 224),
    "first to first": (FIRST, FIRST, 224, 224),
    "last to first": (LAST, FIRST, 224, 224),
    # Rows that are not whole groups, and images that are not.
    "odd rows": (LAST, LAST, 208, 206),
    "odd images": (FIRST, LAST, 225, 225),
}
# What there is not without a plan, and without a mix.
MIX = ("partner_ptr", "share_ptr", "patch_ptr")
PLANS = {
    "mixed": (),
    "blended": ("patch_ptr", "hole_ptr"),
    "cut": MIX,
    "plain": (*MIX, "hole_ptr"),
}


@dataclass(frozen=True)
class Variant:
    """A kernel to compile."""

    target: str
    dtype: str
    way: str
    plan: str = "mixed"

    @property
    def name(self) -> str:
        """Name it in reports."""
        return f"{self.target} {self.dtype} {self.way} {self.plan}"

    @property
    def layout(self) -> batch.Layout:
        """What the host side would choose."""
        before, after, height, width = WAYS[self.way]
        images = torch.empty(2, 3, height, width, dtype=torch.uint8, memory_format=before)
        return batch.find_layout(images, DTYPES[self.dtype], after == LAST)

    def compile(self, **replaced: Any) -> Any:
        """Compile for arguments as the host passes them; `replaced` are options of the launch."""
        absent, layout = PLANS[self.plan], self.layout
        types: dict[str, Any] = {
            "images_ptr": "*u8",
            "out_ptr": f"*{self.dtype}",
            "partner_ptr": "*i64",
            "share_ptr": "*fp32",
            "patch_ptr": "*i64",
            "hole_ptr": "*i64",
            "shifts": ("fp32",) * 3,
            "scales": ("fp32",) * 3,
            "fill": "fp32",
        }
        counts = "n_images image_stride channel_stride pixel_stride height width numel"
        types |= dict.fromkeys(counts.split(), "i32")
        types = {name: kind for name, kind in types.items() if name not in absent}
        names = batch_kernel.arg_names
        constants = layout.constants() | dict.fromkeys(absent)
        source = ASTSource(
            batch_kernel,
            {name: types.get(name, "constexpr") for name in names},
            {(names.index(name),): value for name, value in constants.items()},
            {(names.index("out_ptr"),): [["tt.divisibility", 16]]},
        )
        is_amd = self.target.startswith("gfx")
        options = launch.options(layout.n_threads, layout.max_registers, amd=is_amd)
        return triton.compile(source, target=TARGETS[self.target], options=options | replaced)

    def report(self) -> dict[str, Any]:
        """Compile it and read the result."""
        compiled, layout = self.compile(), self.layout
        facts = {
            "target": self.target,
            "plan": self.plan,
            "is_flat": layout.is_flat,
            "is_aligned": layout.is_aligned,
            "group": layout.group,
            "max_registers": layout.max_registers,
            "shared": compiled.metadata.shared,
        }
        read = read_amd if self.target.startswith("gfx") else read_nvidia
        return facts | read(compiled)


def read_nvidia(compiled: Any) -> dict[str, Any]:
    """Return what PTX and machine code show."""
    ptx = compiled.asm["ptx"]
    usage = dump(compiled, "-res-usage")
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        # The kernel calls nothing, so that spilled registers are all there is.
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "loaded": load_sizes(ptx),
        "wide_stores": count_wide(ptx, "st"),
        "stores": len(re.findall(r"\bst\.global\b", ptx)),
        "float64": sorted(set(re.findall(rf"\b(?:{ARITHMETIC})\.(?:\w+\.)*f64\b", ptx))),
        "contracted": sorted(
            set(re.findall(r"\b(?:fma|mad)\.(?:\w+\.)*f32\b", ptx))
            | set(re.findall(r"\b(?:div|sqrt|rsqrt|rcp)\.(?:approx|full)\S*", ptx))
        ),
    }


def dump(compiled: Any, option: str) -> str:
    """Return what NVIDIA's cuobjdump prints about the machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def n_instructions(target: str, way: str) -> int:
    """Return the machine instructions for a batch that is only normalised, to bfloat16."""
    code = dump(Variant(target, "bf16", way, "plain").compile(), "-sass")
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))


def load_sizes(ptx: str) -> dict[int, int]:
    """Return how many loads there are of each number of bytes, scalars of the plan included."""
    sizes: dict[int, int] = {}
    for n, bits in re.findall(r"\bld\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfu](\d+)", ptx):
        n_bytes = int(n or 1) * int(bits) // 8
        sizes[n_bytes] = sizes.get(n_bytes, 0) + 1
    return sizes


def read_amd(compiled: Any) -> dict[str, Any]:
    """Return what the assembly shows."""
    text = compiled.asm["amdgcn"]
    spills = [int(n) for n in re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", text)]
    return {
        "bytes": len(text),
        "spills": sum(spills),
        "wide_stores": len(re.findall(r"_store_dwordx4", text)),
    }


def variants() -> list[Variant]:
    """Return all ways, dtypes and plans for one architecture, and a part of them for the others."""
    found = []
    for target in TARGETS:
        if target.startswith("gfx"):
            found += [Variant(target, dtype, "last to last") for dtype in ("fp32", "bf16")]
            continue
        ways = WAYS if target == "sm_90" else ("last to last", "first to last", "last to first")
        found += [Variant(target, "fp32", way) for way in ways]
        found += [Variant(target, "bf16", way) for way in ("last to last", "odd rows")]
        found.append(Variant(target, "bf16", "last to last", "plain"))
    found.append(Variant("sm_90", "bf16", "first to last"))
    found += [Variant("sm_90", "bf16", "last to last", plan) for plan in ("blended", "cut")]
    return [*found, Variant("sm_90", "fp16", "last to last")]


class StandInDriver:
    """What Triton asks of a GPU's driver before it launches."""

    def get_current_device(self) -> int:
        """Return the number of the device."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """Return the address of the stream."""
        return 0

    def get_current_target(self) -> Any:
        """Return what to compile for."""
        return TARGETS["sm_90"]


class Launches:
    """Stands for the kernel: compiles for the arguments of each launch, as a GPU's host does."""

    def __init__(self) -> None:
        self.hashes: list[str] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """Return what takes the arguments of a launch."""

        def compile_for(*arguments: Any, **options: Any) -> None:
            compiled = batch_kernel.warmup(*arguments, grid=grid, **options)
            self.hashes.append(compiled.hash)

        return compile_for


def launched() -> dict[str, list[str]]:
    """Return the kernels that the host side's launches compile."""
    driver.set_active(StandInDriver())
    launches = batch.batch_kernel = Launches()
    images, boxes = torch.zeros(5, 3, 16, 16, dtype=torch.uint8), torch.zeros(5, 4).long()
    plan = (torch.arange(5), torch.rand(5), boxes, boxes)

    def prepare(n: int, parts: tuple[Any, ...], *, fill: float, mean: list[float]) -> None:
        parts = tuple(None if part is None else part[:n] for part in parts)
        batch.prepare_batch(images[:n], *parts, mean, [0.5, 1.0, 0.2], fill, torch.half, True)

    # Values and numbers of images that Triton might compile a kernel for each.
    prepare(5, plan, fill=0.0, mean=[0.1, 0.2, 0.3])
    prepare(4, plan, fill=1.0, mean=[0.0, 1.0, 0.5])
    prepare(1, plan, fill=0.5, mean=[1.0, 1.0, 1.0])
    alike, launches.hashes = launches.hashes, []
    for parts in (plan, (*plan[:2], None, None), (None, None, None, boxes), (None,) * 4):
        prepare(2, parts, fill=0.0, mean=[0.1] * 3)
    return {"alike": alike, "different": launches.hashes}


def main() -> None:
    """Compile everything and print the reports as JSON."""
    reports = {variant.name: variant.report() for variant in variants()}
    control = Variant("sm_90", "fp32", "last to last")
    controls = {
        "few registers": read_nvidia(control.compile(maxnreg=32)),
        "fused": read_nvidia(control.compile(enable_fp_fusion=True)),
    }
    counts = {
        target: {way: n_instructions(target, way) for way in ("last to last", "first to last")}
        for target in TARGETS
        if target.startswith("sm_")
    }
    found = {"variants": reports, "controls": controls, "instructions": counts}
    print(json.dumps(found | {"launches": launched()}))


if __name__ == "__main__":
    main()
