// The two sweeps on the CPU.
#pragma once

#include <tuple>

#include "../step_args.h"

namespace fusedtricks::cpu {

struct Driver {
  // Means of the rows of centralized gradients [n_rows] and {sum of squares, non-finite flag} [2],
  // float64, both of the unscaled and value-clipped gradients.
  static std::tuple<at::Tensor, at::Tensor> grad_statistics(
      at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
      const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value);

  // {norm, coefficient, non-finite flag}, 0-dim, over the totals of several grad_statistics.
  static std::tuple<at::Tensor, at::Tensor, at::Tensor> finalize_statistics(
      at::TensorList totals, std::optional<double> max_norm);

  // `algorithm` is a position in algorithms().
  static void step(size_t algorithm, const StepRequest& request);
};

// A plain loop with the memory traffic of an optimizer: adds up `reads` element by element and
// stores the sum into each of `writes`. The limit that benchmarks compare with.
void stream(at::TensorList reads, at::TensorList writes);

}  // namespace fusedtricks::cpu
