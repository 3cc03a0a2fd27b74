"""Draws the picture of docs/monitoring.md: a small network on the digits, and its `Monitor`."""

import argparse
import io
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from fusedtricks import optim
from fusedtricks.data import load_digits
from fusedtricks.report.filters import draw_filters
from fusedtricks.report.monitor import draw_histograms, draw_monitor
from fusedtricks.train import Batches
from fusedtricks.train.diagnosis import diagnose
from fusedtricks.train.monitor import Monitor

FILE = Path(__file__).parent / "images" / "monitor.png"
# A drawing of curves and heat maps needs no more, and takes a third of the bytes.
_N_COLORS = 128


def build_model() -> nn.Sequential:
    """Return four convolutions with ReLU, and a linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width_in = 1
    for index, width in enumerate((16, 32, 32, 64), start=1):
        kernel_size = 5 if index == 1 else 3
        layers[f"conv{index}"] = nn.Conv2d(width_in, width, kernel_size, padding="same")
        layers[f"relu{index}"] = nn.ReLU()
        width_in = width
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["head"] = nn.Linear(width_in, 10)
    return nn.Sequential(layers)


def train(n_updates: int, every: int) -> tuple[nn.Sequential, dict[str, Any]]:
    """Train the model and return it, with the state of its monitor."""
    torch.manual_seed(0)
    digits = load_digits()
    batches = Batches(digits.train_images, digits.train_labels, batch_size=64, seed=0)
    model = build_model()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    names = [name for name, _ in model.named_children() if name not in ("pool", "flatten")]
    with Monitor(model, every=every, layers=names) as monitor:
        for _ in range(n_updates):
            images, labels = batches.next()
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
        return model, monitor.state_dict()


def draw(model: nn.Sequential, state: dict[str, Any], path: Path) -> None:
    """Draw curves, heat maps and the first layer's filters below each other."""
    files = [io.BytesIO() for _ in range(4)]
    draw_monitor(state, files[0])
    layers = ["conv1", "conv2", "conv3", "conv4"]
    draw_histograms(state, files[1], layers=layers)
    draw_histograms(state, files[2], layers=layers, kind="gradient")
    draw_filters(model.conv1.weight, files[3])
    images = [Image.open(file).convert("RGB") for file in files]
    page = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        page.paste(image, ((page.width - image.width) // 2, top))
        top += image.height
    page.quantize(_N_COLORS, dither=0).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and draw.

    Returns:
        Exit code 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python docs/draw_monitor.py\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=FILE, help="the picture")
    parser.add_argument("--updates", type=int, default=400, help="length of the run (400)")
    parser.add_argument("--every", type=int, default=10, help="updates between records (10)")
    arguments = parser.parse_args(argv)
    # The run depends on the number of threads, in its last bits at first and more and more later.
    torch.set_num_threads(1)
    model, state = train(arguments.updates, arguments.every)
    draw(model, state, arguments.out)
    for finding in diagnose(state["losses"], n_classes=10):
        print(f"{finding.kind}: {finding.message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
