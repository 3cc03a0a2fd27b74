"""The soft loss of distillation, and its sum with the hard one."""

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
    DistillationLoss,
    Targets,
    TeacherCache,
    as_targets,
    cross_entropy,
    distillation_loss,
)
from tests.devices import DEVICE
from tests.values import TOLERANCE

N, K = 7, 5


def make_logits(dtype=torch.float64, scale=3.0):
    return (scale * torch.randn(N, K, dtype=torch.float64)).to(dtype).requires_grad_()


def assert_same(actual, expected, dtype=torch.float64):
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def by_hand(student, teacher, temperature):
    """T^2 times the cross-entropy of every sample, as Hinton et al. 2015 have it, section 2.1."""
    q, z = (teacher / temperature).exp(), (student / temperature).exp()
    q, p = q / q.sum(dim=1, keepdim=True), z / z.sum(dim=1, keepdim=True)
    return -(temperature**2) * (q * p.log()).sum(dim=1)


def test_values():
    student, teacher = make_logits(), make_logits()
    losses = by_hand(student, teacher, 2.5)
    for reduction, value in (("none", losses), ("mean", losses.sum() / N), ("sum", losses.sum())):
        actual = distillation_loss(student, teacher, temperature=2.5, reduction=reduction)
        assert_same(actual, value)


def test_a_value_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2) at T = 2: 4 ln 2.
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64)
    student = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    actual = distillation_loss(student, teacher, temperature=2.0)
    assert actual.item() == pytest.approx(4 * math.log(2), rel=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_gradients_are_those_of_the_divergence(temperature):
    # What timm and most others have: KL, its mean over the batch, times T^2.
    student, teacher = make_logits(), make_logits()
    expected = temperature**2 * functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher.detach() / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    actual = distillation_loss(student, teacher, temperature=temperature)
    assert_same(torch.autograd.grad(actual, student), torch.autograd.grad(expected, student))
    # They differ by the teacher's entropy, which the student cannot change.
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy().mean()
    assert_same(actual - expected, temperature**2 * entropy)


def test_gradients_keep_their_size_at_high_temperatures():
    # d/dz = T (softmax(z/T) - softmax(r/T)) / N, which goes to (z - r - mean(z - r)) / (K N).
    student, teacher = make_logits(), make_logits()
    limit = student.detach() - teacher.detach()
    limit = (limit - limit.mean(dim=1, keepdim=True)) / (K * N)
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, temperature=1e4), student)
    torch.testing.assert_close(gradient, limit, rtol=1e-2, atol=1e-5)
    (sharp,) = torch.autograd.grad(distillation_loss(student, teacher, temperature=1.0), student)
    assert 0.1 < sharp.norm() / gradient.norm() < 10


def test_a_class_that_both_rule_out():
    student, teacher = make_logits(), make_logits().detach()
    mask = torch.zeros(K, dtype=torch.float64)
    mask[1] = -math.inf
    loss = distillation_loss(student + mask, teacher + mask, temperature=2.5)
    (gradient,) = torch.autograd.grad(loss, student)
    rest = [0, 2, 3, 4]
    others = by_hand(student[:, rest], teacher[:, rest], 2.5).mean()
    assert_same(loss, others)
    assert_same(gradient, torch.autograd.grad(others, student)[0])


def test_a_class_that_the_targets_rule_out():
    # Softmax (1/4, 3/4) of two classes, and two that are ruled out.
    logits = torch.tensor([[0.0, math.log(3), -math.inf, -math.inf]] * 2, dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0]], dtype=torch.float64)
    classes = torch.tensor([[0, 1, 2, 2], [0, 1, 3, 2]])
    expected = -(q[:, 0] * math.log(0.25) + q[:, 1] * math.log(0.75))
    p = torch.tensor([0.25, 0.75, 0.0, 0.0], dtype=torch.float64)
    for targets in (Targets(q), q, Targets(q, classes)):
        leaf = logits.clone().requires_grad_()
        losses = cross_entropy(leaf, targets, reduction="none")
        assert_same(losses, expected)
        (1e300 * losses.sum()).backward()
        assert_same(leaf.grad / 1e300, p - q)
    # What the target has, but not the logits, is infinitely wrong.
    assert cross_entropy(logits, Targets(q.flip(1))).item() == math.inf
    assert cross_entropy(logits, torch.tensor([2, 1])).item() == math.inf


def test_the_teacher_gets_no_gradient():
    student, teacher = make_logits(), make_logits()
    distillation_loss(student, teacher, temperature=2.0).backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_hard_and_soft_loss(reduction):
    student, teacher = make_logits(), make_logits()
    targets = as_targets(torch.randint(0, K, (N,))).mix(torch.randperm(N), torch.rand(N))
    loss = DistillationLoss(
        CrossEntropyLoss(label_smoothing=0.2, reduction=reduction),
        3.0,
        hard_weight=0.3,
        soft_weight=0.6,
    )
    q = targets.smooth(0.2, K).weights.double()
    hard = functional.cross_entropy(student, q, reduction="none")
    losses = 0.3 * hard + 0.6 * by_hand(student, teacher, 3.0)
    expected = {"none": losses, "mean": losses.sum() / N, "sum": losses.sum()}[reduction]
    # The weights of mixed labels are float32.
    assert_same(loss(student, teacher, targets), expected, torch.float32)


def test_the_weights_of_the_paper_are_one():
    student, teacher = make_logits(), make_logits()
    labels = torch.randint(0, K, (N,))
    expected = functional.cross_entropy(student, labels) + by_hand(student, teacher, 3.0).mean()
    assert_same(DistillationLoss(functional.cross_entropy, 3.0)(student, teacher, labels), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_16_bits_are_computed_with_in_float32(dtype, is_autocast):
    student, teacher = make_logits(dtype), make_logits(torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=is_autocast):
        loss = distillation_loss(student, teacher, temperature=7.0)
    assert loss.dtype == torch.float32
    expected = by_hand(student.double(), teacher.double(), 7.0).mean().float()
    assert_same(loss, expected, torch.float32)


def test_compiled_in_one_graph():
    loss = DistillationLoss(CrossEntropyLoss(), 3.0)
    args = make_logits(), make_logits(), torch.randint(0, K, (N,))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*args), loss(*args))


def test_copies_and_text():
    loss = DistillationLoss(CrossEntropyLoss(), 3.0, hard_weight=0.3, soft_weight=0.6)
    assert "temperature=3.0, hard_weight=0.3, soft_weight=0.6" in repr(loss)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)


LOGITS = torch.zeros(2, K, device="cpu")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: distillation_loss(LOGITS, LOGITS[:, :4], temperature=1.0),
            ValueError,
            r"teacher_logits of the student's shape \[2, 5\], got \[2, 4\]",
        ),
        (
            lambda: distillation_loss(LOGITS, LOGITS, temperature=0.0),
            ValueError,
            "distillation_loss: expected temperature to be a finite number above 0, got 0.0",
        ),
        (
            lambda: distillation_loss(LOGITS, LOGITS, temperature=1.0, reduction="batchmean"),
            ValueError,
            "distillation_loss: expected reduction to be one of",
        ),
        (
            lambda: DistillationLoss(CrossEntropyLoss(), math.inf),
            ValueError,
            "DistillationLoss: expected temperature to be a finite number above 0, got inf",
        ),
        (
            lambda: DistillationLoss(CrossEntropyLoss(), 1.0, hard_weight=-1.0),
            ValueError,
            "expected hard_weight to be a finite number of at least 0, got -1.0",
        ),
        (
            lambda: DistillationLoss(CrossEntropyLoss(), 1.0, soft_weight=-0.5),
            ValueError,
            "expected soft_weight to be a finite number of at least 0, got -0.5",
        ),
        (
            lambda: distillation_loss(LOGITS, LOGITS.long(), temperature=1.0),
            TypeError,
            "distillation_loss: expected teacher_logits of a floating point dtype, got torch.int64",
        ),
        (
            lambda: distillation_loss(LOGITS, [[0.0]], temperature=1.0),
            TypeError,
            "distillation_loss: expected teacher_logits to be a tensor, got list",
        ),
        (
            lambda: distillation_loss(LOGITS[0], LOGITS, temperature=1.0),
            ValueError,
            r"expected student_logits of shape \(N, K\), got \[5\]",
        ),
        (
            lambda: distillation_loss(LOGITS, LOGITS, temperature="a"),
            TypeError,
            "distillation_loss: expected temperature to be a number, got 'a'",
        ),
        (
            lambda: DistillationLoss(nn.CrossEntropyLoss, 1.0),
            TypeError,
            r"DistillationLoss: .* got the class CrossEntropyLoss; call it: CrossEntropyLoss\(\)",
        ),
        (
            lambda: DistillationLoss(nn.NLLLoss(), 1.0),
            TypeError,
            "a loss of logits, got NLLLoss, which takes log-probabilities; use CrossEntropyLoss",
        ),
        (
            lambda: DistillationLoss(functools.partial(functional.nll_loss, reduction="sum"), 1.0),
            TypeError,
            "expected a loss of logits, got nll_loss, which takes log-probabilities",
        ),
        (
            lambda: DistillationLoss(BinaryCrossEntropyLoss(), 1.0),
            TypeError,
            "DistillationLoss: expected a softmax loss, got BinaryCrossEntropyLoss",
        ),
        (
            lambda: DistillationLoss(nn.KLDivLoss(reduction="batchmean"), 1.0),
            ValueError,
            "DistillationLoss: expected reduction to be one of",
        ),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


IMAGES, INDICES = torch.ones(1, 3, device="cpu"), torch.tensor([0], device="cpu")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda cache: TeacherCache(len, 3, K), "teacher to be a Module, got builtin_function"),
        (lambda cache: TeacherCache(cache.teacher, 3, 2.5), "n_classes to be a whole number, got"),
        (lambda cache: TeacherCache(cache.teacher, True, K), "n_samples to be a whole number, got"),
        (lambda cache: cache([[1.0]], INDICES, INDICES), "inputs to be a tensor, got list"),
        (lambda cache: cache(IMAGES, [0], INDICES), "indices to be a tensor, got list"),
        (lambda cache: cache.load_state_dict(None), "expected state_dict to be .*, got NoneType"),
        (
            lambda cache: cache.load_state_dict({"logits": [1.0], "is_known": INDICES}),
            r"expected state_dict\['logits'\] to be a tensor, got list",
        ),
        (
            lambda cache: TeacherCache(nn.LSTM(3, K), 3, K)(IMAGES, INDICES, INDICES),
            "expected the teacher's logits to be a tensor, got tuple",
        ),
    ],
)
def test_what_a_cache_of_a_teacher_cannot_take(call, text):
    with pytest.raises(TypeError, match=f"TeacherCache: .*{text}"):
        call(TeacherCache(nn.Linear(3, K), 3, K))


def test_with_a_penalty_on_confidence():
    student, teacher = make_logits(), make_logits()
    labels = torch.randint(0, K, (N,))
    hard = ConfidencePenalty(CrossEntropyLoss(reduction="sum"), 0.2)
    expected = hard(student, labels) + by_hand(student, teacher, 3.0).sum()
    assert_same(DistillationLoss(hard, 3.0)(student, teacher, labels), expected)
