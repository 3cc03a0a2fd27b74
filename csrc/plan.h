// The host side of a step: what does not change between steps is gathered once.
//
// Note [Plan]
// A ResNet-50 has 161 parameters with two states and a step count each. Walking them in Python
// costs more than updating them. A Plan keeps the tensors of an optimizer, and at every step
//   1. compares pointers: the parameter lists, the optimizer's state dict and each parameter's
//      state are walked in their own order, without hashing, and any difference (load_state_dict,
//      add_param_group, a replaced state tensor, a first gradient) makes step() answer "stale", on
//      which Python builds a new plan;
//   2. reads .grad of every parameter and checks its dtype, layout, device and shape;
//   3. calls the ops through the dispatcher.
// Data pointers, sizes and strides are read anew by the ops, so `p.data = ...` needs no notice.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/extension.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace fusedtricks {

namespace py = pybind11;

// Everything that may change from step to step without changing the plan; one value per group.
struct GroupValues {
  std::vector<py::object> lr;  // float or one-element tensor
  std::vector<double> hyper;
  std::vector<int64_t> variants, maximize, centralize;
};

struct StepOptions {
  bool sweeps_grads = false;  // run the statistics sweep
  bool skips_nonfinite = false;
  std::optional<double> clip_value, max_norm;
  std::optional<at::Tensor> grad_scale, found_inf;
  std::optional<at::Tensor> skipped_steps;  // counts what is skipped on the device
  py::list averages;                        // what `bind` gave the positions of
  double average_weight = 0;
};

// `done` is false if the plan is stale and nothing was changed.
struct StepResult {
  bool done = false;
  bool skipped = false;
  std::optional<at::Tensor> norm, nonfinite;
};

class Plan {
 public:
  // The ops are those of `library`, a namespace of torch's dispatcher. With `skips_on_device`
  // nothing is read back: the ops get the flags that tell them to skip.
  Plan(const std::string& library, const std::string& op, size_t n_groups, bool skips_on_device);

  // One call per parameter of every group, in order; `bind` gives the last one its tensors.
  void add(const py::object& param, int64_t group);
  // `master` takes the parameter's place in the update; `average` is the position, in the averages
  // of each step, of the one that follows it, -1 for none; `owner` is the dict of `watched` keys.
  void bind(
      int64_t batch, std::optional<at::Tensor> master, int64_t average,
      std::vector<at::Tensor> states, std::optional<at::Tensor> step,
      const std::optional<py::dict>& owner, const std::vector<std::string>& watched);
  void seal(const py::dict& state);

  StepResult step(
      const py::list& param_groups, const py::dict& state, const GroupValues& values,
      const StepOptions& options);

 private:
  // Key and value in a dict, compared by identity. Keys are borrowed, values owned.
  using Watched = std::pair<PyObject*, py::object>;

  // Parameters are not owned: Python's garbage collector cannot look in here, so that a parameter
  // with a reference to its optimizer would never be freed. Nor weakly, which would forbid
  // torch.utils.swap_tensors. `object` is used only once it was found in the parameter list, `impl`
  // only compared. Should another tensor have both addresses, then the optimizer's state, which
  // owns the parameters it has, was changed or there is none; all else is read anew.
  struct Entry {
    PyObject* object;
    const c10::TensorImpl* impl;
    at::ScalarType dtype;
    c10::Device device;
    std::optional<at::Tensor> master, step;
    std::vector<at::Tensor> states;
    py::object owner;
    std::vector<Watched> watched;
    int64_t group = 0, batch = 0, average = -1;
    bool bound = false;
    bool takes_part = false;  // had a gradient in the last step
    uint32_t version = 0;     // of the parameter when it was the rounded master

    template <class Fetch>
    void for_each_state(const Fetch& fetch) const;
  };

  // The argument lists of one op call. States and what follows stay from step to step.
  struct Batch {
    std::vector<at::Tensor> params, grads, models, averages;
    std::vector<at::Tensor> states, steps;
    std::vector<int64_t> model_index, average_index, group_sizes;
    at::Tensor row_means;
    void release();
  };

  // What the statistics sweep found, and what follows from it.
  struct Findings {
    std::optional<at::Tensor> norm, coefficient, nonfinite, found_inf;
  };

  bool gather(const py::list& param_groups, const py::dict& state, const py::list& averages);
  bool same_params(const py::list& param_groups) const;
  bool same_state(const py::dict& state) const;
  void prefetch_after(size_t index) const;
  bool take(Entry& entry, const at::Tensor& param, const py::list& averages);
  static bool take_average(
      const Entry& entry, const at::Tensor& param, const py::list& averages, Batch& batch);
  void refill();
  StepResult run(const GroupValues& values, const StepOptions& options);
  void sweep_grads(const GroupValues& values, const StepOptions& options, Findings& findings);
  void update(const GroupValues& values, const StepOptions& options, const Findings& findings);

  c10::OperatorHandle op_, statistics_, finalize_;
  std::vector<Entry> entries_;
  std::vector<Watched> state_;
  std::vector<Batch> batches_;
  std::vector<at::Tensor> lr_;
  size_t n_groups_;
  bool skips_on_device_;
  bool is_busy_ = false;  // another thread is in the middle of a step; guarded by the GIL
};

}  // namespace fusedtricks
