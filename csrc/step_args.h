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

#include "cpu/tiles.h"
#include "dtype.h"

namespace fusedtricks {

// The arguments of the op `<algo>_`, as the schema in fusedtricks/ops.py orders them.
struct StepRequest {
  at::TensorList params;  // [n] what the update reads and writes: fp32 masters, or the model's
  at::TensorList grads;   // [n]
  at::TensorList states;  // [n * n_states] tensor-major
  at::TensorList model_params;  // [m] 16-bit copies of params[model_index[j]], written only
  at::IntArrayRef model_index;  // [m] increasing
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
  const std::optional<at::Tensor>& found_inf;
};

struct Memory {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

struct TensorArgs {
  int64_t numel = 0;
  int64_t group = 0;
  int64_t row_length = 0;  // 0: not centralized
  int64_t first_row = 0;   // where this tensor's rows begin in row_means
  Memory param, grad, model;
  std::array<Memory, cpu::kMaxStates> states;
  void* step = nullptr;
  bool step_is_double = false;
};

// Dense copies of tensors whose layout the drivers do not take, kept alive for one step.
class Staging {
 public:
  // `tensor` itself if it is dense like `like`, else a copy of it in that layout.
  const at::Tensor& read_like(const at::Tensor& tensor, const at::Tensor& like);
  // The same for a tensor that is written: the copy goes back in write_back().
  const at::Tensor& write_like(const at::Tensor& tensor, const at::Tensor& like);
  const at::Tensor& dense(const at::Tensor& tensor, bool rows_matter);
  const at::Tensor& dense_for_write(const at::Tensor& tensor, bool rows_matter);
  void write_back();

 private:
  void write_later(const at::Tensor& target, const at::Tensor& copy);

  std::deque<at::Tensor> kept_;  // a deque, because references into it are given away
  std::vector<std::pair<at::Tensor, at::Tensor>> to_write_;
};

bool has_supported_dtype(const at::Tensor& tensor);
bool same_layout(const at::Tensor& a, const at::Tensor& b);
int64_t row_length_if_centralized(const at::Tensor& tensor, int64_t smallest_ndim);
// Raises unless `tensor` has `numel` contiguous float64 elements on the device; none is 0 elements.
void check_doubles(
    const std::string& name, const std::optional<at::Tensor>& tensor, int64_t numel,
    c10::DeviceType device_type);
// The value of a one-element tensor, `otherwise` if there is none.
double scalar_or(const std::optional<at::Tensor>& tensor, double otherwise);

// Views of gradients alone, for the statistics sweep.
std::vector<TensorArgs> view_grads(
    at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
    c10::DeviceType device_type, Staging& staging);

// Views of everything, for the update sweep. `n_states` and `n_hyper` are the functor's.
std::vector<TensorArgs> view_step(
    const std::string& op, const StepRequest& request, int64_t n_states, int64_t n_hyper,
    c10::DeviceType device_type, Staging& staging);

}  // namespace fusedtricks
