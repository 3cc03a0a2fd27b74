// What happens to a gradient element before the optimizer sees it.
//
//   unscale -> clip by value -> centralize -> clip by norm and sign
//
// Centralizing commutes with the scaling by the norm coefficient; the norm itself is measured
// before it, where clip_grad_norm_ would measure it.
#pragma once

#include "../macros.h"

namespace fusedtricks {

template <typename T>
struct GradTransform {
  T inv_scale;    // 1 / loss scale
  T limit;        // clip by value, +inf when off
  T coefficient;  // min(1, max_norm / (norm + 1e-6)), negative to maximize
  bool rescales;  // false if inv_scale is 1 and limit is off
};

// The comparisons are false for NaN, which therefore passes through as in torch.clamp.
// V is T or a vector of T.
template <typename V, typename T>
FT_HOST_DEVICE V unscale_and_clamp(V grad, T inv_scale, T limit) {
  grad = grad * inv_scale;
  grad = grad > limit ? V{} + limit : grad;
  return grad < -limit ? V{} - limit : grad;
}

template <bool kRescales, typename T>
FT_HOST_DEVICE T transform(const GradTransform<T>& t, T grad, T row_mean) {
  if constexpr (kRescales) grad = unscale_and_clamp(grad, t.inv_scale, t.limit);
  return (grad - row_mean) * t.coefficient;
}

}  // namespace fusedtricks
