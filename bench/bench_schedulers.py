"""How long a scheduler's step takes on the host, ours and torch's in turns.

Example:
    python bench/bench_schedulers.py --groups 2
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

import fusedtricks

CASES: dict[str, Callable[[Any, Any], Any]] = {
    "StepLR": lambda module, optimizer: module.StepLR(optimizer, 30),
    "CosineAnnealingLR": lambda module, optimizer: module.CosineAnnealingLR(optimizer, 10**6),
    "OneCycleLR": lambda module, optimizer: module.OneCycleLR(optimizer, 0.1, 10**6),
    "SequentialLR": lambda module, optimizer: module.SequentialLR(
        optimizer,
        [module.LinearLR(optimizer, 0.1, 1.0, 100), module.CosineAnnealingLR(optimizer, 10**6)],
        [100],
    ),
}
MODULES = {"fusedtricks": fusedtricks.lr_scheduler, "torch": torch.optim.lr_scheduler}


def measure(make: Callable[[Any, Any], Any], n_groups: int, rounds: int, steps: int) -> list[float]:
    """Return the median microseconds of a step for each of `MODULES`."""
    schedulers = []
    for module in MODULES.values():
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(n_groups)]
        schedulers.append(make(module, fusedtricks.optim.AdamW(groups, lr=0.1)))
    times: list[list[float]] = [[] for _ in schedulers]
    for _ in range(rounds):
        for scheduler, of_scheduler in zip(schedulers, times, strict=True):
            start = time.perf_counter()
            for _ in range(steps):
                scheduler.step()
            of_scheduler.append(1e6 * (time.perf_counter() - start) / steps)
    return [statistics.median(each) for each in times]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 20], help="(1 2 20)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each (15)")
    parser.add_argument("--steps", type=int, default=300, help="steps in a turn (300)")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore", UserWarning)
    print(f"{'groups':>6}  {'scheduler':<18}" + "".join(f"{m:>13}" for m in MODULES) + "   (us)")
    for n_groups in arguments.groups:
        for name, make in CASES.items():
            medians = measure(make, n_groups, arguments.rounds, arguments.steps)
            print(f"{n_groups:>6}  {name:<18}" + "".join(f"{m:>13.1f}" for m in medians))
    return 0


if __name__ == "__main__":
    sys.exit(main())
