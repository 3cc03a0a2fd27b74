// Registers a driver's implementations of the ops that fusedtricks/ops.py declares.
#pragma once

#include <torch/library.h>

#include <string>

#include "algorithms.h"
#include "optimizers/all.h"
#include "step_args.h"

namespace fusedtricks {

template <template <unsigned> class Functor, class Driver>
void run_step(
    at::TensorList params, at::TensorList grads, at::TensorList states, at::TensorList model_params,
    at::IntArrayRef model_index, at::TensorList averages, at::IntArrayRef average_index,
    at::TensorList steps, at::TensorList lr, at::ArrayRef<double> hyper, at::IntArrayRef variants,
    at::IntArrayRef group_sizes, at::IntArrayRef maximize, at::IntArrayRef centralize,
    const std::optional<at::Tensor>& row_means, const std::optional<at::Tensor>& coefficient,
    const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value,
    double average_weight, const std::optional<at::Tensor>& found_inf,
    const std::optional<at::Tensor>& skipped_steps) {
  static const size_t algorithm = find_algorithm(Functor<0>::kName);
  Driver::step(
      algorithm,
      {params,    grads,       states,     model_params, model_index,    averages,  average_index,
       steps,     lr,          hyper,      variants,     group_sizes,    maximize,  centralize,
       row_means, coefficient, grad_scale, clip_value,   average_weight, found_inf, skipped_steps});
}

// Driver has the static functions step(algorithm index, request), grad_statistics and
// finalize_statistics.
template <class Driver>
void register_driver(torch::Library& library) {
  library.impl("grad_statistics", Driver::grad_statistics);
  library.impl("finalize_statistics", Driver::finalize_statistics);
#define FT_REGISTER(Functor) \
  library.impl((std::string(Functor<0>::kName) + "_").c_str(), run_step<Functor, Driver>);
  FT_FOR_EACH_OPTIMIZER(FT_REGISTER)
#undef FT_REGISTER
}

}  // namespace fusedtricks
