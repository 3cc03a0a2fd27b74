"""The softmax cross-entropy is torch's, smooths once, and takes mixtures without a dense tensor."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch.nn import functional

from fusedtricks.losses import (
    CrossEntropyLoss,
    Targets,
    as_targets,
    binary_cross_entropy,
    cross_entropy,
    smallest_cross_entropy,
)
from tests.devices import DEVICE
from tests.values import TOLERANCE

N, K = 7, 5
each_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
each_smoothing = pytest.mark.parametrize("smoothing", [0.0, 0.15, 1.0])


def make_logits(dtype=torch.float64, shape=(N, K)):
    return (4 * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()


def make_labels(n=N):
    return torch.randint(0, K, (n,))


def make_probabilities(dtype=torch.float64):
    return torch.rand(N, K, dtype=torch.float64).softmax(dim=1).to(dtype)


def make_mixture():
    mixed = as_targets(make_labels()).mix(torch.randperm(N), torch.rand(N))
    return dataclasses.replace(mixed, weights=mixed.weights.double())


def value_and_gradient(loss, logits):
    # Different weights for the samples, so that no two can be swapped.
    (gradient,) = torch.autograd.grad((loss * torch.linspace(1, 2, loss.numel())).sum(), logits)
    return loss.detach(), gradient


def assert_same(actual, expected, dtype=torch.float64):
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def by_hand(logits, probabilities, smoothing):
    """The losses of Szegedy et al. 2016, section 7, with the dense q'."""
    smoothed = (1 - smoothing) * probabilities.double() + smoothing / K
    return -(smoothed * (logits - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1)


# The same as torch. -------------------------------------------------------------------------------


@each_reduction
@each_smoothing
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_torchs(kind, dtype, smoothing, reduction):
    logits = make_logits(dtype)
    targets = make_labels() if kind == "labels" else make_probabilities(dtype)
    ours = targets if kind == "labels" else Targets(targets)
    loss = cross_entropy(logits, ours, label_smoothing=smoothing, reduction=reduction)
    expected = functional.cross_entropy(
        logits, targets, label_smoothing=smoothing, reduction=reduction
    )
    assert loss.dtype == dtype
    assert_same(value_and_gradient(loss, logits), value_and_gradient(expected, logits), dtype)
    module = CrossEntropyLoss(label_smoothing=smoothing, reduction=reduction)
    assert torch.equal(module(logits, ours), loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_16_bits_are_computed_with_in_float32(dtype, is_autocast):
    logits = make_logits(dtype)
    labels = make_labels()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=is_autocast):
        loss = cross_entropy(logits, labels, label_smoothing=0.15)
    wide = logits.detach().float().requires_grad_()
    expected = functional.cross_entropy(wide, labels, label_smoothing=0.15)
    assert loss.dtype == torch.float32
    assert_same(loss, expected, torch.float32)
    gradient = value_and_gradient(expected, wide)[1]
    assert_same(value_and_gradient(loss, logits)[1], gradient.to(dtype), torch.float32)


@pytest.mark.parametrize("shape", [(0, K), (1, K), (1009, K), (N, 1)])
def test_shapes(shape):
    logits = make_logits(shape=shape)
    labels = torch.randint(0, shape[1], shape[:1])
    for reduction in ("none", "mean", "sum"):
        options = {"label_smoothing": 0.15, "reduction": reduction}
        expected = functional.cross_entropy(logits, labels, **options)
        actual = cross_entropy(logits, labels, **options)
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_non_contiguous():
    logits = make_logits(shape=(K, 2 * N))[:, ::2].t()
    labels = make_labels(2 * N)[::2]
    assert_same(cross_entropy(logits, labels), functional.cross_entropy(logits, labels))


# Mixtures, and smoothing once. --------------------------------------------------------------------


@each_reduction
@each_smoothing
def test_mixtures(smoothing, reduction):
    logits, targets = make_logits(), make_mixture()
    loss = cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)
    expected = by_hand(logits, targets.probabilities(K), smoothing)
    expected = {"none": expected, "mean": expected.sum() / N, "sum": expected.sum()}[reduction]
    assert_same(value_and_gradient(loss, logits), value_and_gradient(expected, logits))


def test_the_gradient_is_softmax_minus_target():
    # Row by row: certain, a mixture, and a mixture of a class with itself; 0.8 q + 0.05.
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]] * 3, dtype=torch.float64).requires_grad_()
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])
    targets = Targets(weights, torch.tensor([[0, 1], [0, 1], [2, 2]]), is_mixed=True)
    cross_entropy(logits, targets, label_smoothing=0.2, reduction="sum").backward()
    q = [[0.85, 0.05, 0.05, 0.05], [0.25, 0.65, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]]
    p = torch.tensor([math.e, 1.0, 1 / math.e, math.e**2], dtype=torch.float64)
    assert_same(logits.grad, p / p.sum() - torch.tensor(q, dtype=torch.float64))


def test_the_optimum_of_the_lectures_toy_model():
    # Three classes, logits 2 a for the true one and 0 for the others. The lecture's printed loss,
    # (1 - eps) log(1 + 2 exp(-2 a)) + (2 eps / 3) log(2 + exp(2 a)), lacks the part of the true
    # class, eps / 3 log(1 + 2 exp(-2 a)); with it, softmax = q' at a = 1/2 ln((3 - 2 eps) / eps).
    eps = 0.1
    a = torch.ones((), dtype=torch.float64, requires_grad=True)

    def loss():
        logits = 2 * a * torch.eye(3, dtype=torch.float64)
        return cross_entropy(logits, torch.arange(3), label_smoothing=eps)

    optimizer = torch.optim.SGD([a], lr=2.0)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert a.item() == pytest.approx(0.5 * math.log((3 - 2 * eps) / eps), abs=1e-12)
    assert a.item() == pytest.approx(1.666, abs=5e-4)
    full = (1 - 2 * eps / 3) * math.log1p(2 * math.exp(-2 * a.item()))
    full += 2 * eps / 3 * math.log(2 + math.exp(2 * a.item()))
    assert loss().item() == pytest.approx(full, abs=1e-12)
    # What no logits can fall below.
    assert loss().item() == pytest.approx(smallest_cross_entropy(eps, 3), abs=1e-12)


def test_smallest_cross_entropy():
    # q' = (0.8, 0.1, 0.1) for eps = 0.3.
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.1)
    assert smallest_cross_entropy(0.3, 3) == pytest.approx(entropy, rel=1e-14)
    assert smallest_cross_entropy(1.0, 7) == pytest.approx(math.log(7), rel=1e-14)
    assert smallest_cross_entropy(0.0, 7) == smallest_cross_entropy(0.3, 1) == 0.0
    mixed = as_targets(torch.tensor([0, 1])).mix(torch.tensor([1, 0]), torch.tensor([0.9, 0.6]))
    q = mixed.smooth(0.3, 3).probabilities(3).double()
    own_entropies = cross_entropy(q.log(), mixed, label_smoothing=0.3, reduction="none")
    assert (own_entropies > entropy).all()


def test_smoothed_targets_are_not_smoothed_again():
    logits = make_logits()
    smoothed = make_mixture().smooth(0.2, K)
    assert_same(
        cross_entropy(logits, smoothed, reduction="none"), by_hand(logits, smoothed.weights, 0.0)
    )
    with pytest.raises(ValueError, match=r"cross_entropy: .* smoothing of 0\.2 already, and label"):
        cross_entropy(logits, smoothed, label_smoothing=0.1)


def test_plain_probabilities_might_be_smoothed():
    logits, probabilities = make_logits(), make_probabilities()
    text = r"label_smoothing=0\.1 could be the second one; pass Targets\(probabilities\)"
    with pytest.raises(ValueError, match=text):
        cross_entropy(logits, probabilities, label_smoothing=0.1)
    assert_same(cross_entropy(logits, probabilities), by_hand(logits, probabilities, 0.0).mean())


def test_gradients_of_weights():
    logits = make_logits().detach()
    q = torch.zeros(N, K, dtype=torch.float64)
    q[:, 2] = 1
    q.requires_grad_()
    cross_entropy(logits, Targets(q), reduction="sum").backward()
    assert_same(q.grad, -logits.log_softmax(dim=1))


# As a module. -------------------------------------------------------------------------------------


def test_compiled_in_one_graph():
    loss = CrossEntropyLoss(label_smoothing=0.1)

    def step(logits, labels, partner, share):
        return loss(logits, as_targets(labels).mix(partner, share))

    args = make_logits(), make_labels(), torch.randperm(N), torch.rand(N)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same(
        value_and_gradient(compiled(*args), args[0]), value_and_gradient(step(*args), args[0])
    )
    targets = make_mixture()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled(args[0], targets), loss(args[0], targets))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="waiting needs a GPU")
def test_the_host_does_not_wait():
    logits, labels, targets = make_logits(), make_labels(), make_mixture()
    dense = Targets(make_probabilities())
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in (labels, targets, dense):
            cross_entropy(logits, each, label_smoothing=0.1).backward()
            binary_cross_entropy(logits, each, threshold=0.2).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_copies_and_text():
    loss = CrossEntropyLoss(label_smoothing=0.3, reduction="sum")
    assert repr(loss) == "CrossEntropyLoss(label_smoothing=0.3, reduction='sum')"
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)


LOGITS = torch.zeros(N, K, device="cpu")
LABELS = torch.zeros(N, dtype=torch.int64, device="cpu")


def with_label(label):
    return torch.cat([LABELS[1:], torch.tensor([label], device="cpu")])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: cross_entropy(LOGITS, with_label(5)), ValueError, "labels from 0 to 4, got 5"),
        (lambda: cross_entropy(LOGITS, with_label(-100)), ValueError, "got -100; samples to be ig"),
        (
            lambda: cross_entropy(LOGITS[0], LABELS),
            ValueError,
            r"logits of shape \(N, K\), got \[5",
        ),
        (lambda: cross_entropy([[0.0]], LABELS), TypeError, "logits to be a tensor, got list"),
        (lambda: cross_entropy(LOGITS.long(), LABELS), TypeError, "logits of a floating point dty"),
        (
            lambda: cross_entropy(LOGITS, LABELS[:3]),
            ValueError,
            "for the 7 samples of logits, got 3",
        ),
        (
            lambda: cross_entropy(LOGITS, Targets(LOGITS[:, :4])),
            ValueError,
            r"probabilities of the 5 classes of logits, got shape \[7, 4\]",
        ),
        (
            lambda: cross_entropy(LOGITS, LABELS, label_smoothing=1.1),
            ValueError,
            r"cross_entropy: expected label_smoothing in \[0, 1\], got 1.1",
        ),
        (
            lambda: cross_entropy(LOGITS, LABELS, reduction="batchmean"),
            ValueError,
            r"cross_entropy: expected reduction to be one of .*, got 'batchmean'",
        ),
        (
            lambda: CrossEntropyLoss(label_smoothing=-0.1),
            ValueError,
            "CrossEntropyLoss: expected label_smoothing",
        ),
        (
            lambda: CrossEntropyLoss(reduction="all"),
            ValueError,
            "CrossEntropyLoss: expected reduction",
        ),
        (lambda: smallest_cross_entropy(0.1, 0), ValueError, "n_classes of at least 1, got 0"),
        (lambda: smallest_cross_entropy(0.1, 2.5), TypeError, "n_classes to be a whole .*, got 2"),
        (lambda: smallest_cross_entropy(0.1, True), TypeError, "n_classes to be a .*, got True"),
        (lambda: smallest_cross_entropy("a", 3), TypeError, "smoothing to be a number, got 'a'"),
        (lambda: smallest_cross_entropy(2.0, 3), ValueError, r"label_smoothing in \[0, 1\], got 2"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
