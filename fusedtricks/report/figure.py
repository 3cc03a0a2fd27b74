"""Where a picture goes."""

from os import PathLike
from typing import IO, Any

__all__ = ["save_figure"]


def save_figure(figure: Any, file: str | PathLike[str] | IO[bytes], dpi: int) -> None:
    """Write a `matplotlib.figure.Figure`.

    Args:
        figure: The figure.
        file: A path, whose ending tells the format, or a file opened for writing bytes, which gets
            a PNG.
        dpi: Pixels per inch.
    """
    options = {} if isinstance(file, str | PathLike) else {"format": "png"}
    figure.savefig(file, dpi=dpi, **options)
