"""Learning curves as a picture."""

from collections.abc import Sequence
from typing import IO, Any

from fusedtricks._extras import require

__all__ = ["draw_curves"]

_COLORS = {"clean": "tab:blue", "noisy": "tab:orange"}
# The curves of the two optimizers nearly coincide: a thin dashed line stays visible on a wide one.
_STYLES = {
    "fusedtricks": {"linewidth": 4, "alpha": 0.45},
    "torch": {"linewidth": 1.3, "linestyle": "--", "marker": "o", "markersize": 3},
}


def draw_curves(cases: Sequence[dict[str, Any]], file: IO[bytes]) -> None:
    """Draw loss and test accuracy per epoch of all cases into a PNG of 1500 x 630 pixels.

    Args:
        cases: Entries of `result.json`: `data`, `optimizer` and `history`, a list of records
            with `epoch`, `loss` and `accuracy` (0 to 1).
        file: Where the PNG goes, opened for writing bytes.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    # A figure without pyplot needs no display and leaves nothing behind.
    figure = require("matplotlib.figure").Figure(figsize=(10, 4.2), layout="constrained")
    integers = require("matplotlib.ticker").MaxNLocator(integer=True)
    loss, accuracy = figure.subplots(1, 2)
    for case in cases:
        epochs = [record["epoch"] for record in case["history"]]
        style = _STYLES[case["optimizer"]] | {"color": _COLORS[case["data"]]}
        label = f"{case['data']} labels, {case['optimizer']}"
        loss.plot(epochs, [record["loss"] for record in case["history"]], label=label, **style)
        percent = [100 * record["accuracy"] for record in case["history"]]
        accuracy.plot(epochs, percent, label=label, **style)
    loss.set(xlabel="epoch", ylabel="training loss (nats, smoothed labels)", title="Training loss")
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)", title="Accuracy on clean test labels")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(integers)
        axes.grid(alpha=0.3)
    accuracy.legend(loc="lower right")
    figure.savefig(file, format="png", dpi=150)
