"""The CUDA kernels: tensors lie anywhere, nothing else is touched, skips leave no trace."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import devices
from tests.cases import CASES, Case
from tests.cuda_shim.calls import (
    COMBINED,
    NEEDS_SHIM,
    Call,
    DTypes,
    GradOptions,
    bits,
    shifted,
    tuned,
)
from tests.pairs import Pair, case_name, leaf

pytestmark = pytest.mark.skipif(not devices.SHIM, reason=NEEDS_SHIM)

each_case = pytest.mark.parametrize("case", CASES, ids=case_name)

# Every tail of a tile of packs, and of a warp's packs.
LENGTHS = [*range(71), *range(2040, 2061)]
CANARY = 7.03125
MARGIN = 16
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
# One for each number of states, with each dtype.
PLACED = {
    "no state": ("SGD-plain", DTypes(FP16, FP16, FP16, BF16)),
    "one state": ("SGD-momentum", DTypes(FP32, BF16, BF16, FP16)),
    "two states": ("AdamW", DTypes(BF16, FP16, FP32, None, FP32)),
    "three states": ("Adam-l2-amsgrad", DTypes(FP32, FP32, FP32, BF16)),
    "three states and an average": ("RMSprop-centered", DTypes(BF16, FP32, FP32, FP16, FP32)),
    "an average": ("SGD-plain", DTypes(FP32, FP32, FP32, None, BF16)),
    "an average and a copy": ("AdamW", DTypes(FP32, BF16, FP32, BF16, FP32)),
    "float64": ("RMSprop-momentum", DTypes(FP64, FP64, FP64, FP64, FP64)),
}


def find_case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


class Guarded:
    """Places the tensors of one stream some elements off, all of them with canaries around."""

    def __init__(self, stream: str, offset: int) -> None:
        self.stream, self.offset = stream, offset
        self.placed: list[tuple[Tensor, Tensor]] = []

    def __call__(self, stream: str, value: Tensor) -> Tensor:
        begin = MARGIN + (self.offset if stream == self.stream else 0)
        buffer = torch.full((begin + value.numel() + MARGIN,), CANARY, dtype=value.dtype)
        view = buffer[begin : begin + value.numel()].view(value.shape).copy_(value)
        self.placed.append((buffer, view))
        return view

    def assert_intact(self) -> None:
        """Check the canaries; the values are lost."""
        for buffer, view in self.placed:
            view.fill_(CANARY)
            assert (buffer == CANARY).all(), tuple(view.shape)


@pytest.mark.parametrize("kind", PLACED)
def test_every_offset_of_every_stream(kind: str) -> None:
    (name, dtypes), options = PLACED[kind], COMBINED
    shapes = [(n,) if n % 3 else (3, n // 3) for n in LENGTHS]
    aligned = Guarded("", 0)
    first = Call(find_case(name), shapes, [dtypes], place=aligned)
    expected = first.expected(options)
    means, totals = first.statistics(options)
    _, coefficient, _ = torch.ops.fusedtricks.finalize_statistics([totals], options.max_norm)
    first.run(options, means=means, coefficient=coefficient)
    first.assert_close(expected)
    wanted = first.written_bits()
    aligned.assert_intact()
    for stream in ("param", "grad", *first.state_names, "model", "average"):
        for offset in range(MARGIN + 1):
            place = Guarded(stream, offset)
            call = Call(find_case(name), shapes, [dtypes], place=place)
            other_means, other_totals = call.statistics(options)
            torch.testing.assert_close(other_means, means, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(other_totals, totals, rtol=1e-6, atol=0)
            grads = [bits(grad) for grad in call.grads]
            call.run(options, means=means, coefficient=coefficient)
            assert call.written_bits() == wanted, (stream, offset)
            assert [bits(grad) for grad in call.grads] == grads
            place.assert_intact()


# Skipping. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [1.0, 2.0, -1.0, 1e-45, torch.inf, torch.nan])
@each_case
def test_a_skipped_call_writes_nothing_and_counts_once(case: Case, flag: float) -> None:
    mixture = [
        DTypes(average=BF16),
        DTypes(BF16, BF16, FP32),
        DTypes(FP64, FP64, FP64, None, FP64),
        DTypes(model=FP16),
    ]
    shapes = [(5, 3), (0,), (), (1009,), (2, 3, 3)] * 12
    place = Guarded("param", 3)
    call = Call(case, shapes, mixture, group_size=4, place=place)
    before = [bits(t) for t in [*call.written, *(buffer for buffer, _ in place.placed)]]
    for settings in ({}, {"table_bytes": 512}, {"blocks_per_sm": 1}):
        skipped = torch.tensor(41)
        with tuned(**settings):
            call.run(COMBINED, found_inf=torch.tensor(flag), skipped_steps=skipped)
        assert skipped == 42
        after = [bits(t) for t in [*call.written, *(buffer for buffer, _ in place.placed)]]
        assert after == before
    with tuned(table_bytes=512):
        call.run(COMBINED, found_inf=torch.tensor(0.0), skipped_steps=skipped)
    assert skipped == 42
    assert [step.item() for step in call.steps] == [3.0] * len(shapes)


BESIDE_FP32 = [
    DTypes(FP32, FP32, FP64),
    DTypes(FP32, FP32, FP32, FP64),
    DTypes(FP32, FP32, FP32, None, FP64),
]


@pytest.mark.parametrize("dtypes", BESIDE_FP32)
def test_a_skipped_call_leaves_float64_beside_float32_alone(dtypes: DTypes) -> None:
    call = Call(find_case("AdamW"), [(40,)], [dtypes])
    for wide in [*call.states, *call.models, *call.averages]:
        wide += torch.tensor(1e-13, dtype=wide.dtype)
    before = call.written_bits()
    call.run(found_inf=torch.tensor(1.0), skipped_steps=torch.tensor(0))
    assert call.written_bits() == before


def set_bad_grads(params: list[Tensor]) -> None:
    for param in params:
        param.grad = torch.full_like(param, torch.nan)


@pytest.mark.parametrize("name", ["SGD-momentum-dampening", "SGD-nesterov-maximize"])
def test_a_skipped_first_step_is_no_first_step(name: str) -> None:
    case = find_case(name)
    pair = Pair(case, params=[leaf(torch.randn(shape)) for shape in [(1009,), (5, 3), (), (0,)]])
    # The one that is empty has no element that is not finite.
    pair.ours.skip_nonfinite = True
    for n_skipped in (1, 2):
        set_bad_grads(pair.params)
        pair.ours.step()
        assert pair.ours.skipped_steps == n_skipped
        saved = pair.ours.state_dict()["state"]
        assert not any("momentum_buffer" in state for state in saved.values())
    pair.step([0])
    # The buffer of the first parameter is there, where torch has none yet.
    saved = pair.ours.state_dict()["state"]
    assert 0 not in saved and len(saved) == len(pair.params) - 1
    for without in ([], [1]):
        pair.step(without)
        pair.check()
    set_bad_grads(pair.params)
    pair.ours.step()
    pair.check()
    assert pair.ours.skipped_steps == 3


def test_a_late_first_gradient_is_not_dampened() -> None:
    for name in ("SGD-momentum-dampening", "SGDW-momentum"):
        shapes = [(1009,), (5, 3), (7,), (2, 3)]
        pair = Pair(find_case(name), params=[leaf(torch.randn(shape)) for shape in shapes])
        for without in ([1, 2, 3], [2, 3], [0, 3], []):
            pair.step(without)
            pair.check()


# The CPU backend. ------------------------------------------------------------------------------

AGREEMENT_SHAPES = [(1009,), (5, 3), (), (0,), (2, 20011), (4, 3, 3, 3), (3, 4100)]
AGREEMENT_DTYPES = {
    "fp32": DTypes(model=BF16, average=FP32),
    "bf16": DTypes(BF16, BF16, FP32, average=FP32),
    "fp16": DTypes(FP16, FP16, FP16),
    "fp64": DTypes(FP64, FP64, FP64, average=FP64),
}
# Largest difference after two combined steps, in units in the last place of values of at least
# 1/16: the statistics sweep adds in another order, and averages may be small differences.
ULPS = {"fp32": 16, "bf16": 4, "fp16": 2, "fp64": 32}


def agreement(path: Path | str) -> None:
    """Save what the steps of this process's backend leave."""
    results = {}
    for case in CASES:
        for name, dtypes in AGREEMENT_DTYPES.items():
            for kind, options in (("plain", GradOptions()), ("combined", COMBINED)):
                call = Call(case, AGREEMENT_SHAPES, [dtypes], group_size=1, place=shifted)
                for _ in range(2):
                    call.run(options)
                results[case.name, name, kind] = [tensor.clone() for tensor in call.written]
    torch.save(results, path)


def run_on_the_cpu_backend(path: Path) -> dict[tuple[str, str, str], list[Tensor]]:
    """Return what `agreement` saves in a process without the shim."""
    removed = ("FUSEDTRICKS_TEST_SHIM", "LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS")
    code = f"import tests.test_cuda_kernel_memory as t\nt.agreement({str(path)!r})"
    subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in os.environ.items() if name not in removed},
        cwd=Path(__file__).parents[1],
        check=True,
        timeout=300,
    )
    return torch.load(path)


def ulps(a: Tensor, b: Tensor) -> float:
    """Return the largest difference in units in the last place, of 1/16 for smaller values."""
    if a.numel() == 0:
        return 0.0
    _, exponent = torch.frexp(b.double().abs().clamp(min=1 / 16))
    unit = torch.ldexp(torch.full(a.shape, torch.finfo(a.dtype).eps, dtype=FP64), exponent - 1)
    return ((a.double() - b.double()).abs() / unit).max().item()


def test_agreement_with_the_cpu_backend(tmp_path: Path, record_property: Callable) -> None:
    agreement(tmp_path / "ours")
    ours = torch.load(tmp_path / "ours")
    theirs = run_on_the_cpu_backend(tmp_path / "theirs")
    largest = dict.fromkeys(AGREEMENT_DTYPES, 0.0)
    for (case, dtype, kind), tensors in ours.items():
        others = theirs[case, dtype, kind]
        if kind == "plain":
            same = [bits(a) == bits(b) for a, b in zip(tensors, others, strict=True)]
            assert all(same), (case, dtype)
            continue
        found = max(ulps(a, b) for a, b in zip(tensors, others, strict=True))
        largest[dtype] = max(largest[dtype], found)
    record_property("ulps", largest)
    print(f"largest difference of combined steps in ulps: {largest}")
    assert all(largest[dtype] <= ULPS[dtype] for dtype in largest), largest
