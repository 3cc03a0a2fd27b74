"""Other processes: two of a gloo group, and one whose Triton compiles."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

ROOT = Path(__file__).resolve().parent.parent


def in_two_processes(worker: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Return what worker(rank, *arguments) returned in each process, rank 0 first.

    Args:
        worker: A function of a module, because the processes import it. Its result is pickled.
        folder: An empty one, for the files that the processes exchange.
        arguments: For the worker; pickled as well.
    """
    torch.multiprocessing.spawn(_run, (worker, str(folder), arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _run(rank: int, worker: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torch.save(worker(rank, *arguments), f"{folder}/{rank}.pt")
    # A group that DDP's reducers still hold when Python exits may abort the process.
    gc.collect()
    distributed.destroy_process_group()


def compiled_by(module: str) -> dict[str, Any]:
    """Return the JSON that a module of tests prints about kernels it compiles for GPUs.

    In another process, because this one has Triton's interpreter switched on.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    cache = os.environ.get("TRITON_CACHE_DIR", str(ROOT / "build" / "triton-code"))
    output = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stdout[-2000:] + output.stderr[-4000:]
    return json.loads(output.stdout)
