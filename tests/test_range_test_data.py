"""The learning-rate range test: the order of the data comes back, and processes agree."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset

from fusedtricks import optim
from fusedtricks.lr_scheduler.range_test import lr_range_test
from fusedtricks.train import Batches
from tests.noisy_model import build_model, short_test
from tests.processes import in_two_processes

# The order of the data. ---------------------------------------------------------------------------


class Epochs(Sampler):
    """Shuffles by a count of its epochs."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(20).tolist())

    def __len__(self):
        return 20


class Stateful:
    """An iterable whose order is in its state, as that of torchdata's loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches.next, None)

    def state_dict(self):
        return self.batches.state_dict()

    def load_state_dict(self, state):
        self.batches.load_state_dict(state)


class InWorker(torch.utils.data.Dataset):
    """Draws from the generator of the worker."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.rand(1, 8, 8), index % 5


class Augmented(torch.utils.data.Dataset):
    def __init__(self):
        self.numpy = np.random.default_rng(3)
        self.legacy = np.random.RandomState(3)
        self.python = random.Random(3)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        noise = self.numpy.random() + self.legacy.rand() + self.python.random()
        return torch.full((1, 8, 8), noise), index % 5


IMAGES, LABELS = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1)), [0, 1] * 10
DATA = TensorDataset(IMAGES, torch.tensor(LABELS))


def seeded():
    return torch.Generator().manual_seed(6)


def batches():
    return Batches(IMAGES, torch.tensor(LABELS), batch_size=4, seed=3)


def sampler():
    return RandomSampler(DATA, generator=seeded())


LOADERS = {
    "global": lambda: DataLoader(DATA, batch_size=4, shuffle=True),
    "loader": lambda: DataLoader(DATA, batch_size=4, shuffle=True, generator=seeded()),
    "sampler": lambda: DataLoader(DATA, batch_size=4, sampler=sampler()),
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(sampler(), 4, False)),
    "epochs": lambda: DataLoader(DATA, batch_size=4, sampler=Epochs()),
    "augmented": lambda: DataLoader(Augmented(), batch_size=4),
    "wrapped": lambda: type("Wrapper", (), {"__iter__": lambda self: iter(self.loader)})(),
    "persistent workers": lambda: DataLoader(
        InWorker(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "Batches": batches,
    "stateful": lambda: Stateful(batches()),
}


def take(loader, n_batches):
    """Return inputs of the coming batches, from a new start of the loader."""
    if isinstance(loader, Batches):
        return [loader.next()[0] for _ in range(n_batches)]
    return [inputs for (inputs, _), _ in zip(loader, range(n_batches), strict=False)]


@pytest.mark.parametrize("n_before", [0, 5])
@pytest.mark.parametrize("name", LOADERS)
def test_the_data_come_in_the_order_of_a_run_without_a_test(name, n_before):
    results = []
    for tests in (False, True):
        model = build_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loader = LOADERS[name]()
        if name == "wrapped":
            loader.loader = LOADERS["sampler"]()
        torch.manual_seed(9)
        before = take(loader, n_before)
        if tests:
            short_test(model, optimizer, loader)
        results.append([*before, *take(loader, 5), torch.rand(2)])
    for without, after in zip(*results, strict=True):
        assert without.equal(after)


def test_another_start_of_the_loaders_has_another_order():
    for name in LOADERS.keys() - {"wrapped", "persistent workers"}:
        loader = LOADERS[name]()
        assert not torch.stack(take(loader, 5)).equal(torch.stack(take(loader, 5))), name


def test_workers_end_with_the_test():
    model = build_model()
    loader = LOADERS["persistent workers"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    n_alive = []

    def interrupt(*_):
        n_alive.append(len(torch.multiprocessing.active_children()))
        raise KeyboardInterrupt

    # The traceback holds what local variables name.
    with pytest.raises(KeyboardInterrupt) as error:
        short_test(model, optimizer, loader, progress=interrupt)
    n_alive.append(len(torch.multiprocessing.active_children()))
    assert n_alive == [1, 0], error
    assert loader._iterator is None


# Several processes. -------------------------------------------------------------------------------


def batch_loss(model, batch):
    value, factor = batch
    return value + 0 * model(torch.ones(1, 1)).sum() * factor


# Per process: losses. Rank 1 alone would diverge, or meet a NaN; rank 0 alone would go on.
CASES = {
    "not finite": ([4.0, 3.0, 2.0, 1.0, 1.0], [2.0, 5.0, 4.0, float("nan"), 1.0]),
    "diverged": ([2.0, 1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 9.0, 1.0]),
    "end": ([2.0, 1.0, 7.0, 1.0, 1.0], [4.0, 3.0, 2.0, 2.0, 1.0]),
}


def range_tests_of_a_rank(rank):
    found = {}
    for name, losses in CASES.items():
        model = DistributedDataParallel(nn.Linear(1, 1))
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        steps = []
        optimizer.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        loader = [(torch.tensor(loss), 1.0) for loss in losses[rank]]
        result = lr_range_test(
            model,
            optimizer,
            None,
            loader,
            batch_loss=batch_loss,
            n_updates=5,
            smoothing=0,
            divergence=2.4,
        )
        found[name] = [result.reason, result.losses, len(steps)]
    return found


def test_all_processes_record_the_mean_and_stop_together(tmp_path):
    ranks = in_two_processes(range_tests_of_a_rank, tmp_path)
    assert ranks[0] == ranks[1]
    assert ranks[0] == {
        "not finite": ["not finite", [3, 4, 3], 3],
        "diverged": ["diverged", [3, 2, 1.5, 5], 3],
        "end": ["end", [3, 2, 4.5, 1.5, 1], 5],
    }
