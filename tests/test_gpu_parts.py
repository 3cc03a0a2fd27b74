"""The checks and the host times of the GPU check, and what they must notice, without a GPU."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import (
    agreement,
    cases,
    contenders,
    first_step,
    graphs,
    host,
    measure,
    options,
)
from tests.cases import CASES, MAIN_CASES

CPU = torch.device("cpu")
ADAMW = MAIN_CASES[0]


# The checks. --------------------------------------------------------------------------------------


def test_options_cover_all_cases_dtypes_and_transforms():
    checks = options.all_checks(CASES)
    assert {check.case.name for check in checks} == {case.name for case in CASES}
    for case in CASES:
        mine = [check for check in checks if check.case is case]
        found = {(check.dtype, check.masters) for check in mine}
        half = {(torch.bfloat16, True), (torch.float16, True)}
        assert found >= {(torch.float32, False), (torch.float64, False), *half}
        kwargs = [set(c.options.kwargs) for c in mine if c.dtype == torch.float32]
        assert set() in kwargs and all({name} in kwargs for name in options._COMBINED)
        assert any(check.options.is_scaled for check in mine)
        assert any(check.options.nonfinite_step is not None for check in mine)
    alone = {check.dtype for check in checks if check.case is ADAMW and not check.masters}
    assert alone == {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def test_a_step_that_is_not_skipped_is_noticed(monkeypatch):
    check = options.Check(ADAMW, torch.float32, options.SKIPPING)
    assert options.run_check(check, CPU, "auto")["agrees"]
    found = options.take_steps(check, CPU, "auto", options.TINY_SHAPES)
    assert found.n_skipped == 2 and len(found.norms) == options.N_STEPS - 1
    take_steps = options.take_steps

    def counts_too_few(check, device, backend, shapes):
        outcome = take_steps(check, device, backend, shapes)
        outcome.n_skipped -= backend == "auto"
        return outcome

    monkeypatch.setattr(options, "take_steps", counts_too_few)
    row = options.run_check(check, CPU, "auto")
    assert not row["agrees"] and row["remark"] == "1 steps skipped, expected 2"
    line = options.summarize([row])[0]
    assert line[-1] == "NO: skipped steps 1 steps skipped, expected 2"


def test_norm_error():
    assert options.norm_error([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert options.norm_error([1.0, math.nan], [1.0, math.inf]) == 0.0
    assert options.norm_error([math.nan], [1.0]) == math.inf
    assert options.norm_error([], []) == 0.0


def test_a_graph_that_reads_other_gradients_is_noticed(monkeypatch):
    prepare = graphs.Run.prepare

    def keeps_no_table(run, n_steps, *, captured):
        if not captured:
            return prepare(run, n_steps, captured=False)
        prepare(run, n_steps, captured=False)
        # Reads wherever the gradients of the step before lie.
        return lambda: [run.optimizer.step() for _ in range(n_steps)]

    monkeypatch.setattr(graphs.Run, "prepare", keeps_no_table)
    arguments = SimpleNamespace(backend="cuda", device=CPU)
    for graph, equal in ((graphs.ONE_STEP, True), (graphs.OTHERS_BETWEEN, False)):
        row = graphs.compare_case(ADAMW, torch.float32, graph, arguments)
        assert (row["equal"], row["remark"]) == (equal, ""), graph


def test_a_graph_that_keeps_the_learning_rate_or_a_flag_is_noticed(monkeypatch):
    for name in ("_lr", "_flag"):
        with monkeypatch.context() as patch:
            prepare = graphs.Run.prepare

            def stale(run, n_steps, *, captured, name=name, prepare=prepare):
                replay = prepare(run, n_steps, captured=False)
                if captured:
                    setattr(run, name, torch.zeros(()))
                return replay

            patch.setattr(graphs.Run, "prepare", stale)
            arguments = SimpleNamespace(backend="cuda", device=CPU)
            row = graphs.compare_case(ADAMW, torch.float32, graphs.ONE_STEP, arguments)
            assert not row["equal"] and not row["remark"], name


def test_agreement_has_a_row_for_each_pair():
    values = [[torch.ones(3)], [torch.ones(3)]]
    apart = [[torch.ones(3)], [torch.full((3,), 1.1)]]
    ends = {"cpu": values, "cuda": values, "triton": apart, "other": "RuntimeError: boom"}
    rows = agreement.compare_ends("AdamW", "plain", ends)
    assert [row["backends"] for row in rows[:2]] == [["cpu", "cuda"], ["cpu", "triton"]]
    assert [row["agrees"] for row in rows] == [True, False, False, False, False, False]
    assert all("boom" in agreement.cells(row)[-2] for row in rows if "other" in row["backends"])
    assert agreement.cells(rows[1])[2:4] == ("cpu - triton", "0")


# The host's time. ---------------------------------------------------------------------------------


def test_changes_between_steps():
    shapes = [(3, 5), (7,), ()]
    subject = host.Subject("ours", cases.CASES["adamw"], shapes, CPU)
    parameters = subject._parameters

    def addresses() -> tuple[int, ...]:
        return tuple(parameter.grad.data_ptr() for parameter in parameters)

    first, lr = addresses(), subject._group["lr"]
    subject.change(host.STEADY)
    assert addresses() == first and subject._group["lr"] == lr
    seen = set()
    for _ in range(host.N_PLACES):
        subject.change(host.NEW_GRADS)
        seen.add(addresses())
        assert all((a - b) % 16 == 0 for a, b in zip(addresses(), min(seen), strict=True))
    assert len(seen) == host.N_PLACES
    assert all(p.grad.shape == p.shape and p.grad.is_contiguous() for p in parameters)
    kinds = set()
    for _ in range(6):
        subject.change(host.TWO_PLACES)
        kinds.add(addresses())
    assert len(kinds) == 2
    rates = set()
    for _ in range(6):
        subject.change(host.NEW_LR)
        rates.add(subject._group["lr"])
    assert len(rates) == 6 and max(rates) < 1.01 * lr
    subject.reset()
    assert addresses() == first and subject._group["lr"] == lr


def test_gradients_of_a_place_do_not_overlap():
    subject = host.Subject("ours", cases.CASES["adamw"], [(3, 5), (7,), (2, 9)], CPU)
    place = subject._place(host.N_PLACES - 1)
    for number, grad in enumerate(place):
        grad.fill_(number)
    assert [grad.unique().tolist() for grad in place] == [[0.0], [1.0], [2.0]]


def test_uploads_are_counted_from_the_trace(monkeypatch):
    counts = {"Memcpy HtoD (Pinned -> Device)": 2.0, "Memcpy DtoD": 1.0, "update_kernel": 1.0}
    launches = measure.Launches(1e-6, counts, dict.fromkeys(counts, 0.1))
    monkeypatch.setattr(measure, "profile", lambda step, n_steps, device: step() or launches)
    subject = host.Subject("ours", cases.CASES["adamw"], [(3,)], CPU)
    assert host.count_uploads(subject, host.NEW_GRADS, CPU, 1) == 2

    def sees_nothing(step, n_steps, device):
        raise RuntimeError("the profiler recorded no kernel")

    monkeypatch.setattr(measure, "profile", sees_nothing)
    assert host.count_uploads(subject, host.STEADY, CPU, 1) is None


def test_a_failing_contender_leaves_the_others(monkeypatch, tmp_path):
    build = contenders.build

    def refuses(name, *arguments, **more):
        if name == "ours":
            raise RuntimeError("no such place")
        return build(name, *arguments, **more)

    monkeypatch.setattr(contenders, "build", refuses)
    out = tmp_path / "r.json"
    assert host.main(["--dry-run", "--tables", "1", "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["reason"] == "1 problems; the first: ours: RuntimeError: no such place"
    assert {row["contender"] for row in found["rows"]} >= {"torch-fused", "torch-foreach"}


def test_compiled_kernels_are_counted(tmp_path):
    for name in ("a/kernel.cubin", "a/kernel.ptx", "b/kernel.hsaco", "b/kernel.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert first_step.n_compiled(tmp_path) == 2


def test_a_first_step_that_fails_has_a_reason(tmp_path):
    arguments = SimpleNamespace(dry_run=True)
    found = first_step.run_one("ours", "no-such", tmp_path, 60, arguments)
    assert found["reason"].startswith("status 1: ")
    found = first_step.run_one("ours", "adamw", tmp_path, 0.01, arguments)
    assert found["reason"] == "took more than 0 s"
    row = {"case": "adamw", "contender": "ours", "cache": "none", "compiled": None} | found
    assert first_step.cells(row)[-1] == "took more than 0 s"
