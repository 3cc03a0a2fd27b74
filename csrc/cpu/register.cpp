// The CPU implementations of the ops that fusedtricks/ops.py declares.
#include <torch/library.h>

#include <string>

#include "../optimizers/all.h"
#include "driver.h"

namespace fusedtricks::cpu {
namespace {

const Algorithm& find(const std::string& name) {
  for (const Algorithm& algorithm : algorithms()) {
    if (algorithm.name == name) return algorithm;
  }
  TORCH_CHECK(false, "no optimizer named ", name);
}

template <template <unsigned> class Functor>
void run_step(
    at::TensorList params, at::TensorList grads, at::TensorList states, at::TensorList model_params,
    at::IntArrayRef model_index, at::TensorList steps, at::TensorList lr,
    at::ArrayRef<double> hyper, at::IntArrayRef variants, at::IntArrayRef group_sizes,
    at::IntArrayRef maximize, at::IntArrayRef centralize,
    const std::optional<at::Tensor>& row_means, const std::optional<at::Tensor>& coefficient,
    const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value,
    const std::optional<at::Tensor>& found_inf) {
  static const Algorithm& algorithm = find(Functor<0>::kName);
  step(
      algorithm,
      {params, grads, states, model_params, model_index, steps, lr, hyper, variants, group_sizes,
       maximize, centralize, row_means, coefficient, grad_scale, clip_value, found_inf});
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, CPU, library) {
  library.impl("grad_statistics", grad_statistics);
  library.impl("finalize_statistics", finalize_statistics);
#define FT_REGISTER(Functor) \
  library.impl((std::string(Functor<0>::kName) + "_").c_str(), run_step<Functor>);
  FT_FOR_EACH_OPTIMIZER(FT_REGISTER)
#undef FT_REGISTER
}

}  // namespace fusedtricks::cpu
