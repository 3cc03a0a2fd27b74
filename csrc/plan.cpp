#include "plan.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include <unordered_set>

#include "prefetch.h"
#include "step_args.h"

namespace fusedtricks {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using StepOp = void(
    at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef, at::TensorList,
    at::IntArrayRef, at::TensorList, at::TensorList, at::ArrayRef<double>, at::IntArrayRef,
    at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, std::optional<double>, double, const OptionalTensor&,
    const OptionalTensor&);
using StatisticsOp = std::tuple<at::Tensor, at::Tensor>(
    at::TensorList, at::IntArrayRef, at::IntArrayRef, const OptionalTensor&, std::optional<double>);
using FinalizeOp =
    std::tuple<at::Tensor, at::Tensor, at::Tensor>(at::TensorList, std::optional<double>);

c10::OperatorHandle find_op(const std::string& library, const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((library + "::" + name).c_str(), "");
}

// Walks a dict in its own order and tells whether the watched pairs appear in it, in their order.
bool contains_in_order(
    PyObject* dict, const std::vector<std::pair<PyObject*, py::object>>& watched) {
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  size_t found = 0;
  while (found < watched.size() && PyDict_Next(dict, &position, &key, &value)) {
    if (key != watched[found].first) continue;
    if (value != watched[found].second.ptr()) return false;
    ++found;
  }
  return found == watched.size();
}

// The pairs of `dict` for which `wanted(key)` is true, in the dict's order.
template <class Wanted>
std::vector<std::pair<PyObject*, py::object>> pick(const py::dict& dict, const Wanted& wanted) {
  std::vector<std::pair<PyObject*, py::object>> pairs;
  for (auto item : dict) {
    if (!wanted(item.first)) continue;
    pairs.emplace_back(item.first.ptr(), py::reinterpret_borrow<py::object>(item.second));
  }
  return pairs;
}

void bump_version(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

// Counts the writes that autograd knows of; `tensor.data` is not among them.
uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
}

// Whether an op would take `tensor` as, or as a state of, a parameter of these sizes.
bool fits(const at::Tensor& tensor, at::IntArrayRef sizes) {
  return tensor.sizes() == sizes && at::has_internal_overlap(tensor) != at::MemOverlap::Yes;
}

// Where the allocation that a tensor lies in begins.
const void* allocation_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().data() : nullptr;
}

// Whether an op would take `average` as that of `param`, and in its precision.
bool fits_beside(const at::Tensor& average, const at::Tensor& param) {
  const bool is_wider = average.scalar_type() == at::kDouble && param.scalar_type() != at::kDouble;
  const void* const allocation = allocation_of(average);
  if (average.unsafeGetTensorImpl()->is_python_dispatch() || average.is_neg()) return false;
  return average.layout() == at::kStrided && average.device() == param.device() &&
         has_supported_dtype(average) && !is_wider && fits(average, param.sizes()) &&
         (allocation == nullptr || allocation != allocation_of(param));
}

// Waits only for a value that the host reads next: that of a mixture of CPU and GPU parameters.
OptionalTensor to_device(const OptionalTensor& tensor, c10::Device device) {
  if (!tensor.has_value() || tensor->device() == device) return tensor;
  return tensor->to(tensor->options().device(device), /*non_blocking=*/!device.is_cpu());
}

}  // namespace

Plan::Plan(const std::string& library, const std::string& op, size_t n_groups, bool skips_on_device)
    : op_(find_op(library, op)),
      statistics_(find_op(library, "grad_statistics")),
      finalize_(find_op(library, "finalize_statistics")),
      n_groups_(n_groups),
      skips_on_device_(skips_on_device) {}

void Plan::add(const py::object& param, int64_t group) {
  const auto tensor = param.cast<at::Tensor>();
  entries_.push_back(
      {.object = param.ptr(),
       .impl = tensor.unsafeGetTensorImpl(),
       .dtype = tensor.scalar_type(),
       .device = tensor.device(),
       .group = group,
       .version = version_of(tensor)});
}

void Plan::bind(
    int64_t batch, std::optional<at::Tensor> master, int64_t average,
    std::vector<at::Tensor> states, std::optional<at::Tensor> step,
    const std::optional<py::dict>& owner, const std::vector<std::string>& watched) {
  Entry& entry = entries_.back();
  entry.batch = batch;
  entry.master = std::move(master);
  entry.average = average;
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
    if (entry.owner) keys.insert(entry.object);
  }
  state_ = pick(state, [&](py::handle key) { return keys.count(key.ptr()) > 0; });
}

void Plan::Batch::release() {
  for (auto* list : {&params, &grads, &models, &averages}) list->clear();
}

template <class Fetch>
void Plan::Entry::for_each_state(const Fetch& fetch) const {
  if (master.has_value()) fetch(master->unsafeGetTensorImpl());
  for (const at::Tensor& state : states) fetch(state.unsafeGetTensorImpl());
  if (step.has_value()) fetch(step->unsafeGetTensorImpl());
}

// Fetches what the step will need of the entries after `index`; see Note [Cold caches].
void Plan::prefetch_after(size_t index) const {
  if (index + kAheadObjects < entries_.size()) {
    const Entry& entry = entries_[index + kAheadObjects];
    prefetch(entry.object, 1);
    prefetch(entry.owner.ptr(), 1);
    prefetch_object(entry.impl);
    entry.for_each_state(prefetch_object);
  }
  if (index + kAheadContents < entries_.size()) {
    const Entry& entry = entries_[index + kAheadContents];
    prefetch_contents(THPVariable_Unpack(entry.object).unsafeGetTensorImpl());
    entry.for_each_state(prefetch_contents);
  }
  const Entry& entry = entries_[index];
  if (entry.step.has_value()) prefetch(entry.step->const_data_ptr(), 1);
}

bool Plan::same_params(const py::list& param_groups) const {
  if (param_groups.size() != n_groups_) return false;
  size_t next = 0;
  int64_t index = 0;
  for (py::handle group : param_groups) {
    PyObject* const params = PyDict_GetItemString(group.ptr(), "params");
    if (params == nullptr || !(PyList_Check(params) || PyTuple_Check(params))) return false;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(params); ++i, ++next) {
      if (next >= entries_.size()) return false;
      if (PySequence_Fast_GET_ITEM(params, i) != entries_[next].object) return false;
      if (entries_[next].group != index) return false;
    }
    ++index;
  }
  return next == entries_.size();
}

bool Plan::same_state(const py::dict& state) const {
  if (!contains_in_order(state.ptr(), state_)) return false;
  for (size_t i = 0; i < entries_.size(); ++i) {
    prefetch_after(i);
    const Entry& entry = entries_[i];
    if (entry.owner && !contains_in_order(entry.owner.ptr(), entry.watched)) return false;
  }
  return true;
}

// Adds a parameter and its gradient, if it has one, to its batch; false if the plan no longer fits.
// Shapes of states are checked by the ops.
bool Plan::take(Entry& entry, const at::Tensor& param, const py::list& averages) {
  const at::Tensor& grad = param.grad();
  entry.takes_part = grad.defined();
  if (!entry.takes_part) return true;
  if (!entry.bound || param.scalar_type() != entry.dtype || param.device() != entry.device ||
      grad.layout() != at::kStrided || !has_supported_dtype(grad) ||
      grad.device() != param.device() || grad.sizes() != param.sizes() ||
      grad.unsafeGetTensorImpl()->is_python_dispatch() || param.is_neg()) {
    return false;
  }
  // Others wrote to the parameter, and its master has to follow.
  if (entry.master.has_value() && version_of(param) != entry.version) return false;
  if (batches_.size() > 1) {
    // An op checks its own tensors only; the first must not have written when the second refuses.
    if (!fits(param, param.sizes())) return false;
    for (const at::Tensor& state : entry.states) {
      if (!fits(state, param.sizes())) return false;
    }
  }
  Batch& batch = batches_[entry.batch];
  if (entry.average >= 0 && !take_average(entry, param, averages, batch)) return false;
  batch.grads.push_back(grad);
  batch.params.push_back(entry.master.has_value() ? *entry.master : param);
  if (entry.master.has_value()) batch.models.push_back(param);
  return true;
}

// The average belongs to someone else, who may have moved it.
bool Plan::take_average(
    const Entry& entry, const at::Tensor& param, const py::list& averages, Batch& batch) {
  if (entry.average >= PyList_GET_SIZE(averages.ptr())) return false;
  PyObject* const object = PyList_GET_ITEM(averages.ptr(), entry.average);
  if (!THPVariable_Check(object)) return false;
  const at::Tensor& average = THPVariable_Unpack(object);
  if (!fits_beside(average, param)) return false;
  batch.averages.push_back(average);
  return true;
}

// Fills what stays from step to step with the entries that take part.
void Plan::refill() {
  for (Batch& batch : batches_) {
    batch.states.clear();
    batch.steps.clear();
    batch.model_index.clear();
    batch.average_index.clear();
    batch.group_sizes.assign(n_groups_, 0);
  }
  std::vector<int64_t> sizes(batches_.size(), 0);
  for (const Entry& entry : entries_) {
    if (!entry.takes_part) continue;
    Batch& batch = batches_[entry.batch];
    const int64_t index = sizes[entry.batch]++;
    if (entry.master.has_value()) batch.model_index.push_back(index);
    if (entry.average >= 0) batch.average_index.push_back(index);
    batch.states.insert(batch.states.end(), entry.states.begin(), entry.states.end());
    if (entry.step.has_value()) batch.steps.push_back(*entry.step);
    ++batch.group_sizes[entry.group];
  }
}

// Collects parameters and gradients; false if the plan is stale.
bool Plan::gather(const py::list& param_groups, const py::dict& state, const py::list& averages) {
  if (!same_params(param_groups) || !same_state(state)) return false;
  bool changed = false;
  for (Entry& entry : entries_) {
    const at::Tensor& param = THPVariable_Unpack(entry.object);
    // torch.utils.swap_tensors gives a Python parameter another TensorImpl.
    if (param.unsafeGetTensorImpl() != entry.impl) return false;
    const bool took_part = entry.takes_part;
    if (!take(entry, param, averages)) return false;
    changed |= entry.takes_part != took_part;
  }
  if (changed) refill();
  return true;
}

StepResult Plan::step(
    const py::list& param_groups, const py::dict& state, const GroupValues& values,
    const StepOptions& options) {
  if (is_busy_) return {};
  is_busy_ = true;
  // Gradients must not outlive zero_grad(set_to_none=True), whatever happens here.
  struct Release {
    Plan& plan;
    ~Release() {
      for (Batch& batch : plan.batches_) batch.release();
      plan.is_busy_ = false;
    }
  } release{*this};
  if (!gather(param_groups, state, options.averages)) return {};
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
  const StepResult result = [&] {
    py::gil_scoped_release no_gil;
    return run(values, options);
  }();
  for (Entry& entry : entries_) {
    // Others may have run meanwhile; what took part is kept alive by its batch.
    if (!entry.takes_part || !entry.master.has_value()) continue;
    entry.version = version_of(THPVariable_Unpack(entry.object));
  }
  return result;
}

void Plan::sweep_grads(const GroupValues& values, const StepOptions& options, Findings& findings) {
  const auto statistics = statistics_.typed<StatisticsOp>();
  std::vector<at::Tensor> totals;
  for (Batch& batch : batches_) {
    if (batch.params.empty()) continue;
    const c10::Device device = batch.params[0].device();
    auto [row_means, total] = statistics.call(
        batch.grads, batch.group_sizes, values.centralize, to_device(options.grad_scale, device),
        options.clip_value);
    batch.row_means = row_means;
    totals.push_back(totals.empty() ? total : *to_device(total, totals[0].device()));
  }
  if (totals.empty()) return;
  auto [norm, coefficient, nonfinite] =
      finalize_.typed<FinalizeOp>().call(totals, options.max_norm);
  findings.norm = norm;
  findings.nonfinite = nonfinite;
  if (options.max_norm.has_value()) findings.coefficient = coefficient;
}

void Plan::update(const GroupValues& values, const StepOptions& options, const Findings& findings) {
  const auto op = op_.typed<StepOp>();
  OptionalTensor skipped_steps = options.skipped_steps;
  for (const Batch& batch : batches_) {
    if (batch.params.empty()) continue;
    const c10::Device device = batch.params[0].device();
    OptionalTensor row_means, counter;
    if (options.sweeps_grads) row_means = batch.row_means;
    // One of the calls counts for all.
    if (skipped_steps.has_value() && skipped_steps->device() == device) {
      std::swap(skipped_steps, counter);
    }
    op.call(
        batch.params, batch.grads, batch.states, batch.models, batch.model_index, batch.averages,
        batch.average_index, batch.steps, lr_, values.hyper, values.variants, batch.group_sizes,
        values.maximize, values.centralize, row_means, to_device(findings.coefficient, device),
        to_device(options.grad_scale, device), options.clip_value, options.average_weight,
        to_device(findings.found_inf, device), counter);
    for (const auto* list : {&batch.params, &batch.states, &batch.models, &batch.averages}) {
      for (const at::Tensor& tensor : *list) bump_version(tensor);
    }
  }
}

StepResult Plan::run(const GroupValues& values, const StepOptions& options) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  Findings findings;
  if (options.sweeps_grads) sweep_grads(values, options, findings);
  StepResult result;
  result.done = true;
  result.norm = findings.norm;
  result.nonfinite = findings.nonfinite;
  if (skips_on_device_) {
    findings.found_inf = options.found_inf;
    if (options.skips_nonfinite && findings.nonfinite.has_value()) {
      findings.found_inf =
          options.found_inf.has_value()
              ? *findings.nonfinite + *to_device(options.found_inf, findings.nonfinite->device())
              : *findings.nonfinite;
    }
  } else {
    result.skipped = scalar_or(options.found_inf, 0) != 0 ||
                     (options.skips_nonfinite && scalar_or(findings.nonfinite, 0) != 0);
    if (result.skipped) return result;
  }
  update(values, options, findings);
  return result;
}

}  // namespace fusedtricks
