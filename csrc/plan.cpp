#include "plan.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include <unordered_set>

#include "step_args.h"

namespace fusedtricks {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using StepOp = void(
    at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef, at::TensorList,
    at::TensorList, at::ArrayRef<double>, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
    at::IntArrayRef, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    std::optional<double>, const OptionalTensor&);
using StatisticsOp = std::tuple<at::Tensor, at::Tensor>(
    at::TensorList, at::IntArrayRef, at::IntArrayRef, const OptionalTensor&, std::optional<double>);
using FinalizeOp =
    std::tuple<at::Tensor, at::Tensor, at::Tensor>(at::TensorList, std::optional<double>);

c10::OperatorHandle find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("fusedtricks::" + name).c_str(), "");
}

// Walks a dict in its own order and tells whether the watched pairs appear in it, in their order.
bool contains_in_order(
    PyObject* dict, const std::vector<std::pair<py::object, py::object>>& watched) {
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  size_t found = 0;
  while (found < watched.size() && PyDict_Next(dict, &position, &key, &value)) {
    if (key != watched[found].first.ptr()) continue;
    if (value != watched[found].second.ptr()) return false;
    ++found;
  }
  return found == watched.size();
}

// The pairs of `dict` for which `wanted(key)` is true, in the dict's order.
template <class Wanted>
std::vector<std::pair<py::object, py::object>> pick(const py::dict& dict, const Wanted& wanted) {
  std::vector<std::pair<py::object, py::object>> pairs;
  for (auto item : dict) {
    if (!wanted(item.first)) continue;
    pairs.emplace_back(
        py::reinterpret_borrow<py::object>(item.first),
        py::reinterpret_borrow<py::object>(item.second));
  }
  return pairs;
}

void bump_version(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

Plan::Plan(const std::string& op) : op_(find_op(op)) {}

void Plan::add(const py::object& param, int64_t group) {
  Entry& entry = entries_.emplace_back();
  entry.object = param;
  entry.param = param.cast<at::Tensor>();
  entry.dtype = entry.param.scalar_type();
  entry.group = group;
  n_groups_ = std::max(n_groups_, static_cast<size_t>(group) + 1);
}

void Plan::bind(
    int64_t batch, const at::Tensor& updated, std::vector<at::Tensor> states,
    std::optional<at::Tensor> step, const std::optional<py::dict>& owner,
    const std::vector<std::string>& watched) {
  Entry& entry = entries_.back();
  entry.batch = batch;
  entry.updated = updated;
  entry.states = std::move(states);
  entry.step = std::move(step);
  entry.bound = true;
  if (owner.has_value()) {
    entry.owner = *owner;
    const std::unordered_set<std::string> names(watched.begin(), watched.end());
    entry.watched = pick(*owner, [&](py::handle key) {
      return py::isinstance<py::str>(key) && names.count(key.cast<std::string>()) > 0;
    });
  }
  if (batches_.size() <= static_cast<size_t>(batch)) batches_.resize(batch + 1);
}

void Plan::seal(const py::dict& state) {
  std::unordered_set<PyObject*> keys;
  for (const Entry& entry : entries_) {
    if (entry.owner) keys.insert(entry.object.ptr());
  }
  state_ = pick(state, [&](py::handle key) { return keys.count(key.ptr()) > 0; });
}

void Plan::Batch::clear(size_t n_groups) {
  for (auto* list : {&params, &states, &models, &steps}) list->clear();
  model_index.clear();
  group_sizes.assign(n_groups, 0);
}

bool Plan::same_state(const py::dict& state) const {
  if (!contains_in_order(state.ptr(), state_)) return false;
  for (const Entry& entry : entries_) {
    if (entry.owner && !contains_in_order(entry.owner.ptr(), entry.watched)) return false;
  }
  return true;
}

// Whether the plan still fits the entry's parameter and gradient. Shapes are checked by the ops.
bool Plan::fits(const Entry& entry, const at::Tensor& grad) const {
  return entry.bound && entry.param.scalar_type() == entry.dtype &&
      grad.device() == entry.param.device() && grad.sizes() == entry.param.sizes() &&
      grad.layout() == at::kStrided && has_supported_dtype(grad) &&
      !grad.unsafeGetTensorImpl()->is_python_dispatch();
}

// Fills the lists of all batches but `grads` with the entries that take part.
void Plan::refill() {
  for (Batch& batch : batches_) batch.clear(n_groups_);
  for (const Entry& entry : entries_) {
    if (!entry.takes_part) continue;
    Batch& batch = batches_[entry.batch];
    if (!entry.updated.is_same(entry.param)) {
      batch.model_index.push_back(static_cast<int64_t>(batch.params.size()));
      batch.models.push_back(entry.param);
    }
    batch.params.push_back(entry.updated);
    batch.states.insert(batch.states.end(), entry.states.begin(), entry.states.end());
    if (entry.step.has_value()) batch.steps.push_back(*entry.step);
    ++batch.group_sizes[entry.group];
  }
}

// Collects the gradients; false if the plan is stale.
bool Plan::gather(const py::list& param_groups, const py::dict& state) {
  if (param_groups.size() != n_groups_ || !same_state(state)) return false;
  size_t next = 0;
  bool changed = false;
  for (py::handle group : param_groups) {
    PyObject* const params = PyDict_GetItemString(group.ptr(), "params");
    if (params == nullptr || !PyList_Check(params)) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i, ++next) {
      if (next >= entries_.size()) return false;
      Entry& entry = entries_[next];
      // torch.utils.swap_tensors gives a Python parameter another TensorImpl.
      if (PyList_GET_ITEM(params, i) != entry.object.ptr() ||
          !THPVariable_Unpack(entry.object.ptr()).is_same(entry.param)) {
        return false;
      }
      const at::Tensor& grad = entry.param.grad();
      changed |= grad.defined() != entry.takes_part;
      entry.takes_part = grad.defined();
      if (!grad.defined()) continue;
      if (!fits(entry, grad)) return false;
      batches_[entry.batch].grads.push_back(grad);
    }
  }
  if (changed) refill();
  return next == entries_.size();
}

StepResult Plan::step(
    const py::list& param_groups, const py::dict& state, const GroupValues& values,
    const StepOptions& options) {
  // Gradients must not outlive zero_grad(set_to_none=True), whatever happens here.
  struct Release {
    std::vector<Batch>& batches;
    ~Release() {
      for (Batch& batch : batches) batch.grads.clear();
    }
  } release{batches_};
  if (!gather(param_groups, state)) return {};
  lr_.resize(values.lr.size());
  for (size_t g = 0; g < values.lr.size(); ++g) {
    if (THPVariable_Check(values.lr[g].ptr())) {
      lr_[g] = values.lr[g].cast<at::Tensor>();
    } else {
      // A new tensor, because lr_[g] may be the user's own from the step before.
      lr_[g] = at::empty({}, at::kDouble);
      *lr_[g].mutable_data_ptr<double>() = values.lr[g].cast<double>();
    }
  }
  py::gil_scoped_release no_gil;
  return run(values, options);
}

StepResult Plan::run(const GroupValues& values, const StepOptions& options) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  StepResult result;
  result.done = true;
  OptionalTensor coefficient;
  if (options.sweeps_grads) {
    std::vector<at::Tensor> totals;
    for (Batch& batch : batches_) {
      if (batch.params.empty()) continue;
      static const auto statistics = find_op("grad_statistics").typed<StatisticsOp>();
      auto [row_means, total] = statistics.call(
          batch.grads, batch.group_sizes, values.centralize, options.grad_scale,
          options.clip_value);
      batch.row_means = row_means;
      totals.push_back(total);
    }
    if (totals.empty()) return result;
    static const auto finalize = find_op("finalize_statistics").typed<FinalizeOp>();
    auto [norm, clip, nonfinite] = finalize.call(totals, options.max_norm);
    result.norm = norm;
    result.nonfinite = nonfinite;
    if (options.max_norm.has_value()) coefficient = clip;
  }
  result.skipped = scalar_or(options.found_inf, 0) != 0 ||
      (options.skips_nonfinite && scalar_or(result.nonfinite, 0) != 0);
  if (result.skipped) return result;
  const auto op = op_.typed<StepOp>();
  for (const Batch& batch : batches_) {
    if (batch.params.empty()) continue;
    OptionalTensor row_means;
    if (options.sweeps_grads) row_means = batch.row_means;
    op.call(
        batch.params, batch.grads, batch.states, batch.models, batch.model_index, batch.steps, lr_,
        values.hyper, values.variants, batch.group_sizes, values.maximize, values.centralize,
        row_means, coefficient, options.grad_scale, options.clip_value, std::nullopt);
    for (const auto* list : {&batch.params, &batch.states, &batch.models}) {
      for (const at::Tensor& tensor : *list) bump_version(tensor);
    }
  }
  return result;
}

}  // namespace fusedtricks
