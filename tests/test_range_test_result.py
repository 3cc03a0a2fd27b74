"""What a learning-rate range test gives: medians, suggestions, files, a bar, and errors."""

import io
import json
import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fusedtricks import optim
from fusedtricks._extras import MissingExtraError
from fusedtricks.data import load_digits
from fusedtricks.lr_scheduler.range_test import lr_range_test
from fusedtricks.lr_scheduler.range_test import progress as range_test_progress
from fusedtricks.lr_scheduler.range_test.result import Curve, RangeTest, suggest
from tests.scripted_losses import Line, given_loss, run


def curve(losses, reason):
    """Make a repetition of the first updates."""
    return Curve([10.0**i for i in range(len(losses))], losses, losses, reason, None, [])


def test_the_median_curve_ends_where_half_of_the_repetitions_have():
    short, middle = curve([5.0], "not finite"), curve([1.0, 2.0, 9.0], "diverged")
    long = curve([3.0, 4.0, 5.0, 6.0], "end")
    result = RangeTest.from_curves([long, short, middle], [1.0])
    # The second: infinity, 2 and 4. The third: infinity, 9 and 5.
    assert (result.smoothed, result.reason) == ([3, 4, 9], "diverged")
    assert (result.low, result.high) == ([1, 2, 5], [5, 4, 9])
    assert len(result.lrs) == 3
    result = RangeTest.from_curves([long, middle], [1.0])
    assert (result.smoothed, result.reason) == ([2, 3, 7], "diverged")


# Suggestions. -------------------------------------------------------------------------------------


def test_suggestions_of_a_curve_with_a_known_slope():
    # cos(log lr) falls fastest at log lr = pi/2 and is smallest at pi. Over lr itself the slope is
    # -sin(log lr) / lr, which is extreme where tan(log lr) = 1, at pi/4.
    x = [2 * math.pi * i / 80 for i in range(81)]
    lrs, losses = [math.exp(v) for v in x], [math.cos(v) for v in x]
    found = suggest(lrs, losses)
    assert found.steepest == pytest.approx(math.exp(math.pi / 2), rel=1e-12)
    assert found.minimum == pytest.approx(math.exp(math.pi), rel=1e-12)
    assert found.minimum_over_10 == pytest.approx(math.exp(math.pi) / 10, rel=1e-12)
    third, half = found.half_to_third
    assert third == pytest.approx(math.exp(math.pi) / 3, rel=1e-12)
    assert half == pytest.approx(math.exp(math.pi) / 2, rel=1e-12)
    assert found.message == ""

    def slope(i):
        return (losses[i + 1] - losses[i - 1]) / (lrs[i + 1] - lrs[i - 1])

    over_lr = lrs[min(range(1, 80), key=slope)]
    assert over_lr == pytest.approx(math.exp(math.pi / 4), rel=0.1)
    assert found.steepest / over_lr > 2


def test_the_first_tenth_and_what_follows_the_minimum_have_no_steepest_point():
    lrs = [10.0 ** (i / 10) for i in range(30)]
    losses = [50.0, 9.0, 8.9] + [8.5 - 0.1 * i for i in range(17)] + [90.0] * 5 + [7.0] * 5
    losses[10] -= 0.5
    found = suggest(lrs, losses)
    assert found.minimum == lrs[19]
    assert found.steepest == lrs[9]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([], "the first loss was not finite, in half of the repetitions or more; check model and"),
        ([4.0, 3.0, 2.0, 1.0], "the curve has 4 points"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "the loss never fell below its first value; lower start"),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "the loss never fell"),
    ],
)
def test_no_suggestion(losses, message):
    found = suggest([10.0**i for i in range(len(losses))], losses)
    assert found.steepest is found.minimum is found.minimum_over_10 is found.half_to_third is None
    assert message in found.message


def test_a_loss_that_falls_to_the_end_asks_for_more():
    found = suggest([1.0, 10.0, 100.0, 1000.0, 1e4], [5.0, 4.9, 4.5, 3.0, 1.0])
    assert found.minimum == 1e4
    assert found.steepest == 1e4
    assert "raise end_lr" in found.message


def test_suggestions_for_digits_train_a_model():
    digits = load_digits(seed=1, train_size=600)

    def build():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        return model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    model, optimizer = build()
    loss_fn = nn.functional.cross_entropy
    data = TensorDataset(digits.train_images, digits.train_labels)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    result = lr_range_test(model, optimizer, loss_fn, loader, smoothing=0.9, progress=False)
    found = result.suggestions
    assert found.message == ""
    assert 1e-2 < found.steepest < found.minimum < 5

    def loss_after_an_epoch(lr):
        model, optimizer = build()
        for group in optimizer.param_groups:
            group["lr"] = lr
        for images, labels in loader:
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            optimizer.step()
        return loss_fn(model(digits.train_images), digits.train_labels).item()

    # log(10) is the loss of guessing.
    assert loss_after_an_epoch(found.minimum_over_10) < 0.5 * math.log(10)
    assert not loss_after_an_epoch(100 * found.minimum) < math.log(10)


# What it gives. -----------------------------------------------------------------------------------


def test_json_has_everything_and_only_finite_numbers():
    result, _ = run([3.0, 2.0, 1.5, 1.0, math.nan], repeats=2)
    read = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert read["losses"] == [3, 2, 1.5, 1]
    assert read["reason"] == read["curves"][1]["reason"] == "not finite"
    assert read["curves"][0]["stop_lr"] == pytest.approx(10)
    assert read["suggestions"]["message"].startswith("no suggestion")
    assert set(read) == set(result.to_dict())


def test_plot(tmp_path):
    losses = [8.0, 7.0, 5.0, 2.0, 1.0, 3.0]
    result, _ = run([*losses, *(loss + 0.5 for loss in losses)], repeats=2, n_updates=6)
    file = io.BytesIO()
    result.plot(file)
    head = file.getvalue()[:24]
    assert head.startswith(b"\x89PNG")
    assert (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:], "big")) == (1050, 675)
    result.plot(tmp_path / "curve.svg")
    text = (tmp_path / "curve.svg").read_text()
    found = result.suggestions
    for label in (
        f"steepest: {found.steepest:.2e}",
        f"minimum: {found.minimum:.2e}",
        f"minimum_over_10: {found.minimum_over_10:.2e}",
        f"half_to_third: {found.minimum / 3:.2e} to {found.minimum / 2:.2e}",
        "smoothed, smallest to largest of 2",
        "ended: end",
        "10^{-2}",
    ):
        assert label in text
    nothing, _ = run([math.nan, 1.0])
    with pytest.raises(ValueError, match="result has no points, the first loss was not finite"):
        nothing.plot(tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_plot_has_a_logarithmic_axis_and_shows_no_divergence(monkeypatch):
    figures = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda self, *_, **__: figures.append(self)
    )
    for losses in ([8.0, 7.0, 5.0, 2.0, 1.0, 4.0, 1e6], [1.0, 2.0, 3.0, 4.0, 5.0, 1e6]):
        run(losses)[0].plot("never written")
    falling, rising = (figure.axes[0] for figure in figures)
    assert falling.get_xscale() == "log"
    bottom, top = falling.get_ylim()
    assert 0 < bottom < 1
    assert 8 < top < 20
    assert rising.get_ylim()[1] > 1e6


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "has_rich", "shows"),
    [
        (Terminal, True, True, True),
        (Terminal, False, True, False),
        (Terminal, True, False, False),
        (io.StringIO, True, True, False),
    ],
)
def test_bar(monkeypatch, stream, progress, has_rich, shows):
    def require(module):
        raise MissingExtraError(module)

    if not has_rich:
        monkeypatch.setattr(range_test_progress, "require", require)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", stream())
    run([3.0, 2.0, 1.5, 1.0], progress=progress)
    text = sys.stderr.getvalue()
    assert ("learning-rate range test" in text and "100%" in text) == shows
    assert (text != "") == shows


def test_progress_function():
    calls = []
    run(
        [4.0, 3.0, math.nan, 2.0, 1.0, 0.5],
        n_updates=3,
        repeats=2,
        progress=lambda *a: calls.append(a),
    )
    assert [(done, total, loss) for done, total, _, loss in calls] == [
        (1, 6, 4),
        (2, 6, 3),
        (4, 6, 2),
        (5, 6, 1),
        (6, 6, 0.5),
    ]
    assert [lr for _, _, lr, _ in calls] == pytest.approx([1e-3, 0.1, 1e-3, 0.1, 10])


# Bad arguments. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_lr": 0}, r"start_lr: expected a positive finite number.*got 0"),
        ({"start_lr": math.nan}, "start_lr: .*got nan"),
        ({"start_lr": "1"}, "start_lr: .*got '1'"),
        (
            {"end_lr": 1e-7},
            "end_lr: expected a finite number > start_lr, which is 1e-07; got 1e-07",
        ),
        ({"end_lr": math.inf}, "end_lr: .*got inf"),
        ({"n_updates": 1}, "n_updates: expected an integer >= 2.*got 1"),
        ({"n_updates": 9.5}, r"n_updates: .*got 9\.5"),
        ({"repeats": 0}, "repeats: expected an integer >= 1; got 0"),
        ({"repeats": True}, "repeats: .*got True"),
        ({"smoothing": 1.0}, r"smoothing: expected a number in \[0, 1\); 0 for no.*got 1\.0"),
        ({"smoothing": -0.1}, r"smoothing: .*got -0\.1"),
        ({"divergence": 1}, "divergence: expected a number > 1; math.inf never.*got 1"),
        ({"divergence": math.nan}, "divergence: .*got nan"),
        ({"accumulate": 0}, "accumulate: expected an integer >= 1; got 0"),
        ({"scaler": 3}, r"scaler: expected a torch\.amp\.GradScaler or None; got 3"),
        ({"autocast": torch.float64}, r"autocast: expected torch\.float16, .*got torch\.float64"),
        ({"progress": 3}, "progress: expected True, False or a function; got 3"),
        ({"loader": 3}, "loader: expected an iterable over batches.*got 3"),
        ({"model": 3}, r"model: expected a torch\.nn\.Module; got 3"),
        ({"model": nn.LazyLinear(2)}, "model: .*run a batch through it first; got uninitialized"),
        ({"optimizer": 3}, r"optimizer: expected a torch\.optim\.Optimizer; got 3"),
        ({"optimizer": torch.optim.LBFGS}, r"optimizer: .*needs no closure; got LBFGS"),
        ({"loss_fn": None}, r"loss_fn: expected either.*batch_loss\(model, batch\); got neither"),
        ({"batch_loss": given_loss}, "loss_fn: .*got both"),
        ({"loss_fn": 3}, "loss_fn: expected a function; got 3"),
        ({"lr": math.inf}, "the lr of parameter group 0: expected a finite number >= 0; got inf"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(options, message):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = options.pop("lr", 0.1)
    if options.get("optimizer") is torch.optim.LBFGS:
        options["optimizer"] = torch.optim.LBFGS(model.parameters())

    def never():
        raise AssertionError("the loader was used")
        yield

    given = {
        "model": model,
        "optimizer": optimizer,
        "loss_fn": nn.functional.mse_loss,
        "loader": never(),
    } | options
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"^lr_range_test: {message}"):
        lr_range_test(**given)
    assert torch.get_rng_state().equal(random)


@pytest.mark.parametrize(
    ("loader", "batch_loss", "message"),
    [
        ([], given_loss, "loader yields no batch"),
        (iter([torch.ones(())] * 3), given_loss, "loader ended after 3 batches.*lower n_updates"),
        ([torch.ones(1, 2)], None, r"loader: expected batches \(inputs, targets\).*got Tensor"),
        ([(torch.ones(1, 2),) * 3], None, "loader: .*or pass batch_loss; got 3 parts"),
        ([1], lambda model, _: 2.0, r"batch_loss: .*returns a scalar tensor; got 2\.0"),
        ([1], lambda model, _: model.weight, r"batch_loss: .*such as the mean.*got shape \(2,\)"),
        ([1], lambda model, _: torch.ones(()), "batch_loss: .*got one detached"),
    ],
)
def test_bad_batches_and_losses(loader, batch_loss, message):
    model = Line()
    before = [param.clone() for param in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.functional.mse_loss if batch_loss is None else None
    with pytest.raises(ValueError, match=f"^lr_range_test: {message}"):
        lr_range_test(model, optimizer, loss_fn, loader, batch_loss=batch_loss, progress=False)
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_suggestion_that_is_not_there_has_no_groups():
    result = RangeTest.from_curves([Curve([], [], [], "not finite", 1e-7, [])], [1.0])
    with pytest.raises(ValueError, match="got None: no suggestion: the first loss was not finite"):
        result.suggestion_for_groups(result.suggestions.steepest)
