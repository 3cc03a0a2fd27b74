"""The batches of a range test, and putting their order and all random numbers back."""

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

__all__ = ["BatchStream", "keep_data_order", "keep_random_numbers"]

# Attributes by which a loader, or what wraps one, holds what decides on the order of the data.
_PARTS = ("loader", "dataloader", "base_dataloader", "sampler", "batch_sampler", "dataset")


class BatchStream:
    """The batches of a loader, again from its start whenever it ends.

    Args:
        loader: An iterable, or an object whose `next()` returns the next batch, such as
            `fusedtricks.train.Batches`.
        device: Where the tensors of every batch are moved to; None leaves them where they are.
    """

    def __init__(self, loader: Any, device: torch.device | str | None) -> None:
        self._loader = loader
        self._device = device
        self._iterator: Iterator[Any] | None = None
        self._n_taken = 0

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            ValueError: If the loader yields nothing, even when it is started anew.
        """
        for _ in range(2):
            if self._iterator is None:
                self._iterator = self._start()
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = None
                continue
            self._n_taken += 1
            return batch if self._device is None else _moved(batch, self._device)
        if self._n_taken == 0:
            raise ValueError(
                "lr_range_test: loader yields no batch; its data may be empty, or fewer than one "
                "batch with drop_last=True"
            )
        raise ValueError(
            f"lr_range_test: loader ended after {self._n_taken} batches and yields none when it is "
            "started again; pass a loader that can be iterated over more than once, such as a "
            "DataLoader, or lower n_updates"
        )

    def close(self) -> None:
        """Let go of the loader's iterator and its workers."""
        self._iterator = None

    def _start(self) -> Iterator[Any]:
        if hasattr(self._loader, "__iter__") or hasattr(self._loader, "__getitem__"):
            return iter(self._loader)
        return iter(self._loader.next, object())


def _moved(batch: Any, device: torch.device | str) -> Any:
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_moved(value, device) for value in batch]
        return batch._make(parts) if hasattr(batch, "_make") else type(batch)(parts)
    return batch


def keep_random_numbers(stack: ExitStack) -> None:
    """Put the global generators of Python, NumPy and torch back when `stack` unwinds.

    NumPy's counts if it has been imported, those of CUDA devices if CUDA is in use.
    """
    stack.callback(random.setstate, random.getstate())
    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        stack.callback(numpy.random.set_state, numpy.random.get_state(legacy=False))


def keep_data_order(loader: Any, stack: ExitStack) -> None:
    """Put the order of the data to come back when `stack` unwinds.

    For the loader, its samplers and its datasets, that is what `state_dict` returns where there is
    one, and else every generator of random numbers among the attributes. A torch DataLoader keeps
    its persistent workers, and a sampler its attributes, such as an epoch.
    """
    for source in _sources(loader):
        attributes = getattr(source, "__dict__", {})
        for value in list(attributes.values()):
            _keep_generator(value, stack)
        if isinstance(source, DataLoader):
            stack.callback(_restore_attributes, attributes, dict(attributes))
            attributes["_iterator"] = None
        elif hasattr(source, "state_dict") and hasattr(source, "load_state_dict"):
            stack.callback(source.load_state_dict, copy.deepcopy(source.state_dict()))
        elif isinstance(source, Sampler):
            stack.callback(_restore_attributes, attributes, dict(attributes))


def _restore_attributes(attributes: dict[str, Any], saved: dict[str, Any]) -> None:
    for name in attributes.keys() - saved.keys():
        del attributes[name]
    attributes.update(saved)


def _sources(loader: Any) -> list[Any]:
    """Return `loader` and the loaders, samplers and datasets inside it, at any depth."""
    sources, seen = [loader], {id(loader)}
    for source in sources:
        attributes = getattr(source, "__dict__", {})
        for name in _PARTS:
            part = attributes.get(name)
            if part is not None and id(part) not in seen:
                seen.add(id(part))
                sources.append(part)
    return sources


def _keep_generator(value: Any, stack: ExitStack) -> None:
    numpy = sys.modules.get("numpy")
    if isinstance(value, torch.Generator):
        stack.callback(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        stack.callback(value.setstate, value.getstate())
    elif numpy is not None and isinstance(value, numpy.random.RandomState):
        stack.callback(value.set_state, value.get_state(legacy=False))
    elif numpy is not None and isinstance(value, numpy.random.Generator):
        generator, state = value.bit_generator, copy.deepcopy(value.bit_generator.state)
        stack.callback(setattr, generator, "state", state)
