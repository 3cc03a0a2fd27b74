"""Combinations of tricks on batches, and what all such tricks have in common."""

import copy
import math
import pickle

import pytest
import torch

from fusedtricks.data.batch_tricks import Chain, OneOf
from fusedtricks.data.holes import Cutout
from fusedtricks.data.mixing import CutMix, MixUp, mixup
from fusedtricks.data.plan import BatchPlan
from tests.batches_of_images import N_CLASSES, make_batch, pixel_by_pixel, seeded
from tests.devices import DEVICE


def test_one_of_several_as_often_as_wanted():
    trick = OneOf([MixUp(0.7), CutMix(0.7), Cutout(3), MixUp(0)], weights=[5, 2, 3, 0])
    generator = seeded()
    counts = {"blend": 0, "patch": 0, "hole": 0}
    n = 1000
    for _ in range(n):
        plan = trick.plan(4, 64, 64, generator=generator)
        done = {
            "blend": bool((plan.own_share < 1).any()),
            "patch": bool((plan.patch != 0).any()),
            "hole": bool((plan.hole != 0).any()),
        }
        assert sum(done.values()) == 1
        if done["hole"]:
            assert plan.partner.equal(BatchPlan.nothing(4).partner)
        for what, is_done in done.items():
            counts[what] += is_done
    for what, share in (("blend", 0.5), ("patch", 0.2), ("hole", 0.3)):
        assert abs(counts[what] / n - share) < 4 * math.sqrt(share * (1 - share) / n), what


def test_a_weight_of_zero_is_never_chosen():
    for weights in ([0, 1], [0.1, 0]):
        trick = OneOf([Cutout(3), Cutout(4)], weights=weights)
        generator = seeded()
        for _ in range(200):
            hole = trick.plan(50, 64, 64, generator=generator).hole
            assert (hole[:, 1] - hole[:, 0]).max() == (4 if weights[1] else 3)


def test_one_of_takes_the_same_numbers_whatever_it_chooses():
    states = []
    for weights in ([1, 0], [0, 1]):
        generator = seeded()
        OneOf([MixUp(0.7), CutMix(0.3)], weights=weights).plan(5, 8, 8, generator=generator)
        states.append(generator.get_state())
    assert states[0].equal(states[1])


def test_one_of_several_carries_out_what_it_planned():
    images, labels = make_batch()
    trick = OneOf([MixUp(0.7), Chain(CutMix(0.3), Cutout(5, fill=0.75))], weights=[2, 3])
    seen = set()
    for seed in range(8):
        plan = trick.plan(7, 9, 11, generator=seeded(seed)).to(DEVICE)
        result, targets = trick(images, labels, generator=seeded(seed))
        expected = pixel_by_pixel(images, plan, 0.75)
        torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
        assert targets.is_mixed
        seen.add(bool((result == 0.75).any()))
    assert seen == {True, False}


@pytest.mark.parametrize("mix", [MixUp(0.7), CutMix(0.7, per_sample=True)])
def test_a_chain_is_one_after_the_other(mix):
    images, labels = make_batch()
    cut = Cutout(5, fill=0.75, probability=0.6)
    together, targets = Chain(mix, cut)(images, labels, generator=seeded())
    generator = seeded()
    apart, wanted = cut(*mix(images, labels, generator=generator), generator=generator)
    assert together.equal(apart)
    assert targets.probabilities(N_CLASSES).equal(wanted.probabilities(N_CLASSES))
    assert (together == 0.75).any()


def test_cutting_alone_mixes_no_targets():
    for trick in (Chain(MixUp(0), Cutout(3)), OneOf([Cutout(3), MixUp(0)])):
        _, targets = trick(*make_batch())
        assert not targets.is_mixed
        assert targets.weights.shape[1] == 1


TRICKS = [
    MixUp(0.7, per_sample=True),
    CutMix(0.3),
    Cutout(5, probability=0.6, fill=0.75),
    Chain(CutMix(0.7), Cutout(4)),
    OneOf([MixUp(0.3), CutMix(0.7)], weights=[2, 3]),
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: type(trick).__name__)
def test_randomness_comes_from_the_generator_alone(trick):
    images, labels = make_batch()
    before = torch.get_rng_state()
    first, targets = trick(images, labels, generator=seeded(4))
    again, _ = trick(images, labels, generator=seeded(4))
    other, _ = trick(images, labels, generator=seeded(5))
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(before)
    assert targets.weights.sum(dim=1).allclose(torch.ones(7))
    torch.manual_seed(4)
    # The generator of the CPU, wherever the images are.
    assert trick(images, labels)[0].equal(first)


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: type(trick).__name__)
def test_plans_are_drawn_where_the_generator_is(trick):
    generator = torch.Generator(DEVICE).manual_seed(4)
    plan = trick.plan(7, 9, 11, generator=generator)
    for drawn in (plan.partner, plan.own_share, plan.patch, plan.hole):
        assert drawn.device.type == DEVICE.type
    # Boxes end where the image ends.
    for top, bottom, left, right in [*plan.patch.tolist(), *plan.hole.tolist()]:
        assert 0 <= top <= bottom <= 9
        assert 0 <= left <= right <= 11
    images, labels = make_batch()
    result, _ = trick(images, labels, generator=generator.manual_seed(4))
    expected = pixel_by_pixel(images, plan, trick.fill)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: type(trick).__name__)
def test_copies_do_the_same(trick):
    images, labels = make_batch()
    expected = trick(images, labels, generator=seeded())[0]
    for twin in (pickle.loads(pickle.dumps(trick)), copy.deepcopy(trick)):
        assert twin == trick
        assert repr(twin) == repr(trick)
        assert twin(images, labels, generator=seeded())[0].equal(expected)


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: type(trick).__name__)
def test_a_batch_compiles_without_a_break(trick):
    images, labels = make_batch()

    def step(images, labels):
        mixed, targets = trick(images, labels)
        return mixed, targets.probabilities(N_CLASSES)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.manual_seed(9)
    expected = step(images, labels)
    torch.manual_seed(9)
    for result, wanted in zip(compiled(images, labels), expected, strict=True):
        torch.testing.assert_close(result, wanted)


def test_autocast_changes_nothing():
    images, labels = make_batch()
    for trick in TRICKS:
        expected = trick(images, labels, generator=seeded())[0]
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            assert trick(images, labels, generator=seeded())[0].equal(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_the_same(dtype):
    images, labels = make_batch()
    for trick in TRICKS:
        expected = trick(images.to(dtype).float(), labels, generator=seeded())[0].to(dtype)
        assert trick(images.to(dtype), labels, generator=seeded())[0].equal(expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: OneOf([]), ValueError, "at least one trick, got none"),
        (lambda: OneOf([MixUp()], [1, 2]), ValueError, r"each of the 1 tricks .*, got \[1, 2\]"),
        (lambda: OneOf([MixUp()], [0]), ValueError, r"at least one above 0, got \[0\]"),
        (
            lambda: OneOf([MixUp()], [-1]),
            ValueError,
            r"OneOf: expected weights to be a finite number of at least 0, got -1",
        ),
        (
            lambda: OneOf(MixUp(0.25)),
            TypeError,
            r"OneOf: expected tricks to be a sequence, .* got MixUp\(.*; such as OneOf\(\[MixUp",
        ),
        (
            lambda: OneOf([MixUp(), CutMix()], 0.75),
            TypeError,
            "OneOf: expected weights to be a sequence, one for each trick, got 0.75",
        ),
        (lambda: OneOf([mixup]), TypeError, "OneOf: expected a trick such as MixUp"),
        (
            lambda: OneOf([Cutout(2, fill=0.5), Cutout(3, fill=0.25)]),
            ValueError,
            r"OneOf: expected one fill for all holes, got \[0.25, 0.5\]",
        ),
        (lambda: Chain(MixUp(), CutMix()), ValueError, "then one that mixes nothing, got MixUp"),
        (lambda: Chain(Cutout(2), Cutout(3)), ValueError, "Chain: expected a trick that cuts no"),
        (lambda: Chain(Cutout(2), MixUp()), ValueError, "Chain: expected a trick that cuts no"),
        (lambda: Chain(MixUp(), None), TypeError, "Chain: expected a trick .*, got None"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
