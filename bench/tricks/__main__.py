"""Try every trick on noisy and on clean digits: test errors over seeds, compared seed by seed.

An effect counts if the 99 % confidence interval of the mean difference excludes 0.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from bench import report
from bench.progress import Progress
from bench.tricks.arm import Arm
from bench.tricks.arms import ARMS
from bench.tricks.summary import markdown, summarize
from bench.tricks.training import Problem

EXAMPLE = "python -m bench.tricks --tricks mixup cutout --seeds 5"
Task = tuple[str, float, int]


def run(task: Task) -> float:
    """Return the test error in percent of one training run: an arm, a share of noise, a seed."""
    name, noise, seed = task
    torch.set_num_threads(1)
    problem = Problem.make(seed, noise)
    return problem.error(ARMS[name].train(problem))


def with_baselines(names: Sequence[str]) -> list[Arm]:
    """Return the arms of these names and those that they are compared with, in order."""
    wanted = set(names) | {ARMS[name].baseline for name in names}
    return [arm for arm in ARMS.values() if arm.name in wanted]


def measure(
    arms: Sequence[Arm], noises: Sequence[float], n_seeds: int, workers: int
) -> dict[Task, float]:
    """Run everything, in other processes, and return the test errors."""
    tasks = [(arm.name, noise, seed) for arm in arms for noise in noises for seed in range(n_seeds)]
    errors: dict[Task, float] = {}
    with ProcessPoolExecutor(workers) as pool, Progress(1) as progress:
        futures = {pool.submit(run, task): task for task in tasks}
        progress.begin(f"{len(tasks)} runs")
        for future in as_completed(futures):
            errors[futures[future]] = future.result()
            progress.at(len(errors) / len(tasks))
    return errors


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the results.

    Returns:
        Exit code 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tricks", nargs="+", choices=ARMS, metavar="NAME", help="(all)")
    parser.add_argument("--list", action="store_true", help="print the tricks and their settings")
    parser.add_argument("--seeds", type=report.positive, default=10, help="runs of each (10)")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.4, 0.0], help="(0.4 0)")
    parser.add_argument("--workers", type=report.positive, default=4, help="processes (4)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md; the folder must exist")
    arguments = parser.parse_args(argv)
    if arguments.list:
        for arm in ARMS.values():
            print(f"{arm.name:<24} {arm.settings} (beside {arm.baseline})")
        return 0
    if arguments.seeds < 2:
        parser.error(f"argument --seeds: expected 2 or more for an interval, got {arguments.seeds}")
    for noise in arguments.noise:
        if not 0 <= noise <= 1:
            parser.error(f"argument --noise: expected shares in [0, 1], got {noise}")
    arms = with_baselines(arguments.tricks or list(ARMS))
    errors = measure(arms, arguments.noise, arguments.seeds, arguments.workers)
    rows = summarize(arms, errors)
    sections = [(f"{noise:.0%} wrong labels", markdown(rows, noise)) for noise in arguments.noise]
    for title, body in sections:
        print(f"\n{title}\n\n{body}")
    report.write_results(arguments.out, rows, sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
