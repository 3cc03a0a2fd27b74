"""The Python of docs/tricks.md runs as it is printed."""

import re
from pathlib import Path

import pytest
import torch

import fusedtricks
from fusedtricks import nn
from tests.devices import DEVICE

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tricks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(block, **names):
    exec(compile(block, "docs/tricks.md", "exec"), names)
    return names


def block_with(text):
    (block,) = (block for block in BLOCKS if text in block)
    return block


def small_model():
    model = nn.SmallResNet(3, 5, widths=(8,), blocks=(1,))
    return model, fusedtricks.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_every_block_is_tested():
    assert len(BLOCKS) == 5


def test_targets_know_that_they_are_mixed():
    model, _ = small_model()
    images, labels = torch.rand(7, 3, 16, 16), torch.arange(7) % 5
    names = run(block_with("loss_fn = "), model=model, images=images, labels=labels)
    assert names["targets"].is_mixed and names["loss"].isfinite()


def test_stochastic_weight_averaging():
    model, optimizer = small_model()
    loader = [(torch.rand(4, 3, 8, 8), torch.arange(4)) for _ in range(3)]
    names = run(block_with("SWALR"), model=model, optimizer=optimizer, loader=loader)
    assert names["averaged"].n_averaged == 1
    # update_bn starts the statistics anew and passes through the loader once.
    assert names["averaged"].module.bn1.num_batches_tracked == 3


def test_policies_around_the_pipeline():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    transform = run(block_with("TrivialAugmentWide"))["transform"]
    image = torch.randint(0, 256, (3, 300, 260), dtype=torch.uint8, device="cpu")
    found = transform(image)
    assert found.shape == (3, 224, 224) and found.is_floating_point()


def test_adaptive_clipping_bounds_every_row():
    pytest.importorskip("timm", reason="timm is not installed")
    model, optimizer = small_model()
    weight = model.fc.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape))
    before = weight.detach().clone()
    loss = 1e4 * model(torch.rand(4, 3, 8, 8)).square().sum()
    run(block_with("adaptive_clip_grad"), model=model, optimizer=optimizer, loss=loss)
    moved = (weight.detach() - before).norm(dim=1)
    # A row moves by lr times at most clip_factor times its norm, and does so here.
    torch.testing.assert_close(moved, 0.1 * 0.01 * before.norm(dim=1), rtol=1e-3, atol=0)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a search needs no device")
def test_a_search_whose_optimum_is_at_the_border(capsys):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial):
        return -trial.suggest_float("lr", 1e-4, 1e-1, log=True)

    names = run(block_with("best_on_border"), objective=objective)
    assert "search larger values too" in capsys.readouterr().out
    assert names["distributions"]["lr"].low > 1e-4
