"""What happens where the compiled extension is missing, broken, or made for another torch."""

import os
import subprocess
import sys

import pytest
import torch

from fusedtricks import backends

# Each simulates one obstacle before the import; the step must still be right.
OBSTACLES = {
    "not compiled": ("sys.modules['fusedtricks._C'] = None", "was not compiled", False),
    "does not load": (
        "sys.meta_path.insert(0, Broken())",
        "does not load (undefined symbol: _ZN2at)",
        True,
    ),
    "another torch": ("torch.__version__ = '1.99.0'", "torch 1.99.0 is installed", True),
}
SCRIPT = """
import sys, warnings
import torch

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "fusedtricks._C":
            raise ImportError("undefined symbol: _ZN2at")

{obstacle}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fusedtricks
print([str(w.message) for w in caught if "fusedtricks" in str(w.message)])
parameter = torch.nn.Parameter(torch.tensor([3.0]))
parameter.grad = torch.tensor([2.0])
fusedtricks.optim.SGD([parameter], lr=0.5).step()
print(parameter.item())
info = fusedtricks.backends.info()
print(info["backends"]["cpu"]["reason"])
assert fusedtricks.backends.format_info(info).count("no: ") == 3
try:
    fusedtricks.optim.SGD([parameter], lr=0.5, backend="cpu")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("name", OBSTACLES)
def test_without_the_extension(name: str) -> None:
    obstacle, text, warns = OBSTACLES[name]
    script = SCRIPT.format(obstacle=obstacle)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    warned, value, reason, refusal = output.stdout.splitlines()
    assert (text in warned) == warns
    assert float(value) == 2.0
    assert text in reason and "pip install" in reason
    assert refusal == f"backend='cpu' cannot run here: {reason}"


@pytest.mark.parametrize(
    ("device", "archs", "runs"),
    [
        ((9, 0), [75, 80, 90], True),
        ((8, 9), [80], True),  # newer within the major version
        ((8, 6), [75, 90], False),  # neither older code of its major version nor PTX
        ((8, 6), [75, 89], False),
        ((12, 1), [75, 90], True),  # by the PTX of the newest
        ((11, 0), [75, 100, 120], False),
        ((7, 0), [75, 80], False),
    ],
)
def test_on_which_devices_the_kernels_run(
    device: tuple[int, int], archs: list[int], runs: bool
) -> None:
    assert backends._runs_on(*device, archs) == runs


@pytest.mark.parametrize(
    ("backend", "device", "text"),
    [
        ("auto", "cpu", ""),
        ("cpu", "cpu", ""),
        ("cuda", "cpu", "a parameter on cpu: backend='cuda' runs on cuda devices only"),
        ("auto", "meta", "a parameter on meta: only the reference backend runs there"),
        ("cpu", "meta", "a parameter on meta: only the reference backend runs there"),
    ],
)
def test_which_parameters_a_backend_takes(backend: str, device: str, text: str) -> None:
    param = torch.ones(2, device=device)
    library, obstacle = backends.find_library(backend, param, param, differentiable=False)
    assert obstacle == text
    assert library == ("" if text else "fusedtricks")
