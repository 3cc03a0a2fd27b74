"""Pictures of what a monitor recorded, of filters, and the page of the manual about them."""

import importlib.util
import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fusedtricks.report.filters import draw_filters
from fusedtricks.report.monitor import draw_histograms, draw_monitor
from fusedtricks.train.monitor import Monitor
from tests.monitored import build_model, train

PAGE = Path(__file__).parent.parent / "docs" / "monitoring.md"

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def picture(file):
    image = Image.open(file)
    image.load()
    assert image.format == "PNG"
    return image


@pytest.fixture(scope="module")
def state():
    model = build_model()
    with Monitor(model, every=2) as monitor:
        train(model, monitor, 7)
        return json.loads(json.dumps(monitor.state_dict(), allow_nan=False))


@pytest.fixture
def figures(monkeypatch):
    """Return a list that gets every figure that is saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved, save = [], figure.savefig

    def note(self, *arguments, **options):
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", note)
    return saved


def same(first, second) -> bool:
    return all(a == b or (math.isnan(a) and b is None) for a, b in zip(first, second, strict=True))


def test_the_curves_are_those_of_the_records(state, figures, tmp_path):
    draw_monitor(state, tmp_path / "a.png")
    assert picture(tmp_path / "a.png").size == (1560, 840)
    by_title = {axes.get_title(): axes for axes in figures[0].axes}
    losses, smooth = by_title["loss"].lines
    assert list(losses.get_ydata()) == list(smooth.get_ydata()) == state["losses"]
    layers = [record["layers"] for record in state["records"]]
    for title, names, get in (
        ("standard deviation of activations", "01234", lambda each: each["activation"]["std"]),
        ("share of activations that are 0", "01234", lambda each: each["activation"]["zero"]),
        ("standard deviation of gradients", "01234", lambda each: each["gradient"]["std"]),
        ("|change| / |weight| of an update", "03", lambda each: each["update_ratio"]),
    ):
        axes = by_title[title]
        for line, name in zip(axes.lines, names, strict=True):
            assert list(line.get_xdata()) == [0, 2, 4, 6]
            assert list(line.get_ydata()) == [get(layer[name]) for layer in layers]
        assert axes.get_yscale() == ("linear" if "share" in title else "log")
    assert [text.get_text() for text in by_title["layers"].texts] == list("01234")


def test_losses_are_averaged_over_a_hundredth_of_the_run(figures):
    losses = [float(i) for i in range(350)]
    losses[4] = None
    draw_monitor({"losses": losses, "records": [], "edges": []}, io.BytesIO())
    smooth = figures[0].axes[0].lines[1]
    assert list(smooth.get_xdata())[:3] == [1, 4, 7] and list(smooth.get_xdata())[-1] == 348.5
    assert same(list(smooth.get_ydata())[:3], [1.0, None, 7.0])
    assert list(smooth.get_ydata())[-1] == 348.5


def test_gaps_and_layers_that_come_and_go(figures):
    def statistics(std):
        return {"std": std, "zero": 0.5, "histogram": [0, 1, 0]}

    first = {"a": {"activation": statistics(1.0), "gradient": None, "update_ratio": None}}
    second = {
        "a": {"activation": statistics(None), "gradient": statistics(2.0), "update_ratio": 0.1},
        "_b": {"activation": None, "gradient": None, "update_ratio": None},
    }
    records = [{"update": 0, "layers": first}, {"update": 5, "layers": second}]
    draw_monitor({"losses": [None, 1.0], "records": records, "edges": [-1.0, 1.0]}, io.BytesIO())
    axes = {each.get_title(): each for each in figures[0].axes}
    ((std,), (gradient,)) = (
        axes[f"standard deviation of {kind}"].lines for kind in ("activations", "gradients")
    )
    assert same(std.get_ydata(), [1.0, None]) and same(gradient.get_ydata(), [None, 2.0])
    assert [text.get_text() for text in axes["layers"].texts] == ["a", "_b"]


@pytest.mark.parametrize("n", [12, 13, 100])
def test_many_layers_are_named_in_part(n, figures):
    layers = {str(i): {"activation": None, "gradient": None, "update_ratio": 1.0} for i in range(n)}
    draw_monitor({"losses": [], "records": [{"update": 0, "layers": layers}]}, io.BytesIO())
    texts = [text.get_text() for text in figures[0].axes[3].texts]
    assert len(texts) == 12 and texts[0] == "0" and texts[-1] == str(n - 1)
    assert figures[0].axes[3].get_title() == ("layers" if n == 12 else f"layers, 12 of {n}")
    assert len(figures[0].axes[5].lines) == n


def test_heat_maps_show_the_histograms(figures):
    # Nine bins: powers of two from 1/4 to 2 of either sign.
    edges = [-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0]
    columns = [[0, 0, 50, 1, 9, 0, 40, 0, 0], [0, 0, 10, 0, 70, 0, 10, 10, 0]]
    records = [
        {"update": update, "layers": {"a": {"gradient": {"histogram": histogram}}}}
        for update, histogram in zip((10, 14), columns, strict=True)
    ]
    file = io.BytesIO()
    draw_histograms({"records": records, "edges": edges}, file, kind="gradient")
    picture(file)
    axes = figures[0].axes[0]
    (mesh,) = axes.collections
    # The bins from 1/4 to 1/2, of which each has 1 % at most, are drawn only if that is 0.5 %.
    shares = mesh.get_array().reshape(-1, 2).T.tolist()
    expected = [[count / sum(column) for count in column] for column in columns]
    assert shares == [pytest.approx(column[1:8]) for column in expected]
    assert mesh.get_clim() == (0, 0.5)
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == [8, 12, 16]
    ticks = dict(
        zip(axes.get_yticks(), [t.get_text() for t in axes.get_yticklabels()], strict=True)
    )
    assert ticks == {-2.5: "$-2^{0}$", -1.5: "$-2^{-1}$", 0: "0", 1.5: "$2^{-1}$", 2.5: "$2^{0}$"}


def test_what_is_too_small_to_be_seen_is_drawn_with_the_zeros(figures):
    edges = [-(2.0**k) for k in range(3, -4, -1)] + [2.0**k for k in range(-3, 4)]
    column = [0, 0, 0, 300, 0, 2, 1, 90, 2, 1, 0, 600, 4, 0, 0]
    layers = {"a": {"activation": {"histogram": column}}}
    draw_histograms({"records": [{"update": 3, "layers": layers}], "edges": edges}, io.BytesIO())
    (mesh,) = figures[0].axes[0].collections
    expected = [0, 300, 96, 600, 4]
    assert mesh.get_array().ravel().tolist() == pytest.approx([each / 1000 for each in expected])


def test_heat_maps_of_a_run(state, figures, tmp_path):
    draw_histograms(state, tmp_path / "all.png")
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert titles == list("01234")
    draw_histograms(state, tmp_path / "one.png", layers=["3"], kind="gradient")
    assert [axes.get_title() for axes in figures[1].axes if axes.get_title()] == ["3"]
    assert picture(tmp_path / "all.png").width > 3 * picture(tmp_path / "one.png").width


def test_nothing_to_draw(state):
    empty = {"losses": [], "records": [], "edges": []}
    with pytest.raises(ValueError, match="draw_monitor: state has no losses and no records"):
        draw_monitor(empty, io.BytesIO())
    with pytest.raises(ValueError, match="draw_histograms: state has no activation of any layer"):
        draw_histograms(empty, io.BytesIO())
    with pytest.raises(ValueError, match=r"no gradient of 'x'; recorded are \['0', '1'"):
        draw_histograms(state, io.BytesIO(), kind="gradient", layers=["0", "x"])
    with pytest.raises(ValueError, match=r"expected kind to be one of .*got 'weight'"):
        draw_histograms(state, io.BytesIO(), kind="weight")


@pytest.mark.parametrize("draw", [draw_monitor, draw_histograms])
def test_what_is_no_state(draw, state):
    text = rf"{draw.__name__}: .* what Monitor.state_dict\(\) returned, got "
    with pytest.raises(TypeError, match=text + r"Monitor; call monitor.state_dict\(\)"):
        draw(Monitor(build_model(), every=2), io.BytesIO())
    for key in ("losses" if draw is draw_monitor else "edges", "records"):
        rest = {name: value for name, value in state.items() if name != key}
        with pytest.raises(ValueError, match=text + f"a dict without '{key}'; call monitor"):
            draw(rest, io.BytesIO())


# Filters. -----------------------------------------------------------------------------------------


def drawn_images(figure) -> list:
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filters(dtype, figures, tmp_path):
    weight = torch.arange(-12, 42).reshape(2, 3, 3, 3).to(dtype)
    draw_filters(nn.Parameter(weight), tmp_path / "a.png")
    images = drawn_images(figures[0])
    assert len(images) == 2 and images[0].shape == (3, 3, 3)
    # Channels come last; 0 is grey, the largest weight white.
    assert images[0][1, 2, 0] == pytest.approx(0.5 + 0.5 * (-12 + 5) / 41)
    assert images[0][1, 0, 1] == pytest.approx(0.5)
    assert images[1][2, 2, 2] == pytest.approx(1.0)
    picture(tmp_path / "a.png")


def test_grey_filters(figures):
    weight = torch.zeros(5, 1, 3, 2)
    weight[3, 0, 1, 0] = -2.0
    file = io.BytesIO()
    draw_filters(weight.to(memory_format=torch.channels_last), file)
    images = drawn_images(figures[0])
    assert len(images) == 5 and images[3].shape == (3, 2)
    assert images[3].tolist() == [[0.5, 0.5], [0.0, 0.5], [0.5, 0.5]]
    assert picture(file).convert("L").getextrema() == (0, 255)
    draw_filters(torch.zeros(1, 1, 3, 3), io.BytesIO())
    assert drawn_images(figures[1])[0].tolist() == [[0.5] * 3] * 3


def test_what_is_no_first_layer():
    for weight in (torch.zeros(5, 4, 3, 3), torch.zeros(5, 3), torch.zeros(0, 3, 3, 3)):
        with pytest.raises(ValueError, match=r"draw_filters: .*got \[" + str(weight.shape[0])):
            draw_filters(weight, io.BytesIO())
    with pytest.raises(ValueError, match="expected finite weights, got inf or NaN"):
        draw_filters(torch.full((1, 1, 2, 2), math.nan), io.BytesIO())
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(TypeError, match=f"weight to be floating point, got {dtype}; draw real"):
            draw_filters(torch.ones(2, 1, 3, 3).to(dtype), io.BytesIO())
    with pytest.raises(TypeError, match=r"such as conv\.weight, got Conv2d"):
        draw_filters(nn.Conv2d(3, 4, 5), io.BytesIO())


# The manual. --------------------------------------------------------------------------------------


def test_the_picture_of_the_manual(tmp_path, capsys):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("draw_monitor", PAGE.parent / "draw_monitor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "monitor.png"
    with torch.device("cpu"):
        assert module.main(["--out", str(path), "--updates", "10", "--every", "5"]) == 0
    assert capsys.readouterr().out.startswith("not training: The loss stays at 2.3")
    kept = PAGE.parent / "images" / "monitor.png"
    assert picture(path).size == picture(kept).size
    assert len(kept.read_bytes()) < 200_000
    assert re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE.read_text()) == ["images/monitor.png"]


class FirstLayer(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
        self.conv1 = self[0]

    def forward(self, images):
        return self[3](self[2](self[1](self[0](images))))


@pytest.mark.parametrize("first", [[1.0, 0.8, 0.7], [0.7]])
def test_the_python_in_the_manual_runs(first, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    # Compiling with Inductor would take a minute.
    compile_, reset = torch.compile, torch._dynamo.reset
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    reset()
    val_losses = iter([*first, *[0.9] * 9])
    with torch.device("cpu"):
        model = FirstLayer()
        names = {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "loader": [(torch.randn(4, 1, 8, 8), torch.arange(4)) for _ in range(3)],
            "evaluate": lambda model: next(val_losses),
            "train_epochs": lambda lr, weight_decay, n_epochs: [lr + weight_decay] * n_epochs,
        }
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert names["stopper"].best == 0.7
    assert {path.name for path in tmp_path.iterdir()} == {
        "monitor.png",
        "gradients.png",
        "filters.png",
    }
