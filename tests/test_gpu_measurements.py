"""The measurements of the GPU check, rehearsed without a GPU."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench.contenders import Contender
from bench.gpu import (
    bench_gpu,
    cases,
    contenders,
    environment,
    figures,
    inputs,
    measure,
    run_tests,
    sanitizer,
    tables,
    tunables,
)
from bench.gpu.part import Deadline, Result
from bench.timing import Spread
from bench.workloads import n_parameters

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", cases.CASES.values(), ids=lambda case: case.name)
def test_contenders_do_the_same_work(case):
    shapes = [(8, 3, 3, 3), (8,), (10, 8), ()]
    names = [name for name in case.contenders if not contenders.why_missing(name, CPU)]
    built = {name: contenders.build(name, case, shapes, device=CPU) for name in names}
    start = [parameter.detach().clone() for parameter in built["ours"].parameters]
    for contender in built.values():
        for _ in range(3):
            contender.step()
    # As in test_bench: float32 resolves 4e-9 here, 16-bit copies of equal masters may round apart.
    wide = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[case.dtype]
    if not case.masters:
        assert not all(map(torch.equal, built["ours"].parameters, start))
    for contender in built.values():
        torch.testing.assert_close(
            contender.parameters, built["ours"].parameters, rtol=wide, atol=2e-8
        )


def test_workloads_and_bytes():
    assert n_parameters(cases.shapes_of("one_g")) == 10**9
    assert n_parameters(cases.shapes_of("resnet50")) == 25_557_032
    assert n_parameters(cases.shapes_of("one_g", tiny=True)) < 1000
    assert cases.needed_bytes(cases.CASES["adamw-fp16-scaled"]) == 30
    assert cases.composed_bytes(cases.CASES["adamw-fp16-scaled"]) == 72
    assert cases.held_bytes(cases.CASES["adamw"]) == 16
    assert {case for _, case in cases.TABLES} == set(cases.CASES)


def test_parse_trace_counts_device_work_once():
    events = [
        {"ph": "X", "cat": "kernel", "name": "update", "ts": 1, "dur": 10.5},
        {"ph": "X", "cat": "kernel", "name": "update", "ts": 20, "dur": 9.5},
        {"ph": "X", "cat": "gpu_memset", "name": "Memset", "ts": 30, "dur": 2},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoD", "ts": 33, "dur": 4},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 1, "dur": 99},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 3},
        {"ph": "f", "cat": "ac2g", "name": "ac2g", "ts": 1},
        {"ph": "M", "name": "process_name"},
    ]
    launches = measure.parse_trace({"traceEvents": events}, 2)
    assert launches.seconds == pytest.approx(13e-6)
    assert launches.counts == {"update": 1.0, "Memset": 0.5, "Memcpy DtoD": 0.5}
    assert launches.n_launches == 2


class FakeDevice:
    """Stands in for torch.cuda: time passes with each replayed step, calls are kept."""

    def __init__(self, monkeypatch):
        self.now_ms = 0.0
        self.calls: list[str] = []
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.now_ms

            def synchronize(self):
                device.calls.append("wait")

            def elapsed_time(self, end):
                return end.at - self.at

        class Stream:
            def wait_stream(self, other):
                assert isinstance(other, Stream)

        class Context:
            def __init__(self, what):
                self.what = what

            def __enter__(self):
                device.calls.append(f"enter {type(self.what).__name__}")

            def __exit__(self, *error):
                device.calls.append("exit")

        class CUDAGraph:
            def replay(self):
                device.now_ms += 10.0

        fakes = {
            "Event": Event,
            "Stream": Stream,
            "current_stream": Stream,
            "stream": Context,
            "graph": Context,
            "CUDAGraph": CUDAGraph,
            "synchronize": lambda device=None: None,
            "memory_allocated": lambda device=None: 1000,
            "max_memory_allocated": lambda device=None: 5000,
            "reset_peak_memory_stats": lambda device=None: None,
            "empty_cache": lambda: None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)


def test_capture_events_and_memory_on_a_fake_device(monkeypatch):
    fake = FakeDevice(monkeypatch)
    replay = measure.capture(lambda: fake.calls.append("step"), 2)
    steps = ["step"] * 3
    assert fake.calls == ["enter Stream", *steps, "exit", "enter CUDAGraph", *steps[:2], "exit"]
    clock = measure.EventClock()
    assert clock() == 0
    replay()
    replay()
    assert clock() == pytest.approx(0.02)
    replay()
    assert clock() == pytest.approx(0.03)
    assert measure.extra_memory(lambda: None, torch.device("cuda")) == 4000


def test_graph_figure_is_per_step_and_a_refused_capture_has_a_reason(monkeypatch):
    FakeDevice(monkeypatch)
    monkeypatch.setattr(figures, "_running_steps", lambda builders, measured, device: {})

    def refuses(capturable: bool) -> Contender:
        assert capturable
        raise RuntimeError("capturable is False\nand more")

    measured = figures.Measured()
    figures.measure_timings(
        {"ours": lambda capturable: Contender(lambda: None, []), "other": refuses},
        measured,
        device=torch.device("cuda"),
        effort=figures.DRY,
    )
    assert measured.timings[figures.GRAPH]["ours"].median == pytest.approx(10e-3)
    assert measured.reasons == {"other": {"graph": "RuntimeError: capturable is False"}}


def test_rows_tables_and_overview():
    measured = figures.Measured(copy_bytes=4_000_000)
    measured.timings = {
        figures.KERNELS: {
            "ours": Spread((1e-3, 2e-3)),
            "torch-fused": Spread((2e-3, 6e-3)),
            "streaming limit": Spread((1e-3,)),
        },
        figures.WHOLE: {"ours": Spread((1e-3,))},
    }
    measured.launches["ours"] = measure.Launches(
        1.5e-3, {"void update": 1.0}, {"void update": 1500}
    )
    measured.fail("torch-fused", "graph", "refused")
    common = {"workload": "w", "case": "c", "title": "t", "baseline": "torch-fused"}
    rows = tables.make_rows(measured, ("ours", "torch-fused"), n_bytes=3_000_000, common=common)
    ours, theirs = rows
    assert theirs["ours_ahead_kernels"]["median"] == 2.5
    assert ours["gb_s"] == pytest.approx(2.0) and ours["share_of_copy"] == pytest.approx(0.5)
    assert theirs["whole_ms"] is None and ours["kernels"] == {"update": 1.0}
    text = tables.table_text(rows, ["a note"])
    assert "| torch fused=True | 4.000 |" in text and "2.50x (2.20 - 2.80)" in text
    assert "`update` 1 times, 1500.0 µs" in text and "graph: refused" in text and "a note" in text
    assert "| w, t | torch fused=True | 4.000 | 1.500 | 2.50x | 50% |" in tables.overview(rows)
    json.dumps(rows)


def test_candidates_of_known_and_unknown_settings():
    changes = tunables.candidates({"backward": 1, "blocks_per_sm": 0, "other": 10, "flag": 0})
    assert changes == [
        {"backward": 0},
        *({"blocks_per_sm": n} for n in (1, 2, 4, 8, 16)),
        {"other": 5},
        {"other": 20},
        {"flag": 1},
    ]


def test_a_refused_setting_is_a_remark_and_the_default_comes_back():
    class Native(tunables.Rehearsal):
        def set_cuda_tunables(self, **changes):
            if changes["update_item"] == 1:
                raise ValueError("a power of two, please")
            super().set_cuda_tunables(**changes)

    native = Native()
    options = SimpleNamespace(device=CPU, dry_run=True, quick=False)
    sweep = tunables.Sweep("resnet50", native, options)
    row = sweep.try_change({"update_item": 1})
    assert "a power of two" in row["remark"] and row["ms"] is None
    assert "a power of two" in tunables.cells(row)[-1]
    assert native.cuda_tunables() == sweep.defaults
    sweep.rows = [{"change": {"a": 1}, "speedup": 1.2}, {"change": {"a": 2}, "speedup": 1.1}]
    assert sweep.best_together() == {"a": 1}


@pytest.mark.parametrize("layout", inputs.LAYOUTS)
def test_layouts_hold_the_same_values(layout):
    values = inputs.make_values(inputs.SHAPES, 3)
    placed = inputs.make_parameters(values, torch.float64, CPU, layout)
    before = [value.clone() for value in values]
    with torch.no_grad():
        for parameter, value in zip(placed, values, strict=True):
            assert torch.equal(parameter, value)
            parameter.add_(1.0)
    assert all(map(torch.equal, values, before))
    inputs.set_grads(placed, values, layout)
    assert all(torch.equal(p.grad, value) for p, value in zip(placed, values, strict=True))


def test_ulp_distance():
    one = torch.tensor([1.0, -1.0, 0.0, -0.0])
    up = torch.nextafter(one, torch.tensor(2.0))
    assert inputs.ulp_distance(one, up).tolist() == [1, 1, 1, 1]
    assert inputs.ulp_distance(torch.tensor([0.0]), torch.tensor([-0.0])).tolist() == [0]


SANITIZER_OUTPUTS = [
    ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", 0, "ok", 0),
    ("========= ERROR SUMMARY: 3 errors\n", sanitizer.ERROR_STATUS, "failed", 3),
    ("========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n", 86, "failed", 2),
    ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, "ok", 0),
    ("========= ERROR SUMMARY: 0 errors\n", 1, "failed", 0),
    ("========= Error: Device not supported\n", 1, "not available", None),
    ("========= Unable to attach\n", 0, "not available", None),
    ("Traceback\n", 1, "failed", None),
    ("", 124, "failed", None),
]


@pytest.mark.parametrize(("output", "code", "status", "errors"), SANITIZER_OUTPUTS)
def test_verdict_on_a_sanitizers_output(output, code, status, errors):
    verdict = sanitizer.judge(output, code)
    assert (verdict.status, verdict.errors) == (status, errors)


def test_a_sanitizer_that_does_not_know_an_option_gets_none(tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\ncase \"$*\" in *--print-limit*) echo 'unrecognised option'; exit 1;; esac\n"
        "echo \"$PYTORCH_NO_CUDA_MEMORY_CACHING\"; echo '========= ERROR SUMMARY: 0 errors'\n"
    )
    tool.chmod(0o755)
    verdict = sanitizer.check_with(str(tool), "memcheck", 20)
    assert verdict == sanitizer.Verdict("ok", 0, "ERROR SUMMARY: 0 errors")


def test_read_report(tmp_path):
    xml = tmp_path / "junit.xml"
    xml.write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="1" skipped="1" time="2.5">'
        '<testcase classname="tests.a" name="good"/>'
        '<testcase classname="tests.a" name="bad"><failure message="1 == 2&#10;x"/></testcase>'
        '<testcase classname="tests.a" name="worse"><error message="boom"/></testcase>'
        "</testsuite></testsuites>"
    )
    row = run_tests.read_report(xml, "device")
    assert (row["tests"], row["passed"], row["failed"], row["errors"]) == (4, 1, 1, 1)
    text = run_tests.report_text(row)
    assert "- `tests.a::bad`: 1 == 2\n" in text and "| device | 4 | 1 | 1 | 1 | 1 | 2 |" in text


def test_result_replaces_a_section_of_the_same_title(tmp_path):
    result = Result(tmp_path / "r.json")
    result.add("a", "old", [{"x": 1}])
    result.add("b", "other")
    result.add("a", "new", [{"x": 2}])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["sections"] == [["a", "new"], ["b", "other"]] and found["rows"] == [{"x": 2}]
    assert Deadline(0).left == 0


def test_tree_hash_does_not_depend_on_git(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cu").write_text("x")
    before = environment.tree_hash(tmp_path)
    (tmp_path / "csrc" / "a.o").write_text("object")
    assert environment.tree_hash(tmp_path) == before
    (tmp_path / "csrc" / "a.cu").write_text("y")
    assert environment.tree_hash(tmp_path) != before


def test_a_table_that_breaks_leaves_the_others(monkeypatch, tmp_path):
    measure_kernels = bench_gpu.measure_kernels

    def breaks_once(builders, measured, **options):
        monkeypatch.setattr(bench_gpu, "measure_kernels", measure_kernels)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench_gpu, "measure_kernels", breaks_once)
    # Slow in Triton's interpreter, which the tests switch on where there is one.
    monkeypatch.setattr(bench_gpu, "leave_out_triton", lambda chosen, options: None)
    chosen = ["--workloads", "resnet50", "--cases", "adamw", "sgd-combined"]
    assert bench_gpu.main(["--dry-run", "--out", str(tmp_path / "r.json"), *chosen]) == 1
    found = json.loads((tmp_path / "r.json").read_text())
    assert "1 problems; the first: RuntimeError: out of memory" in found["reason"]
    texts = [text for _, text in found["sections"] if "broke off" in text]
    assert len(texts) == 1 and "broke off: RuntimeError: out of memory" in texts[0]
    ours = {row["case"]: row for row in found["rows"] if row["contender"] == "ours"}
    assert ours["adamw"]["kernels_ms"] is None and ours["adamw"]["whole_ms"]
    assert ours["sgd-combined"]["kernels_ms"]


def test_what_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (80 * 2**30, 80 * 2**30))
    names = ("ours", "torch-fused", "apex-style", "torch-foreach")
    device = torch.device("cuda")
    assert bench_gpu.fitting(names, 12 * 10**9, device) == (list(names), [])
    assert bench_gpu.fitting(names, 20 * 10**9, device) == (list(names[:3]), list(names[3:]))
    assert bench_gpu.fitting(names, 10**12, device) == ([], list(names))
