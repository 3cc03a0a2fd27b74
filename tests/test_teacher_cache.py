"""The teacher's outputs are computed once per sample, and only for images that were not mixed."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from fusedtricks.losses import Targets, TeacherCache, as_targets
from tests.devices import DEVICE

N_SAMPLES, K = 11, 5
DATA = torch.linspace(-2, 2, N_SAMPLES * 3, device="cpu").reshape(N_SAMPLES, 3)


class Teacher(nn.Module):
    """Notes what it is run on, and is random in training mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, K)
        )
        # One part is frozen, the others are not.
        self.layers[1].eval()
        self.seen = []

    def forward(self, inputs):
        assert not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        self.seen.append(inputs.tolist())
        return self.layers(inputs)

    def in_evaluation(self, indices):
        """The expected logits, by the layers themselves."""
        layers = copy.deepcopy(self.layers).eval()
        with torch.no_grad():
            return layers(DATA.to(DEVICE)[indices])


def batch(*indices):
    indices = torch.tensor(indices, device="cpu")
    return DATA[indices].to(DEVICE), indices, torch.zeros(len(indices), dtype=torch.int64)


def test_the_teacher_sees_every_sample_once():
    teacher = Teacher()
    cache = TeacherCache(teacher, N_SAMPLES, K)
    for indices in ([3, 0, 7], [0, 7], [7, 10, 3, 1], [1, 10, 0, 3, 7]):
        actual = cache(*batch(*indices))
        torch.testing.assert_close(actual, teacher.in_evaluation(indices))
        assert (actual.device.type, actual.requires_grad) == (DEVICE.type, False)
    rows = DATA.tolist()
    assert teacher.seen == [[rows[3], rows[0], rows[7]], [rows[10], rows[1]]]


def test_a_sample_twice_in_a_batch():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    actual = cache(*batch(4, 4, 2))
    torch.testing.assert_close(actual, cache.teacher.in_evaluation([4, 4, 2]))


def test_empty_batch():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    indices = torch.zeros(0, dtype=torch.int64)
    assert cache(torch.zeros(0, 3), indices, indices).shape == (0, K)
    assert cache.teacher.seen == []


def test_modes_and_statistics_of_the_teacher_stay():
    teacher = Teacher()
    modes = [module.training for module in teacher.modules()]
    statistics = copy.deepcopy(teacher.state_dict())
    cache = TeacherCache(teacher, N_SAMPLES, K)
    cache(*batch(1, 2))
    assert [module.training for module in teacher.modules()] == modes
    assert len(set(modes)) == 2
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, statistics[name])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        cache(torch.zeros(1, 4), torch.tensor([5]), torch.tensor([0]))
    assert [module.training for module in teacher.modules()] == modes
    # What failed is not known.
    torch.testing.assert_close(cache(*batch(5)), teacher.in_evaluation([5]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_size(dtype):
    cache = TeacherCache(Teacher(), N_SAMPLES, K, dtype=dtype)
    actual = cache(*batch(2, 9))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, cache.teacher.in_evaluation([2, 9]).to(dtype))
    # One byte per sample says whether it is known.
    assert cache.size_bytes == N_SAMPLES * (K * dtype.itemsize + 1)


def test_autocast_of_the_caller():
    teacher = Teacher().eval()
    cache = TeacherCache(teacher, N_SAMPLES, K)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        actual = cache(*batch(2, 9))
        expected = teacher.in_evaluation([2, 9])
    assert expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected.float(), rtol=0, atol=0)


def test_inference_mode():
    with torch.inference_mode():
        cache = TeacherCache(Teacher(), N_SAMPLES, K)
        logits = cache(*batch(1, 2))
    # Outside, a gradient may need them, and a sample may be added.
    student = torch.ones(2, K, requires_grad=True)
    (student * logits).sum().backward()
    assert torch.equal(student.grad, logits)
    torch.testing.assert_close(cache(*batch(3)), cache.teacher.in_evaluation([3]))


def test_what_is_returned_is_not_what_is_kept():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    cache(*batch(1, 2)).zero_()
    torch.testing.assert_close(cache(*batch(1, 2)), cache.teacher.in_evaluation([1, 2]))


def test_indices_of_other_kinds():
    cache = TeacherCache(Teacher(), N_SAMPLES, K, device=DEVICE)
    inputs, indices, labels = batch(1, 8)
    actual = cache(inputs, indices.to(DEVICE, torch.uint8), labels)
    torch.testing.assert_close(actual, cache.teacher.in_evaluation([1, 8]))


# State. -------------------------------------------------------------------------------------------


def test_a_saved_cache_needs_no_teacher():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    expected = cache(*batch(6, 2))
    buffer = io.BytesIO()
    torch.save(cache.state_dict(), buffer)
    buffer.seek(0)
    twin = TeacherCache(Teacher(), N_SAMPLES, K)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(twin(*batch(2, 6)), expected.flip(0))
    assert twin.teacher.seen == []
    # And knows what it does not know.
    torch.testing.assert_close(twin(*batch(4)), twin.teacher.in_evaluation([4]))


def test_loading_shares_nothing():
    cache, twin = (TeacherCache(Teacher(), N_SAMPLES, K, dtype=torch.float64) for _ in range(2))
    half = TeacherCache(Teacher(), N_SAMPLES, K, dtype=torch.float16)
    cache(*batch(6, 2))
    twin.load_state_dict(cache.state_dict())
    half.load_state_dict(cache.state_dict())
    assert half(*batch(6, 2)).dtype == torch.float16
    twin(*batch(4))
    torch.testing.assert_close(cache(*batch(4)), cache.teacher.in_evaluation([4]).double())
    assert [len(each.teacher.seen) for each in (cache, twin, half)] == [2, 1, 0]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies(how):
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    expected = cache(*batch(6, 2))
    twin = how(cache)
    assert torch.equal(twin(*batch(6, 2)), expected)
    assert len(twin.teacher.seen) == 1


def test_the_state_of_something_else():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    expected = cache(*batch(6))
    for state in (
        TeacherCache(Teacher(), N_SAMPLES + 1, K).state_dict(),
        {"logits": torch.zeros(N_SAMPLES, K)},
    ):
        with pytest.raises(ValueError, match=r"expected a state of shapes \{'logits': \[11, 5\]"):
            cache.load_state_dict(state)
    assert torch.equal(cache(*batch(6)), expected)
    assert len(cache.teacher.seen) == 1


def test_the_state_has_other_dtypes():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    expected = cache(*batch(6))
    for dtypes in ((torch.float32, torch.uint8), (torch.int32, torch.bool)):
        empty = TeacherCache(Teacher(), N_SAMPLES, K).state_dict()
        state = {name: each.to(to) for (name, each), to in zip(empty.items(), dtypes, strict=True)}
        with pytest.raises(TypeError, match=f"torch.bool, got {dtypes[0]} and {dtypes[1]}"):
            cache.load_state_dict(state)
    assert torch.equal(cache(*batch(6)), expected)


# Logits that float16 cannot hold, and ones that it can. -------------------------------------------


@pytest.mark.parametrize("value", [7e4, -7e4, float("inf"), float("nan")])
def test_logits_that_are_too_large(value):
    teacher = nn.Linear(3, K)
    with torch.no_grad():
        teacher.bias[0], teacher.bias[1] = -torch.inf, value
    half = TeacherCache(teacher, N_SAMPLES, K, dtype=torch.float16)
    text = r"are NaN, above 65504\.0 or below -65504\.0, .* torch.float16 .* such as torch.float32"
    with pytest.raises(ValueError, match=text):
        half(*batch(1, 2))
    assert not half.state_dict()["is_known"].any()
    state = dict(TeacherCache(teacher, N_SAMPLES, K).state_dict())
    state["logits"] = torch.full((N_SAMPLES, K), value, device="cpu")
    with pytest.raises(ValueError, match=text):
        half.load_state_dict(state)
    assert not half.state_dict()["logits"].any()


def test_a_teacher_may_rule_out_a_class():
    teacher = nn.Linear(3, K)
    with torch.no_grad():
        teacher.bias[1] = -torch.inf
    wide, half, twin = (
        TeacherCache(teacher, N_SAMPLES, K, dtype=dtype)
        for dtype in (torch.float32, torch.float16, torch.float16)
    )
    assert (half(*batch(1, 2))[:, 1] == -torch.inf).all()
    wide(*batch(1, 2))
    twin.load_state_dict(wide.state_dict())
    assert torch.equal(twin(*batch(1, 2)), half(*batch(1, 2)))


def test_a_state_is_checked_in_parts(monkeypatch):
    monkeypatch.setattr("fusedtricks.losses.teacher_cache._PART", 2 * K)
    wide, half = (
        TeacherCache(Teacher(), N_SAMPLES, K, dtype=each) for each in (torch.float32, torch.float16)
    )
    wide.state_dict()["logits"][-1, -1] = -7e4
    with pytest.raises(ValueError, match=r"beyond what torch\.float16 can hold"):
        half.load_state_dict(wide.state_dict())
    wide.state_dict()["logits"][-1, -1] = -6e4
    half.load_state_dict(wide.state_dict())
    assert torch.equal(half.state_dict()["logits"], wide.state_dict()["logits"].half())


# The compiler. ------------------------------------------------------------------------------------


def test_compiled():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)

    def step(inputs, indices, labels):
        return 2 * cache(inputs + 0, indices, labels)

    compiled = torch.compile(step, backend="aot_eager")
    for indices in ([3, 0, 7], [0, 7], [7, 10, 3, 1]):
        expected = 2 * cache.teacher.in_evaluation(indices)
        torch.testing.assert_close(compiled(*batch(*indices)), expected)
    assert [len(inputs) for inputs in cache.teacher.seen] == [3, 2]


def test_the_import_does_not_load_the_compiler():
    # It takes longer than all the rest.
    loaded = "print('torch._dynamo' in sys.modules)"
    code = f"import sys, torch; {loaded}; import fusedtricks, fusedtricks.losses; {loaded}"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    before, after = output.split()
    assert after == before


# Contradictions. ----------------------------------------------------------------------------------


def test_mixed_images_are_refused():
    cache = TeacherCache(Teacher(), N_SAMPLES, K)
    inputs, indices, labels = batch(1, 2)
    mixed = as_targets(labels).mix(torch.tensor([1, 0]), torch.tensor(0.3))
    with pytest.raises(ValueError, match=r"images .* are mixed, .*; run the teacher on"):
        cache(inputs, indices, mixed)
    probabilities = mixed.probabilities(K)
    text = r"does not say whether the images are mixed; pass Targets\(probabilities\)"
    with pytest.raises(ValueError, match=text):
        cache(inputs, indices, probabilities)
    assert cache.teacher.seen == []
    cache(inputs, indices, Targets(probabilities))
    assert len(cache.teacher.seen) == 1


ONE = torch.ones(1, 3, device="cpu"), torch.tensor([0], device="cpu")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda cache: cache(ONE[0], ONE[1] - 1, ONE[1]), ValueError, "n_samples - 1 = 10, got -1"),
        (lambda cache: cache(ONE[0], ONE[1] + 11, ONE[1]), ValueError, "from 0 to .*, got 11"),
        (lambda cache: cache(ONE[0], ONE[0][:, 0], ONE[1]), TypeError, "an integer dtype, got"),
        (
            lambda cache: cache(ONE[0], torch.tensor([0, 1]), ONE[1]),
            ValueError,
            r"one index per input, shape \[1\], got \[2\]",
        ),
        (
            lambda cache: TeacherCache(cache.teacher, 3, K + 1)(ONE[0], ONE[1], ONE[1]),
            ValueError,
            r"logits of shape \[1, 6\] from the teacher, got \[1, 5\]",
        ),
        (lambda cache: cache(*ONE, torch.tensor([0, 1])), ValueError, "of the 1 inputs, got 2"),
        (lambda cache: TeacherCache(cache.teacher, 0, 5), ValueError, "n_samples of at .*, got 0"),
        (
            lambda cache: TeacherCache(cache.teacher, 3, 5, dtype=torch.int32),
            TypeError,
            "expected dtype to be one of .*torch.float64, got torch.int32",
        ),
    ],
)
def test_errors(call, error, text):
    cache = TeacherCache(Teacher().cpu(), N_SAMPLES, K)
    with pytest.raises(error, match=text):
        call(cache)
