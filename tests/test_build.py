"""What the build decides about the CUDA backend: toolkits, versions and torch are faked."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils import cpp_extension

import build_cuda

ROOT = Path(__file__).parents[1]
CUDA_13_ARCHS = ("75", "80", "86", "87", "88", "89", "90", "100", "103", "110", "120", "121")
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
--dryrun) echo "#$ _HERE_={bin}" >&2 ;;
--list-gpu-arch) for arch in {archs}; do echo compute_$arch; done ;;
*) echo "unexpected $*" >&2; exit 1 ;;
esac
"""


def fake_torch(version: str, *, cuda: str | None = None, hip: str | None = None) -> SimpleNamespace:
    """A torch without torch.cuda: a build that looked for a GPU would fail."""
    return SimpleNamespace(__version__=version, version=SimpleNamespace(cuda=cuda, hip=hip))


TORCH_CPU = fake_torch("2.13.0+cpu")
TORCH_12 = fake_torch("2.11.0+cu128", cuda="12.8")
TORCH_13 = fake_torch("2.14.1+cu130", cuda="13.0")
TORCH_ROCM = fake_torch("2.14.1+rocm7.1", hip="7.1.0")


def make_nvcc(root: Path, version: str, archs: tuple[str, ...] = CUDA_13_ARCHS) -> Path:
    """Write a fake toolkit and return its root."""
    path = root / "bin" / "nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NVCC.format(version=version, bin=path.parent, archs=" ".join(archs)))
    path.chmod(0o755)
    return root


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine without any CUDA: `local` is its /usr/local/cuda, `nvidia` its pip packages."""
    local, nvidia = tmp_path / "local" / "cuda", tmp_path / "site-packages" / "nvidia"
    nvidia.mkdir(parents=True)
    monkeypatch.setattr(build_cuda, "DEFAULT_ROOT", local)
    monkeypatch.setattr(
        build_cuda.importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(submodule_search_locations=[str(nvidia)]),
    )
    return SimpleNamespace(local=local, nvidia=nvidia)


def decide(torch: SimpleNamespace, **environ: object) -> build_cuda.CudaBuild | None:
    return build_cuda.decide(torch, {name: str(value) for name, value in environ.items()})


# torch, and what is said of it. There is no nvcc.
WITHOUT = {
    "cpu": (TORCH_CPU, ["torch 2.13.0+cpu is a CPU build", "install one for CUDA"]),
    "rocm": (TORCH_ROCM, ["torch 2.14.1+rocm7.1 is a ROCm build", "install one for CUDA"]),
    "no nvcc 12": (
        TORCH_12,
        ["no nvcc found for torch 2.11.0+cu128", "install the CUDA toolkit 12", "set CUDA_HOME"],
    ),
    "no nvcc 13": (
        TORCH_13,
        [
            "no nvcc found for torch 2.14.1+cu130",
            "install the CUDA toolkit 13 and set CUDA_HOME to it",
            'pip install "cuda-toolkit[nvcc,cccl]==13.0.*"',
        ],
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_says_why_it_builds_without_cuda(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch, texts = WITHOUT[name]
    assert decide(torch) is None
    said = capsys.readouterr().err
    assert said.startswith("fusedtricks: compiling without the CUDA backend: ")
    assert said.count("\n") == 1
    assert all(text in said for text in texts), said
    # Nothing of pip where pip has no nvcc.
    assert ("pip install" in said) == (torch is TORCH_13)


@pytest.mark.parametrize("name", WITHOUT)
def test_wanted_but_impossible_is_an_error(name: str) -> None:
    torch, texts = WITHOUT[name]
    with pytest.raises(RuntimeError) as caught:
        decide(torch, FUSEDTRICKS_CUDA=1)
    said = str(caught.value)
    assert said.startswith("FUSEDTRICKS_CUDA=1: ")
    assert all(text in said for text in (*texts, "or set FUSEDTRICKS_CUDA=0")), said


@pytest.mark.parametrize("switch", ["auto", "1"])
def test_another_cuda_major_is_an_error(switch: str, tmp_path: Path) -> None:
    home = make_nvcc(tmp_path, "12.4")
    with pytest.raises(RuntimeError) as caught:
        decide(TORCH_13, FUSEDTRICKS_CUDA=switch, CUDA_HOME=home)
    assert str(caught.value) == (
        f"FUSEDTRICKS_CUDA={switch}: {home}/bin/nvcc is of CUDA 12.4, torch 2.14.1+cu130 of CUDA "
        "13.0; install the CUDA toolkit 13 and set CUDA_HOME to it, or pip install "
        '"cuda-toolkit[nvcc,cccl]==13.0.*", or a torch for CUDA 12, or set FUSEDTRICKS_CUDA=0 to '
        "go on without the CUDA backend"
    )


def test_another_cuda_minor_is_fine(tmp_path: Path) -> None:
    build = decide(TORCH_12, CUDA_HOME=make_nvcc(tmp_path, "12.4"))
    assert build.toolkit.version == "12.4" and build.toolkit.major == "12"


def test_off_asks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_cuda.decide(None, {"FUSEDTRICKS_CUDA": "0"}) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["FUSEDTRICKS_CUDA", "FUSEDTRICKS_CPP"])
def test_unknown_switch(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected one of auto, 0, 1, got 'yes'"):
        build_cuda.read_switch(name, {name: "yes"})
    assert build_cuda.read_switch(name, {name: ""}) == "auto"


def test_says_what_it_compiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_nvcc(tmp_path, "13.0")
    decide(TORCH_13, CUDA_HOME=home, FUSEDTRICKS_CUDA_ARCHS="80;90")
    expected = f"fusedtricks: compiling the CUDA backend for 80;90 with {home}/bin/nvcc\n"
    assert capsys.readouterr().err == expected


def test_order_of_the_search(tmp_path: Path, machine: SimpleNamespace) -> None:
    places = {
        "CUDA_HOME": make_nvcc(tmp_path / "home", "13.1"),
        "CUDA_PATH": make_nvcc(tmp_path / "path", "13.2"),
        "PATH": make_nvcc(tmp_path / "on-path", "13.3") / "bin",
    }
    make_nvcc(machine.local, "13.4")
    make_nvcc(machine.nvidia / "cu13", "13.5")
    found = []
    for name in [*places]:
        found.append(decide(TORCH_13, **places).toolkit.version)
        del places[name]
    found.append(decide(TORCH_13).toolkit.version)
    (machine.local / "bin" / "nvcc").unlink()
    found.append(decide(TORCH_13).toolkit.version)
    assert found == ["13.1", "13.2", "13.3", "13.4", "13.5"]


def test_a_fitting_toolkit_beyond_another(tmp_path: Path, machine: SimpleNamespace) -> None:
    other = make_nvcc(tmp_path / "other", "12.8")
    make_nvcc(machine.nvidia / "cu13", "13.0")
    assert decide(TORCH_13, PATH=other / "bin").toolkit.root == machine.nvidia / "cu13"
    # A chosen toolkit is not passed over.
    with pytest.raises(RuntimeError, match=r"is of CUDA 12\.8"):
        decide(TORCH_13, CUDA_HOME=other)


def test_nvcc_behind_a_script_or_link(tmp_path: Path) -> None:
    root = make_nvcc(tmp_path / "cuda-13.0", "13.0")
    script, link = tmp_path / "script" / "nvcc", tmp_path / "link" / "nvcc"
    for path in (script, link):
        path.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {root}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    link.symlink_to(root / "bin" / "nvcc")
    for path in (script, link):
        assert decide(TORCH_13, PATH=path.parent).toolkit.root == root


@pytest.mark.parametrize("text", ["exit 3", "echo hello"])
def test_broken_nvcc(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nvcc = make_nvcc(tmp_path, "13.0") / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{text}\n")
    assert decide(TORCH_13, PATH=nvcc.parent) is None
    assert f"no nvcc found for torch 2.14.1+cu130; {nvcc} does not work" in capsys.readouterr().err


def test_archs(tmp_path: Path) -> None:
    # What nvcc 12.6 and 13.0 list.
    old = build_cuda.Toolkit(tmp_path, "12.6", ("70", "75", "80", "86", "87", "89", "90"))
    new = build_cuda.Toolkit(tmp_path, "13.0", CUDA_13_ARCHS)

    def choose(toolkit: build_cuda.Toolkit, text: str | None = None) -> str:
        environ = {} if text is None else {"FUSEDTRICKS_CUDA_ARCHS": text}
        return ";".join(build_cuda.choose_archs(toolkit, environ))

    assert choose(new) == choose(new, "") == "75;80;86;89;90;100;120"
    assert choose(old) == "75;80;86;89;90"
    assert choose(new, "90") == "90"
    assert choose(new, "120; 90;80;90") == "80;90;120"
    for text in ("native", "9.0", "80,90", "90;"):
        with pytest.raises(ValueError, match=f"expected numbers such as 80;90, got '{text}'"):
            choose(new, text)
    with pytest.raises(
        RuntimeError, match="does not compile for 100;120, only for 70;75"
    ) as caught:
        choose(old, "90;100;120")
    assert "install another CUDA toolkit 12" in str(caught.value)


def test_flags(tmp_path: Path) -> None:
    toolkit = build_cuda.Toolkit(tmp_path, "13.0", CUDA_13_ARCHS)
    build = build_cuda.CudaBuild(toolkit, ("80", "90"))
    flags = build_cuda.nvcc_flags(build, n_files=2, environ={"MAX_JOBS": "3"})
    assert [flag for flag in flags if "arch" in flag] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert {"-fmad=false", "--threads=2"} < set(flags)
    assert build_cuda.definitions(build)[1:] == [
        '-DFUSEDTRICKS_CUDA_VERSION="13.0"',
        '-DFUSEDTRICKS_CUDA_ARCHS="80;90"',
    ]
    # torch then adds none, for which it would look for a GPU.
    assert cpp_extension._get_cuda_arch_flags(flags) == []


def test_jobs_and_host_compiler(tmp_path: Path) -> None:
    build = build_cuda.CudaBuild(build_cuda.Toolkit(tmp_path, "13.0", CUDA_13_ARCHS), ("90",))

    def flags(**environ: str) -> list[str]:
        return build_cuda.nvcc_flags(build, n_files=4, environ=environ)

    assert "--threads=1" in flags(MAX_JOBS="1")
    assert "--threads=2" in flags(MAX_JOBS="64")
    assert "-ccbin=g++-13" in flags(CXX="g++-13")
    for environ in ({}, {"CXX": "ccache g++"}, {"CXX": "g++", "NVCC_CCBIN": "g++-12"}):
        assert not any("ccbin" in flag for flag in flags(**environ))


def test_pip_folders(tmp_path: Path, machine: SimpleNamespace) -> None:
    for folder in ("cu13", "cublas", "cuda_runtime", "cudnn"):
        for kind in ("include", "lib"):
            (machine.nvidia / folder / kind).mkdir(parents=True)
    assert build_cuda.pip_folders("13.0", "lib") == [f"{machine.nvidia}/cu13/lib"]
    assert build_cuda.pip_folders("12.8", "include") == [
        f"{machine.nvidia}/{name}/include" for name in ("cublas", "cuda_runtime", "cudnn")
    ]
    (tmp_path / "include" / "cccl").mkdir(parents=True)
    toolkit = build_cuda.Toolkit(tmp_path, "13.0", ("90",))
    assert build_cuda.more_headers(toolkit) == [
        f"{machine.nvidia}/cu13/include",
        f"{tmp_path}/include/cccl",
    ]


# Settings of setup.py that end it before it imports torch, and what it says.
REFUSED = {
    "contradiction": (
        {"FUSEDTRICKS_CPP": "0", "FUSEDTRICKS_CUDA": "1"},
        "FUSEDTRICKS_CUDA=1 cannot be had with FUSEDTRICKS_CPP=0; unset one",
    ),
    "no compiler": (
        {"CXX": "no-such-compiler", "FUSEDTRICKS_CUDA": "1"},
        "FUSEDTRICKS_CUDA=1: no C++ compiler found; install g++ or set CXX",
    ),
    "unknown": (
        {"FUSEDTRICKS_CUDA": "yes"},
        "FUSEDTRICKS_CUDA: expected one of auto, 0, 1, got 'yes'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_setup_refuses(name: str) -> None:
    environ, text = REFUSED[name]
    done = run_setup(environ)
    assert done.returncode == 1
    assert done.stderr.strip() == text


@pytest.mark.parametrize("environ", [{"FUSEDTRICKS_CPP": "0"}, {"CXX": "no-such-compiler"}])
def test_setup_without_compiling(environ: dict[str, str]) -> None:
    done = run_setup(environ)
    assert done.returncode == 0, done.stderr
    said = "fusedtricks: no C++ compiler found, installing without compiled backends"
    assert (said in done.stderr) == ("CXX" in environ)


def run_setup(environ: dict[str, str]) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FUSEDTRICKS_")}
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=kept | environ,
        capture_output=True,
        text=True,
    )
