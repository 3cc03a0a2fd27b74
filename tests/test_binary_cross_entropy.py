"""The binary cross-entropy takes softmax targets, as timm's does for ResNet strikes back."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from fusedtricks.losses import (
    BinaryCrossEntropyLoss,
    ConfidencePenalty,
    CrossEntropyLoss,
    DistillationLoss,
    Flooding,
    Targets,
    as_targets,
    binary_cross_entropy,
    cross_entropy,
    distillation_loss,
)
from tests.devices import DEVICE
from tests.values import TOLERANCE

N, K = 7, 5


def make_logits(dtype=torch.float64):
    return (4 * torch.randn(N, K, dtype=torch.float64)).to(dtype).requires_grad_()


def make_mixture():
    return as_targets(torch.randint(0, K, (N,))).mix(torch.randperm(N), torch.rand(N))


def assert_same(actual, expected, dtype=torch.float64):
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def by_hand(logits, q):
    """The binary cross-entropy of every class, in float64."""
    p = 1 / (1 + (-logits).exp())
    return -q * p.log() - (1 - q) * (1 - p).log()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["labels", "mixture", "probabilities"])
def test_values_and_gradients(kind, smoothing):
    logits, targets = make_logits(), make_mixture()
    if kind == "labels":
        targets = targets.labels
    elif kind == "probabilities":
        targets = Targets(targets.probabilities(K).double())
    q = as_targets(targets).probabilities(K).double() * (1 - smoothing) + smoothing / K
    actual = binary_cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    assert_same(actual, by_hand(logits, q), torch.float32)
    (gradient,) = torch.autograd.grad(actual.sum(), logits)
    # In float32, because the weights of labels are.
    assert_same(gradient, logits.detach().sigmoid() - q, torch.float32)


def test_a_mixed_image_shows_both():
    logits = torch.tensor([[3.0, -1.0, 0.5]] * 4, dtype=torch.float64)
    weights = torch.tensor([[0.75, 0.25], [0.9, 0.1], [0.8, 0.2], [0.5, 0.5]])
    targets = Targets(weights, torch.tensor([[0, 1], [0, 1], [0, 2], [2, 2]]), is_mixed=True)
    # Above 0.2, not at it, and after parts of one class were added.
    q = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    actual = binary_cross_entropy(logits, targets, threshold=weights[2, 1].item(), reduction="none")
    assert_same(actual, by_hand(logits, torch.tensor(q, dtype=torch.float64)))


@pytest.mark.parametrize("sum_classes", [False, True])
def test_reductions(sum_classes):
    logits, targets = make_logits(), make_mixture()
    losses = by_hand(logits, targets.probabilities(K).double())
    expected = {
        "none": losses.sum(dim=1) if sum_classes else losses,
        "mean": losses.sum() / (N if sum_classes else N * K),
        "sum": losses.sum(),
    }
    for reduction, value in expected.items():
        loss = BinaryCrossEntropyLoss(sum_classes=sum_classes, reduction=reduction)
        assert_same(loss(logits, targets), value, torch.float32)


@pytest.mark.parametrize("options", [{"threshold": 0.4}, {"label_smoothing": 0.3}])
def test_the_module_is_the_function(options):
    logits, targets = make_logits(), make_mixture()
    actual = BinaryCrossEntropyLoss(reduction="sum", **options)(logits, targets)
    expected = binary_cross_entropy(logits, targets, reduction="sum", **options)
    assert torch.equal(actual, expected)
    assert not torch.allclose(actual, binary_cross_entropy(logits, targets, reduction="sum"))


def test_timm():
    timm_loss = pytest.importorskip("timm.loss")
    logits, targets = make_logits(torch.float32), make_mixture()
    dense = targets.probabilities(K)
    for options in ({"label_smoothing": 0.3}, {"sum_classes": True}):
        theirs = timm_loss.BinaryCrossEntropy(
            smoothing=options.get("label_smoothing", 0.0),
            sum_classes=options.get("sum_classes", False),
        )
        ours = binary_cross_entropy(logits, targets.labels, **options)
        assert_same(ours, theirs(logits, targets.labels), torch.float32)
    theirs = timm_loss.BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2)
    for each in (targets, Targets(dense)):
        ours = binary_cross_entropy(logits, each, threshold=0.2)
        assert_same(ours, theirs(logits, dense), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_16_bits_are_computed_with_in_float32(dtype, is_autocast):
    logits, targets = make_logits(dtype), make_mixture()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=is_autocast):
        loss = binary_cross_entropy(logits, targets, label_smoothing=0.3)
    q = targets.probabilities(K) * 0.7 + 0.06
    expected = functional.binary_cross_entropy_with_logits(logits.float(), q)
    assert loss.dtype == torch.float32
    assert_same(loss, expected, torch.float32)


def test_empty_batch():
    empty = torch.zeros(0, K)
    loss = binary_cross_entropy(empty, torch.zeros(0, dtype=torch.int64), sum_classes=True)
    assert loss.isnan()


def test_compiled_in_one_graph():
    loss = BinaryCrossEntropyLoss(threshold=0.2, sum_classes=True)
    logits, targets = make_logits(), make_mixture()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled(logits, targets), loss(logits, targets))


def test_copies_and_text():
    loss = BinaryCrossEntropyLoss(threshold=0.3, sum_classes=True, reduction="sum")
    text = "label_smoothing=0.0, threshold=0.3, sum_classes=True, reduction='sum'"
    assert repr(loss) == f"BinaryCrossEntropyLoss({text})"
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)


# What are no probabilities. -----------------------------------------------------------------------


def on_cpu(*rows, **options):
    return torch.tensor(rows, device="cpu", **options)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
@pytest.mark.parametrize("value", [-3.0, -0.01, 1.01, 4.0, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(loss, value):
    logits = torch.zeros(2, 3, device="cpu")
    classes = on_cpu([0, 1, 2], [0, 2, 1])
    weights = on_cpu([0.0, 1.0, 0.0], [value, 1 - value, 0.0])
    for targets in (weights, Targets(weights), Targets(weights, classes, is_mixed=True)):
        text = rf"{loss.__name__}: .* probabilities in \[0, 1\], got .*; logits need a softmax"
        with pytest.raises(ValueError, match=text):
            loss(logits, targets)


@pytest.mark.parametrize("row", [[0.0, 1.0, 1.0], [0.5, 0.48, 0.0], [0.0, 0.0, 0.0]])
def test_several_labels_are_for_the_binary_cross_entropy(row):
    logits = torch.zeros(2, 3, device="cpu")
    weights = on_cpu([0.0, 1.0, 0.0], row)
    for targets in (weights, Targets(weights), Targets(weights, on_cpu([0, 1, 2], [0, 1, 2]))):
        assert binary_cross_entropy(logits, targets).isfinite()
        text = r"of each sample to sum to 1, got .*; .* BinaryCrossEntropyLoss for several labels"
        with pytest.raises(ValueError, match=text):
            cross_entropy(logits, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounded_probabilities_are_ones(dtype):
    # Rounding to 16 bits moves the sum by up to 0.4 %, and a difference may fall below 0.
    weights = (3 * torch.randn(64, 1000, dtype=torch.float64, device="cpu")).softmax(dim=1)
    weights[:, 0] -= 1e-7
    assert cross_entropy(torch.zeros(64, 1000, device="cpu"), weights.to(dtype)).isfinite()
    assert cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3)).isnan()


def test_where_probabilities_are_not_looked_at():
    # While tracing it would break the graph; a teacher's are a softmax, or NaN as its logits are.
    logits, wrong = torch.zeros(2, 3, device="cpu"), on_cpu([0.0, 2.0, 0.0], [1.0, 0.0, 0.0])
    for loss in (CrossEntropyLoss(), BinaryCrossEntropyLoss()):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert compiled(logits, wrong).isfinite()
    assert distillation_loss(logits, wrong * float("nan"), temperature=1.0).isnan()


@pytest.mark.parametrize(
    "make",
    [
        lambda value: CrossEntropyLoss(label_smoothing=value),
        lambda value: BinaryCrossEntropyLoss(label_smoothing=value),
        lambda value: BinaryCrossEntropyLoss(threshold=value),
        lambda value: ConfidencePenalty(CrossEntropyLoss(), value, threshold=value),
        lambda value: DistillationLoss(
            CrossEntropyLoss(), value, hard_weight=value, soft_weight=value
        ),
        lambda value: Flooding(value, smallest_loss=value / 2),
    ],
)
def test_compiled_with_numbers_of_numpy_and_with_other_numbers(make):
    # The compiler has no numbers of NumPy, and makes a symbol of a number that changes.
    logits, targets = make_logits(), make_mixture()
    args = {Flooding: (logits.mean(),), DistillationLoss: (logits, logits.detach(), targets)}
    for value in (np.float64(0.125), 0.25, np.float32(0.5), 0.375):
        loss = make(value)
        of_loss = args.get(type(loss), (logits, targets))
        expected = make(float(value))(*of_loss)
        assert_same(loss(*of_loss), expected)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert_same(compiled(*of_loss), expected)


LOGITS = torch.zeros(2, K, device="cpu")
LABELS = torch.zeros(2, dtype=torch.int64, device="cpu")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: BinaryCrossEntropyLoss(label_smoothing=0.1, threshold=0.2),
            r"BinaryCrossEntropyLoss: threshold=0\.2 makes all targets 0 or 1, which undoes the "
            r"label smoothing of 0\.1; use one of the two",
        ),
        (
            lambda: binary_cross_entropy(LOGITS, as_targets(LABELS).smooth(0.3, K), threshold=0.2),
            r"binary_cross_entropy: threshold=0\.2 .* undoes the label smoothing of 0\.3",
        ),
        (
            lambda: binary_cross_entropy(
                LOGITS, as_targets(LABELS).smooth(0.3, K), label_smoothing=0.1
            ),
            r"binary_cross_entropy: the targets contain label smoothing of 0\.3 already",
        ),
        (
            lambda: binary_cross_entropy(LOGITS, LOGITS, label_smoothing=0.1),
            r"binary_cross_entropy: a plain tensor of probabilities does not say",
        ),
        (
            lambda: binary_cross_entropy(LOGITS, LOGITS, threshold=0.2),
            r"binary_cross_entropy: a plain tensor of probabilities does not say .*, and "
            r"threshold=0\.2 would undo it; pass Targets\(probabilities\)",
        ),
        (lambda: binary_cross_entropy(LOGITS, LABELS + 5), "labels from 0 to 4, got 5"),
        (lambda: BinaryCrossEntropyLoss(threshold=1.0), r"threshold in \[0, 1\), got 1.0"),
        (
            lambda: BinaryCrossEntropyLoss(label_smoothing=1.2),
            r"label_smoothing in \[0, 1\]",
        ),
        (lambda: BinaryCrossEntropyLoss(reduction="max"), "expected reduction to be one of"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threshold": "a"}, "expected threshold to be a number, got 'a'"),
        ({"threshold": True}, "expected threshold to be a number, got True"),
        ({"label_smoothing": "a"}, "expected label_smoothing to be a number, got 'a'"),
        ({"sum_classes": "no"}, "expected sum_classes to be True or False, got 'no'"),
    ],
)
def test_options_of_other_types(options, text):
    with pytest.raises(TypeError, match=f"BinaryCrossEntropyLoss: {text}"):
        BinaryCrossEntropyLoss(**options)
    with pytest.raises(TypeError, match=f"binary_cross_entropy: {text}"):
        binary_cross_entropy(LOGITS, LABELS, **options)
