"""Mixup and cutmix: shares, partners and boxes, and what they make of a batch."""

import math

import pytest
import torch
from torch.nn import functional

from fusedtricks.data.mixing import CutMix, MixUp, cutmix, mixup
from fusedtricks.targets import Targets, as_targets
from tests.batches_of_images import N_CLASSES, make_batch, seeded
from tests.devices import DEVICE


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("cls", [MixUp, CutMix])
def test_the_loss_is_the_blend_of_two_losses(cls, per_sample):
    # Images say who they are: image i is e_i, so that the result holds the shares.
    n_images, height, width = 7, 9, 11
    images = torch.eye(n_images)[:, :, None, None].expand(-1, -1, height, width)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    mixed, targets = cls(0.7, per_sample=per_sample)(images, labels, generator=seeded())
    shares = mixed.double().mean(dim=(2, 3))
    logits = torch.randn(n_images, N_CLASSES, dtype=torch.float64)
    losses = functional.cross_entropy(
        logits[:, None].expand(-1, n_images, -1).mT, labels.expand(n_images, -1), reduction="none"
    )  # (image, whose label)
    loss = functional.cross_entropy(logits, targets.probabilities(N_CLASSES).double())
    torch.testing.assert_close(loss, (shares * losses).sum(dim=1).mean(), rtol=1e-6, atol=0)
    assert targets.is_mixed


def test_mixup_is_the_authors_code():
    images, labels = make_batch()
    trick = MixUp(0.7)
    plan = trick.plan(7, 9, 11, generator=seeded()).to(DEVICE)
    mixed, targets = trick(images, labels, generator=seeded())
    share = plan.own_share[0]
    assert 0.001 < share < 0.999
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[plan.partner])
    logits = torch.randn(7, N_CLASSES)
    loss = functional.cross_entropy(logits, targets.probabilities(N_CLASSES))
    own = functional.cross_entropy(logits, labels)
    other = functional.cross_entropy(logits, labels[plan.partner])
    torch.testing.assert_close(loss, share * own + (1 - share) * other)


@pytest.mark.parametrize("cls", [MixUp, CutMix])
def test_one_draw_per_batch_or_per_sample(cls):
    for per_sample in (False, True):
        plan = cls(0.7, per_sample=per_sample).plan(50, 33, 47, generator=seeded())
        drawn = plan.own_share if cls is MixUp else plan.patch
        assert (len(drawn.unique(dim=0)) > 25) == per_sample
        assert (len(drawn.unique(dim=0)) == 1) != per_sample
        assert all(t.is_contiguous() for t in (plan.own_share, plan.partner, plan.patch))
        assert (plan.own_share.dtype, plan.patch.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("alpha", [0.2, 1.7])
def test_shares_have_the_distribution_of_torch(alpha):
    n = 20_000
    ours = MixUp(alpha, per_sample=True).plan(n, 8, 8, generator=seeded()).own_share.double()
    assert abs(ours.mean() - 0.5) < 4 / math.sqrt(4 * (2 * alpha + 1) * n)
    assert abs(ours.var() * 4 * (2 * alpha + 1) - 1) < 0.05
    concentration = torch.tensor(alpha, dtype=torch.float64, device="cpu")
    theirs = torch.distributions.Beta(concentration, concentration).sample((n,))
    points = torch.cat([ours, theirs]).sort().values
    distance = (_share_below(ours, points) - _share_below(theirs, points)).abs().max()
    # Kolmogorov-Smirnov: exceeded once in a thousand.
    assert distance < 1.95 * math.sqrt(2 / n)


@pytest.mark.parametrize(
    ("alpha", "distribution"),
    [
        (0.5, lambda x: 2 / math.pi * x.sqrt().asin()),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_shares_have_the_distribution_of_the_formula(alpha, distribution):
    n = 20_000
    plan = MixUp(alpha, per_sample=True).plan(n, 8, 8, generator=seeded(3))
    points = plan.own_share.double().sort().values
    distance = (_share_below(points, points) - distribution(points)).abs().max()
    assert distance < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 0.01, 1e300])
def test_extreme_concentrations(alpha):
    shares = MixUp(alpha, per_sample=True).plan(1000, 8, 8, generator=seeded()).own_share
    assert shares.isfinite().all()
    assert shares.min() >= 0
    assert shares.max() <= 1
    if alpha > 1:
        assert (shares - 0.5).abs().max() < 1e-6
    else:
        assert 0.4 < (shares > 0.5).float().mean() < 0.6
        assert torch.minimum(shares, 1 - shares).mean() < 0.02


def _share_below(sample, points):
    return torch.searchsorted(sample.sort().values, points, right=True) / len(sample)


def test_partners_are_any_permutation():
    generator = seeded()
    seen = {}
    for _ in range(1200):
        partner = tuple(MixUp(0.7).plan(3, 8, 8, generator=generator).partner.tolist())
        seen[partner] = seen.get(partner, 0) + 1
    assert len(seen) == 6
    # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand.
    assert sum((n - 200) ** 2 / 200 for n in seen.values()) < 20.5


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("cls", [MixUp, CutMix])
@pytest.mark.parametrize("n_images", [0, 1, 2, 5])
def test_any_number_of_images(n_images, cls, per_sample):
    images, labels = torch.randn(n_images, 3, 7, 5), torch.arange(n_images)
    mixed, targets = cls(0.7, per_sample=per_sample)(images, labels, generator=seeded())
    assert mixed.shape == images.shape
    probabilities = targets.probabilities(N_CLASSES)
    assert probabilities.shape == (n_images, N_CLASSES)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(n_images))
    if n_images == 1:
        torch.testing.assert_close(mixed, images)


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_alpha_zero_changes_nothing(function):
    images, labels = make_batch()
    result, targets = function(images, labels, alpha=0, per_sample=True, generator=seeded())
    assert result.equal(images)
    assert targets.labels.equal(labels)
    assert not targets.is_mixed


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_all_forms_of_targets(function):
    images, labels = make_batch()
    one_hot = functional.one_hot(labels, N_CLASSES).float()
    forms = [labels, one_hot, as_targets(labels), Targets(one_hot, smoothing=0.3)]
    results = [function(images, form, alpha=0.7, generator=seeded())[1] for form in forms]
    for targets in results:
        probabilities = targets.probabilities(N_CLASSES)
        torch.testing.assert_close(probabilities, results[0].probabilities(N_CLASSES))
        assert (probabilities > 0).sum(dim=1).max() == 2
    assert results[3].smoothing == 0.3


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_puts_the_box_of_the_partner_where_the_target_says(per_sample):
    n_images, height, width = 6, 13, 7
    images = (torch.arange(n_images) + 1.0)[:, None, None, None].expand(-1, 2, height, width)
    trick = CutMix(0.7, per_sample=per_sample)
    mixed, targets = trick(images, torch.arange(n_images), generator=seeded(2))
    plan = trick.plan(n_images, height, width, generator=seeded(2))
    n_patches = 0
    for i in range(n_images):
        is_own = mixed[i] == i + 1
        other = plan.partner[i]
        assert (is_own | (mixed[i] == other + 1)).all()
        assert is_own[0].equal(is_own[1])
        if other == i:
            continue
        probabilities = targets.probabilities(n_images)[i]
        torch.testing.assert_close(probabilities[i], is_own[0].float().mean())
        torch.testing.assert_close(probabilities[other], 1 - is_own[0].float().mean())
        rows, columns = (~is_own[0]).any(dim=1), (~is_own[0]).any(dim=0)
        assert (~is_own[0]).equal(rows[:, None] & columns)
        n_patches += bool(rows.any())
        for line in (rows, columns):
            assert (line[1:] != line[:-1]).sum() <= 2
    assert n_patches > 2


def test_boxes_of_cutmix_have_the_papers_size():
    # With r^2 = 1 - share, a side is r - r^2 / 4 of the image on average over its centre, as a
    # quarter of r^2 sticks out; for Beta(2, 2), E r^(2k) = 6 / ((k + 2) (k + 3)).
    n, height, width = 40_000, 9, 7
    patch = CutMix(2.0, per_sample=True).plan(n, height, width, generator=seeded()).patch
    top, bottom, left, right = patch.double().unbind(dim=1)
    areas = (bottom - top) * (right - left) / (height * width)
    expected = 1 / 2 - 6 / (3.5 * 4.5) / 2 + 6 / (4 * 5) / 16
    # Rounding of the edges of so small an image costs a third of a percent.
    assert abs(areas.mean() - expected) < 4 * areas.std() / math.sqrt(n) + 0.003
    for sides in ((bottom - top) / height, (right - left) / width):
        expected = 6 / (2.5 * 3.5) - 1 / 2 / 4
        assert abs(sides.mean() - expected) < 4 * sides.std() / math.sqrt(n) + 0.003
    for low, high, length in ((top, bottom, height), (left, right, width)):
        assert low.min() == 0
        assert high.max() == length
        # The same on both sides.
        assert abs((low - (length - high)).mean()) < 4 * (low + high).std() / math.sqrt(n)


def test_whole_boxes_of_cutmix_have_the_images_proportions():
    plan = CutMix(0.7, per_sample=True).plan(2000, 1200, 400, generator=seeded())
    top, bottom, left, right = plan.patch.unbind(dim=1)
    is_whole = (top > 0) & (bottom < 1200) & (left > 0) & (right < 400)
    assert is_whole.sum() > 50
    assert ((bottom - top) - 3 * (right - left))[is_whole].abs().max() <= 4
    centres = torch.stack([(top + bottom)[is_whole] / 2400, (left + right)[is_whole] / 800])
    assert abs(torch.corrcoef(centres)[0, 1]) < 4 / math.sqrt(int(is_whole.sum()))


def test_functions_and_classes_are_the_same():
    images, labels = make_batch()
    for function, cls in ((mixup, MixUp), (cutmix, CutMix)):
        for per_sample in (False, True):
            result, targets = function(
                images, labels, alpha=0.7, per_sample=per_sample, generator=seeded()
            )
            expected, wanted = cls(0.7, per_sample=per_sample)(images, labels, generator=seeded())
            assert result.equal(expected)
            assert targets.weights.equal(wanted.weights)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: MixUp(-0.1),
            ValueError,
            "MixUp: expected alpha .* of at least 0, got -0.1",
        ),
        (lambda: CutMix(math.nan), ValueError, "CutMix: expected alpha .*, got nan"),
        (
            lambda: MixUp(math.inf),
            ValueError,
            "MixUp: expected alpha to be a finite .*, got inf",
        ),
        (lambda: CutMix("1"), TypeError, "CutMix: expected alpha to be a number, got '1'"),
        (
            lambda: MixUp()(torch.zeros(3, 8, 8), torch.zeros(3)),
            ValueError,
            r"MixUp: expected images of shape \(N, C, H, W\), got \[3, 8, 8\]",
        ),
        (
            lambda: mixup(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])),
            TypeError,
            r"floating point dtype, got torch.uint8; for bytes, images.float\(\) / 255",
        ),
        (
            lambda: MixUp(per_sample="no"),
            TypeError,
            "MixUp: expected per_sample to be True or False, got 'no'",
        ),
        (
            lambda: mixup(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), generator=42),
            TypeError,
            r"expected generator .*, got 42; from a seed, torch.Generator\(\).manual_seed\(42\)",
        ),
        (lambda: mixup([1], torch.tensor([0])), TypeError, "images to be a tensor, got list"),
        (
            lambda: mixup(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1, 2])),
            ValueError,
            "expected targets of as many images as the plan has, 2, got 3",
        ),
        (
            lambda: mixup(torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 1.0])),
            ValueError,
            r"expected class probabilities of shape \(N, K\), got \[2\]",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
