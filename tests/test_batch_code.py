"""What the kernel for batches of images compiles to, on every architecture; needs no GPU."""

from typing import Any

import pytest

from tests.processes import compiled_by

pytest.importorskip("triton", reason="Triton is not installed; pip install triton")

NVIDIA = pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
Reports = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Reports]:
    return compiled_by("tests.batch_code")


def of_target(compiled: dict[str, Reports], target: str) -> Reports:
    chosen = {n: report for n, report in compiled["variants"].items() if report["target"] == target}
    assert len(chosen) >= {"gfx": 2, "sm_": 6}[target[:3]]
    return chosen


@NVIDIA
def test_stores_take_16_bytes(compiled, target):
    for name, report in of_target(compiled, target).items():
        # Eight elements of a thread.
        if report["is_aligned"]:
            assert report["wide_stores"] == report["stores"] == 8 // report["group"], (name, report)
        else:
            assert "odd images" in name and report["wide_stores"] == 0, (name, report)


@NVIDIA
def test_bytes_are_loaded_in_groups_where_they_lie_in_groups(compiled, target):
    for name, report in of_target(compiled, target).items():
        n_images = 2 if report["plan"] in ("mixed", "blended") else 1
        loaded = {int(size): n for size, n in report["loaded"].items()}
        # Boxes of 4 numbers and partners of 8 bytes, shares of 4.
        of_plan = {"mixed": {8: 9, 4: 1}, "blended": {8: 1, 4: 1}, "cut": {8: 4}, "plain": {}}
        for size, n in of_plan[report["plan"]].items():
            loaded[size] = loaded[size] - n
        loaded = {size: n for size, n in loaded.items() if n}
        in_groups = report["is_flat"] and report["is_aligned"]
        size = report["group"] if in_groups else 1
        assert loaded == {size: n_images * 8 // size}, (name, report)


@NVIDIA
def test_nothing_is_spilled_or_exchanged(compiled, target):
    for name, report in of_target(compiled, target).items():
        assert report["stack_bytes"] == 0, (name, report)
        assert report["registers"] <= report["max_registers"], (name, report)
        assert report["shared"] == 0 or not report["is_aligned"], (name, report)


@NVIDIA
def test_arithmetic_is_float32_and_as_written(compiled, target):
    for name, report in of_target(compiled, target).items():
        assert report["float64"] == [] and report["contracted"] == [], (name, report)


@NVIDIA
def test_a_batch_without_tricks_takes_few_instructions(compiled, target):
    # The whole program, for 8 elements of a thread. An H100 issues 26 for each element of 16 bits
    # in the time that its memory takes.
    counts = compiled["instructions"][target]
    assert 80 < counts["last to last"] < 8 * 22
    # Byte by byte from three planes; docs/batch.md has the figures for sm_90.
    assert 4 <= (counts["first to last"] - counts["last to last"]) / 8 <= 12


def test_launches_compile_a_kernel_for_each_kind_of_plan_only(compiled):
    launches = compiled["launches"]
    assert len(launches["alike"]) == 3 and len(set(launches["alike"])) == 1
    assert len(set(launches["different"])) == 4
    assert launches["different"][0] == launches["alike"][0]


@pytest.mark.parametrize("target", ["gfx90a", "gfx942"])
def test_the_kernel_compiles_for_amd(compiled, target):
    for name, report in of_target(compiled, target).items():
        assert report["bytes"] > 1000 and report["spills"] == 0, (name, report)
        assert report["wide_stores"] == 8 // report["group"], (name, report)


def test_the_checks_notice_what_they_look_for(compiled):
    assert compiled["controls"]["few registers"]["stack_bytes"] > 0
    assert compiled["controls"]["fused"]["contracted"] != []
