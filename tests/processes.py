"""Two processes of a gloo group on one machine."""

import gc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed


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
