"""The filters of a first layer as a picture."""

import math
from os import PathLike
from typing import IO

import torch
from torch import Tensor

from fusedtricks._extras import require
from fusedtricks.report.figure import save_figure

__all__ = ["draw_filters"]

_INCHES_PER_FILTER = 0.6
_DPI = 120


def draw_filters(weight: Tensor, file: str | PathLike[str] | IO[bytes]) -> None:
    """Draw the filters of a convolution that sees the images, each as a small image.

    A weight w becomes the brightness 0.5 + 0.5 * w / max|w|: zero is grey, and all filters share
    one scale. Filters that still look like noise after training come from a run that is too short,
    a learning rate that does not fit, or too little regularisation; all grey ones are not used.

    Args:
        weight: Shape (O, I, H, W), floating point, finite; I is 1, drawn in grey, or 3, drawn in
            colours.
        file: A path, whose ending tells the format, or a file opened for writing bytes, which gets
            a PNG.

    Raises:
        ValueError: If the shape does not fit, or a weight is inf or NaN.
        TypeError: If weight is no floating point tensor.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> draw_filters(model.conv1.weight, "filters.png")

    Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural
        Networks", figure 3.
    """
    images = _as_images(weight)
    n_columns = math.ceil(math.sqrt(len(images)))
    n_rows = math.ceil(len(images) / n_columns)
    # A figure without pyplot needs no display and leaves nothing behind.
    figure = require("matplotlib.figure").Figure(
        figsize=(_INCHES_PER_FILTER * n_columns, _INCHES_PER_FILTER * n_rows)
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, image in zip(grid.flat, images.tolist(), strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for axes in grid.flat:
        axes.set_axis_off()
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.08, hspace=0.08)
    save_figure(figure, file, _DPI)


def _as_images(weight: Tensor) -> Tensor:
    """Return brightnesses from 0 to 1, shape (O, H, W) or (O, H, W, 3)."""
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"draw_filters: expected weight to be a tensor, such as conv.weight, got "
            f"{type(weight).__name__}"
        )
    if not weight.is_floating_point():
        raise TypeError(
            f"draw_filters: expected weight to be floating point, got {weight.dtype}; draw real "
            "and imaginary parts one by one, or convert it with weight.float()"
        )
    if weight.ndim != 4 or weight.shape[1] not in (1, 3) or weight.numel() == 0:
        raise ValueError(
            f"draw_filters: expected a weight of shape (O, 1, H, W) or (O, 3, H, W), got "
            f"{list(weight.shape)}; only a layer that sees the images can be drawn"
        )
    weight = weight.detach().to("cpu", torch.float64)
    if not weight.isfinite().all():
        raise ValueError("draw_filters: expected finite weights, got inf or NaN")
    largest = weight.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    images = 0.5 + 0.5 * weight / largest
    return images[:, 0] if weight.shape[1] == 1 else images.permute(0, 2, 3, 1)
