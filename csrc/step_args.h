// The validated view of an op's arguments: plain pointers, sizes and dtypes.
//
// Every check of an op lives here, and all of them run before the op writes anything. The
// drivers see dense tensors that share one layout; for others `Staging` holds dense copies, which
// are written back after the update. See docs/architecture.md, "Strides".
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "algorithms.h"
#include "dtype.h"

namespace fusedtricks {

// The arguments of the op `<algo>_`, as the schema in fusedtricks/ops.py orders them.
struct StepRequest {
  at::TensorList params;  // [n] what the update reads and writes: fp32 masters, or the model's
  at::TensorList grads;   // [n]
  at::TensorList states;  // [n * n_states] tensor-major
  at::TensorList model_params;  // [m] 16-bit copies of params[model_index[j]], written only
  at::IntArrayRef model_index;  // [m] increasing
  // [k] average += average_weight * (param - average) for params[average_index[j]] as computed,
  // before it is rounded to its dtype
  at::TensorList averages;
  at::IntArrayRef average_index;  // [k] increasing
  at::TensorList steps;        // [n] 0-dim float32 or float64 counts; [0] if the optimizer has none
  at::TensorList lr;           // [n_groups] one element each
  at::ArrayRef<double> hyper;  // [n_groups * n_hyper]
  at::IntArrayRef variants;    // [n_groups] compile-time flags
  at::IntArrayRef group_sizes;  // [n_groups] tensors of each group, in order
  at::IntArrayRef maximize;     // [n_groups]
  at::IntArrayRef centralize;   // [n_groups] 0: off, else the smallest ndim that is centralized
  const std::optional<at::Tensor>& row_means;
  const std::optional<at::Tensor>& coefficient;
  const std::optional<at::Tensor>& grad_scale;
  std::optional<double> clip_value;
  double average_weight;
  const std::optional<at::Tensor>& found_inf;
  // 0-dim int64 on the device, counts the calls that found_inf turned into nothing
  const std::optional<at::Tensor>& skipped_steps;
};

struct Memory {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

struct TensorArgs {
  int64_t numel = 0;
  int64_t group = 0;
  int64_t row_length = 0;              // 0: not centralized
  int64_t first_row = 0;               // where this tensor's rows begin in row_means
  Memory param, grad, model, average;  // the last two are null if there is none
  std::array<Memory, kMaxStates> states;
  void* step = nullptr;
  bool step_is_double = false;
};

// Dense copies of tensors that the drivers do not take as they are, kept alive for one step.
class Staging {
 public:
  // With `separates_double`, a float64 tensor beside a parameter of another dtype is copied to
  // float32, and any other beside a float64 parameter to float64.
  explicit Staging(bool separates_double = false) : separates_double_(separates_double) {}

  // `tensor` itself if it is dense like `like`, else a copy of it in that layout.
  const at::Tensor& read_like(const at::Tensor& tensor, const at::Tensor& like);
  // The same for a tensor that is written: the copy goes back in write_back().
  const at::Tensor& write_like(const at::Tensor& tensor, const at::Tensor& like);
  const at::Tensor& dense(const at::Tensor& tensor, bool rows_matter);
  const at::Tensor& dense_for_write(const at::Tensor& tensor, bool rows_matter);
  // With `found_inf` != 0 the step did nothing, and no rounding on the way may show.
  void write_back(const std::optional<at::Tensor>& found_inf = std::nullopt);

 private:
  void write_later(const at::Tensor& target, const at::Tensor& copy);
  at::ScalarType dtype_like(const at::Tensor& tensor, const at::Tensor& like) const;

  bool separates_double_;
  std::deque<at::Tensor> kept_;  // a deque, because references into it are given away
  std::vector<std::pair<at::Tensor, at::Tensor>> to_write_;
};

bool has_supported_dtype(const at::Tensor& tensor);
bool same_layout(const at::Tensor& a, const at::Tensor& b);
int64_t row_length_if_centralized(const at::Tensor& tensor, int64_t smallest_ndim);
// Raises unless `tensor` has `numel` contiguous float64 elements on the device; none is 0 elements.
// Outside the CPU float32 does too.
void check_statistics(
    const std::string& name, const std::optional<at::Tensor>& tensor, int64_t numel,
    c10::Device device);
// The value of a one-element tensor, `otherwise` if there is none.
double scalar_or(const std::optional<at::Tensor>& tensor, double otherwise);

// The device of the first tensor if it is of the driver's type, else some device of that type,
// which the tensors are then not on.
c10::Device common_device(at::TensorList tensors, c10::DeviceType type);

// Views of gradients alone, for the statistics sweep.
std::vector<TensorArgs> view_grads(
    at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
    c10::DeviceType device_type, Staging& staging);

// Views of everything, for the update sweep.
std::vector<TensorArgs> view_step(
    const Algorithm& algorithm, const StepRequest& request, c10::DeviceType device_type,
    Staging& staging);

}  // namespace fusedtricks
