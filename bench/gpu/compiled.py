"""Our step beside torch's optimizer under torch.compile, clipping and centralization inside."""

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from bench.contenders import MAX_NORM, OPTIONS, Contender, centralize_
from bench.gpu import contenders, measure, tables
from bench.gpu.cases import CASES, Case, needed_bytes, shapes_of
from bench.gpu.figures import Measured, effort_of, measure_kernels, measure_timings
from bench.gpu.part import Deadline, Result, first_line, make_parser, run_part
from bench.workloads import n_parameters

EXAMPLE = "python -m bench.gpu.compiled --dry-run"
WORKLOAD = "resnet50"
# The most telling first: compiling may take all the time.
COMPILED_CASES = ("adamw-combined", "adamw")
COMPILED = "torch.compile"


def compile_step(case: Case, shapes: Sequence, device: torch.device, backend: str) -> Contender:
    """Return torch's foreach step, compiled, after the calls that compile it."""
    parameters = contenders.make_parameters(shapes, device=device)
    optimizer_class = getattr(torch.optim, case.algorithm)
    options = OPTIONS[case.algorithm] | {"foreach": True}
    if device.type == "cuda":
        # A number would be compiled in, and each change of it compiled anew.
        options["lr"] = torch.tensor(options["lr"], device=device)
        options |= contenders.capturable_option(optimizer_class, True)
    optimizer = optimizer_class(parameters, **options)

    def step() -> None:
        if case.combined:
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM, foreach=True)
            with torch.no_grad():
                centralize_(parameters)
        optimizer.step()

    optimizer.step()  # creates the state, which else would be compiled too, for one call
    compiled = torch.compile(step, backend=backend)
    for _ in range(3):
        compiled()
    measure.synchronize(device)
    return Contender(compiled, parameters)


def measure_case(case: Case, options: argparse.Namespace, result: Result) -> None:
    """Compile, measure in turns with ours, and add the table."""
    device = options.device
    shapes = shapes_of(WORKLOAD, tiny=options.dry_run)
    start = time.perf_counter()
    try:
        built = compile_step(case, shapes, device, "eager" if options.dry_run else "inductor")
    except Exception as error:
        row = {"case": case.name, "contender": COMPILED, "reason": first_line(error)}
        result.add(f"torch.compile: {case.title}", f"left out: {row['reason']}", [row])
        return
    compile_s = time.perf_counter() - start
    print(f"compiled {case.name} in {compile_s:.1f} s", flush=True)
    names = ("ours", COMPILED)
    builders = {COMPILED: lambda capturable: built}
    missing = contenders.why_missing("ours", device)
    if not missing:
        build = contenders.build
        builders["ours"] = lambda capturable: build("ours", case, shapes, device=device)
    n_bytes = n_parameters(shapes) * needed_bytes(case)
    measured = Measured()
    if missing:
        measured.fail("ours", "all", missing)
    common = {"device": device, "effort": effort_of(options)}
    measure_timings(builders, measured, graphs=False, **common)
    measure_kernels(builders, measured, copy_bytes=n_bytes, **common)
    common = {
        "workload": WORKLOAD,
        "case": case.name,
        "title": case.title,
        "baseline": COMPILED,
        "compile_s": compile_s,
    }
    rows = tables.make_rows(measured, names, n_bytes=n_bytes, common=common)
    notes = [f"the first calls, which compile, took {compile_s:.1f} s"]
    title = f"torch.compile, {WORKLOAD}: {case.title}"
    result.add(title, tables.table_text(rows, notes), rows)


def work(options: argparse.Namespace, result: Result) -> str:
    """Measure the cases until the time is up; nothing here is a failure of ours."""
    deadline = Deadline(options.seconds)
    for name in COMPILED_CASES:
        if deadline.elapsed > deadline.seconds / 2:
            print(f"no time left for {name}")
            break
        measure_case(CASES[name], options, result)
        torch.compiler.reset()
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit status."""
    return run_part(work, make_parser(__doc__, EXAMPLE), arguments)


if __name__ == "__main__":
    sys.exit(main())
