"""How consistent models are, and that anti-aliasing makes them so."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fusedtricks._extras import require
from fusedtricks.data import load_digits
from fusedtricks.nn.consistency import shift_consistency
from fusedtricks.nn.resnets import ResNet
from fusedtricks.nn.small_resnet import SmallResNet
from fusedtricks.nn.surgery import apply_blurpool
from fusedtricks.nn.zero_gamma import zero_gamma_

# The measure. -------------------------------------------------------------------------------------


class Peek(nn.Module):
    """The first pixels of an image, as scores."""

    def forward(self, images):
        """Return the first row, shape (N, W)."""
        return images[:, 0, 0]


@pytest.mark.parametrize("circular", [True, False])
def test_consistency_of_a_model_that_sees_the_shift(circular):
    # One image of 7x5 with a bright pixel at (3, 3); two more are dark but for the corner.
    images = torch.zeros(3, 1, 7, 5)
    images[0, 0, 3, 3] = 1
    images[1:, 0, 0, 0] = 1
    max_shift, n_pairs = 3, 200
    result = shift_consistency(
        Peek(),
        images,
        max_shift=max_shift,
        n_pairs=n_pairs,
        circular=circular,
        generator=torch.Generator().manual_seed(5),
    )
    # The same draws, one image and pair after the other.
    draws = torch.randint(
        4, (n_pairs, 2, 3, 2), generator=torch.Generator().manual_seed(5), device="cpu"
    )
    agree = cosine = 0.0
    for pair in draws.tolist():
        for image, shift_a, shift_b in zip(images[:, 0], *pair, strict=True):
            rows = []
            for down, right in (shift_a, shift_b):
                width = 5 if circular else 2
                # Shifting down and right moves the pixel (r, c) to (r + down, c + right); crops
                # begin at max_shift.
                start = 0 if circular else max_shift
                row = [
                    image[(start - down) % 7, (start - right + i) % 5].item() for i in range(width)
                ]
                rows.append(torch.tensor(row))
            agree += float(rows[0].argmax() == rows[1].argmax())
            norms = rows[0].norm() * rows[1].norm()
            cosine += float(rows[0] @ rows[1] / norms) if norms else 0.0
    assert result.n_pairs == 600
    assert result.agreement == pytest.approx(agree / 600)
    assert result.similarity == pytest.approx(cosine / 600)
    assert 0 < result.similarity < result.agreement < 1


def test_a_model_that_averages_is_consistent():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    images = torch.randn(4, 3, 9, 8)
    result = shift_consistency(model, images, max_shift=7, n_pairs=3, circular=True)
    assert result.agreement == 1
    assert result.similarity == pytest.approx(1)


def test_consistency_repeats_and_leaves_the_model_as_it_was():
    model = SmallResNet(3, 7, widths=(4, 6), blocks=(1, 2)).double().train()
    model.bn1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    images = torch.randn(3, 3, 40, 40, dtype=torch.float64)
    first, second, other = (
        shift_consistency(
            model,
            images,
            max_shift=8,
            n_pairs=2,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    )
    assert first == second != other
    assert [module.training for module in model.modules()] == modes
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())

    def fail(images):
        raise RuntimeError("broken")

    model.layer1.forward = fail
    with pytest.raises(RuntimeError, match="broken"):
        shift_consistency(model, images, max_shift=8, n_pairs=2)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"images": torch.zeros(3, 8, 8, device="cpu")}, r"\(N, C, H, W\).*got \[3, 8, 8\]"),
        ({"images": torch.zeros(0, 3, 8, 8, device="cpu")}, r"N of at least 1, got \[0, 3, 8, 8\]"),
        ({"max_shift": 0}, "max_shift for images of 6x9 pixels from 1 to 5, got 0"),
        ({"max_shift": 6}, "max_shift for images of 6x9 pixels from 1 to 5, got 6"),
        ({"n_pairs": 0}, "n_pairs of at least 1, got 0"),
        ({"model": nn.Flatten(0)}, r"return shape \(2, K\) with K of at least 2, got \[\d+\]; one"),
        ({"model": nn.AvgPool3d((3, 4, 7))}, r"K of at least 2, got \[2, 1, 1, 1\]; one output"),
        ({"model": nn.Flatten(0, 1)}, r"return shape \(2, K\) .* got \[6, 4, 7\]"),
        ({"model": nn.Threshold(0.5, float("nan"))}, "finite outputs, got inf or NaN"),
        ({"model": nn.Threshold(0.5, float("-inf"))}, "finite outputs, got inf or NaN"),
    ],
)
def test_consistency_errors(changes, text):
    arguments = {"images": torch.zeros(2, 3, 6, 9), "max_shift": 2, "n_pairs": 3} | changes
    with pytest.raises(ValueError, match="shift_consistency: .*" + text):
        shift_consistency(**{"model": Peek(), **arguments})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": torch.relu}, "model to be a Module, got builtin_function_or_method"),
        (
            {"model": nn.Sequential(nn.Flatten(1, 2), nn.LSTM(7, 3))},
            "the model's output to be a tensor, got tuple",
        ),
        ({"images": [[0.0]]}, "images to be a tensor, got list"),
        ({"max_shift": 2.5}, "max_shift for images .* to be a whole number, got 2.5"),
        ({"max_shift": True}, "max_shift for images .* to be a whole number, got True"),
        ({"n_pairs": "3"}, "n_pairs to be a whole number, got '3'"),
        ({"circular": "no"}, "circular to be True or False, got 'no'"),
    ],
)
def test_consistency_of_other_types_is_refused(changes, text):
    arguments = {"images": torch.zeros(2, 3, 6, 9), "max_shift": 2, "n_pairs": 3} | changes
    with pytest.raises(TypeError, match="shift_consistency: expected " + text):
        shift_consistency(**{"model": Peek(), **arguments})


def test_consistency_takes_whole_numbers_of_numpy():
    result, expected = (
        shift_consistency(
            Peek(),
            torch.arange(120.0).view(2, 1, 6, 10),
            max_shift=kind(2),
            n_pairs=kind(3),
            generator=torch.Generator().manual_seed(4),
        )
        for kind in (np.int64, int)
    )
    assert result == expected
    assert type(result.n_pairs) is int


# Anti-aliasing makes a model consistent. ----------------------------------------------------------


def patches(size):
    """Return four patches of scikit-learn's two photographs, shape (4, 3, size, size)."""
    photographs = require("sklearn.datasets").load_sample_images().images
    crops = [p[row : row + size, 200 : 200 + size] for p in photographs for row in (50, 250)]
    images = torch.stack([torch.tensor(crop).permute(2, 0, 1) for crop in crops])
    return (images / 255 - 0.45) / 0.225


def calibrated(model, images):
    """Give the normalisations the statistics of these images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model


def consistency(model, images, max_shift):
    crops = images[:, :, max_shift // 2 :, max_shift // 2 :][:, :, :96, :96]
    return shift_consistency(
        calibrated(model, crops),
        images,
        max_shift=max_shift,
        n_pairs=4,
        generator=torch.Generator().manual_seed(3),
    )


def check_that_consistency_rises(make_model, max_shift):
    """Demand that outputs of shifted photographs differ by less than half, for random models.

    The last normalisations of the branches are small, as after `zero_gamma_` and some training;
    with 1, many layers of random weights make any difference a large one.
    """
    pytest.importorskip("sklearn")
    images = patches(96 + max_shift)
    gains = []
    for seed in (11, 12, 13):
        torch.manual_seed(seed)
        model = make_model()
        for name in zero_gamma_(model):
            nn.init.constant_(model.get_parameter(name), 0.3)
        before = consistency(model, images, max_shift)
        apply_blurpool(model, filt_size=3, verbose=False)
        after = consistency(model, images, max_shift)
        assert 1 - after.similarity < 0.5 * (1 - before.similarity)
        gains.append(after.agreement - before.agreement)
    assert sum(gains) > 0


def test_our_resnet_gets_more_consistent():
    arguments = {"widths": (16, 32, 64, 128), "variant": "B", "n_classes": 100}
    check_that_consistency_rises(lambda: ResNet("basic", (2, 2, 2, 2), **arguments), max_shift=8)


@pytest.mark.parametrize(
    ("library", "name", "max_shift"),
    [
        ("torchvision.models", "resnet18", 8),
        ("torchvision.models", "resnet50", 3),
        ("timm", "resnet50", 3),
    ],
)
def test_others_resnets_get_more_consistent(library, name, max_shift):
    models = pytest.importorskip(library)
    make = models.get_model if library == "torchvision.models" else models.create_model
    check_that_consistency_rises(lambda: make(name), max_shift)


def trained_agreement(digits, filt_size, seed):
    """Train a small network on digits that are not shifted, and shift those of the test."""
    torch.manual_seed(seed)
    arguments = {"widths": (8, 16, 32), "in_channels": 1, "n_classes": 10}
    model = ResNet("basic", (1, 1, 1), variant="B", stem="small", **arguments)
    if filt_size:
        apply_blurpool(model, filt_size=filt_size, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=36)
    for _ in range(3):
        for batch in torch.randperm(600, device="cpu").split(50):
            images, labels = digits.train_images[batch], digits.train_labels[batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            scheduler.step()
    return shift_consistency(
        model,
        digits.test_images[:200],
        max_shift=1,
        n_pairs=3,
        circular=True,
        generator=torch.Generator().manual_seed(3),
    ).agreement


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trained_networks_agree_more_often(seed):
    pytest.importorskip("sklearn")
    digits = load_digits(seed=seed, train_size=600)
    plain, blurred = (trained_agreement(digits, size, seed) for size in (0, 4))
    assert blurred > plain + 0.1
