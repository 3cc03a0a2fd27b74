"""The ops called by hand with arguments that do not fit: an exception, never a crash."""

import contextlib
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtricks import ops
from tests import devices

pytestmark = pytest.mark.skipif(ops.native is None, reason=f"no extension: {ops.missing_reason}")

# Hyper-parameters and flags of each op; all flags on, in the layout of build_info().
HYPER = {
    "adam": [0.81, 0.93, 2e-3, 0.13, 1.0],
    "sgd": [0.83, 0.23, 0.19],
    "rmsprop": [0.87, 3e-3, 0.0, 0.79, 0.37],
    "adagrad": [0.11, 4e-3, 0.0, 0.41],
}
N_STATES = {"adam": 3, "sgd": 1, "rmsprop": 3, "adagrad": 1}
ALL_FLAGS = {"adam": 3, "sgd": 7, "rmsprop": 7, "adagrad": 1}
SHAPES = [(7, 3), (5,), (2, 3, 4)]
# What an op may raise for a bad argument.
ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
each_op = pytest.mark.parametrize("name", HYPER)
each_library = pytest.mark.parametrize("library", devices.LIBRARIES)


def arguments(name: str) -> dict[str, Any]:
    """Return correct arguments: three parameters in two groups, the last with a bf16 copy."""
    return {
        "params": [torch.randn(s) for s in SHAPES],
        "grads": [torch.randn(s) for s in SHAPES],
        # The first state is larger than the square of the others: rmsprop takes its variance.
        "states": [torch.rand(s) / 2 + (k == 0) for s in SHAPES for k in range(N_STATES[name])],
        "model_params": [torch.zeros(SHAPES[2], dtype=torch.bfloat16)],
        "model_index": [2],
        "averages": [torch.randn(SHAPES[0]), torch.randn(SHAPES[2])],
        "average_index": [0, 2],
        "steps": [torch.full((), 2.0) for _ in SHAPES],
        "lr": [torch.tensor(0.03), torch.tensor(0.021)],
        "hyper": HYPER[name] * 2,
        "variants": [ALL_FLAGS[name]] * 2,
        "group_sizes": [2, 1],
        "maximize": [0, 1],
        "centralize": [2, 0],
        "row_means": torch.randn(7, dtype=torch.float64),
        "coefficient": torch.tensor(0.7, dtype=torch.float64),
        "grad_scale": torch.tensor(4.0),
        "clip_value": 0.9,
        "average_weight": 0.3,
        "found_inf": torch.tensor(0.0),
        "skipped_steps": torch.tensor(7),
    }


def statistics_arguments() -> dict[str, Any]:
    return {
        "grads": [torch.randn(s) for s in SHAPES],
        "group_sizes": [2, 1],
        "centralize": [2, 0],
        "grad_scale": torch.tensor(4.0),
        "clip_value": 0.9,
    }


def call(name: str, given: dict[str, Any], library: str = "fusedtricks") -> Any:
    return getattr(getattr(torch.ops, library), name)(**given)


def tensors(given: dict[str, Any]) -> list[Tensor]:
    flat = [v if isinstance(v, list) else [v] for v in given.values()]
    return [t for values in flat for t in values if isinstance(t, Tensor)]


def bits(given: dict[str, Any]) -> list[Any]:
    return [
        t.detach().reshape(-1).contiguous().view(torch.uint8).tolist()
        for t in tensors(given)
        if t.device.type == "cpu" and t.layout == torch.strided and t.numel()
    ]


def replaced(values: list[Any], index: int, value: Any) -> list[Any]:
    return [*values[:index], value, *values[index + 1 :]]


# What to replace, and by what. The last tensor of a list is the bad one: the rest was checked.
WRONG = {
    "grads: one less": ("grads", lambda v: v[:-1]),
    "grads: one more": ("grads", lambda v: [*v, v[0]]),
    "grads: none": ("grads", lambda v: []),
    "grads: shape": ("grads", lambda v: replaced(v, 2, torch.ones(24))),
    "grads: longer": ("grads", lambda v: replaced(v, 1, torch.ones(6))),
    "grads: int": ("grads", lambda v: replaced(v, 1, torch.ones(5, dtype=torch.int32))),
    "grads: complex": ("grads", lambda v: replaced(v, 1, torch.ones(5, dtype=torch.complex64))),
    "grads: sparse": ("grads", lambda v: replaced(v, 1, torch.ones(5).to_sparse())),
    "grads: meta": ("grads", lambda v: replaced(v, 1, torch.ones(5, device="meta"))),
    "params: one less": ("params", lambda v: v[:-1]),
    "params: int": ("params", lambda v: replaced(v, 2, v[2].int())),
    "params: shape": ("params", lambda v: replaced(v, 2, torch.ones(2, 3, 5))),
    "params: expanded": ("params", lambda v: replaced(v, 2, torch.ones(1, 1, 1).expand(2, 3, 4))),
    "states: one less": ("states", lambda v: v[:-1]),
    "states: one more": ("states", lambda v: [*v, v[0]]),
    "states: none": ("states", lambda v: []),
    "states: shape": ("states", lambda v: replaced(v, -1, torch.ones(23))[: len(v)]),
    "states: int": ("states", lambda v: [*v[:-1], v[-1].int()]),
    "states: meta": ("states", lambda v: [*v[:-1], v[-1].to("meta")]),
    "states: expanded": ("states", lambda v: [*v[:-1], torch.ones(1, 1, 1).expand(2, 3, 4)]),
    "model_params: one more": ("model_params", lambda v: v * 2),
    "model_params: none": ("model_params", lambda v: []),
    "model_params: shape": ("model_params", lambda v: [v[0][:1]]),
    "model_params: int": ("model_params", lambda v: [v[0].int()]),
    "model_index: too large": ("model_index", lambda v: [3]),
    "model_index: negative": ("model_index", lambda v: [-1]),
    "model_index: huge": ("model_index", lambda v: [2**62]),
    "model_index: another": ("model_index", lambda v: [0]),
    "averages: one more": ("averages", lambda v: [*v, v[0]]),
    "averages: none": ("averages", lambda v: []),
    "averages: shape": ("averages", lambda v: [v[0], v[1][:1]]),
    "averages: int": ("averages", lambda v: [v[0], v[1].int()]),
    "averages: meta": ("averages", lambda v: [v[0], v[1].to("meta")]),
    "averages: expanded": ("averages", lambda v: [v[0], torch.ones(1, 1, 1).expand(2, 3, 4)]),
    "average_index: too large": ("average_index", lambda v: [0, 3]),
    "average_index: negative": ("average_index", lambda v: [-1, 2]),
    "average_index: falling": ("average_index", lambda v: [2, 0]),
    "average_index: twice": ("average_index", lambda v: [2, 2]),
    "average_index: another": ("average_index", lambda v: [1, 2]),
    "steps: one less": ("steps", lambda v: v[:-1]),
    "steps: shape": ("steps", lambda v: replaced(v, 2, torch.zeros(2))),
    "steps: empty": ("steps", lambda v: replaced(v, 2, torch.zeros(0))),
    "steps: int": ("steps", lambda v: replaced(v, 2, torch.tensor(2))),
    "steps: meta": ("steps", lambda v: replaced(v, 2, torch.zeros((), device="meta"))),
    "lr: one less": ("lr", lambda v: v[:1]),
    "lr: two elements": ("lr", lambda v: [v[0], torch.ones(2)]),
    "lr: empty": ("lr", lambda v: [v[0], torch.ones(0)]),
    "lr: none": ("lr", lambda v: []),
    "hyper: one less": ("hyper", lambda v: v[:-1]),
    "hyper: one more": ("hyper", lambda v: [*v, 1.0]),
    "hyper: none": ("hyper", lambda v: []),
    "variants: one less": ("variants", lambda v: v[:1]),
    "variants: too large": ("variants", lambda v: [v[0], 8]),
    "variants: negative": ("variants", lambda v: [v[0], -1]),
    "variants: huge": ("variants", lambda v: [v[0], 2**40]),
    "group_sizes: too few": ("group_sizes", lambda v: [1, 1]),
    "group_sizes: too many": ("group_sizes", lambda v: [2, 2]),
    "group_sizes: another group": ("group_sizes", lambda v: [2, 1, 0]),
    "group_sizes: huge": ("group_sizes", lambda v: [2, 2**62]),
    "group_sizes: negative": ("group_sizes", lambda v: [4, -1]),
    "group_sizes: none": ("group_sizes", lambda v: []),
    "maximize: one less": ("maximize", lambda v: v[:1]),
    "centralize: one less": ("centralize", lambda v: v[:1]),
    "centralize: more rows": ("centralize", lambda v: [2, 2]),
    "centralize: fewer rows": ("centralize", lambda v: [0, 0]),
    "row_means: one less": ("row_means", lambda v: v[:-1]),
    "row_means: none": ("row_means", lambda v: None),
    "row_means: float32": ("row_means", lambda v: v.float()),
    "row_means: strided": ("row_means", lambda v: torch.zeros(1, dtype=v.dtype).expand(7)),
    "row_means: meta": ("row_means", lambda v: v.to("meta")),
    "coefficient: two": ("coefficient", lambda v: torch.ones(2)),
    "grad_scale: two": ("grad_scale", lambda v: torch.ones(2)),
    "grad_scale: empty": ("grad_scale", lambda v: torch.ones(0)),
    "found_inf: two": ("found_inf", lambda v: torch.ones(2)),
    "skipped_steps: two": ("skipped_steps", lambda v: torch.zeros(2, dtype=torch.int64)),
    "skipped_steps: float": ("skipped_steps", lambda v: torch.zeros(())),
    "skipped_steps: meta": ("skipped_steps", lambda v: v.to("meta")),
}


@pytest.mark.parametrize("wrong", WRONG)
@each_op
@each_library
def test_wrong_arguments_change_nothing(library: str, name: str, wrong: str) -> None:
    if library == "fusedtricks_triton" and wrong == "row_means: float32":
        pytest.skip("float32 is what the Triton kernels use")
    key, change = WRONG[wrong]
    given = arguments(name)
    given[key] = change(given[key])
    before = bits(given)
    with pytest.raises(ERRORS) as caught:
        call(f"{name}_", given, library)
    text = str(caught.value)
    assert any(
        part in text for part in (name, key, "Scalar", "scalar type", "clone()", "int64_t")
    ), text
    assert bits(given) == before
    call(f"{name}_", arguments(name), library)


@each_op
@each_library
def test_correct_arguments_work(library: str, name: str) -> None:
    given = arguments(name)
    before = [t.clone() for t in given["params"]]
    averages = [t.clone() for t in given["averages"]]
    call(f"{name}_", given, library)
    assert all(not torch.equal(b, p) for b, p in zip(before, given["params"], strict=True))
    assert torch.equal(given["model_params"][0], given["params"][2].bfloat16())
    for average, old, i in zip(given["averages"], averages, given["average_index"], strict=True):
        torch.testing.assert_close(average, torch.lerp(old, given["params"][i], 0.3))
    assert [s.item() for s in given["steps"]] == [3.0] * 3
    assert given["skipped_steps"].item() == 7


@pytest.mark.parametrize("flag", [1.0, 2.0, float("nan")])
@each_op
@each_library
def test_a_skipped_call_is_counted_and_changes_nothing_else(
    library: str, name: str, flag: float
) -> None:
    given = arguments(name)
    given["found_inf"] = torch.tensor(flag)
    before = bits(given)
    call(f"{name}_", given, library)
    assert given["skipped_steps"].item() == 8
    given["skipped_steps"] -= 1
    assert bits(given) == before


STATISTICS_WRONG = {
    "int": ("grads", lambda v: [*v[:-1], v[-1].int()]),
    "sparse": ("grads", lambda v: [*v[:-1], v[-1].to_sparse()]),
    "one less": ("grads", lambda v: v[:-1]),
    "one more": ("grads", lambda v: [*v, v[0]]),
    "sizes too few": ("group_sizes", lambda v: [1, 1]),
    "sizes too many": ("group_sizes", lambda v: [2, 2**62]),
    "sizes negative": ("group_sizes", lambda v: [4, -1]),
    "centralize": ("centralize", lambda v: [2]),
    "scale": ("grad_scale", lambda v: torch.ones(2)),
}


@pytest.mark.parametrize("wrong", STATISTICS_WRONG)
@each_library
def test_wrong_arguments_of_grad_statistics(library: str, wrong: str) -> None:
    key, change = STATISTICS_WRONG[wrong]
    given = statistics_arguments()
    given[key] = change(given[key])
    with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)):
        call("grad_statistics", given, library)
    call("grad_statistics", statistics_arguments(), library)


def test_wrong_group_sizes_of_meta_gradients_are_refused_at_once() -> None:
    given = statistics_arguments()
    given["grads"] = [grad.to("meta") for grad in given["grads"]]
    call("grad_statistics", given)
    for sizes in ([2, 2**62], [1, 1], [len(given["grads"])]):
        with pytest.raises(ValueError, match="expected group_sizes to sum to 3"):
            call("grad_statistics", given | {"group_sizes": sizes})


def wrong_totals() -> dict[str, list[Tensor]]:
    good = torch.ones(2, dtype=torch.float64)
    return {
        "one element": [good[:1]],
        "empty": [good[:0]],
        "second too short": [good, good[:1]],
        "strided": [torch.ones(1, dtype=torch.float64).expand(2)],
        "float32": [good.float()],
        "int": [good.long()],
    }


def finalize_wrong_totals(library: str) -> None:
    """Print the name of every wrong argument that raises."""
    for name, totals in wrong_totals().items():
        try:
            getattr(torch.ops, library).finalize_statistics(totals, 0.7)
        except ERRORS:
            print(name, flush=True)


def run_apart(code: str) -> str:
    """Return what `code` prints in another process, which a crash would end."""
    result = subprocess.run(
        [sys.executable, "-c", f"import tests.test_raw_ops as t\n{code}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-2000:]
    return result.stdout


@each_library
def test_wrong_arguments_of_finalize_statistics(library: str) -> None:
    refused = run_apart(f"t.finalize_wrong_totals({library!r})").splitlines()
    assert refused == list(wrong_totals())


def random_value(rng: random.Random) -> Any:
    """Return something that may be in an argument list."""
    shape = rng.choice([(), (0,), (1,), (5,), (7, 3), (2, 3, 4), (24,)])
    dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
    tensor = torch.zeros(shape, dtype=dtype)
    kind = rng.randrange(5)
    if kind == 0 and tensor.ndim > 1:
        return tensor.transpose(0, 1)
    if kind == 1 and tensor.numel():
        return torch.zeros((), dtype=dtype).expand(shape)
    return tensor.to("meta") if kind == 2 else tensor


def fuzz(rng: random.Random, library: str) -> None:
    """Call an op with one to three of its arguments replaced by rubbish of the right type."""
    name = rng.choice([*HYPER, "grad_statistics"])
    is_step = name in HYPER
    given = arguments(name) if is_step else statistics_arguments()
    for key in rng.sample(list(given), rng.randrange(1, 4)):
        value = given[key]
        if not isinstance(value, list):
            is_number = isinstance(value, float)
            given[key] = rng.choice([None, value if is_number else random_value(rng)])
        elif isinstance(value[0], Tensor):
            index = rng.randrange(len(value))
            given[key] = rng.choice(
                [value[:index], value * 2, replaced(value, index, random_value(rng))]
            )
        else:
            wild = rng.choice([-(2**63), -1, 0, 1, 2, 3, 5, 2**31, 2**62, 2**63 - 1])
            wild = float(wild) if isinstance(value[0], float) else wild
            index = rng.randrange(len(value))
            given[key] = rng.choice([value[:index], value * 2, replaced(value, index, wild)])
    with contextlib.suppress(*ERRORS):
        call(f"{name}_" if is_step else name, given, library)


def fuzz_all(n: int, library: str) -> None:
    torch.set_num_threads(2)
    for seed in range(n):
        fuzz(random.Random(seed), library)


@each_library
def test_rubbish_never_ends_the_process(library: str) -> None:
    # The interpreter takes a hundred times as long.
    run_apart(f"t.fuzz_all({3000 if library == 'fusedtricks' else 300}, {library!r})")
