#include "step_args.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_strided.h>

namespace fusedtricks {
namespace {

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return DType::kFloat32;
    case at::kDouble: return DType::kFloat64;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kHalf: return DType::kFloat16;
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ",
                              tensor.scalar_type());
  }
}

Memory memory_of(const at::Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), dtype_of(tensor)};
}

// A dense tensor whose dim 0 is outermost in memory has its rows one after the other.
bool rows_are_contiguous(const at::Tensor& tensor) {
  return tensor.dim() == 0 || tensor.size(0) <= 1 || tensor.numel() == 0 ||
      tensor.stride(0) * tensor.size(0) == tensor.numel();
}

bool is_dense(const at::Tensor& tensor, bool rows_matter) {
  return tensor.is_contiguous() ||
      (tensor.is_non_overlapping_and_dense() && (!rows_matter || rows_are_contiguous(tensor)));
}

void check_tensor(
    const at::Tensor& tensor, const char* what, size_t index, at::DeviceType device) {
  TORCH_CHECK(
      tensor.layout() == at::kStrided, "expected dense tensors, got the sparse ", what, " ", index,
      "; use backend=\"reference\"");
  TORCH_CHECK(
      tensor.device().type() == device, "expected ", what, " ", index, " on ", device, ", got ",
      tensor.device());
  TORCH_CHECK_TYPE(
      has_supported_dtype(tensor), "expected ", what, " ", index,
      " of dtype float32, float64, bfloat16 or float16, got ", tensor.scalar_type());
}

void check_like(
    const std::string& op, const at::Tensor& tensor, const at::Tensor& param, const char* what,
    size_t index) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == param.sizes(), op, ": expected ", what, " of parameter ", index,
      " to have the parameter's shape ", param.sizes(), ", got ", tensor.sizes(),
      "; does the checkpoint belong to this model?");
  TORCH_CHECK(
      tensor.device() == param.device(), op, ": expected ", what, " of parameter ", index, " on ",
      param.device(), ", got ", tensor.device());
}

void check_request(
    const std::string& op, const StepRequest& r, int64_t n_states, int64_t n_hyper,
    at::DeviceType device) {
  const size_t n = r.params.size();
  const size_t n_groups = r.group_sizes.size();
  TORCH_CHECK_VALUE(r.grads.size() == n, op, ": expected ", n, " grads, got ", r.grads.size());
  TORCH_CHECK_VALUE(
      r.states.size() == n * n_states, op, ": expected ", n * n_states, " states, got ",
      r.states.size());
  TORCH_CHECK_VALUE(
      r.steps.size() == n || r.steps.empty(), op, ": expected ", n, " steps, got ", r.steps.size());
  TORCH_CHECK_VALUE(
      r.hyper.size() == n_groups * n_hyper && r.lr.size() == n_groups &&
          r.variants.size() == n_groups && r.maximize.size() == n_groups &&
          r.centralize.size() == n_groups,
      op, ": expected lr, hyper, variants, maximize and centralize for ", n_groups, " groups");
  TORCH_CHECK_VALUE(
      r.model_params.size() == r.model_index.size(), op, ": expected one model_index for each of ",
      r.model_params.size(), " model_params, got ", r.model_index.size());
  for (size_t i = 0; i < n; ++i) {
    const at::Tensor& param = r.params[i];
    check_tensor(param, "parameter", i, device);
    TORCH_CHECK(
        at::has_internal_overlap(param) != at::MemOverlap::Yes, op, ": parameter ", i,
        " is expanded, several of its elements share one memory location; clone() it");
    check_tensor(r.grads[i], "gradient", i, device);
    check_like(op, r.grads[i], param, "the gradient", i);
    for (int64_t k = 0; k < n_states; ++k) {
      check_tensor(r.states[i * n_states + k], "the state of parameter", i, device);
      check_like(op, r.states[i * n_states + k], param, "a state", i);
    }
    if (!r.steps.empty()) {
      const at::Tensor& step = r.steps[i];
      TORCH_CHECK_VALUE(
          step.numel() == 1 && step.device().type() == device &&
              (step.scalar_type() == at::kFloat || step.scalar_type() == at::kDouble),
          op, ": expected the step of parameter ", i, " to be one float32 or float64 on ", device,
          ", got shape ", step.sizes(), ", ", step.scalar_type(), " on ", step.device());
    }
  }
  for (size_t j = 0; j < r.model_params.size(); ++j) {
    const int64_t i = r.model_index[j];
    TORCH_CHECK_INDEX(
        i >= 0 && i < static_cast<int64_t>(n), op, ": model_index ", i, " is out of range");
    check_tensor(r.model_params[j], "the model copy of parameter", i, device);
    check_like(op, r.model_params[j], r.params[i], "the model copy", i);
  }
}

}  // namespace

bool has_supported_dtype(const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
      dtype == at::kHalf;
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

int64_t row_length_if_centralized(const at::Tensor& tensor, int64_t smallest_ndim) {
  if (smallest_ndim <= 0 || tensor.dim() < smallest_ndim || tensor.numel() == 0) return 0;
  return tensor.numel() / tensor.size(0);
}

double scalar_or(const std::optional<at::Tensor>& tensor, double otherwise) {
  return tensor.has_value() ? tensor->item<double>() : otherwise;
}

at::Tensor Staging::read_like(const at::Tensor& tensor, const at::Tensor& like) {
  if (same_layout(tensor, like)) return tensor;
  at::Tensor copy = at::empty_strided(like.sizes(), like.strides(), tensor.options());
  copy.copy_(tensor);
  kept_.push_back(copy);
  return copy;
}

at::Tensor Staging::write_like(const at::Tensor& tensor, const at::Tensor& like) {
  at::Tensor copy = read_like(tensor, like);
  if (!copy.is_same(tensor)) to_write_.emplace_back(tensor, copy);
  return copy;
}

at::Tensor Staging::dense(const at::Tensor& tensor, bool rows_matter) {
  if (is_dense(tensor, rows_matter)) return tensor;
  kept_.push_back(tensor.contiguous());
  return kept_.back();
}

at::Tensor Staging::dense_for_write(const at::Tensor& tensor, bool rows_matter) {
  at::Tensor copy = dense(tensor, rows_matter);
  if (!copy.is_same(tensor)) to_write_.emplace_back(tensor, copy);
  return copy;
}

void Staging::write_back() {
  for (auto& [target, copy] : to_write_) target.copy_(copy);
}

std::vector<TensorArgs> view_grads(
    at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
    at::DeviceType device, Staging& staging) {
  TORCH_CHECK_VALUE(
      group_sizes.size() == centralize.size(), "grad_statistics: expected ", group_sizes.size(),
      " values of centralize, got ", centralize.size());
  std::vector<TensorArgs> views(grads.size());
  size_t i = 0;
  int64_t row = 0;
  for (size_t g = 0; g < group_sizes.size(); ++g) {
    for (int64_t k = 0; k < group_sizes[g]; ++k, ++i) {
      TORCH_CHECK_VALUE(i < grads.size(), "grad_statistics: group_sizes exceed ", grads.size());
      check_tensor(grads[i], "gradient", i, device);
      TensorArgs& view = views[i];
      view.numel = grads[i].numel();
      view.group = static_cast<int64_t>(g);
      view.row_length = row_length_if_centralized(grads[i], centralize[g]);
      view.first_row = row;
      if (view.row_length > 0) row += grads[i].size(0);
      view.grad = memory_of(staging.dense(grads[i], view.row_length > 0));
    }
  }
  TORCH_CHECK_VALUE(
      i == grads.size(), "grad_statistics: group_sizes sum to ", i, " of ", grads.size(), " grads");
  return views;
}

std::vector<TensorArgs> view_step(
    const std::string& op, const StepRequest& r, int64_t n_states, int64_t n_hyper,
    at::DeviceType device, Staging& staging) {
  check_request(op, r, n_states, n_hyper, device);
  std::vector<TensorArgs> views(r.params.size());
  size_t i = 0, model = 0;
  int64_t row = 0;
  for (size_t g = 0; g < r.group_sizes.size(); ++g) {
    for (int64_t k = 0; k < r.group_sizes[g]; ++k, ++i) {
      TORCH_CHECK_VALUE(i < views.size(), op, ": group_sizes exceed ", views.size(), " parameters");
      TensorArgs& view = views[i];
      view.numel = r.params[i].numel();
      view.group = static_cast<int64_t>(g);
      view.row_length = row_length_if_centralized(r.params[i], r.centralize[g]);
      view.first_row = row;
      if (view.row_length > 0) row += r.params[i].size(0);
      const at::Tensor param = staging.dense_for_write(r.params[i], view.row_length > 0);
      view.param = memory_of(param);
      view.grad = memory_of(staging.read_like(r.grads[i], param));
      for (int64_t s = 0; s < n_states; ++s) {
        view.states[s] = memory_of(staging.write_like(r.states[i * n_states + s], param));
      }
      if (model < r.model_index.size() && r.model_index[model] == static_cast<int64_t>(i)) {
        view.model = memory_of(staging.write_like(r.model_params[model++], param));
      }
      if (!r.steps.empty()) {
        view.step = r.steps[i].mutable_data_ptr();
        view.step_is_double = r.steps[i].scalar_type() == at::kDouble;
      }
    }
  }
  TORCH_CHECK_VALUE(
      i == views.size(), op, ": group_sizes sum to ", i, " of ", views.size(), " parameters");
  TORCH_CHECK_VALUE(model == r.model_index.size(), op, ": expected model_index to increase");
  const int64_t n_means = r.row_means.has_value() ? r.row_means->numel() : 0;
  TORCH_CHECK_VALUE(n_means == row, op, ": expected ", row, " row_means, got ", n_means);
  return views;
}

}  // namespace fusedtricks
