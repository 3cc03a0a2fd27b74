"""Targets keep distributions and what was done to them."""

import copy
import pickle

import pytest
import torch

from fusedtricks.targets import Targets, as_targets


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=0)


def mixture() -> Targets:
    """Sample 0: 0.25 of class 2, 0.75 of class 1. Sample 1: class 0."""
    return Targets(torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[2, 1], [0, 0]]))


def test_labels_become_certain_classes():
    targets = as_targets(torch.tensor([2, 0], dtype=torch.uint8))
    assert_equal(targets.probabilities(3), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert_equal(targets.labels, [2, 0])
    assert len(targets) == 2
    assert (targets.smoothing, targets.is_mixed) == (0.0, False)


def test_probabilities_stay_as_they_are():
    probabilities = torch.tensor([[0.2, 0.8]], dtype=torch.float64)
    targets = as_targets(probabilities)
    assert targets.probabilities(2) is probabilities
    assert_equal(targets.labels, [1])
    assert as_targets(targets) is targets


def test_classes_that_come_up_twice_add_up():
    assert_equal(mixture().probabilities(4), [[0.0, 0.75, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    # Class 2 has 0.6 in two parts, each smaller than the 0.4 of class 1.
    targets = Targets(torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([[1, 2, 2]]))
    assert_equal(targets.labels, [2])


def test_the_first_of_equally_probable_classes_is_the_label():
    assert_equal(Targets(torch.tensor([[0.5, 0.5]]), torch.tensor([[3, 1]])).labels, [3])
    assert_equal(Targets(torch.tensor([[0.0, 0.5, 0.5]])).labels, [1])


def test_mixing_labels():
    mixed = as_targets(torch.tensor([2, 0, 1])).mix(
        torch.tensor([1, 0, 2]), torch.tensor([0.75, 1.0, 0.5])
    )
    expected = [[0.25, 0.0, 0.75], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert_equal(mixed.probabilities(3), expected)
    assert mixed.is_mixed
    assert_equal(mixed.labels, [2, 0, 1])


def test_mixing_twice():
    # q0 = (1, 0, 0), q1 = (0, 1, 0), q2 = (0, 0, 1); the second time 0.25 q'_i + 0.75 q'_(i+1).
    labels = as_targets(torch.tensor([0, 1, 2]))
    partner = torch.tensor([1, 2, 0])
    mixed = labels.mix(partner, torch.tensor(0.5)).mix(partner, torch.tensor(0.25))
    expected = [[0.125, 0.5, 0.375], [0.375, 0.125, 0.5], [0.5, 0.375, 0.125]]
    assert_equal(mixed.probabilities(3), expected)
    assert_equal(mixed.labels, [1, 2, 0])


def test_mixing_probabilities():
    targets = Targets(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), smoothing=0.2)
    mixed = targets.mix(torch.tensor([1, 1]), torch.tensor([0.5, 0.25]))
    assert_equal(mixed.probabilities(2), [[0.625, 0.375], [0.25, 0.75]])
    assert (mixed.is_mixed, mixed.smoothing) == (True, 0.2)


def test_mixing_nothing():
    empty = as_targets(torch.zeros(0, dtype=torch.int64))
    mixed = empty.mix(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert mixed.probabilities(5).shape == (0, 5)
    assert mixed.labels.shape == (0,)


def test_smoothing_is_that_of_szegedy():
    smoothed = mixture().smooth(0.25, 4)
    # 0.75 q + 0.0625.
    expected = [[0.0625, 0.625, 0.25, 0.0625], [0.8125, 0.0625, 0.0625, 0.0625]]
    assert_equal(smoothed.probabilities(4), expected)
    assert smoothed.smoothing == 0.25


def test_smoothing_keeps_the_marks():
    smoothed = mixture().mix(torch.tensor([1, 0]), torch.tensor(0.5)).smooth(0.3, 4)
    assert smoothed.is_mixed
    # Nothing on top of something leaves something.
    assert smoothed.smooth(0.0, 4).smoothing == 0.3
    with pytest.raises(ValueError, match=r"smooth: the targets contain label smoothing of 0\.3"):
        smoothed.smooth(0.0, 4).smooth(0.1, 4)


def test_some_of_the_samples():
    targets = Targets(mixture().weights, mixture().classes, smoothing=0.1, is_mixed=True)
    for index in (slice(1, 2), torch.tensor([False, True]), torch.tensor([1])):
        some = targets[index]
        assert_equal(some.weights, [[0.5, 0.5]])
        assert_equal(some.classes, [[0, 0]])
        assert (some.smoothing, some.is_mixed) == (0.1, True)
    assert_equal(Targets(torch.tensor([[0.5, 0.5], [0.0, 1.0]]))[1:].weights, [[0.0, 1.0]])


def test_moving_to_a_device():
    targets = Targets(mixture().weights, mixture().classes, smoothing=0.1, is_mixed=True)
    moved = targets.to("meta", non_blocking=True)
    assert (moved.weights.device.type, moved.classes.device.type) == ("meta", "meta")
    assert (moved.smoothing, moved.is_mixed) == (0.1, True)
    assert Targets(targets.weights).to("meta").classes is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_page_locked_memory():
    targets = Targets(torch.ones(2, 1, device="cpu"), torch.ones(2, 1, device="cpu").long())
    pinned = targets.pin_memory()
    assert pinned.weights.is_pinned() and pinned.classes.is_pinned()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies(how):
    twin = how(Targets(mixture().weights, mixture().classes, smoothing=0.1, is_mixed=True))
    assert torch.equal(twin.probabilities(3), mixture().probabilities(3))
    assert (twin.smoothing, twin.is_mixed) == (0.1, True)


def test_compiled():
    def everything(labels, partner, share):
        mixed = as_targets(labels).mix(partner, share)
        return mixed.labels, mixed.smooth(0.1, 5).probabilities(5)

    args = torch.tensor([4, 0, 3]), torch.tensor([1, 2, 0]), torch.tensor([0.3, 0.8, 0.6])
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), everything(*args))


ONES = torch.ones(2, 3, device="cpu")
PARTNER = torch.tensor([1, 0], device="cpu")


def mix(partner, own_share):
    return lambda: as_targets(PARTNER).mix(partner, own_share)


def shares(*values):
    return torch.tensor(values, device="cpu")


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Targets(ONES[0]), ValueError, r"Targets: expected weights of shape \(N, M\)"),
        (lambda: Targets([[1.0]]), TypeError, "Targets: expected weights to be a tensor, got list"),
        (lambda: Targets(ONES, [[1]]), TypeError, "Targets: expected classes to be a tensor, got"),
        (lambda: Targets(ONES, is_mixed="no"), TypeError, "is_mixed to be True or False, got 'no'"),
        (
            lambda: Targets(ONES, smoothing="a"),
            TypeError,
            "label_smoothing to be a number, got 'a'",
        ),
        (lambda: Targets(ONES.long()), TypeError, "expected weights of a floating point dtype"),
        (lambda: Targets(ONES, ONES[:, :2].long()), ValueError, r"the weights' shape \[2, 3\]"),
        (lambda: Targets(ONES, ONES), TypeError, "expected classes of int64, got torch.float32"),
        (lambda: Targets(ONES, smoothing=1.5), ValueError, r"label_smoothing in \[0, 1\], got 1.5"),
        (lambda: Targets(ONES).probabilities(4), ValueError, "expected targets of 4 classes, got"),
        (lambda: Targets(ONES).smooth(-0.1, 3), ValueError, r"smooth: expected label_smoothing in"),
        (mix(PARTNER[:1], shares(0.3, 0.4)), ValueError, r"partner of shape \[2\], got \[1\]"),
        (mix(PARTNER[:, None], shares(0.3, 0.4)), ValueError, r"of shape \[2\], got \[2, 1\]"),
        (mix(PARTNER > 0, shares(0.3, 0.4)), TypeError, "partner of int64, got torch.bool"),
        (mix([1, 0], shares(0.3)), TypeError, "mix: expected partner to be a tensor, got list"),
        (
            mix(PARTNER - 1, shares(0.3, 0.4)),
            ValueError,
            "partner to be samples from 0 to 1, got -1",
        ),
        (mix(PARTNER + 1, shares(0.3, 0.4)), ValueError, "mix: expected partner .* 0 to 1, got 2"),
        (mix(PARTNER, 0.3), TypeError, r"own_share .* tensor, got float; use torch.tensor\(0.5\)"),
        (mix(PARTNER, PARTNER), TypeError, "own_share .* tensor, got torch.int64"),
        (mix(PARTNER, shares(0.3)), ValueError, r"own_share of shape \[\] or \[2\], got \[1\]"),
        (
            mix(PARTNER, shares(0.3, 1.5)),
            ValueError,
            r"mix: expected own_share in \[0, 1\], got 1.5",
        ),
        (mix(PARTNER, shares(-0.5, 0.3)), ValueError, r"own_share in \[0, 1\], got -0.5"),
        (mix(PARTNER, shares(0.3, float("nan"))), ValueError, r"own_share in \[0, 1\], got nan"),
        (
            lambda: as_targets(PARTNER + 6).probabilities(3),
            ValueError,
            "probabilities: expected labels from 0 to 2, got 6",
        ),
        (lambda: as_targets(PARTNER - 1).probabilities(3), ValueError, "from 0 to 2, got -1"),
        (lambda: as_targets([1, 2]), TypeError, "or Targets, got list"),
        (lambda: as_targets(ONES[0]), ValueError, r"shape \(N, K\), got \[3\]; labels must be int"),
        (lambda: as_targets(ONES.long()), ValueError, r"expected labels of shape \(N,\)"),
        (lambda: as_targets(ONES[0] > 0), ValueError, "an integer dtype, got .* torch.bool"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()
