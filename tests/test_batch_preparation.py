"""The callable that a training loop prepares its batches with."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from fusedtricks.data.batch_tricks import Chain, OneOf
from fusedtricks.data.holes import Cutout
from fusedtricks.data.mixing import CutMix, MixUp
from fusedtricks.data.prepare import BatchPreparation, prepare_batch
from tests import devices

BACKENDS = ["reference", *(["triton"] if devices.HAS_TRITON else [])]
MEAN, STD = (0.3, 0.4, 0.6), (0.2, 0.5, 0.7)


def random_batch(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


TRICKS = {
    "nothing": None,
    "mixup": MixUp(0.7, per_sample=True),
    "cutmix": CutMix(0.9),
    "cutout": Cutout(3, fill=-1.25),
    "chain": Chain(OneOf([MixUp(0.7), CutMix(0.9)], weights=[1, 2]), Cutout(4, fill=0.75)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tricks", TRICKS.values(), ids=TRICKS)
def test_preparation_draws_a_plan_and_carries_it_out(tricks, backend):
    images, labels = random_batch((4, 3, 6, 5)), torch.arange(4)
    options = {"dtype": torch.bfloat16, "memory_format": torch.contiguous_format}
    options |= {"backend": backend}
    preparation = BatchPreparation(MEAN, STD, tricks=tricks, **options)
    for each in (preparation, copy.deepcopy(preparation), pickle.loads(pickle.dumps(preparation))):
        got = each(images, labels, generator=torch.Generator().manual_seed(5))
        plan, fill = None, 0.0
        if tricks is not None:
            plan = tricks.plan(4, 6, 5, generator=torch.Generator().manual_seed(5))
            fill = tricks.fill
        expected = prepare_batch(images, labels, plan, mean=MEAN, std=STD, fill=fill, **options)
        assert torch.equal(got[0], expected[0]) and got[0].dtype == torch.bfloat16
        assert got[0].is_contiguous()
        assert torch.equal(got[1].probabilities(4), expected[1].probabilities(4))
        assert got[1].is_mixed == (tricks is not None and tricks.mixes)


def test_without_a_generator_batches_differ_and_seeds_repeat_them():
    preparation = BatchPreparation(MEAN, STD, tricks=MixUp(0.7))
    images = random_batch((6, 3, 4, 4))
    assert preparation(images)[1] is None
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(preparation(images)[0])
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
    assert math.isfinite(batches[0].sum())


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"tricks": "mixup"}, TypeError, r"expected tricks such as MixUp\(0.2\), got 'mixup'"),
        ({"std": (0, 1, 1)}, ValueError, r"BatchPreparation: expected std .* above 0, got 0"),
        ({"mean": (0.5,)}, ValueError, "BatchPreparation: expected as many values"),
        ({"dtype": torch.int8}, ValueError, "BatchPreparation: expected dtype"),
        ({"backend": "no"}, ValueError, "BatchPreparation: expected backend"),
    ],
    ids=str,
)
def test_errors_of_the_constructor(wrong, error, text):
    with pytest.raises(error, match=text):
        BatchPreparation(**({"mean": MEAN, "std": STD} | wrong))


def test_the_backend_is_handed_over():
    preparation = BatchPreparation(MEAN, STD, dtype=torch.float64, backend="triton")
    with pytest.raises(RuntimeError, match=r"computes in float32, .* torch\.float64"):
        preparation(random_batch((2, 3, 4, 4)))


def test_no_plan_is_drawn_for_images_that_do_not_fit():
    state = torch.get_rng_state()
    preparation = BatchPreparation(MEAN, STD, tricks=MixUp(0.3))
    with pytest.raises(TypeError, match="BatchPreparation: expected images of uint8"):
        preparation(torch.zeros(2, 3, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)
