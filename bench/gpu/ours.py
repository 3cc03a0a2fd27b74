"""Our backends on the device at hand: which of them a part is to run, and whether they can."""

import argparse

import torch

from bench.gpu.part import NotAvailable
from fusedtricks import backends

# Those of GPUs.
BACKENDS = ("cuda", "triton")


def missing(backend: str, device: torch.device) -> str:
    """Return why a backend cannot update parameters on a device, empty if it can."""
    entry = backends.info()["backends"].get(backend)
    if entry is None:
        return "no such backend"
    if not entry["available"]:
        return entry["reason"] or "not available"
    if backend == "reference":
        return ""
    sample = torch.zeros(1, device=device)
    return backends.find_library(backend, sample, sample, False)[1]


def name_on(backend: str, device: torch.device) -> str:
    """Return what a rehearsal on the CPU takes for a backend of GPUs, on a GPU its name."""
    # The Triton kernels run on the CPU too, in Triton's interpreter.
    return "auto" if backend == "cuda" and device.type == "cpu" else backend


def add_option(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the option `--backend`; return the parser."""
    parser.add_argument("--backend", choices=BACKENDS, default="cuda", help="default: %(default)s")
    return parser


def chosen(options: argparse.Namespace) -> str:
    """Return the backend of the command line, or what stands for it.

    Raises:
        NotAvailable: If it cannot run here.
    """
    name = name_on(options.backend, options.device)
    reason = "" if name == "auto" else missing(name, options.device)
    if reason:
        raise NotAvailable(f"backend={name!r}: {reason}")
    return name
