"""Batches of growing size: what is in them, processes, micro-batches, continued epochs."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fusedtricks.lr_scheduler import Constant, Piecewise
from fusedtricks.lr_scheduler.batch_sampler import BatchSizeSampler
from fusedtricks.lr_scheduler.batch_size import BatchSizeSchedule

# Batches of 4, then 8 and 16: 6, 3 and 2 updates in an epoch of 22 samples.
SIZES = [[4] * 5 + [2], [8, 8, 6], [16, 6]]


def ramp_of(n=22, **options):
    schedule = Piecewise(["1ep", "2ep"], [1, 0.5, 0.25])
    return BatchSizeSchedule(schedule, 4, n, 3, **options)


def epochs_of(sampler):
    return [list(sampler) for _ in range(3)]


def test_every_epoch_has_every_sample_once_in_batches_of_the_schedule():
    sampler = BatchSizeSampler(ramp_of(), shuffle=True, seed=5)
    orders = []
    for sizes, batches in zip(SIZES, epochs_of(sampler), strict=True):
        assert [len(batch) for batch in batches] == sizes
        orders.append(list(itertools.chain(*batches)))
        assert sorted(orders[-1]) == list(range(22))
    # Three different orders, none of them the sorted one.
    assert len({tuple(order) for order in [*orders, range(22)]}) == 4


def test_the_order_depends_on_seed_and_epoch_only():
    def make(seed):
        return epochs_of(BatchSizeSampler(ramp_of(), shuffle=True, seed=seed))

    def flat(epochs):
        return [tuple(itertools.chain(*batches)) for batches in epochs]

    torch.manual_seed(1)
    first = make(5)
    torch.manual_seed(2)
    assert make(5) == first
    assert not set(flat(first)) & set(flat(make(6)))


def test_without_shuffling():
    sampler = BatchSizeSampler(ramp_of(), shuffle=False, seed=5)
    assert epochs_of(sampler)[2] == [list(range(16)), list(range(16, 22))]


def test_a_last_batch_left_out():
    sampler = BatchSizeSampler(ramp_of(drop_last=True), shuffle=True, seed=5)
    epochs = epochs_of(sampler)
    assert [[len(batch) for batch in batches] for batches in epochs] == [[4] * 5, [8, 8], [16]]
    assert all(len(set(itertools.chain(*batches))) >= 16 for batches in epochs)


def test_in_a_data_loader():
    data = TensorDataset(torch.arange(22) * 10)
    sampler = BatchSizeSampler(ramp_of(), shuffle=True, seed=5)
    expected = epochs_of(BatchSizeSampler(ramp_of(), shuffle=True, seed=5))
    loader = DataLoader(data, batch_sampler=sampler)
    for epoch, batches in enumerate(expected):
        assert (sampler.epoch, len(loader)) == (epoch, len(batches))
        assert [batch.tolist() for (batch,) in loader] == [
            [10 * index for index in batch] for batch in batches
        ]
    assert (sampler.epoch, sampler.update, len(sampler)) == (3, 11, 0)
    with pytest.raises(ValueError, match="all 3 epochs are over; make ramp with more"):
        iter(sampler)


def test_processes_share_the_batches_of_one():
    ramp = ramp_of(n=24)
    alone = epochs_of(BatchSizeSampler(ramp, shuffle=True, seed=5))
    pair = [
        epochs_of(BatchSizeSampler(ramp, shuffle=True, seed=5, rank=rank, num_replicas=2))
        for rank in range(2)
    ]
    for epoch in range(3):
        for batch, first, second in zip(alone[epoch], pair[0][epoch], pair[1][epoch], strict=True):
            assert first + second == batch
            assert len(first) == len(second)


def test_micro_batches():
    ramp = ramp_of(multiple=4)
    whole = epochs_of(BatchSizeSampler(ramp, shuffle=True, seed=5))
    sampler = BatchSizeSampler(ramp, shuffle=True, seed=5, micro_batch=4)
    parts = [[4], [4], [4], [4], [4], [2]], [[4, 4], [4, 4], [4, 2]], [[4, 4, 4, 4], [4, 2]]
    for batches, sizes in zip(whole, parts, strict=True):
        n_parts = len(sampler)
        found = [[]]
        for index, part in enumerate(sampler):
            found[-1].append(part)
            if sampler.is_update_end(index):
                found.append([])
        assert found.pop() == []
        assert [[len(part) for part in update] for update in found] == sizes
        assert [list(itertools.chain(*update)) for update in found] == batches
        assert n_parts == sum(map(len, sizes))


def test_micro_batches_of_processes():
    sampler = BatchSizeSampler(
        ramp_of(n=24, multiple=4), shuffle=False, seed=5, micro_batch=2, rank=1, num_replicas=2
    )
    list(sampler)
    # 8 samples: the second four of them, in twos.
    assert list(sampler)[:4] == [[4, 5], [6, 7], [12, 13], [14, 15]]
    assert [sampler.is_update_end(index) for index in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("micro_batch", [None, 4, 1])
@pytest.mark.parametrize("n_updates", range(12))
def test_a_state_continues_in_the_middle_of_an_epoch(n_updates, micro_batch):
    def make(micro):
        return BatchSizeSampler(ramp_of(multiple=4), shuffle=True, seed=5, micro_batch=micro)

    expected = list(itertools.chain(*epochs_of(make(None))))[n_updates:]
    sampler = make(micro_batch)
    while sampler.update < n_updates:
        for index, _ in enumerate(sampler):
            if sampler.is_update_end(index) and sampler.update == n_updates:
                break
    state = sampler.state_dict()
    assert state["update"] == n_updates
    # Also if one has looked into the next update already, whose gradients no checkpoint has.
    other = make(None)
    other.load_state_dict(state)
    rest = []
    while other.update < 11:
        n_batches = len(other)
        batches = list(other)
        assert n_batches == len(batches)
        rest += batches
    assert rest == expected


def test_a_state_within_an_update_goes_back_to_its_beginning():
    sampler = BatchSizeSampler(ramp_of(multiple=4), shuffle=True, seed=5, micro_batch=4)
    list(sampler)
    batches = iter(sampler)
    next(batches)
    assert sampler.state_dict()["update"] == 6
    next(batches)
    assert sampler.state_dict()["update"] == 7


def test_a_state_for_a_loader_that_fetches_ahead():
    sampler = BatchSizeSampler(ramp_of(), shuffle=True, seed=5)
    ahead = list(sampler)
    sampler.load_state_dict(sampler.state_dict(update=2))
    assert list(sampler) == ahead[2:]


def test_an_iteration_left_early_is_continued():
    whole = list(BatchSizeSampler(ramp_of(), shuffle=True, seed=5))
    sampler = BatchSizeSampler(ramp_of(), shuffle=True, seed=5)
    start = list(itertools.islice(sampler, 2))
    assert len(sampler) == 6
    rest = iter(sampler)
    assert len(sampler) == 4
    assert start + list(rest) == whole


def test_states_of_other_batches_are_refused():
    sampler = BatchSizeSampler(ramp_of(), shuffle=True, seed=5)
    list(sampler)
    for other, name in (
        (BatchSizeSampler(ramp_of(), shuffle=True, seed=6), "seed=5, this sampler 6"),
        (BatchSizeSampler(ramp_of(), shuffle=False, seed=5), "shuffle=True, this sampler False"),
        (BatchSizeSampler(ramp_of(n=23), shuffle=True, seed=5), "ramp=BatchSizeSchedule"),
    ):
        with pytest.raises(ValueError, match=f"the checkpoint has {name}"):
            other.load_state_dict(sampler.state_dict())
        assert other.update == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "num_replicas": 2}, "rank from 0 to num_replicas - 1 = 1, got 2"),
        ({"rank": -1, "num_replicas": 2}, "rank from 0 to num_replicas - 1 = 1, got -1"),
        ({"num_replicas": 0}, "rank from 0 to num_replicas - 1 = -1, got 0"),
        ({"micro_batch": 0}, "micro_batch of at least 1, got 0"),
        ({"micro_batch": 3}, "micro_batch to divide the batch size 4 of update 0, got 3"),
        ({"num_replicas": 3}, "num_replicas to divide the 4 samples of update 0, got 3"),
        # The last batch of the first epoch has 2 samples.
        ({"num_replicas": 4}, "num_replicas to divide the 2 samples of update 5, got 4"),
        ({"num_replicas": 2, "micro_batch": 4}, "to divide the batch size 4 of update 0, got 8"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        BatchSizeSampler(ramp_of(), shuffle=True, seed=5, **options)


def test_a_ramp_of_another_type():
    with pytest.raises(TypeError, match="expected ramp to be a BatchSizeSchedule, got Constant"):
        BatchSizeSampler(Constant(0.5), shuffle=True, seed=5)
