"""Draws the range test of docs/schedules.md: the demo's network on the digits."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from fusedtricks import optim
from fusedtricks.data import load_digits
from fusedtricks.lr_scheduler import lr_range_test
from fusedtricks.nn import SmallResNet
from fusedtricks.train import Batches

FILE = Path(__file__).parent / "images" / "range_test.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the test and draw it.

    Returns:
        Exit code 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python docs/draw_range_test.py\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=FILE, help="the picture")
    parser.add_argument("--updates", type=int, default=150, help="updates of each repetition (150)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    digits = load_digits(noise=0.4)
    batches = Batches(digits.train_images, digits.train_labels, batch_size=64, seed=0)
    model = SmallResNet()
    result = lr_range_test(
        model,
        optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        functional.cross_entropy,
        batches,
        start_lr=1e-4,
        end_lr=1.0,
        n_updates=arguments.updates,
        repeats=5,
        smoothing=0.9,
    )
    result.plot(arguments.out)
    print(result.suggestions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
