"""The benchmarks' own arithmetic, and a smoke run of each script."""

import json
from pathlib import Path

import pytest
import torch

from bench import (
    bench_busy,
    bench_host,
    bench_schedulers,
    bench_step,
    contenders,
    progress,
    report,
    streaming,
    summary,
)
from bench.cases import CASES, composed_traffic, needed_traffic, traffic_table
from bench.timing import Spread, bandwidth_gb_s, interleave, paired_ratio, percentile
from bench.workloads import WORKLOADS, n_parameters, tiny


@pytest.mark.parametrize(
    ("name", "n_tensors", "size"),
    [
        ("resnet50", 161, 25_557_032),
        ("vit_b_16", 152, 86_567_656),
        ("gpt2_small", 148, 124_439_808),
        ("small_2000", 2000, 512_000),
        ("one_64m", 1, 67_108_864),
        ("tiny", 5, 315),
    ],
)
def test_workload_counts(name, n_tensors, size):
    shapes = WORKLOADS[name]()
    assert len(shapes) == n_tensors
    assert n_parameters(shapes) == size


@pytest.mark.parametrize(
    ("name", "needed", "composed"),
    [
        ("adamw", 28, 28),
        ("adamw-combined", 32, 52),
        ("sgd-combined", 24, 44),
        ("adamw-averaged", 40, 64),
        ("adamw-bf16-combined", 30, 64),
        ("rmsprop", 20, 20),
        ("sgdw", 20, 20),
    ],
)
def test_traffic(name, needed, composed):
    assert needed_traffic(CASES[name]).total == needed
    assert composed_traffic(CASES[name]).total == composed
    assert name in traffic_table()


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_streaming_writes_a_subset_of_what_it_reads(case):
    n_reads, n_writes = streaming.stream_counts(case)
    assert 0 < n_writes <= n_reads
    if not case.masters:
        assert 4 * (n_reads + n_writes) == needed_traffic(case).total - 4 * case.combined


def test_percentile():
    assert percentile([3.0], 0.2) == 3.0
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], 0.5) == 3.0
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], 0.2) == pytest.approx(1.8)
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 0.5)


def test_paired_ratio_cancels_a_slow_phase():
    slow, fast = Spread((2.0, 20.0, 4.0)), Spread((1.0, 10.0, 2.0))
    assert paired_ratio(slow, fast).values == (2.0, 2.0, 2.0)


class FakeClock:
    """Time that passes only when a step takes it."""

    def __init__(self):
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def step(self, name: str, seconds: list[float]):
        def run() -> None:
            self.log.append(name)
            self.now += seconds[min(self.log.count(name), len(seconds)) - 1]

        return run


def test_interleave_on_a_fake_clock():
    clock = FakeClock()
    # The first two calls are warm-up and must not count.
    steps = {"a": clock.step("a", [9, 9, 1, 2, 3, 4, 5]), "b": clock.step("b", [9, 9, 10])}
    fractions: list[float] = []
    timings = interleave(
        steps,
        seconds=0,
        min_rounds=5,
        warmup=2,
        min_turn_s=0,
        clock=clock,
        on_round=fractions.append,
    )
    assert timings["a"].values == (1, 2, 3, 4, 5)
    assert (timings["a"].median, timings["a"].p20) == (3, pytest.approx(1.8))
    assert timings["b"].values == (10,) * 5
    assert clock.log[4:10] == ["a", "b", "b", "a", "a", "b"]
    assert fractions == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_interleave_stops_when_the_time_is_up():
    clock = FakeClock()
    timings = interleave(
        {"a": clock.step("a", [1.0])}, seconds=20, min_rounds=3, warmup=1, clock=clock
    )
    assert len(timings["a"].values) == 20


def test_interleave_repeats_short_steps_within_a_turn():
    clock = FakeClock()
    timings = interleave(
        {"a": clock.step("a", [0.25])}, seconds=0, min_rounds=2, warmup=1, min_turn_s=1, clock=clock
    )
    assert len(clock.log) == 1 + 2 * 4
    assert timings["a"].values == (0.25, 0.25)


def test_interleave_calls_before_each_turn_off_the_clock():
    clock = FakeClock()
    timings = interleave(
        {"a": clock.step("a", [0.25]), "b": clock.step("b", [0.5])},
        seconds=0,
        min_rounds=1,
        warmup=1,
        min_turn_s=1,
        before=clock.step("before", [100.0]),
        clock=clock,
    )
    assert clock.log == ["a", "b", "before", "a", "before", "b"]
    assert (timings["a"].values, timings["b"].values) == ((0.25,), (0.5,))


def test_rows_and_tables():
    timings = {"ours": Spread((0.5,)), "torch-fused": Spread((1.0,)), report.STREAM: Spread((0.4,))}
    rows = report.timing_rows(
        timings, baseline="torch-fused", n_bytes=10**9, limit_bytes=10**9, common={"case": "x"}
    )
    assert [row["speedup"] for row in rows] == [2.0, 1.0, None]
    assert [row["gb_s"] for row in rows] == pytest.approx([2.0, 1.0, 2.5])
    assert [row["share_of_limit"] for row in rows] == pytest.approx([0.8, 0.4, 1.0])
    assert bandwidth_gb_s(10**9, 0.5) == 2.0
    assert report.limit_note(rows) == ""
    too_fast = [rows[0] | {"share_of_limit": 1.1}]
    assert "faster than the streaming limit" in report.limit_note(too_fast)
    cells = [report.timing_cells(row) for row in rows]
    assert cells[0] == ("ours", "500.000", "500.000 - 500.000", "2.00x", "2.0", "80%")
    assert "| ours | 500.000 |" in report.markdown_table(report.TIMING_HEADER, cells)
    assert report.text_table(("a", "bc"), [("long", "1")]) == "a     bc\n--------\nlong   1"


def test_progress_lines_without_a_terminal(capsys):
    with progress.Progress(2) as shown:
        shown.begin("first")
        shown.at(0.5)
        shown.begin("second")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["[1/2] first", "[2/2] second"]
    assert progress.format_duration(80) == "1 min 20 s"


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_contenders_of_a_case_do_the_same_work(case):
    if case.name == "sgdw":
        pytest.skip("sgdw compares two algorithms")
    built = contenders.build_all(case, tiny())
    expected = built.pop("torch-loop")
    start = [parameter.detach().clone() for parameter in expected.parameters]
    for contender in (expected, *built.values()):
        for _ in range(3):
            contender.step()
    # A step moves a weight of about 0.02 by 1e-7 to 1e-5: float32 resolves 4e-9 there. The bfloat16
    # copies are rounded masters: at most one unit in the last place apart.
    tolerance = {"rtol": 2**-7, "atol": 0} if case.masters else {"rtol": 0, "atol": 2e-8}
    if not case.masters:
        assert not all(map(torch.equal, expected.parameters, start))
    for contender in built.values():
        torch.testing.assert_close(contender.parameters, expected.parameters, **tolerance)


def test_sgdw_contenders_step():
    for contender in contenders.build_all(CASES["sgdw"], tiny()).values():
        contender.step()
        assert all(parameter.isfinite().all() for parameter in contender.parameters)


def test_centralized_rows_have_zero_mean():
    parameters = contenders.make_parameters([(4, 3)])
    contenders.centralize_(parameters)
    torch.testing.assert_close(parameters[0].grad.sum(1), torch.zeros(4))


@pytest.mark.skipif(streaming.why_missing() is not None, reason=str(streaming.why_missing()))
def test_streaming_step():
    step, n_bytes = streaming.build_stream(1000, 4, 3)
    step()
    assert n_bytes == 28_000
    with pytest.raises(ValueError, match="n_writes <= n_reads=1, got 2"):
        streaming.build_stream(10, 1, 2)


def test_bench_step_smoke(tmp_path, capsys):
    out = tmp_path / "cpu-0.1"
    common = ["--workloads", "tiny", "--threads", "1", "--seconds", "0.01", "--out", str(out)]
    rows = bench_step.main([*common, "--cases", "adamw-combined", "rmsprop"])
    payload = json.loads((tmp_path / "cpu-0.1.json").read_text())
    assert payload["results"] == rows
    assert {"device", "cores", "torch", "commit", "date"} <= payload["environment"].keys()
    contestants = {row["contender"] for row in rows if row["case"] == "adamw-combined"}
    assert {"torch-fused", "torch-foreach", "torch-loop"} <= contestants
    assert (contenders.why_missing("ours") is None) == ("ours" in contestants)
    assert "| torch-foreach |" in (tmp_path / "cpu-0.1.md").read_text()
    assert "tiny, clip + centralize + AdamW, 1 thread" in capsys.readouterr().out


def test_of_several_passes_the_one_with_the_fastest_streaming_loop_counts(monkeypatch):
    def rows(ours: float, limit: float) -> list[report.Row]:
        return [{"contender": "ours", "gb_s": ours}, {"contender": report.STREAM, "gb_s": limit}]

    passes = [rows(3.0, 40.0), rows(1.0, 60.0), rows(2.0, 50.0)]
    results = iter(passes)
    fractions = []

    def measure(*arguments: object, on_round, **options: object) -> list[report.Row]:
        on_round(0.5)
        return next(results)

    monkeypatch.setattr(bench_step, "measure", measure)
    assert bench_step.measure_often(3, "tiny", on_round=fractions.append) is passes[1]
    assert fractions == pytest.approx([0.5 / 3, 1.5 / 3, 2.5 / 3])


def test_bench_step_list(capsys):
    assert bench_step.main(["--list"]) == []
    assert "25,557,032 parameters" in capsys.readouterr().out


def test_bench_host_smoke(tmp_path):
    arguments = ["--tensors", "3", "--seconds", "0.01", "--out", str(tmp_path / "host")]
    rows = bench_host.main([*arguments, "--cases", "adamw"])
    assert {"torch-fused", "torch-foreach"} <= {row["contender"] for row in rows}
    assert all(row["us"] == pytest.approx(row["median_ms"] * 1e3 / 3) for row in rows)
    assert (tmp_path / "host.md").exists()


def test_bench_busy_smoke(tmp_path):
    arguments = ["--workload", "tiny", "--busy", "1", "--threads", "1", "--seconds", "0.01"]
    rows = bench_busy.main([*arguments, "--out", str(tmp_path / "busy")])
    assert all(row["busy_over_idle"] > 0 for row in rows)
    assert json.loads((tmp_path / "busy.json").read_text())["results"] == rows


def test_the_readmes_table_is_that_of_the_committed_results():
    root = Path(__file__).parent.parent
    results = json.loads((root / "bench/results/epyc-zen4-4-cores/step.json").read_text())
    table = summary.make_table(results["results"], n_threads=4)
    assert table in (root / "README.md").read_text(encoding="utf-8")


def test_schedulers_are_timed_in_turns(capsys):
    assert bench_schedulers.main(["--groups", "1", "3", "--rounds", "2", "--steps", "4"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["groups", "scheduler", "fusedtricks", "torch", "(us)"]
    assert len(rows) == 2 * len(bench_schedulers.CASES)
    assert all(float(value) > 0 for row in rows for value in row.split()[2:])
