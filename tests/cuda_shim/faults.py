"""Faults to plant in copies of the CUDA kernels, and the tests that have to notice each of them."""

from dataclasses import dataclass

KERNELS = "tests/test_cuda_kernels.py::"
VALUES = "tests/test_cuda_kernel_values.py::"
MEMORY = "tests/test_cuda_kernel_memory.py::"
NUMERICS = "tests/test_numerics.py::"

ORDER = f"{KERNELS}test_the_order_of_threads_and_blocks"
OFFSETS = f"{MEMORY}test_every_offset_of_every_stream"
SKIPPED = f"{MEMORY}test_a_skipped_call_writes_nothing_and_counts_once"
MIXTURES = f"{VALUES}test_mixtures_of_dtypes"
AVERAGES = "tests/test_fused_averages.py::test_averages_of_every_optimizer"
CLIPPED = f"{VALUES}test_a_clipped_bad_element_is_still_bad"
STATISTICS = f"{KERNELS}test_work_items_of_the_statistics"
LAUNCHES = f"{KERNELS}test_one_launch_after_the_other"


@dataclass(frozen=True)
class Fault:
    """A change of a file in csrc/cuda. Every one of `tests` fails with it, and passes without."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    sanitize: bool = False  # only the sanitizers see it
    quick: bool = False  # planted in every run of the tests

    @property
    def kernels(self) -> tuple[str, ...]:
        """The sources of csrc/cuda that include the file."""
        only = {"update.cuh": "update_kernels", "statistics.cuh": "statistics_kernels"}
        if self.file in only:
            return (only[self.file],)
        return tuple(only.values())


_STORES = """#pragma unroll
      for (int s = 1; s < kStreams; ++s) store(data_[s], header_.dtypes[s], lanes, values[s]);
"""
_MODEL = "      if (header_.has_model) store(model_, header_.model_dtype, lanes, values[1]);\n"
_UPDATE = """      Variants<Functor, kStates>::visit(
          group_->flags, [&](auto functor) { update<decltype(functor)>(constants, values); });
"""
_AVERAGE = """      if constexpr (kAverages) {
        T(&averages)[kPack<T>] = values[kStreams - 1];
#pragma unroll
        for (uint32_t k = 0; k < kPack<T>; ++k) {
          averages[k] = moved_average(averages[k], values[1][k], average_weight);
        }
      }
"""

FAULTS = [
    # Barriers. ------------------------------------------------------------------------------
    Fault(
        "no barrier after the constants of a record are prepared",
        "update.cuh",
        "if (threadIdx.x == 0) task.prepare(constants.bytes);\n      __syncthreads();\n",
        "if (threadIdx.x == 0) task.prepare(constants.bytes);\n",
        (f"{ORDER}[AdamW-0]", f"{NUMERICS}test_plain_step[AdamW-cpu-torch.float32]"),
    ),
    Fault(
        "no barrier before the constants of the next record are prepared",
        "update.cuh",
        "record's.\n      __syncthreads();\n",
        "record's.\n",
        (f"{ORDER}[AdamW-1]", f"{ORDER}[Adagrad-1]"),
        quick=True,
    ),
    Fault(
        "no barrier before the sums of the warps are written",
        "reduce.cuh",
        "may still be read.\n  __syncthreads();\n",
        "may still be read.\n",
        (f"{STATISTICS}[torch.float64-in_place]",),
    ),
    Fault(
        "no barrier before the sums of the warps are read",
        "reduce.cuh",
        "of_warps[threadIdx.x / kWarp] = value;\n  __syncthreads();\n",
        "of_warps[threadIdx.x / kWarp] = value;\n",
        (f"{STATISTICS}[torch.float64-in_place]", f"{ORDER}[SGD-momentum-dampening-0]"),
    ),
    Fault(
        "no barrier before the threads learn that their block is the last",
        "reduce.cuh",
        "if (is_last) *ticket = 0;\n  }\n  __syncthreads();\n",
        "if (is_last) *ticket = 0;\n  }\n",
        (f"{ORDER}[AdamW-0]",),
    ),
    # Sums over threads and blocks. ----------------------------------------------------------
    Fault(
        "the sum over a warp leaves lanes out",
        "reduce.cuh",
        "offset = width / 2; offset > 0;",
        "offset = width / 2; offset > 1;",
        (f"{STATISTICS}[torch.float32-shifted]", f"{ORDER}[AdamW-0]"),
    ),
    Fault(
        "the ticket is not reset",
        "reduce.cuh",
        "    if (is_last) *ticket = 0;\n",
        "",
        (f"{LAUNCHES}[AdamW]", f"{LAUNCHES}[SGD-plain]"),
    ),
    Fault(
        "the first item of a record is taken for the record before",
        "reduce.cuh",
        "if (first <= index) {",
        "if (first < index) {",
        (
            f"{KERNELS}test_the_mean_of_every_element[torch.float32-in_place-64-300]",
            f"{NUMERICS}test_plain_step[AdamW-cpu-torch.float32]",
        ),
    ),
    Fault(
        "a later launch forgets the sums of the earlier ones",
        "statistics.cuh",
        "squares + (args.adds_to_totals ? args.totals[0] : 0)",
        "squares",
        (
            f"{KERNELS}test_tables_of_many_launches[AdamW-512]",
            f"{MIXTURES}[AdamW-combined-shifted]",
        ),
    ),
    Fault(
        "a later launch forgets that an earlier one found a bad element",
        "statistics.cuh",
        "nonfinite + (args.adds_to_totals ? args.totals[1] : 0) > 0",
        "nonfinite > 0",
        (f"{CLIPPED}[nan-0]", f"{CLIPPED}[inf-2]"),
    ),
    # Tails. ---------------------------------------------------------------------------------
    Fault(
        "one element more than there is",
        "pack.cuh",
        "return index(k) < end;",
        "return index(k) <= end;",
        (f"{OFFSETS}[two states]", f"{OFFSETS}[float64]"),
        quick=True,
    ),
    Fault(
        "one element more than there is, seen by the address sanitizer",
        "pack.cuh",
        "return index(k) < end;",
        "return index(k) <= end;",
        (f"{NUMERICS}test_plain_step[AdamW-cpu-torch.float32]",),
        sanitize=True,
    ),
    Fault(
        "a pack counts as full beyond the end",
        "pack.cuh",
        "base + kPack<T> <= end",
        "base < end",
        (f"{OFFSETS}[three states]", f"{STATISTICS}[torch.float16-in_place]"),
    ),
    Fault(
        "a pack counts as full beyond the end, seen by the address sanitizer",
        "pack.cuh",
        "base + kPack<T> <= end",
        "base < end",
        (f"{NUMERICS}test_plain_step[AdamW-cpu-torch.float32]",),
        sanitize=True,
    ),
    Fault(
        "the last pack of a tensor is left out",
        "pack.cuh",
        "return {base, 1, end, base + kPack<T> <= end};",
        "return {base, 1, end / kPack<T> * kPack<T>, base + kPack<T> <= end};",
        (f"{OFFSETS}[two states]", f"{NUMERICS}test_plain_step[AdamW-cpu-torch.float32]"),
    ),
    Fault(
        "elements beyond the end are read as they are",
        "pack.cuh",
        "lanes.has(k) ? static_cast<const Stored*>(data)[lanes.index(k)] : Stored{}",
        "static_cast<const Stored*>(data)[lanes.index(k)]",
        (f"{OFFSETS}[one state]", f"{STATISTICS}[torch.float64-shifted]"),
    ),
    Fault(
        "accesses of 16 bytes at any address, seen by the sanitizer of undefined behaviour",
        "statistics.cuh",
        "size * begin) % 16 == 0",
        "size * begin) % 2 == 0",
        (f"{STATISTICS}[torch.float32-shifted]",),
        sanitize=True,
    ),
    # The update. ----------------------------------------------------------------------------
    Fault(
        "every part of a tensor advances the step count",
        "update.cuh",
        "    if (!(half & update_column::kLastPart)) continue;\n",
        "",
        (
            f"{KERNELS}test_parts_of_tensors[AdamW-in_place-512]",
            f"{KERNELS}test_parts_of_every_dtype[torch.float32]",
        ),
    ),
    Fault(
        "the mean of a row is used for the first element of the next",
        "update.cuh",
        "++column_ < row_length_",
        "++column_ <= row_length_",
        (
            f"{KERNELS}test_the_mean_of_every_element[torch.float32-in_place-64-300]",
            f"{NUMERICS}test_gradient_transforms[AdamW-cpu-None-0.7-True-2]",
        ),
    ),
    Fault(
        "the backward walk begins one item too far",
        "update.cuh",
        "args.n_items - 1 - i",
        "args.n_items - i",
        (
            f"{KERNELS}test_work_items_do_not_change_the_update[AdamW-in_place]",
            f"{NUMERICS}test_plain_step[AdamW-cpu-torch.float32]",
        ),
    ),
    Fault(
        "only a found_inf of 1 skips",
        "update.cuh",
        "*args.found_inf != 0",
        "*args.found_inf == 1",
        (f"{SKIPPED}[AdamW-2.0]", f"{SKIPPED}[SGD-plain-nan]"),
    ),
    Fault(
        "every block counts a skipped step",
        "update.cuh",
        "args.skipped_steps != nullptr && blockIdx.x == 0 && threadIdx.x == 0",
        "args.skipped_steps != nullptr && threadIdx.x == 0",
        (f"{SKIPPED}[AdamW-1.0]", f"{SKIPPED}[Adagrad-inf]"),
    ),
    Fault(
        "the last of several states is not stored",
        "update.cuh",
        _STORES,
        _STORES.replace("s < kStreams;", "s < kStreams - (kStates > 1);"),
        (f"{MIXTURES}[AdamW-plain-in_place]", f"{MIXTURES}[RMSprop-momentum-plain-shifted]"),
    ),
    Fault(
        "the model copy is that of the parameter before the update",
        "update.cuh",
        _UPDATE + _AVERAGE + _STORES + _MODEL,
        _MODEL + _UPDATE + _AVERAGE + _STORES,
        (f"{MIXTURES}[Adagrad-plain-in_place]",),
    ),
    Fault(
        "the average is that of the parameter before the update",
        "update.cuh",
        _UPDATE + _AVERAGE,
        _AVERAGE + _UPDATE,
        (f"{MIXTURES}[AdamW-plain-in_place]", f"{AVERAGES}[AdamW-cpu-torch.float32-plain]"),
    ),
    Fault(
        "the average is not stored",
        "update.cuh",
        _STORES,
        _STORES.replace("s < kStreams;", "s < kStreams - kAverages;"),
        (
            f"{MIXTURES}[SGDW-momentum-plain-shifted]",
            f"{AVERAGES}[Adagrad-cpu-torch.float64-combined]",
        ),
    ),
    Fault(
        "maximize is ignored",
        "update.cuh",
        "    if (group_->maximizes) grad.coefficient = -grad.coefficient;\n",
        "",
        (f"{LAUNCHES}[SGD-nesterov-maximize]", f"{LAUNCHES}[AdamW-amsgrad-maximize]"),
    ),
    # The statistics. ------------------------------------------------------------------------
    Fault(
        "an element counts as bad by what is left of it after clipping",
        "statistics.cuh",
        "!(magnitude(values[k]) <= ",
        "!(magnitude(unscale_and_clamp(values[k], inv_scale_, limit_)) <= ",
        (f"{CLIPPED}[inf-0]", f"{CLIPPED}[-inf-2]"),
        quick=True,
    ),
    Fault(
        "a piece of a row reaches into the next row",
        "statistics.cuh",
        "end_ = min(begin_ + step, (row + 1) * row_length_);",
        "end_ = min(begin_ + step, word(column::kNumel));",
        (
            f"{STATISTICS}[torch.float64-in_place]",
            f"{NUMERICS}test_gradient_transforms[AdamW-cpu-None-0.7-True-2]",
        ),
    ),
    Fault(
        "threads without a row write a mean",
        "statistics.cuh",
        "if (lane == 0 && row < n_rows)",
        "if (lane == 0)",
        (f"{KERNELS}test_means_of_rows[torch.float32-in_place]",),
    ),
    Fault(
        "squares that overflow float32 are not added again",
        "statistics.cuh",
        "largest < T(1e17)",
        "largest < T(1e37)",
        (f"{VALUES}test_norm_of_any_magnitude[huge-torch.float32-in_place]",),
    ),
    Fault(
        "squares that vanish in float32 are not added again",
        "statistics.cuh",
        "largest > T(1e-15)",
        "largest > T(1e-37)",
        (f"{VALUES}test_norm_of_any_magnitude[tiny-torch.bfloat16-shifted]",),
    ),
]
