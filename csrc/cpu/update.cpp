// The update sweep: reads gradient, parameter and states once, writes states, parameter, its
// average and the 16-bit model copy once.
#include <cmath>
#include <limits>

#include "convert.h"
#include "driver.h"
#include "parallel.h"
#include "variants.h"

namespace fusedtricks::cpu {
namespace {

struct Group {
  double lr;
  const double* hyper;
  Variant variant;
  double sign;
};

// What one tensor needs in the sweep. Neighbours with the same group and step share constants.
struct Task {
  const TensorArgs* view;
  const Group* group;
  int64_t constants;
};

struct alignas(64) Constants {
  char bytes[kMaxConstantBytes];
};

struct Sweep {
  double inv_scale, limit, coefficient, average_weight;
  bool rescales;    // unscales or clips by value
  bool transforms;  // changes the gradient in any way
  const double* row_means;
  Isa isa;
  std::vector<Group> groups;
  std::vector<Task> tasks;
  std::vector<Constants> constants;
};

double advance(const TensorArgs& view) {
  if (view.step == nullptr) return 1;
  if (view.step_is_double) return *static_cast<double*>(view.step) += 1;
  return *static_cast<float*>(view.step) += 1;
}

void add_tasks(const std::vector<TensorArgs>& views, Sweep& sweep) {
  double last_step = -1;
  bool last_was_double = false;
  const Group* last_group = nullptr;
  sweep.tasks.reserve(views.size());
  for (const TensorArgs& view : views) {
    const Group& group = sweep.groups[view.group];
    const double step = advance(view);
    const bool in_double = computes_in_double(view.param.dtype);
    if (&group != last_group || step != last_step || in_double != last_was_double) {
      void* const target = sweep.constants.emplace_back().bytes;
      const auto prepare = in_double ? group.variant.f64.prepare : group.variant.f32.prepare;
      prepare(group.hyper, group.lr, step, target);
      last_step = step;
      last_was_double = in_double;
      last_group = &group;
    }
    sweep.tasks.push_back({&view, &group, static_cast<int64_t>(sweep.constants.size()) - 1});
  }
}

// One tensor's part of a work item, in tiles where something is converted or transformed.
template <typename T>
void update_item(const Task& task, const WorkItem& item, const Sweep& sweep) {
  const TensorArgs& view = *task.view;
  const int n_states = task.group->variant.n_states;
  const bool averages = view.average.data != nullptr;
  const int n_values = n_states + 1 + averages;
  const void* const constants = sweep.constants[task.constants].bytes;
  const auto update = task.group->variant.template kernel<T>().update;
  const auto move_average = compiled_for<Average<T>>(sweep.isa);
  const auto stage_grad = transform_for<T>(view.grad.dtype, sweep.isa);
  const GradTransform<T> grad_args{
      static_cast<T>(sweep.inv_scale), static_cast<T>(sweep.limit),
      static_cast<T>(sweep.coefficient * task.group->sign), sweep.rescales};
  const double* const means = view.row_length > 0 ? sweep.row_means + view.first_row : nullptr;
  alignas(64) T grad_tile[kTileElements];
  alignas(64) T tiles[kMaxStates + 2][kTileElements];

  // The parameter, the states and the average, all treated alike.
  std::array<Memory, kMaxStates + 2> memory{
      view.param, view.states[0], view.states[1], view.states[2]};
  if (averages) memory[n_states + 1] = view.average;
  bool converts = false;
  for (int k = 0; k < n_values; ++k) converts |= memory[k].dtype != kComputeType<T>;
  const bool stages_grad =
      sweep.transforms || task.group->sign < 0 || view.grad.dtype != kComputeType<T>;
  const bool stages = stages_grad || converts || averages || view.model.data != nullptr;
  const int64_t tile = stages ? kTileElements : item.end - item.begin;

  for (int64_t at = item.begin; at < item.end; at += tile) {
    const int64_t n = std::min(tile, item.end - at);
    const T* grad = reinterpret_cast<const T*>(at_element(view.grad, at));
    if (stages_grad) {
      stage_grad(&grad_args, means, view.row_length, at, grad, grad_tile, n);
      grad = grad_tile;
    }
    std::array<T*, kMaxStates + 2> values{};
    for (int k = 0; k < n_values; ++k) {
      values[k] = reinterpret_cast<T*>(at_element(memory[k], at));
      if (memory[k].dtype == kComputeType<T>) continue;
      to_compute<T>(memory[k].dtype, sweep.isa)(values[k], tiles[k], n);
      values[k] = tiles[k];
    }
    update(constants, grad, values[0], values.data() + 1, n);
    if (averages) {
      move_average(static_cast<T>(sweep.average_weight), values[0], values[n_states + 1], n);
    }
    for (int k = 0; k < n_values; ++k) {
      if (memory[k].dtype == kComputeType<T>) continue;
      from_compute<T>(memory[k].dtype, sweep.isa)(values[k], at_element(memory[k], at), n);
    }
    if (view.model.data != nullptr) {
      from_compute<T>(view.model.dtype, sweep.isa)(values[0], at_element(view.model, at), n);
    }
  }
}

std::vector<Group> read_groups(size_t algorithm, const StepRequest& request, Isa isa) {
  const size_t n_hyper = algorithms()[algorithm].hyper.size();
  std::vector<Group> groups;
  for (size_t g = 0; g < request.group_sizes.size(); ++g) {
    groups.push_back(
        {request.lr[g].item<double>(), request.hyper.data() + g * n_hyper,
         find_variant(algorithm, static_cast<unsigned>(request.variants[g]), isa),
         request.maximize[g] != 0 ? -1.0 : 1.0});
  }
  return groups;
}

}  // namespace

void Driver::step(size_t algorithm, const StepRequest& request) {
  const Isa isa = current_isa();
  Staging staging;
  const auto views = view_step(algorithms()[algorithm], request, at::kCPU, staging);
  Sweep sweep{};
  sweep.groups = read_groups(algorithm, request, isa);
  if (scalar_or(request.found_inf, 0) != 0) {
    if (request.skipped_steps.has_value()) *request.skipped_steps->mutable_data_ptr<int64_t>() += 1;
    return;
  }

  sweep.isa = isa;
  sweep.inv_scale = 1 / scalar_or(request.grad_scale, 1);
  sweep.limit = request.clip_value.value_or(std::numeric_limits<double>::infinity());
  sweep.coefficient = scalar_or(request.coefficient, 1);
  sweep.average_weight = request.average_weight;
  sweep.row_means =
      request.row_means.has_value() ? request.row_means->const_data_ptr<double>() : nullptr;
  sweep.rescales = sweep.inv_scale != 1 || request.clip_value.has_value();
  sweep.transforms = sweep.rescales || request.coefficient.has_value() ||
                     (request.row_means && request.row_means->numel() > 0);
  add_tasks(views, sweep);

  std::vector<Extent> extents;
  extents.reserve(views.size());
  for (const TensorArgs& view : views) extents.push_back({view.numel, 0});
  for_each_item(make_work_list(extents), [&](const WorkItem& item, int64_t) {
    const Task& task = sweep.tasks[item.tensor];
    if (computes_in_double(task.view->param.dtype)) {
      update_item<double>(task, item, sweep);
    } else {
      update_item<float>(task, item, sweep);
    }
  });
  staging.write_back();
}

}  // namespace fusedtricks::cpu
