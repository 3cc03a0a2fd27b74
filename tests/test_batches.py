"""The batches of the trainer: order, shifts, and going on from a state."""

import pytest
import torch

from fusedtricks.train import Batches


def test_an_epoch_has_every_image_once_in_a_new_order():
    labels = torch.arange(23)
    batches = Batches(torch.zeros(23, 1, 8, 8), labels, batch_size=5, seed=2)
    epochs = [torch.cat([batches.next()[1] for _ in range(len(batches))]) for _ in range(2)]
    for epoch in epochs:
        assert epoch.sort().values.equal(labels)
    assert not epochs[0].equal(epochs[1])
    assert not epochs[0].equal(labels)


def test_shifts_move_the_image_by_at_most_a_pixel():
    image = torch.arange(1.0, 65.0).view(1, 1, 8, 8)
    batches = Batches(image.expand(400, 2, 8, 8), torch.zeros(400).long(), batch_size=400, seed=2)
    shifted, _ = batches.next()
    seen = set()
    for result in shifted:
        assert result[0].equal(result[1])
        # The inner 6x6 pixels tell the shift; nothing else may have changed.
        down, right = divmod(int(image[0, 0, 1, 1] - result[0, 1, 1]), 8)
        if right == 7:
            down, right = down + 1, -1
        seen.add((down, right))
        expected = torch.full((8, 8), 1.0)
        rows, columns = (slice(max(d, 0), 8 + min(d, 0)) for d in (down, right))
        from_rows, from_columns = (slice(max(-d, 0), 8 + min(-d, 0)) for d in (down, right))
        expected[rows, columns] = image[0, 0, from_rows, from_columns]
        assert result[0].equal(expected)
    assert seen == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


@pytest.mark.parametrize("n_taken", [0, 2, 5, 7])
def test_batches_go_on_from_their_state(n_taken):
    images, labels = torch.rand(23, 1, 8, 8), torch.arange(23)
    whole = Batches(images, labels, batch_size=5, seed=2)
    for _ in range(n_taken):
        whole.next()
    state = whole.state_dict()
    resumed = Batches(images, labels, batch_size=5, seed=99)
    resumed.load_state_dict(state)
    for _ in range(8):
        for expected, got in zip(whole.next(), resumed.next(), strict=True):
            assert got.equal(expected)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"labels": torch.arange(22)}, ValueError, r"labels of shape \[23\], .* got \[22\]"),
        ({"labels": torch.zeros(23, 1)}, ValueError, r"labels of shape \[23\], .* got \[23, 1\]"),
        ({"labels": [0] * 23}, TypeError, "expected labels to be a tensor, got list"),
        ({"images": torch.zeros(23, 8, 8)}, ValueError, r"\(N, C, H, W\), .* got \[23, 8, 8\]"),
        ({"images": torch.zeros(0, 1, 8, 8)}, ValueError, r"N at least 1, got \[0, 1, 8, 8\]"),
        ({"batch_size": 0}, ValueError, "expected batch_size of at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size to be a whole number, got 2.5"),
        ({"max_shift": -1}, ValueError, "expected max_shift of at least 0, got -1"),
        ({"max_shift": True}, TypeError, "max_shift to be a whole number, got True"),
    ],
)
def test_batches_refuse_bad_arguments(arguments, error, text):
    good = {"images": torch.zeros(23, 1, 8, 8), "labels": torch.arange(23), "batch_size": 5}
    with pytest.raises(error, match="Batches: .*" + text):
        Batches(**good | {"seed": 2} | arguments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"position": 6}, ValueError, "expected position from 0 to 5, got 6"),
        ({"position": -1}, ValueError, "expected position from 0 to 5, got -1"),
        ({"position": 1.0}, TypeError, "position to be a whole number, got 1.0"),
        ({"order": torch.arange(22)}, ValueError, r"numbers from 0 to 22 once .* shape \[22\]"),
        ({"order": torch.arange(1, 24)}, ValueError, "numbers from 0 to 22 once"),
        ({"order": torch.arange(0)}, ValueError, "numbers from 0 to 22 once"),
        ({"order": [1, 2]}, TypeError, "order to be a tensor, got list"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, RuntimeError, None),
        ({"generator": None}, TypeError, None),
        ("generator", ValueError, "got no 'generator'"),
    ],
)
def test_states_of_other_batches_change_nothing(change, error, text):
    images, labels = torch.rand(23, 1, 8, 8), torch.arange(23)
    batches, twin = (Batches(images, labels, batch_size=5, seed=2) for _ in range(2))
    other = Batches(images, labels, batch_size=5, seed=3)
    for each in (batches, twin, other, other):
        each.next()
    state = other.state_dict()
    if isinstance(change, str):
        del state[change]
        change = {}
    with pytest.raises(error, match=text and f"load_state_dict: .*{text}"):
        batches.load_state_dict(state | change)
    for _ in range(7):
        for expected, got in zip(twin.next(), batches.next(), strict=True):
            assert got.equal(expected)
