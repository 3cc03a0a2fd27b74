"""What all random changes of images have in common."""

import pytest
import torch

from fusedtricks.data.colour import hsv_jitter, pca_noise
from fusedtricks.data.image_ops import add_noise, random_affine, random_flip, random_shift
from tests.batches_of_images import seeded
from tests.devices import DEVICE

OPS = {
    "flip": lambda x, g: random_flip(x, probability=0.4, vertical=True, generator=g),
    "shift": lambda x, g: random_shift(x, max_shift=3, fill=0.75, generator=g),
    "affine": lambda x, g: random_affine(x, degrees=20, scale=(0.7, 1.2), shift=2.5, generator=g),
    "hsv": lambda x, g: hsv_jitter(x, low=0.7, high=1.2, generator=g),
    "pca": lambda x, g: pca_noise(x, std=0.3, generator=g),
    "noise": lambda x, g: add_noise(x, std=0.3, generator=g),
}


@pytest.mark.parametrize("name", OPS)
def test_randomness_comes_from_the_generator_alone(name):
    images = torch.rand(5, 3, 7, 9)
    before = images.clone()
    state = torch.get_rng_state()
    first, again, other = (OPS[name](images, seeded(seed)) for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(state)
    assert images.equal(before)
    torch.manual_seed(3)
    if name != "noise" or DEVICE.type == "cpu":
        assert OPS[name](images, None).equal(first)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("n_images", [0, 1, 5])
def test_shape_and_layout_stay(name, n_images):
    images = torch.rand(n_images, 3, 7, 5)
    expected = OPS[name](images, seeded())
    assert expected.shape == images.shape
    assert expected.is_contiguous()
    last = OPS[name](images.to(memory_format=torch.channels_last), seeded())
    # Torch keeps no order of nothing.
    assert n_images == 0 or last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    strided = torch.stack([images, images], dim=-1)[..., 0]
    torch.testing.assert_close(OPS[name](strided, seeded()), expected)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_precision_draws_the_same_and_rounds_once(name, dtype):
    images = torch.rand(5, 3, 7, 9).to(dtype)
    precise = torch.promote_types(dtype, torch.float32)
    result = OPS[name](images, seeded())
    assert result.dtype == dtype
    assert result.equal(OPS[name](images.to(precise), seeded()).to(dtype))


@pytest.mark.parametrize("name", OPS)
def test_autocast_changes_nothing(name):
    images = torch.rand(5, 3, 7, 9)
    expected = OPS[name](images, seeded())
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert OPS[name](images, seeded()).equal(expected)


@pytest.mark.parametrize("name", OPS)
def test_it_compiles_without_a_break(name):
    images = torch.rand(5, 3, 7, 9)
    compiled = torch.compile(lambda x: OPS[name](x, None), fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    expected = OPS[name](images, None)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled(images), expected)
