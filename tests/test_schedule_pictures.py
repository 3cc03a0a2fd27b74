"""Pictures of schedules, and the page of the manual about them."""

import importlib.util
import inspect
import io
import re
import shlex
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from fusedtricks import cli, lr_scheduler
from fusedtricks.lr_scheduler import Constant, Cosine, Schedule, parse
from fusedtricks.lr_scheduler.parsing import KINDS
from fusedtricks.report.schedules import draw_schedules

PAGE = Path(__file__).parent.parent / "docs" / "schedules.md"


# Pictures. ----------------------------------------------------------------------------------------


def png_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a PNG that can be decoded."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(data))
    image.load()
    assert image.format == "PNG"
    assert image.size == struct.unpack(">II", data[16:24])
    return image.size


def test_the_command_draws_a_picture(tmp_path, capsys):
    path = tmp_path / "a.png"
    assert cli.main(["schedule", "Cosine(100)", "--plot", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"\n{path}\n")
    assert png_size(path.read_bytes()) == (840, 480)
    assert cli.main(["schedule", "Cosine(100)", "OneCycle(90)", "--plot", str(path)]) == 0
    assert png_size(path.read_bytes()) == (840, 520)


def test_a_figure_shows_all_values():
    curves = {"Cosine(9)": Cosine(9).preview(12), "_$x^": [0.5] * 3, "one": [0.3]}
    file = io.BytesIO()
    figure = draw_schedules(curves, file, xlabel="batches", ylabel="lr", title="$ three $")
    assert png_size(file.getvalue()) == (840, 540)
    (axes,) = figure.axes
    for line, values in zip(axes.lines, curves.values(), strict=True):
        assert list(line.get_xdata()) == list(range(len(values)))
        assert list(line.get_ydata()) == values
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        "batches",
        "lr",
        "$ three $",
    )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(curves)


def test_one_curve_is_its_own_title_and_long_ones_are_wrapped():
    schedule = parse(" * ".join(["Cosine(100)"] * 12))
    file = io.BytesIO()
    figure = schedule.plot(100, file)
    title = figure.axes[0].get_title()
    assert figure.legends == []
    assert "".join(title.split()) == "".join(repr(schedule).split())
    assert max(map(len, title.splitlines())) <= 72
    assert png_size(file.getvalue()) == (840, 480 + 20 * title.count("\n"))


def test_the_axis_begins_at_zero_unless_that_flattens_the_curve():
    def bottom(values: list[float]) -> float:
        return draw_schedules({"a": values}).axes[0].get_ylim()[0]

    assert -0.1 < bottom([0.3, 1.0]) < 0
    assert -0.1 < bottom(Constant().preview(3)) < 0
    assert -0.1 < bottom([1.0, 1.0 + 1e-15]) < 0
    assert bottom([0.85, 0.95]) > 0.8
    assert bottom([-3.0, 1.0]) < -3
    assert bottom([0.0, 0.0]) < 0


@pytest.mark.parametrize("curves", [{}, {"a": [1.0], "b": []}])
def test_nothing_to_draw(curves):
    with pytest.raises(ValueError, match="expected at least one curve, and values in each"):
        draw_schedules(curves)


# The manual. --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """Return the module docs/draw_schedules.py, which is no package."""
    spec = importlib.util.spec_from_file_location(
        "draw_schedules", PAGE.parent / "draw_schedules.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_schedule_has_a_picture(drawing, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pictures"
    assert drawing.main(["--out", str(folder), "--check"]) == 1
    assert f"{folder / 'Cosine'}.png does not exist" in capsys.readouterr().err
    assert drawing.main(["--out", str(folder)]) == 0
    wide = {"overview": 1000, "batch_sizes": 900}
    assert {path.stem for path in folder.iterdir()} == KINDS.keys() | wide.keys()
    for path in folder.iterdir():
        data = path.read_bytes()
        width, _ = png_size(data)
        assert width == wide.get(path.stem, 840)
        assert len(data) < (150_000 if path.stem == "overview" else 30_000), path.name
    assert drawing.main(["--out", str(folder), "--check"]) == 0
    monkeypatch.setitem(KINDS, "Another", Constant)
    assert drawing.main(["--out", str(folder), "--check"]) == 1
    assert "Another is not in PICTURES" in capsys.readouterr().err


def test_a_picture_is_always_the_same(drawing, tmp_path):
    drawing.draw_picture("Cyclic", tmp_path)
    first = (tmp_path / "Cyclic.png").read_bytes()
    drawing.draw_picture("Cyclic", tmp_path)
    assert (tmp_path / "Cyclic.png").read_bytes() == first


def test_a_picture_shows_its_schedule(drawing):
    for name, picture in drawing.PICTURES.items():
        schedule = parse(picture.expressions[0])
        made = {"GradualWarmup": "LinearWarmup"}.get(name, name)
        assert type(schedule).__name__ == made


def test_the_pictures_of_the_manual_are_there(drawing):
    assert drawing.main(["--check"]) == 0
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE.read_text()))
    drawn = {f"images/schedules/{name}.png" for name in [*KINDS, "overview", "batch_sizes"]}
    assert shown == drawn | {"images/range_test.png"}
    assert (PAGE.parent / "images" / "range_test.png").is_file()


def overview_table() -> str:
    section = PAGE.read_text().partition("## All of them")[2].partition("\n## ")[0]
    return "\n".join(line for line in section.splitlines() if line.startswith("|"))


def test_the_table_names_every_public_class():
    named = set(re.findall(r"`(\w+)", overview_table()))
    public = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, (Schedule, LRScheduler))
    }
    assert len(public) > 30
    assert (public | KINDS.keys()) - {"Schedule", "LRScheduler"} - named == set()


def test_signatures_in_the_table_are_those_of_the_schedules():
    rows = re.findall(r"^\| `(\w+)\(([^`]*)\)` \|", overview_table(), re.MULTILINE)
    assert len(rows) > 15
    for name, arguments in rows:
        names = re.findall(r"(?:^|, )(\w+)", arguments)
        kind = getattr(lr_scheduler, name)
        assert names == list(inspect.signature(kind).parameters), name


def test_the_python_in_the_manual_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    with torch.device("cpu"):
        names = {
            "model": torch.nn.Linear(3, 2),
            "loader": [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)],
            "data": [(torch.randn(3), torch.randn(2)) for _ in range(1000)],
            "loss_fn": torch.nn.functional.mse_loss,
        }
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)


def test_the_output_in_the_manual_is_what_the_command_prints(capsys):
    blocks = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for command, output in blocks:
        assert cli.main(shlex.split(command)[1:]) == 0
        assert capsys.readouterr().out == output
