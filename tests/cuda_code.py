"""What nvcc makes of a .cu file: compiled once, kept in a folder, and read there.

nvcc gives the resources of each kernel and its PTX. The machine code (SASS) needs nvdisasm as well,
which is a part of the CUDA toolkit and of Triton's wheel.
"""

import fcntl
import gzip
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
WIDE = re.compile(r"(LDG|STG)\.(?:\w+\.)*(128|256)\b")
INDIRECT_JUMPS = ("BRX", "JMX", "JMP", "BRK")


class Code:
    """A compiled .cu file, in a folder of its own."""

    def __init__(self, source: Path, nvcc: Path, flags: Sequence[str], folder: Path) -> None:
        """Compile `source` unless `folder` exists; other processes wait for it.

        Raises:
            RuntimeError: With nvcc's words if it fails.
        """
        self._folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                    self._compile(source, [nvcc, *flags], Path(temporary)).rename(folder)

    @staticmethod
    def _compile(source: Path, command: list[str | Path], temporary: Path) -> Path:
        result = temporary / "result"
        result.mkdir()
        # The PTX is kept on the way to the machine code, so that both are of one compilation.
        command = [*command, "-cubin", "-Xptxas=-v", "-keep", "-keep-dir", temporary]
        command += ["-o", result / "code.cubin", source]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc failed on {source}:\n{done.stdout}{done.stderr}")
        (result / "report.txt").write_text(done.stdout + done.stderr)
        ptx = (temporary / f"{source.stem}.ptx").read_bytes()
        (result / "ptx.gz").write_bytes(gzip.compress(ptx, 1))
        return result

    @cached_property
    def resources(self) -> dict[str, dict[str, int]]:
        """Of each kernel, with the functions that it calls: registers, bytes of the rest."""
        text = (self._folder / "report.txt").read_text()
        found = {}
        for part in text.split("Compiling entry function '")[1:]:
            sizes = dict.fromkeys(("registers", "smem", "spill", "stack"), 0)
            for n, what in re.findall(r"(\d+) (?:bytes |cumulative )*(\w+)", part):
                if what in sizes:
                    sizes[what] = max(sizes[what], int(n))
            found[part.split("'")[0]] = sizes
        return found

    @cached_property
    def ptx(self) -> dict[str, str]:
        """The PTX of each kernel, without the functions that it calls."""
        text = gzip.decompress((self._folder / "ptx.gz").read_bytes()).decode()
        return dict(re.findall(r"\.entry (\w+)\((.*?)^\}", text, re.DOTALL | re.MULTILINE))

    def kernels(self, disassembler: Path | None) -> dict[str, "Kernel"]:
        """Return the machine code of each kernel. It is kept: only the first time needs a tool.

        Raises:
            FileNotFoundError: If there is no disassembler, but one is needed.
            RuntimeError: With its words if it fails.
        """
        path, cubin = self._folder / "sass.gz", self._folder / "code.cubin"
        with open(self._folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                if disassembler is None:
                    raise FileNotFoundError("nvdisasm")
                done = subprocess.run([disassembler, "-c", "-ndf", cubin], capture_output=True)
                if done.returncode != 0:
                    raise RuntimeError(f"{disassembler} failed:\n{done.stderr.decode()}")
                partial = path.with_suffix(".partial")
                partial.write_bytes(gzip.compress(done.stdout, 1))
                partial.rename(path)
                cubin.unlink()
        text = gzip.decompress(path.read_bytes()).decode()
        parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)[1:]
        return {name: Kernel(part) for name, part in zip(parts[::2], parts[1::2], strict=True)}


class Instruction(NamedTuple):
    """One instruction; `target` is the label that it names, if any."""

    address: str
    guard: str
    opcode: str
    operands: str
    target: str

    def __str__(self) -> str:
        return f"{self.address}: {self.opcode} {self.operands}"

    @property
    def name(self) -> str:
        """The opcode without what modifies it."""
        return self.opcode.split(".")[0]

    @property
    def jumps(self) -> bool:
        """Whether this is a branch; a call of a local label is one for which threads may part."""
        return self.name == "BRA" or (self.name == "CALL" and self.target.startswith(".L"))

    @property
    def ends(self) -> bool:
        """Whether a block ends here."""
        return self.jumps or self.name in ("EXIT", "RET", "KILL", *INDIRECT_JUMPS)

    @property
    def registers(self) -> set[int]:
        """The registers named, with the second one of a pair that .64 tells."""
        found = re.findall(r"\bR(\d+)(\.64)?", self.operands)
        return {int(n) + i for n, pair in found for i in range(2 if pair else 1)}

    @property
    def wide(self) -> str:
        """LDG or STG if this loads or stores 128 bits or more, else empty."""
        match = WIDE.match(self.opcode)
        return match[1] if match else ""

    @property
    def loaded(self) -> set[int]:
        """The registers that a wide load fills, named by the first; 256 bits may have two names."""
        if self.wide != "LDG":
            return set()
        firsts = re.findall(r"\bR(\d+),", re.split(r"desc|\[", self.operands)[0])
        n_each = int(WIDE.match(self.opcode)[2]) // 32 // len(firsts)
        return {int(first) + i for first in firsts for i in range(n_each)}


class Kernel:
    """The instructions of a kernel, in blocks numbered by their first one, and the ways through.

    A way goes past a call; `callees` gives what is called.
    """

    def __init__(self, text: str) -> None:
        self.instructions: list[Instruction] = []
        self._labels: dict[str, int] = {}
        for line in text.splitlines():
            if match := INSTRUCTION.match(line):
                target = re.search(r"`\((.+?)\)", match[4])
                fields = (match[1], match[2] or "", match[3], match[4])
                self.instructions.append(Instruction(*fields, target[1] if target else ""))
            elif match := re.match(r"([\w.$]+):", line):
                self._labels[match[1]] = len(self.instructions)
        code = self.instructions
        starts = {0, *self._labels.values(), *(i + 1 for i, ins in enumerate(code) if ins.ends)}
        bounds = sorted({*(start for start in starts if start < len(code)), len(code)})
        self.blocks = {start: code[start:stop] for start, stop in pairwise(bounds)}
        self._after = {start: self._ways(stop) for start, stop in pairwise(bounds)}
        self._before: dict[int, list[int]] = {start: [] for start in self.blocks}
        for block, others in self._after.items():
            for other in others:
                self._before[other].append(block)

    def _ways(self, stop: int) -> list[int]:
        """Return the blocks that may follow the one before `stop`."""
        last = self.instructions[stop - 1]
        if last.name in INDIRECT_JUMPS:
            raise NotImplementedError(f"a jump that is not understood: {last}")
        ways = [self._labels[last.target]] if last.jumps else []
        # Some branches have a condition among the operands, with or without a guard.
        always = last.ends and not last.guard
        if not always or (last.jumps and not last.operands.startswith("`")):
            ways.append(stop)
        return [block for block in ways if block in self.blocks]

    def ways_within(self, loop: "Loop", block: int) -> list[int]:
        """Return the blocks that may follow `block` in the same pass of `loop`."""
        return [b for b in self._after[block] if b in loop.blocks and b not in loop.entries]

    def reached_without(self, avoided: set[int]) -> set[int]:
        """Return the blocks on ways from the beginning that pass no block of `avoided`."""
        return reachable(0, {b: o for b, o in self._after.items() if b not in avoided})

    def hot_loops(self) -> list["Loop"]:
        """Return the innermost loops around wide loads, in the order of the program."""
        with_loads = (b for b, code in self.blocks.items() if any(ins.loaded for ins in code))
        loops = {loop for block in with_loads if (loop := self._innermost_loop(block))}
        return sorted(loops, key=lambda loop: min(loop.blocks))

    def _innermost_loop(self, block: int) -> "Loop | None":
        loop, graph = None, self._after
        while True:
            backward = defaultdict(list)
            for one, others in graph.items():
                for other in others:
                    backward[other].append(one)
            # With the blocks that go around with it, those of inner loops included.
            area = reachable(block, graph) & reachable(block, backward)
            if block not in area:
                return loop
            entries = {b for b in area if not area.issuperset(self._before[b])}
            loop = Loop(self, frozenset(area), frozenset(entries))
            graph = {b: [other for other in graph[b] if other in area - entries] for b in area}

    def callees(self, blocks: Iterable[int]) -> set[int]:
        """Return the blocks of the functions that `blocks` call, and that these call."""
        found: set[int] = set()
        waiting = list(blocks)
        while waiting:
            for ins in self.blocks[waiting.pop()]:
                if ins.name == "CALL" and not ins.jumps:
                    start = self._labels[ins.target]
                    more = {start, *reachable(start, self._after)} - found
                    found |= more
                    waiting += more
        return found


class Passage(NamedTuple):
    """What happened on the ways to a point of a loop."""

    n_loads: int = 0  # wide ones, on the way with most of them
    n_stores: int = 0
    pending: frozenset[int] = frozenset()  # registers that wide loads fill
    has_waited: bool = False

    def after(self, ins: Instruction) -> "Passage":
        """Return what holds after `ins`, which waits if it writes a pending register, too."""
        return Passage(
            self.n_loads + (ins.wide == "LDG"),
            self.n_stores + (ins.wide == "STG"),
            self.pending | ins.loaded,
            self.has_waited or not self.pending.isdisjoint(ins.registers),
        )

    def merged(self, other: "Passage") -> "Passage":
        """Return what holds where two ways meet."""
        return Passage(
            max(self.n_loads, other.n_loads),
            max(self.n_stores, other.n_stores),
            self.pending | other.pending,
            self.has_waited or other.has_waited,
        )


class Loop(NamedTuple):
    """Blocks of a kernel, and those of them that are entered from outside."""

    kernel: Kernel
    blocks: frozenset[int]
    entries: frozenset[int]

    def code(self) -> list[Instruction]:
        """Return what is executed in the loop, with the functions that it calls."""
        blocks = [*sorted(self.blocks), *sorted(self.kernel.callees(self.blocks))]
        return [ins for block in blocks for ins in self.kernel.blocks[block]]

    def walk(self) -> tuple[Passage, list[Instruction]]:
        """Return what happens in one pass, on all ways, and the wide loads that wait for others."""
        at = dict.fromkeys(self.entries, Passage())
        waiting, late, total = list(self.entries), set(), Passage()
        while waiting:
            block = waiting.pop(0)
            passage = at[block]
            for ins in self.kernel.blocks[block]:
                passage = passage.after(ins)
                if ins.loaded and passage.has_waited:
                    late.add(ins)
            total = total.merged(passage)
            for other in self.kernel.ways_within(self, block):
                merged = passage.merged(at.get(other, Passage()))
                if merged != at.get(other):
                    at[other] = merged
                    waiting.append(other)
        return total, sorted(late)


def reachable(start: int, graph: Mapping[int, Sequence[int]]) -> set[int]:
    """Return what follows `start`, which is part of it only if it is on a cycle."""
    found: set[int] = set()
    waiting = [start]
    while waiting:
        new = set(graph.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found
