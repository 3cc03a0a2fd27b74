// The Python module fusedtricks._C: the plan, the planner, and what this build is.
#include <torch/extension.h>

#include "algorithms.h"
#include "cpu/driver.h"
#include "cpu/isa.h"
#include "plan.h"
#include "snapshot.h"
#include "work_list.h"
#if defined(FUSEDTRICKS_CUDA)
#include "cuda/tunables.h"
#endif

namespace fusedtricks {
namespace {

py::dict build_info() {
  py::dict optimizers;
  for (const Algorithm& algorithm : algorithms()) {
    py::dict entry;
    entry["flags"] = algorithm.flags;
    entry["hyper"] = algorithm.hyper;
    entry["states"] = algorithm.states;
    optimizers[algorithm.name.c_str()] = entry;
  }
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["isa"] = cpu::isa_name(cpu::current_isa());
  info["optimizers"] = optimizers;
#if defined(FUSEDTRICKS_CUDA)
  info["cuda"] = FUSEDTRICKS_CUDA_VERSION;
  info["cuda_archs"] = FUSEDTRICKS_CUDA_ARCHS;
#endif
  return info;
}

py::dict work_list(const std::vector<std::pair<int64_t, int64_t>>& extents) {
  std::vector<Extent> list;
  for (const auto& [numel, row_length] : extents) list.push_back({numel, row_length});
  const WorkList work = make_work_list(list);
  py::list items;
  for (const WorkItem& item : work.items) {
    items.append(py::make_tuple(item.tensor, item.begin, item.end));
  }
  py::dict result;
  result["items"] = items;
  result["units"] = work.units;
  return result;
}

}  // namespace
}  // namespace fusedtricks

PYBIND11_MODULE(_C, module) {
  using namespace fusedtricks;
  module.doc() = "Compiled part of fusedtricks.";
  module.def("build_info", &build_info, "Versions, instruction set and the optimizers' layouts.");
  module.def(
      "set_isa", &cpu::set_isa, py::arg("name"),
      "Choose the instruction set: auto, baseline, avx2 or avx512.");
  module.def(
      "work_list", &work_list, py::arg("extents"),
      "Plan (numel, row_length) extents; returns items and units.");
  module.def(
      "stream",
      [](const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes) {
        py::gil_scoped_release no_gil;
        cpu::stream(reads, writes);
      },
      py::arg("reads"), py::arg("writes"), "Store the sum of `reads` into each of `writes`.");
  module.def(
      "snapshot", &snapshot, py::arg("tensors"), "Layouts and addresses of tensors, as bytes.");

#if defined(FUSEDTRICKS_CUDA)
  module.def("cuda_tunables", &cuda::get_tunables, "What may be tuned for a device, by name.");
  module.def(
      "set_cuda_tunables",
      [](const py::kwargs& changes) {
        cuda::set_tunables(changes.cast<std::map<std::string, int64_t>>());
      },
      "Change some of cuda_tunables(), for all optimizers from now on.");
#endif

  py::class_<GroupValues>(module, "GroupValues", "Values of each group for one step.")
      .def(py::init<>())
      .def(
          "add",
          [](GroupValues& v, const py::object& lr, const std::vector<double>& hyper,
             int64_t variant, bool maximize, int64_t centralize) {
            v.lr.push_back(lr);
            v.hyper.insert(v.hyper.end(), hyper.begin(), hyper.end());
            v.variants.push_back(variant);
            v.maximize.push_back(maximize);
            v.centralize.push_back(centralize);
          },
          py::arg("lr"), py::arg("hyper"), py::arg("variant"), py::arg("maximize"),
          py::arg("centralize"));
  py::class_<StepResult>(module, "StepResult", "What came of a step.")
      .def_readonly("done", &StepResult::done)
      .def_readonly("skipped", &StepResult::skipped)
      .def_readonly("norm", &StepResult::norm)
      .def_readonly("nonfinite", &StepResult::nonfinite);
  py::class_<Plan>(module, "Plan", "The tensors of one optimizer, gathered once.")
      .def(
          py::init<const std::string&, const std::string&, size_t, bool>(), py::arg("library"),
          py::arg("op"), py::arg("n_groups"), py::arg("skips_on_device"))
      .def("add", &Plan::add, py::arg("param"), py::arg("group"))
      .def(
          "bind", &Plan::bind, py::arg("batch"), py::arg("master"), py::arg("average"),
          py::arg("states"), py::arg("step"), py::arg("owner"), py::arg("watched"))
      .def("seal", &Plan::seal, py::arg("state"))
      .def(
          "step",
          [](Plan& plan, const py::list& param_groups, const py::dict& state,
             const GroupValues& values, bool sweeps_grads, bool skips_nonfinite,
             std::optional<double> clip_value, std::optional<double> max_norm,
             std::optional<at::Tensor> grad_scale, std::optional<at::Tensor> found_inf,
             std::optional<at::Tensor> skipped_steps, const py::list& averages,
             double average_weight) {
            return plan.step(
                param_groups, state, values,
                {sweeps_grads, skips_nonfinite, clip_value, max_norm, std::move(grad_scale),
                 std::move(found_inf), std::move(skipped_steps), averages, average_weight});
          },
          py::arg("param_groups"), py::arg("state"), py::arg("values"), py::arg("sweeps_grads"),
          py::arg("skips_nonfinite"), py::arg("clip_value"), py::arg("max_norm"),
          py::arg("grad_scale"), py::arg("found_inf"), py::arg("skipped_steps"),
          py::arg("averages"), py::arg("average_weight"));
}
