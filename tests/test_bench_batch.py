"""The benchmarks of batches of images: what they count, and what the GPU's part must notice."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench import bench_batch
from bench.gpu import batch
from fusedtricks.data.plan import BatchPlan

CPU = torch.device("cpu")


def job(dtype: torch.dtype = torch.float32, *, tricks: bool = True) -> bench_batch.Job:
    images = torch.randint(256, (5, 3, 6, 8), dtype=torch.uint8, device="cpu")
    return bench_batch.make_job(images, dtype, tricks=tricks)


def test_bytes_that_operators_read_and_write():
    x, row = torch.zeros(4, 8), torch.zeros(8)
    with bench_batch.Traffic() as traffic:
        x.add_(row)
        # A view, an allocation, and a number for the host move nothing.
        torch.empty_like(x.T[1:])
        (x.sum() > 0).item()
        row.expand(3, 8).contiguous()
        x[:, 0].fill_(1.0)
        x[:1].copy_(row)
        torch.cat([row, row])
    reads = [128 + 32, 128, 4, 32, 0, 32, 64]
    writes = [128, 4, 1, 96, 16, 32, 64]
    assert (traffic.read, traffic.written) == (sum(reads), sum(writes))
    assert traffic.n_operators == 7


def test_bytes_of_the_kernel():
    # Partners, shares and holes; a mixup has no patches.
    n, plan_bytes = 5 * 3 * 6 * 8, 5 * (8 + 4 + 32)
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        row = bench_batch.count(job(dtype), bench_batch.KERNEL)
        assert (row["bytes_read"], row["bytes_written"]) == (2 * n + plan_bytes, size * n)
        assert row["operators"] == 1
        row = bench_batch.count(job(dtype, tricks=False), bench_batch.KERNEL)
        assert (row["bytes_read"], row["bytes_written"]) == (n, size * n)


def test_bytes_of_the_usual_chain():
    # To float, / 255, - mean, / std; the copies of mean and std count too.
    n = 5 * 3 * 6 * 8
    row = bench_batch.count(job(tricks=False), bench_batch.CHAIN)
    assert row["bytes_written"] == 4 * 4 * n + 2 * 12 + 4 * n
    assert row["bytes_read"] == n + 3 * 4 * n + 2 * 12 + 2 * 12 + 4 * n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_ways_do_the_same(dtype):
    for tricks in (True, False):
        bench_batch.compare_results(job(dtype, tricks=tricks))


def test_a_way_that_does_something_else_is_noticed(monkeypatch):
    wrong = bench_batch.WAYS | {bench_batch.IN_PLACE: lambda job: bench_batch.usual_chain(job) * 2}
    monkeypatch.setattr(bench_batch, "WAYS", wrong)
    with pytest.raises(AssertionError, match="in place"):
        bench_batch.compare_results(job())


def test_the_script(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'fusedtricks[demo]'")
    out = tmp_path / "batch"
    arguments = ["--images", "4", "--side", "8", "--seconds", "0", "--threads", "1"]
    rows = bench_batch.main([*arguments, "--out", str(out)])
    assert len(rows) == 6 * len(bench_batch.WAYS)
    found = json.loads((tmp_path / "batch.json").read_text())
    assert found["results"] == rows
    for row in rows:
        assert (row["median_ms"] is None) == (row["way"] == bench_batch.KERNEL)
    text = (tmp_path / "batch.md").read_text()
    assert "not run on a GPU" in text and "4 images of 3 x 8 x 8" in text
    assert "not run on a GPU" in capsys.readouterr().out


# The part for a GPU. ------------------------------------------------------------------------------


def test_checks_cover_dtypes_and_formats_and_notice_a_wrong_kernel(monkeypatch):
    assert {check[3] for check in batch.CHECKS} == {torch.float32, torch.bfloat16, torch.float16}
    assert {check[1:3] for check in batch.CHECKS} == {(a, b) for a in (0, 1) for b in (0, 1)}
    check = batch.TINY_CHECKS[0]
    assert batch.run_check(check, CPU)["agrees"]
    right = batch.prepare_batch

    def wrong(images, targets, plan, *, dtype, **options):
        if dtype != torch.float64:
            plan = BatchPlan(plan.partner, plan.own_share, plan.hole, plan.hole)
        return right(images, targets, plan, dtype=dtype, **options)

    monkeypatch.setattr(batch, "prepare_batch", wrong)
    row = batch.run_check(check, CPU)
    assert not row["agrees"] and row["error"] > 1 and batch.check_cells(row)[-1] == "NO"

    def fails(*arguments, **options):
        raise RuntimeError("no such place")

    monkeypatch.setattr(batch, "prepare_batch", fails)
    row = batch.run_check(check, CPU)
    assert not row["agrees"] and "RuntimeError: no such place" in batch.check_cells(row)


def test_rehearsal_of_the_part(tmp_path):
    out = tmp_path / "b.json"
    assert batch.main(["--dry-run", "--seconds", "60", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    titles = [title for title, _ in found["sections"]]
    assert len(titles) == 4 and all("dry-run" in title for title in titles)
    measured = {row["contender"] for row in found["rows"] if "contender" in row}
    ours = {batch.OURS, batch.OURS_LAST, batch.OURS_CPU_PLAN}
    assert measured == {*ours, bench_batch.CHAIN, bench_batch.IN_PLACE, batch.COMPILED}
    assert all(row["kernels_ms"] for row in found["rows"] if "contender" in row)


def test_without_time_torch_compile_is_left_out():
    options = SimpleNamespace(dry_run=True, quick=False, device=CPU)
    table = batch.make_table(torch.bfloat16, options)
    options.dry_run = False
    found = batch.beside_compiled(table, options, batch.COMPILE_S - 1)
    assert list(found.steps) == [batch.OURS]
    assert found.measured.reasons == {batch.COMPILED: {"all": "left out for lack of time"}}
