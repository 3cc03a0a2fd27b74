"""The demo from start to end, and its interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusedtricks import cli
from fusedtricks.report import draw_curves
from fusedtricks.report.table import speed_up
from fusedtricks.train.demo import Demo, DemoError
from fusedtricks.train.files import read_checkpoint
from fusedtricks.train.settings import Settings

# 4 batches per epoch, 8 per case, 32 in all. One thread, because many are slow on a busy machine.
OPTIONS = ["--epochs", "2", "--train-size", "64", "--batch-size", "16", "--threads", "1"]
SETTINGS = Settings(epochs=2, train_size=64, batch_size=16, threads=1)
N_BATCHES = 32
COMMAND = [sys.executable, "-m", "fusedtricks"]
ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def start_command(*arguments, cwd):
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Run the demo without interruption, in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    code, stdout, stderr = finish(start_command("demo", *OPTIONS, "--name", "a", cwd=folder))
    assert code == 0, stderr
    return folder, stdout


@pytest.fixture(scope="module")
def result(whole):
    return json.loads((whole[0] / "runs/a/result.json").read_text())


def fingerprint(cases):
    """Return what an interruption must not change."""
    return [
        (
            case["weights_sha256"],
            [{k: v for k, v in record.items() if k != "step_ms"} for record in case["history"]],
        )
        for case in cases
    ]


# A run from start to end. -------------------------------------------------------------------------


def test_the_last_line_is_the_path_of_the_results(whole):
    folder, stdout = whole
    last = stdout.splitlines()[-1]
    assert last == os.path.join("runs", "a", "result.json")
    assert (folder / last).is_file()


def test_the_folder_has_results_and_curves_only(whole):
    names = {path.name for path in (whole[0] / "runs/a").iterdir()}
    assert names == {"result.json", "curves.png"}


def test_results_have_all_cases_and_measurements(result):
    assert [(case["data"], case["optimizer"]) for case in result["cases"]] == [
        ("clean", "fusedtricks"),
        ("clean", "torch"),
        ("noisy", "fusedtricks"),
        ("noisy", "torch"),
    ]
    for case in result["cases"]:
        assert 0 <= case["accuracy"] <= 1
        assert 0 < case["step_ms_p10"] <= case["step_ms"] <= case["step_ms_p90"]
        assert case["step_ms"] < case["train_ms"]
        assert [record["epoch"] for record in case["history"]] == [1, 2]
        assert case["history"][-1]["accuracy"] == case["accuracy"]
        assert case["n_parameters"] > 500_000
        assert case["n_tensors"] >= 60
    assert result["settings"] == SETTINGS.as_dict()
    assert result["environment"]["torch"]
    assert result["elapsed_s"] > sum(case["train_ms"] * 8 for case in result["cases"]) / 4000


def test_cases_are_four_different_runs(result):
    assert len({case["weights_sha256"] for case in result["cases"]}) == 4


def test_the_table_shows_the_results(whole, result):
    rows = [line for line in whole[1].splitlines() if re.search(r"(clean|noisy) +\S fused", line)]
    assert len(rows) == 2
    for row, case in zip(rows, result["cases"][::2], strict=True):
        cells = [cell.strip() for cell in re.split("[│|]", row)[1:-1]]
        ratio = speed_up(result["cases"], case["data"])
        assert cells == [
            case["data"],
            case["optimizer"],
            f"{100 * case['accuracy']:.1f}",
            f"{case['step_ms']:.2f}",
            f"{ratio:.2f}",
        ]


def test_speed_up_is_torch_over_ours():
    times = [("clean", "torch", 6.0), ("clean", "fusedtricks", 4.0), ("noisy", "torch", 1.0)]
    cases = [{"data": data, "optimizer": name, "step_ms": ms} for data, name, ms in times]
    assert speed_up(cases, "clean") == 1.5
    assert speed_up(cases, "noisy") is None


def test_the_curves_are_a_picture_of_the_cases(whole, result, tmp_path):
    content = (whole[0] / "runs/a/curves.png").read_bytes()
    image = pytest.importorskip("matplotlib.image")
    pixels = image.imread(whole[0] / "runs/a/curves.png")
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert pixels.shape[:2] == (630, 1500)
    # Without the cases it is another picture.
    with (tmp_path / "empty.png").open("wb") as file:
        draw_curves(result["cases"][:1], file)
    assert (image.imread(tmp_path / "empty.png") != pixels).any()


def test_a_finished_run_is_replaced(tmp_path):
    (tmp_path / "result.json").write_text("old")
    (tmp_path / "curves.png").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    Demo.start(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# Interruptions. -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_and_resume_give_the_weights_of_a_whole_run(
    number, result, tmp_path, monkeypatch, capsys
):
    process = start_command("demo", *OPTIONS, "--name", "b c", cwd=tmp_path)
    folder = tmp_path / "runs/b c"
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    code, _, stderr = finish(process)
    assert not (folder / "result.json").exists()
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130
        assert len(stderr.splitlines()) == 1
        program = r"(fusedtricks|python\S* -m fusedtricks)"
        assert re.search(rf"continue with: {program} demo --name 'b c' --resume\n$", stderr)
        assert re.match(r"stopped at \w+ data, \w+, epoch \d of 2, batch \d of 4;", stderr)
    assert len(read_checkpoint(folder / "checkpoint.pt")["results"]) < 4

    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--name", "b c", "--resume"]) == 0
    resumed = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert fingerprint(resumed["cases"]) == fingerprint(result["cases"])
    assert resumed["settings"] == result["settings"]


def test_stops_anywhere_and_resumes_give_the_weights_of_a_whole_run(result, tmp_path):
    # Mid-epoch, after the last batch of an epoch and of a case, and in other cases.
    stops, done = [3, 4, 8, 9, 21], 0
    demo = Demo.start(tmp_path, SETTINGS)
    for stop in stops:
        calls = iter(range(done + 1, N_BATCHES))
        assert not demo.run(should_stop=lambda calls=calls, stop=stop: next(calls) == stop)
        assert not demo.result_path.exists()
        demo, done = Demo.resume(tmp_path, {}), stop
    calls = []
    assert demo.run(should_stop=lambda: calls.append(1))
    assert len(calls) == N_BATCHES - stops[-1]
    resumed = json.loads(demo.result_path.read_text())
    assert fingerprint(resumed["cases"]) == fingerprint(result["cases"])


def test_a_stop_during_the_first_case_keeps_the_position(tmp_path):
    demo = Demo.start(tmp_path, SETTINGS)
    calls = iter(range(1, N_BATCHES))
    demo.run(should_stop=lambda: next(calls) == 6)
    assert demo.position == "clean data, fusedtricks, epoch 2 of 2, batch 2 of 4"
    state = read_checkpoint(demo.checkpoint_path)
    assert state["results"] == []
    assert len(state["trainer"]["step_s"]) == 6
    assert state["trainer"]["batches"]["position"] == 2


@pytest.fixture
def unfinished(tmp_path):
    demo = Demo.start(tmp_path / "runs" / "c", SETTINGS)
    demo.run(should_stop=lambda: True)
    return demo


def test_an_unfinished_run_is_not_overwritten(unfinished):
    before = unfinished.checkpoint_path.read_bytes()
    with pytest.raises(DemoError, match="has an unfinished run; continue it with --resume"):
        Demo.start(unfinished.folder, SETTINGS)
    assert unfinished.checkpoint_path.read_bytes() == before


def test_resume_refuses_other_settings(unfinished):
    message = r"--batch-size: the run in .* has 16, got 32; leave --batch-size out"
    with pytest.raises(DemoError, match=message):
        Demo.resume(unfinished.folder, {"epochs": 2, "batch_size": 32})
    assert Demo.resume(unfinished.folder, {"epochs": 2}).settings == SETTINGS


def test_resume_refuses_a_damaged_checkpoint(unfinished):
    unfinished.checkpoint_path.write_bytes(b"no checkpoint")
    with pytest.raises(DemoError, match="is no checkpoint or is damaged"):
        Demo.resume(unfinished.folder, {})


def test_resume_needs_an_unfinished_run(tmp_path, capsys):
    code = cli.main(["demo", "--resume", "--out", str(tmp_path), "--name", "none"])
    assert code == 1
    assert "has no run, nothing to resume; start without --resume" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DemoError, match="has a finished run, nothing to resume"):
        Demo.resume(tmp_path, {})


def test_a_diverged_run_says_so_and_does_not_block_its_name(tmp_path, capsys):
    arguments = ["demo", *OPTIONS, "--lr", "1e38", "--out", str(tmp_path), "--quiet"]
    assert cli.main(arguments) == 1
    assert "a smaller learning rate helps" in capsys.readouterr().err
    assert list((tmp_path / "demo").iterdir()) == []
