"""Penalties on confident and on large outputs."""

import copy
import functools
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from fusedtricks.losses import (
    BinaryCrossEntropyLoss,
    ConfidencePenalty,
    CrossEntropyLoss,
    binary_cross_entropy,
    confidence_penalty,
    cross_entropy,
    darc1_penalty,
)
from tests.devices import DEVICE
from tests.values import TOLERANCE

N, K = 7, 5


def make_logits(dtype=torch.float64):
    return (2 * torch.randn(N, K, dtype=torch.float64)).to(dtype).requires_grad_()


def assert_same(actual, expected, dtype=torch.float64):
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def entropies(logits):
    return torch.distributions.Categorical(logits=logits).entropy()


# Confidence. --------------------------------------------------------------------------------------


def test_entropies_by_hand():
    # p = (1/4, 3/4), (1/2, 1/2) and, nearly, (1, 0).
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0], [200.0, 0.0]], dtype=torch.float64)
    quarter = 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    expected = torch.tensor([quarter, -math.log(2), 0.0], dtype=torch.float64)
    assert_same(confidence_penalty(logits, reduction="none"), expected)
    # How far the entropy is below 0.6 nats.
    expected = torch.tensor([0.6 + quarter, 0.0, 0.6], dtype=torch.float64)
    assert_same(confidence_penalty(logits, threshold=0.6, reduction="none"), expected)


@pytest.mark.parametrize("threshold", [None, 1.1])
def test_values_and_gradients(threshold):
    logits = make_logits()
    entropy = entropies(logits)
    losses = -entropy if threshold is None else (threshold - entropy).clamp(min=0)
    assert threshold is None or 0 < (losses > 0).sum() < N
    expected = {"none": losses, "mean": losses.sum() / N, "sum": losses.sum()}
    for reduction, value in expected.items():
        actual = confidence_penalty(logits, threshold=threshold, reduction=reduction)
        assert_same(actual, value)
        weights = torch.linspace(1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
        gradients = [
            torch.autograd.grad((each * weights).sum(), logits, retain_graph=True)
            for each in (actual, value)
        ]
        assert_same(*gradients)


@pytest.mark.parametrize("threshold", [None, 1.3])
def test_a_masked_class(threshold):
    logits = make_logits()
    mask = torch.zeros(K, dtype=torch.float64)
    mask[1] = -math.inf
    penalty = confidence_penalty(logits + mask, threshold=threshold)
    expected = confidence_penalty(logits[:, [0, 2, 3, 4]], threshold=threshold)
    assert_same(penalty, expected)
    gradients = [
        torch.autograd.grad(1e300 * each, logits)[0] / 1e300 for each in (penalty, expected)
    ]
    assert_same(*gradients)


def test_descending_makes_outputs_less_confident():
    for threshold in (None, 1.5):
        logits = make_logits()
        penalty = confidence_penalty(logits, threshold=threshold, reduction="sum")
        (gradient,) = torch.autograd.grad(penalty, logits)
        assert (entropies(logits - 0.01 * gradient) > entropies(logits))[
            entropies(logits) < 1.5
        ].all()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("threshold", [None, 1.1])
def test_a_loss_with_the_penalty(threshold, reduction):
    logits, labels = make_logits(), torch.randint(0, K, (N,))
    loss = ConfidencePenalty(
        CrossEntropyLoss(label_smoothing=0.2, reduction=reduction), 0.3, threshold=threshold
    )
    entropy = entropies(logits)
    penalty = -entropy if threshold is None else (threshold - entropy).clamp(min=0)
    penalty = {"none": penalty, "mean": penalty.mean(), "sum": penalty.sum()}[reduction]
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction=reduction)
    assert_same(loss(logits, labels), expected + 0.3 * penalty)


def test_losses_of_others():
    logits, labels = make_logits(), torch.randint(0, K, (N,))
    expected = functional.cross_entropy(logits, labels, reduction="none") - 0.3 * entropies(logits)
    for loss, value in (
        (nn.CrossEntropyLoss(reduction="sum"), expected.sum()),
        (functional.cross_entropy, expected.mean()),
        (cross_entropy, expected.mean()),
        (functools.partial(cross_entropy, reduction="sum"), expected.sum()),
        (functools.partial(nn.CrossEntropyLoss(reduction="sum")), expected.sum()),
        (torch.compile(CrossEntropyLoss(reduction="sum"), backend="eager"), expected.sum()),
    ):
        assert_same(ConfidencePenalty(loss, 0.3)(logits, labels), value)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (BinaryCrossEntropyLoss(), "BinaryCrossEntropyLoss"),
        (nn.BCEWithLogitsLoss(), "BCEWithLogitsLoss"),
        (nn.BCELoss(), "BCELoss"),
        (binary_cross_entropy, "binary_cross_entropy"),
        (functional.binary_cross_entropy, "binary_cross_entropy"),
        (functional.binary_cross_entropy_with_logits, "binary_cross_entropy_with_logits"),
        (nn.MultiLabelSoftMarginLoss(), "MultiLabelSoftMarginLoss"),
        (functional.multilabel_soft_margin_loss, "multilabel_soft_margin_loss"),
        (functools.partial(binary_cross_entropy, threshold=0.2), "binary_cross_entropy"),
        (torch.compile(BinaryCrossEntropyLoss(), backend="eager"), "BinaryCrossEntropyLoss"),
        (torch.compile(binary_cross_entropy, backend="eager"), "binary_cross_entropy"),
    ],
)
def test_sigmoid_losses_have_no_such_entropy(other, name):
    with pytest.raises(TypeError, match=f"expected a softmax loss, got {name}, which makes"):
        ConfidencePenalty(other, 0.1)


# DARC1. -------------------------------------------------------------------------------------------


def test_darc1_by_hand():
    # Sums of absolute values 6, 7 and 5 over four samples.
    values = [[1.0, -4.0, 0.0], [-3.0, 2.0, 2.0], [-2.0, 0.0, 3.0], [0.0, 1.0, 0.0]]
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    penalty = darc1_penalty(logits)
    assert penalty.item() == 7 / 4
    penalty.backward()
    expected = torch.tensor([[0, -0.25, 0], [0, 0.25, 0], [0, 0, 0], [0, 0.25, 0]])
    assert_same(logits.grad, expected.double())


def test_darc1_of_no_samples():
    assert darc1_penalty(torch.zeros(0, K)).isnan()


# Both. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [confidence_penalty, darc1_penalty])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_computed_with_in_float32(penalty, dtype):
    logits = make_logits(dtype)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        under_autocast = penalty(logits)
    for actual in (under_autocast, penalty(logits)):
        assert actual.dtype == torch.float32
        assert_same(actual, penalty(logits.double()).float(), torch.float32)


def test_compiled_in_one_graph():
    loss = ConfidencePenalty(CrossEntropyLoss(), 0.3, threshold=1.1)

    def both(logits, labels):
        return loss(logits, labels) + 0.1 * darc1_penalty(logits)

    args = make_logits(), torch.randint(0, K, (N,))
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*args), both(*args))


def test_copies_and_text():
    loss = ConfidencePenalty(CrossEntropyLoss(reduction="sum"), 0.3, threshold=1.1)
    assert "beta=0.3, threshold=1.1" in repr(loss)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)


LOGITS = torch.zeros(2, K, device="cpu")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: confidence_penalty(LOGITS, threshold=0.0), ValueError, "number above 0, got 0.0"),
        (lambda: confidence_penalty(LOGITS, reduction="x"), ValueError, "expected reduction to be"),
        (lambda: confidence_penalty(LOGITS[0]), ValueError, r"logits of shape \(N, K\), got \[5\]"),
        (
            lambda: darc1_penalty(LOGITS.long()),
            TypeError,
            "darc1_penalty: expected logits of a flo",
        ),
        (
            lambda: ConfidencePenalty(CrossEntropyLoss(), -0.1),
            ValueError,
            "expected beta to be a finite number of at least 0, got -0.1",
        ),
        (
            lambda: ConfidencePenalty(CrossEntropyLoss(), math.inf),
            ValueError,
            "expected beta to be a finite number of at least 0, got inf",
        ),
        (
            lambda: ConfidencePenalty(CrossEntropyLoss(), 0.1, threshold=-1.0),
            ValueError,
            "ConfidencePenalty: expected threshold to be a finite number above 0, got -1.0",
        ),
        (
            lambda: ConfidencePenalty(nn.KLDivLoss(reduction="batchmean"), 0.1),
            ValueError,
            "ConfidencePenalty: expected reduction to be one of",
        ),
        (
            lambda: ConfidencePenalty(functools.partial(cross_entropy, reduction="x"), 0.1),
            ValueError,
            "ConfidencePenalty: expected reduction to be one of .*, got 'x'",
        ),
        (lambda: darc1_penalty([[0.0]]), TypeError, "logits to be a tensor, got list"),
        (
            lambda: confidence_penalty(LOGITS, threshold="a"),
            TypeError,
            "confidence_penalty: expected threshold to be a number, got 'a'",
        ),
        (
            lambda: ConfidencePenalty(CrossEntropyLoss(), True),
            TypeError,
            "ConfidencePenalty: expected beta to be a number, got True",
        ),
        (
            lambda: ConfidencePenalty(nn.CrossEntropyLoss, 0.1),
            TypeError,
            r"got the class CrossEntropyLoss; call it: CrossEntropyLoss\(\)",
        ),
        (
            lambda: ConfidencePenalty(functools.partial(CrossEntropyLoss, reduction="sum"), 0.1),
            TypeError,
            "ConfidencePenalty: expected loss to be .*, got the class CrossEntropyLoss",
        ),
        (
            lambda: ConfidencePenalty(0.1, 0.2),
            TypeError,
            "loss to be a function or module, got 0.1",
        ),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
