#include "step_args.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/where.h>

namespace fusedtricks {
namespace {

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return DType::kFloat32;
    case at::kDouble: return DType::kFloat64;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kHalf: return DType::kFloat16;
    default:
      TORCH_CHECK_TYPE(
          false, "expected float32, float64, bfloat16 or float16, got ", tensor.scalar_type());
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

// Names a tensor of an op's arguments in error messages.
struct Role {
  const std::string& op;
  const char* what;
  size_t index;
};

[[gnu::cold]] void explain(
    const Role& role, const at::Tensor& tensor, at::IntArrayRef sizes, c10::Device device) {
  const std::string name = role.op + ": " + role.what + " " + std::to_string(role.index);
  TORCH_CHECK(
      tensor.layout() == at::kStrided, name, " is ", tensor.layout(),
      ", expected a dense tensor; use backend=\"reference\"");
  TORCH_CHECK(tensor.device() == device, name, " is on ", tensor.device(), ", expected ", device);
  TORCH_CHECK_TYPE(
      has_supported_dtype(tensor), name, " has dtype ", tensor.scalar_type(),
      ", expected float32, float64, bfloat16 or float16");
  TORCH_CHECK_VALUE(
      tensor.sizes() == sizes, name, " has shape ", tensor.sizes(),
      ", expected that of the "
      "parameter, ",
      sizes, "; does the checkpoint belong to this model?");
}

void check_tensor(
    const Role& role, const at::Tensor& tensor, at::IntArrayRef sizes, c10::Device device) {
  if (tensor.layout() != at::kStrided || tensor.device() != device ||
      !has_supported_dtype(tensor) || tensor.sizes() != sizes) {
    explain(role, tensor, sizes, device);
  }
}

void check_step(const std::string& op, const at::Tensor& step, size_t index, c10::Device device) {
  TORCH_CHECK_VALUE(
      step.numel() == 1 && step.device() == device &&
          (step.scalar_type() == at::kFloat || step.scalar_type() == at::kDouble),
      op, ": expected the step of parameter ", index, " to be one float32 or float64 on ", device,
      ", got shape ", step.sizes(), ", ", step.scalar_type(), " on ", step.device());
}

// The number of states of all groups that have tensors in this call.
int64_t check_groups(const std::string& op, const Algorithm& algorithm, const StepRequest& r) {
  const size_t n_groups = r.group_sizes.size();
  TORCH_CHECK_VALUE(
      r.hyper.size() == n_groups * algorithm.hyper.size() && r.lr.size() == n_groups &&
          r.variants.size() == n_groups && r.maximize.size() == n_groups &&
          r.centralize.size() == n_groups,
      op, ": expected lr, hyper, variants, maximize and centralize for ", n_groups, " groups");
  const auto n_variants = static_cast<int64_t>(algorithm.n_states.size());
  int64_t n_states = -1;
  for (size_t g = 0; g < n_groups; ++g) {
    const int64_t flags = r.variants[g];
    TORCH_CHECK_VALUE(
        flags >= 0 && flags < n_variants, op, ": expected variants below ", n_variants, ", got ",
        flags);
    TORCH_CHECK_VALUE(
        r.lr[g].numel() == 1, op, ": expected lr of group ", g, " to have one element, got shape ",
        r.lr[g].sizes());
    if (r.group_sizes[g] == 0) continue;
    const int64_t of_group = algorithm.n_states[flags];
    TORCH_CHECK_VALUE(
        n_states < 0 || n_states == of_group, op,
        ": expected groups with the same states in one call, got ", n_states, " and ", of_group);
    n_states = of_group;
  }
  return std::max<int64_t>(n_states, 0);
}

void check_lengths(const std::string& op, const StepRequest& r, int64_t n_states) {
  const size_t n = r.params.size();
  TORCH_CHECK_VALUE(r.grads.size() == n, op, ": expected ", n, " grads, got ", r.grads.size());
  TORCH_CHECK_VALUE(
      r.states.size() == n * n_states, op, ": expected ", n * n_states, " states, got ",
      r.states.size());
  TORCH_CHECK_VALUE(
      r.steps.size() == n || r.steps.empty(), op, ": expected ", n, " steps, got ", r.steps.size());
  TORCH_CHECK_VALUE(
      r.model_params.size() == r.model_index.size(), op, ": expected one model_index for each of ",
      r.model_params.size(), " model_params, got ", r.model_index.size());
  TORCH_CHECK_VALUE(
      r.averages.size() == r.average_index.size(), op, ": expected one average_index for each of ",
      r.averages.size(), " averages, got ", r.average_index.size());
}

// Walks along the tensors that only some parameters have, while these are visited in order.
class IndexedTensors {
 public:
  IndexedTensors(const char* index_name, at::TensorList tensors, at::IntArrayRef index)
      : index_name_(index_name), tensors_(tensors), index_(index) {}

  // That of parameter i, null if it has none.
  const at::Tensor* take(size_t i) {
    if (next_ == index_.size() || index_[next_] != static_cast<int64_t>(i)) return nullptr;
    return &tensors_[next_++];
  }

  void check_all_taken(const std::string& op, size_t n_params) const {
    TORCH_CHECK_VALUE(
        next_ == index_.size(), op, ": expected ", index_name_, " to increase and to be below ",
        n_params, ", got ", index_);
  }

 private:
  const char* index_name_;
  at::TensorList tensors_;
  at::IntArrayRef index_;
  size_t next_ = 0;
};

void check_counter(
    const std::string& op, const std::optional<at::Tensor>& counter, c10::Device device) {
  TORCH_CHECK_VALUE(
      !counter.has_value() || (counter->numel() == 1 && counter->scalar_type() == at::kLong &&
                               counter->device() == device),
      op, ": expected skipped_steps to be one int64 on ", device, ", got shape ", counter->sizes(),
      ", ", counter->scalar_type(), " on ", counter->device());
}

// Calls visit(tensor index, group index) for every tensor in order.
template <class Visit>
void for_each_tensor(
    const std::string& op, size_t n, at::IntArrayRef group_sizes, const Visit& visit) {
  size_t i = 0;
  for (size_t g = 0; g < group_sizes.size(); ++g) {
    for (int64_t k = 0; k < group_sizes[g]; ++k, ++i) {
      TORCH_CHECK_VALUE(i < n, op, ": group_sizes exceed the number of tensors, ", n);
      visit(i, g);
    }
  }
  TORCH_CHECK_VALUE(i == n, op, ": group_sizes sum to ", i, ", expected ", n, " tensors");
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

c10::Device common_device(at::TensorList tensors, c10::DeviceType type) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.device().type() == type) return tensor.device();
  }
  return c10::Device(type);
}

void check_statistics(
    const std::string& name, const std::optional<at::Tensor>& tensor, int64_t numel,
    c10::Device device) {
  const int64_t got = tensor.has_value() ? tensor->numel() : 0;
  TORCH_CHECK_VALUE(got == numel, name, ": expected ", numel, " elements, got ", got);
  if (got == 0) return;
  const bool fits = tensor->scalar_type() == at::kDouble ||
                    (tensor->scalar_type() == at::kFloat && !device.is_cpu());
  TORCH_CHECK_VALUE(
      fits && tensor->is_contiguous() && tensor->device() == device, name,
      ": expected contiguous float64 on ", device, ", got ", tensor->scalar_type(), " on ",
      tensor->device(), " with strides ", tensor->strides());
}

double scalar_or(const std::optional<at::Tensor>& tensor, double otherwise) {
  return tensor.has_value() ? tensor->item<double>() : otherwise;
}

const at::Tensor& Staging::read_like(const at::Tensor& tensor, const at::Tensor& like) {
  const at::ScalarType dtype = dtype_like(tensor, like);
  if (same_layout(tensor, like) && dtype == tensor.scalar_type()) return tensor;
  at::Tensor& copy = kept_.emplace_back(
      at::empty_strided(like.sizes(), like.strides(), tensor.options().dtype(dtype)));
  return copy.copy_(tensor);
}

at::ScalarType Staging::dtype_like(const at::Tensor& tensor, const at::Tensor& like) const {
  const bool in_double = like.scalar_type() == at::kDouble;
  if (!separates_double_ || in_double == (tensor.scalar_type() == at::kDouble)) {
    return tensor.scalar_type();
  }
  return in_double ? at::kDouble : at::kFloat;
}

const at::Tensor& Staging::write_like(const at::Tensor& tensor, const at::Tensor& like) {
  const at::Tensor& copy = read_like(tensor, like);
  if (&copy != &tensor) write_later(tensor, copy);
  return copy;
}

const at::Tensor& Staging::dense(const at::Tensor& tensor, bool rows_matter) {
  if (is_dense(tensor, rows_matter)) return tensor;
  return kept_.emplace_back(tensor.contiguous());
}

const at::Tensor& Staging::dense_for_write(const at::Tensor& tensor, bool rows_matter) {
  const at::Tensor& copy = dense(tensor, rows_matter);
  if (&copy != &tensor) write_later(tensor, copy);
  return copy;
}

void Staging::write_later(const at::Tensor& target, const at::Tensor& copy) {
  TORCH_CHECK(
      at::has_internal_overlap(target) != at::MemOverlap::Yes, "cannot update a tensor of shape ",
      target.sizes(), " and strides ", target.strides(),
      ": several of its elements share one memory location (it was expanded); clone() it");
  to_write_.emplace_back(target, copy);
}

void Staging::write_back(const std::optional<at::Tensor>& found_inf) {
  for (auto& [target, copy] : to_write_) {
    if (found_inf.has_value() && target.scalar_type() != copy.scalar_type()) {
      target.copy_(at::where(found_inf->ne(0), target, copy.to(target.scalar_type())));
    } else {
      target.copy_(copy);
    }
  }
}

std::vector<TensorArgs> view_grads(
    at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
    c10::DeviceType device_type, Staging& staging) {
  static const std::string op = "grad_statistics";
  TORCH_CHECK_VALUE(
      group_sizes.size() == centralize.size(), op, ": expected ", group_sizes.size(),
      " values of centralize, got ", centralize.size());
  std::vector<TensorArgs> views(grads.size());
  int64_t row = 0;
  const c10::Device device = common_device(grads, device_type);
  for_each_tensor(op, grads.size(), group_sizes, [&](size_t i, size_t g) {
    const at::Tensor& grad = grads[i];
    check_tensor({op, "gradient", i}, grad, grad.sizes(), device);
    TensorArgs& view = views[i];
    view.numel = grad.numel();
    view.group = static_cast<int64_t>(g);
    view.row_length = row_length_if_centralized(grad, centralize[g]);
    view.first_row = row;
    if (view.row_length > 0) row += grad.size(0);
    view.grad = memory_of(staging.dense(grad, view.row_length > 0));
  });
  return views;
}

std::vector<TensorArgs> view_step(
    const Algorithm& algorithm, const StepRequest& r, c10::DeviceType device_type,
    Staging& staging) {
  const std::string op = algorithm.name + "_";
  const int64_t n_states = check_groups(op, algorithm, r);
  const c10::Device device = common_device(r.params, device_type);
  check_lengths(op, r, n_states);
  check_counter(op, r.skipped_steps, device);
  std::vector<TensorArgs> views(r.params.size());
  IndexedTensors models("model_index", r.model_params, r.model_index);
  IndexedTensors averages("average_index", r.averages, r.average_index);
  int64_t row = 0;
  for_each_tensor(op, views.size(), r.group_sizes, [&](size_t i, size_t g) {
    const at::Tensor& original = r.params[i];
    const at::IntArrayRef sizes = original.sizes();
    check_tensor({op, "parameter", i}, original, sizes, device);
    check_tensor({op, "the gradient of parameter", i}, r.grads[i], sizes, device);
    TensorArgs& view = views[i];
    view.numel = original.numel();
    view.group = static_cast<int64_t>(g);
    view.row_length = row_length_if_centralized(original, r.centralize[g]);
    view.first_row = row;
    if (view.row_length > 0) row += sizes[0];
    const at::Tensor& param = staging.dense_for_write(original, view.row_length > 0);
    view.param = memory_of(param);
    view.grad = memory_of(staging.read_like(r.grads[i], param));
    for (int64_t k = 0; k < n_states; ++k) {
      const at::Tensor& state = r.states[i * n_states + k];
      check_tensor({op, "a state of parameter", i}, state, sizes, device);
      view.states[k] = memory_of(staging.write_like(state, param));
    }
    if (const at::Tensor* const copy = models.take(i)) {
      check_tensor({op, "the model copy of parameter", i}, *copy, sizes, device);
      view.model = memory_of(staging.write_like(*copy, param));
    }
    if (const at::Tensor* const average = averages.take(i)) {
      check_tensor({op, "the average of parameter", i}, *average, sizes, device);
      view.average = memory_of(staging.write_like(*average, param));
    }
    if (!r.steps.empty()) {
      check_step(op, r.steps[i], i, device);
      view.step = r.steps[i].mutable_data_ptr();
      view.step_is_double = r.steps[i].scalar_type() == at::kDouble;
    }
  });
  models.check_all_taken(op, views.size());
  averages.check_all_taken(op, views.size());
  check_statistics(op + ": row_means", r.row_means, row, device);
  return views;
}

}  // namespace fusedtricks
