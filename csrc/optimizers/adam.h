// Adam and AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019).
//
//   param      = param * (1 - lr * weight_decay)                    decoupled decay
//   exp_avg    = exp_avg + (1 - beta1) * (grad - exp_avg)
//   exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad^2
//   param      = param - lr / (1 - beta1^t) * exp_avg
//                        / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps)
#pragma once

#include <array>
#include <cmath>

#include "../macros.h"

namespace fusedtricks {

template <unsigned kFlags>
struct Adam {
  static constexpr const char* kName = "adam";
  static constexpr std::array<const char*, 2> kFlagNames{"amsgrad", "l2"};
  static constexpr bool kAmsgrad = kFlags & 1;
  static constexpr bool kL2 = kFlags & 2;

  static constexpr std::array<const char*, 3> kStateNames{
      "exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr int kNumStates = kAmsgrad ? 3 : 2;

  // With kL2 the decay is added to the gradient, else the parameter is scaled.
  struct Hyper {
    double beta1, beta2, eps, weight_decay, bias_correction;
  };
  static constexpr std::array<const char*, 5> kHyperNames{
      "beta1", "beta2", "eps", "weight_decay", "bias_correction"};

  template <typename T>
  struct Constants {
    T one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, eps, keep, weight_decay;
  };

  template <typename T>
  FT_HOST_DEVICE static Constants<T> prepare(const Hyper& h, double lr, double step) {
    const bool corrected = h.bias_correction != 0;
    const double correction1 = corrected ? 1 - std::pow(h.beta1, step) : 1;
    const double correction2 = corrected ? 1 - std::pow(h.beta2, step) : 1;
    Constants<T> c;
    c.one_minus_beta1 = static_cast<T>(1 - h.beta1);
    c.beta2 = static_cast<T>(h.beta2);
    c.one_minus_beta2 = static_cast<T>(1 - h.beta2);
    c.step_size = static_cast<T>(lr / correction1);
    c.root_scale = static_cast<T>(1 / std::sqrt(correction2));
    c.eps = static_cast<T>(h.eps);
    c.keep = static_cast<T>(1 - lr * h.weight_decay);
    c.weight_decay = static_cast<T>(h.weight_decay);
    return c;
  }

  template <typename T>
  FT_HOST_DEVICE static void update(
      const Constants<T>& c, T grad, T& param, T (&state)[kNumStates]) {
    if constexpr (kL2) {
      grad = grad + c.weight_decay * param;
    } else {
      param = param * c.keep;
    }
    state[0] = state[0] + c.one_minus_beta1 * (grad - state[0]);
    state[1] = c.beta2 * state[1] + c.one_minus_beta2 * grad * grad;
    T second = state[1];
    if constexpr (kAmsgrad) {
      // Written so that a NaN in exp_avg_sq wins, as in torch.maximum.
      second = state[2] > second ? state[2] : second;
      state[2] = second;
    }
    param = param - c.step_size * state[0] / (std::sqrt(second) * c.root_scale + c.eps);
  }
};

}  // namespace fusedtricks
