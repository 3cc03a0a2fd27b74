"""Files that are either complete or not there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

__all__ = ["read_checkpoint", "write_atomically", "write_checkpoint", "write_json"]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Create or replace a file so that no reader ever sees a part of it.

    Args:
        path: The file; its folder is made if it does not exist.
        write: Writes the content to the binary file it is given.

    Raises:
        OSError: If the file cannot be written; an existing one is as it was then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace does not cross file systems. One name for all times:
    # what a killed process leaves is overwritten by the next write.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them with torch.save, atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, without running any code from the file.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load has no common error class for a damaged file.
        raise ValueError(
            f"{path} is no checkpoint or is damaged ({error}); delete it to start over"
        ) from error
