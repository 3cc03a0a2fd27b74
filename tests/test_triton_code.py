"""What the Triton kernels compile to, for every variant and architecture; needs no GPU."""

from typing import Any

import pytest

from tests.processes import compiled_by

pytest.importorskip("triton", reason="Triton is not installed; pip install triton")


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, dict[str, Any]]]:
    return compiled_by("tests.triton_code")


@pytest.fixture(scope="module")
def reports(compiled: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return compiled["variants"]


def of_target(reports: dict[str, dict[str, Any]], prefix: str) -> dict[str, dict[str, Any]]:
    chosen = {name: report for name, report in reports.items() if report["target"] == prefix}
    assert chosen, f"nothing was compiled for {prefix}"
    return chosen


NVIDIA = pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])


@NVIDIA
def test_every_variant_was_compiled(reports: dict[str, dict[str, Any]], target: str) -> None:
    names = of_target(reports, target)
    # 4 adam, 2 adagrad, 8 rmsprop and 6 sgd variants, and what else tests/triton_code.py lists.
    assert sum("update" in name and "fp32 " in name + " " for name in names) >= 20
    assert sum("statistics" in name for name in names) >= 10


@NVIDIA
def test_full_blocks_take_16_byte_accesses(reports: dict[str, dict[str, Any]], target: str) -> None:
    for name, report in of_target(reports, target).items():
        assert report["wide_loads"] == report["expected_loads"], (name, report)
        assert report["wide_stores"] == report["expected_stores"], (name, report)


@NVIDIA
def test_nothing_is_spilled(reports: dict[str, dict[str, Any]], target: str) -> None:
    for name, report in of_target(reports, target).items():
        assert report["instructions"] > 100, f"the machine code of {name} was not read"
        assert report["spills"] == 0, (name, report)
        assert report["registers"] <= report["max_registers"], (name, report)


@NVIDIA
def test_float_kernels_have_no_float64_arithmetic(
    reports: dict[str, dict[str, Any]], target: str
) -> None:
    for name, report in of_target(reports, target).items():
        if "fp64" not in name:
            assert report["float64_before_ticket"] == [], (name, report)
        else:
            assert report["float64_before_ticket"], f"the check does not see float64 in {name}"


@NVIDIA
def test_arithmetic_is_neither_contracted_nor_approximate(
    reports: dict[str, dict[str, Any]], target: str
) -> None:
    for name, report in of_target(reports, target).items():
        assert report["contracted"] == [], (name, report)


@pytest.mark.parametrize("target", ["gfx90a", "gfx942"])
def test_the_kernels_compile_for_amd(reports: dict[str, dict[str, Any]], target: str) -> None:
    chosen = of_target(reports, target)
    assert len(chosen) >= 12
    for name, report in chosen.items():
        assert report["bytes"] > 1000, name
        assert report["spills"] == 0, (name, report)
        # Addresses, to lanes of a vector register and not to memory, with all streams there are.
        allowed = 8 if name.endswith("bf16-masters 0 average") else 0
        assert report["scalar_spills"] <= allowed, (name, report)


def test_the_kernel_between_the_sweeps_compiles(compiled: dict[str, Any]) -> None:
    finalize = compiled["finalize"]
    assert finalize.keys() == {"sm_80", "sm_90", "sm_100", "gfx90a", "gfx942"}
    assert all({"cubin", "hsaco"} & set(stages) for stages in finalize.values())


def test_the_checks_notice_what_they_look_for(
    compiled: dict[str, dict[str, dict[str, Any]]],
) -> None:
    assert compiled["controls"]["few registers"]["spills"] > 0
    assert compiled["controls"]["fused"]["contracted"] != []
