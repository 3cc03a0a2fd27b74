// The two sweeps on a GPU. Nothing here waits for the device.
#pragma once

#include <tuple>

#include "../step_args.h"
#include "device.h"
#include "kernels.h"
#include "tunables.h"

namespace fusedtricks::cuda {

struct Driver {
  // Means of the rows of centralized gradients [n_rows], float32 unless a gradient is float64, and
  // {sum of squares, non-finite flag} [2], float64; both of the unscaled, value-clipped gradients.
  static std::tuple<at::Tensor, at::Tensor> grad_statistics(
      at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
      const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value);

  // {norm, coefficient, non-finite flag}, 0-dim, over the totals of several grad_statistics.
  static std::tuple<at::Tensor, at::Tensor, at::Tensor> finalize_statistics(
      at::TensorList totals, std::optional<double> max_norm);

  // `algorithm` is a position in algorithms().
  static void step(size_t algorithm, const StepRequest& request);
};

// A zero on the device for Note [Last block] in reduce.cuh; launches on one stream share it.
class Ticket {
 public:
  Ticket(const DeviceScope& scope, c10::Device device);
  uint32_t* address() const { return address_; }

 private:
  at::Tensor kept_;
  uint32_t* address_;
};

// `tensor` on `device` in `dtype`, unchanged if it is.
at::Tensor on_device(const at::Tensor& tensor, c10::Device device, at::ScalarType dtype);

// Infinite without a value.
HostScalar make_limit(std::optional<double> clip_value);
unsigned count_blocks(const DeviceScope& scope, int64_t n_items);
// Bytes that a table may have.
size_t table_limit(const DeviceScope& scope, TableLimits limits);

}  // namespace fusedtricks::cuda
