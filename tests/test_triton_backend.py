"""Where the Triton backend runs, what is said where it does not, its launches and uploads."""

import importlib.util
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtricks import _triton, backends, ops, optim
from tests import devices
from tests.pairs import leaf

pytestmark = pytest.mark.skipif(
    not devices.HAS_TRITON or devices.DEVICE.type != "cpu",
    reason="needs Triton's interpreter: pip install triton, and no FUSEDTRICKS_TEST_SHIM",
)
KWARGS = {"lr": 0.03, "betas": (0.81, 0.93), "eps": 2e-3, "weight_decay": 0.13}
COMBINED = {"clip_grad_norm": 0.7, "clip_grad_value": 0.9, "centralize_grad": True}


# Availability. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "text"),
    [("3.5.1", "Triton 3.5.1 is installed and 3.6 or newer is needed"), ("2.10", "Triton 2.10 is")],
)
def test_a_triton_that_is_too_old(version: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "version", lambda: version)
    assert text in _triton._find_missing() and "pip install" in _triton._find_missing()


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "4.0", "3.9.0+git1234", ""])
def test_a_triton_that_is_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "version", lambda: version)
    assert _triton._find_missing() == ""


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_triton, "missing_reason", _triton._find_missing())
    assert "Triton is not installed; install it with: pip install" in _triton.missing_reason
    entry = backends.info()["backends"]["triton"]
    assert entry == {"available": False, "reason": _triton.missing_reason}
    with pytest.raises(RuntimeError, match="backend='triton' cannot run here: Triton is not inst"):
        optim.AdamW([leaf(torch.ones(2))], backend="triton", **KWARGS)
    with pytest.raises(RuntimeError, match="no kernels for this device: Triton is not installed"):
        torch.ops.fusedtricks_triton.finalize_statistics([torch.ones(2).double()], 0.7)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "INTERPRETS", False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert "install gcc or set CC" in _triton._find_missing()
    monkeypatch.setenv("CC", "gcc")
    assert _triton._find_missing() == ""


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    param = leaf(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = optim.AdamW([param], backend="triton", **KWARGS)
    monkeypatch.setattr(_triton, "INTERPRETS", False)
    assert "set TRITON_INTERPRET=1 to try the kernels on the CPU" in backends.missing("triton")
    # As if the optimizer had been made for a model on a GPU that was moved to the CPU since.
    match = "cannot take a parameter on cpu: Triton kernels run on GPUs only.*use backend='auto'"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    assert torch.equal(param, torch.ones(2)) and not optimizer.state


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_a_dtype_that_kernels_do_not_take(dtype: torch.dtype) -> None:
    usual, unusual = leaf(torch.ones(3)), leaf(torch.ones(3).to(dtype))
    for param in (usual, unusual):
        param.grad = torch.ones(3).to(param.dtype)
    optimizer = optim.AdamW([usual, unusual], backend="triton", **KWARGS)
    with pytest.raises(RuntimeError, match=f"of dtype {dtype}; use backend='auto'"):
        optimizer.step()
    assert torch.equal(usual, torch.ones(3)) and not optimizer.state


# Choice. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compiled", "device_fits", "triton", "library"),
    [
        (True, True, True, ops.LIBRARY),  # compiled CUDA kernels first
        (True, False, True, ops.TRITON_LIBRARY),  # compiled for other GPUs
        (False, False, True, ops.LIBRARY),  # Triton implements the common ops
        (False, False, False, ""),
        (True, False, False, ""),
    ],
)
def test_what_auto_takes_on_a_gpu(
    compiled: bool,
    device_fits: bool,
    triton: bool,
    library: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    obstacle = "" if device_fits else "compiled for other devices"
    monkeypatch.setattr(backends, "_NO_KERNELS", "" if compiled else "compiled without CUDA")
    monkeypatch.setattr(backends, "_device_obstacle", lambda device: obstacle)
    monkeypatch.setattr(_triton, "missing_reason", "" if triton else "Triton is not installed")
    monkeypatch.setattr(_triton, "device_obstacle", lambda device: "")
    found, reason = backends._library_for("auto", torch.device("cuda"))
    assert found == library
    assert bool(reason) == (not library)
    explicit, reason = backends._library_for("triton", torch.device("cuda"))
    assert (explicit, reason) == (
        (ops.TRITON_LIBRARY, "") if triton else ("", "Triton is not installed")
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_info_says_what_auto_takes_and_why(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "" if compiled else "the extension was compiled without CUDA; reinstall"
    monkeypatch.setattr(backends, "_NO_KERNELS", reason)
    monkeypatch.setattr(backends, "_device_obstacle", lambda device: "")
    monkeypatch.setattr(_triton, "device_obstacle", lambda device: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    info = backends.info()
    expected = {"backend": "cuda" if compiled else "triton", "reason": reason}
    assert info["auto"]["cuda:0"] == expected
    text = backends.format_info(info)
    assert f"cuda:0     {expected['backend']}" in text and reason in text


def test_auto_does_not_take_the_interpreter() -> None:
    param = torch.ones(2)
    library, _ = backends.find_library("auto", param, param, differentiable=False)
    assert library in ("", ops.LIBRARY)
    library, _ = backends.find_library("triton", param, param, differentiable=False)
    assert library == ops.TRITON_LIBRARY


# Launches and uploads. ----------------------------------------------------------------------------


class CountedKernel:
    """Counts the launches of a kernel."""

    def __init__(self, kernel: Any, counts: Counter[str]) -> None:
        self.kernel, self.counts = kernel, counts

    def __getitem__(self, grid: Any) -> Any:
        self.counts["launches"] += 1
        return self.kernel[grid]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count launches and uploads from now on."""
    from fusedtricks.kernels import statistics, tables, update

    counted: Counter[str] = Counter()
    for module, name in (
        (update, "update_kernel"),
        (statistics, "statistics_kernel"),
        (statistics, "finalize_kernel"),
    ):
        monkeypatch.setattr(module, name, CountedKernel(getattr(module, name), counted))
    upload = tables.upload

    def counting_upload(values: Tensor, device: torch.device) -> Tensor:
        counted["uploads"] += 1
        return upload(values, device)

    monkeypatch.setattr(tables, "upload", counting_upload)
    return counted


def mixed_groups() -> list[dict[str, Any]]:
    """Return groups with different dtypes and options."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    return [
        {
            "params": [leaf(torch.randn(shape).to(dtype)) for shape in [(5, 3), (7,), ()] * 8],
            "weight_decay": decay,
            "maximize": maximize,
        }
        for dtype, decay, maximize in zip(
            dtypes, (0.13, 0.0, 0.2), (False, True, False), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("extras", "expected"), [({}, 1), (COMBINED, 3)], ids=["plain", "combined"]
)
def test_launches_do_not_depend_on_the_number_of_tensors(
    extras: dict[str, Any], expected: int, counts: Counter[str]
) -> None:
    optimizer = optim.Adam(mixed_groups(), backend="triton", **(KWARGS | extras))
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    for _ in range(2):
        counts.clear()
        optimizer.step()
        assert counts["launches"] == expected


def test_tables_are_uploaded_only_when_they_change(counts: Counter[str]) -> None:
    params = [leaf(torch.randn(shape)) for shape in [(5, 3), (7,), (40, 11)]]
    optimizer = optim.AdamW(params, backend="triton", **(KWARGS | COMBINED))
    first = [torch.randn_like(p) for p in params]
    second = [torch.randn_like(p) for p in params]

    def step(grads: list[Tensor]) -> int:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        counts.clear()
        optimizer.step()
        return counts["uploads"]

    assert step(first) > 0
    assert step(first) == 0
    # One table of addresses for each sweep.
    assert step(second) == 2
    assert step(first) == 0 and step(second) == 0
    optimizer.param_groups[0]["lr"] = 0.05
    assert step(first) == 1
    assert step(first) == 0
