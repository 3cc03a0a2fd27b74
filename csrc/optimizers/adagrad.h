// Adagrad (Duchi, Hazan & Singer 2011) with torch.optim's learning-rate decay.
//
//   sum   = sum + grad^2
//   param = param - lr / (1 + (t - 1) * lr_decay) * grad / (sqrt(sum + eps_inside) + eps)
#pragma once

#include <array>
#include <cmath>

#include "../macros.h"

namespace fusedtricks {

template <unsigned kFlags>
struct Adagrad {
  static constexpr const char* kName = "adagrad";
  static constexpr std::array<const char*, 1> kFlagNames{"l2"};
  static constexpr bool kL2 = kFlags & 1;

  static constexpr std::array<const char*, 1> kStateNames{"sum"};
  static constexpr int kNumStates = 1;

  // Exactly one of eps and eps_inside is zero; which one says where epsilon stands.
  struct Hyper {
    double lr_decay, eps, eps_inside, weight_decay;
  };
  static constexpr std::array<const char*, 4> kHyperNames{
      "lr_decay", "eps", "eps_inside", "weight_decay"};

  template <typename T>
  struct Constants {
    T step_size, eps, eps_inside, weight_decay;
  };

  template <typename T>
  FT_HOST_DEVICE static Constants<T> prepare(const Hyper& h, double lr, double step) {
    Constants<T> c;
    c.step_size = static_cast<T>(lr / (1 + (step - 1) * h.lr_decay));
    c.eps = static_cast<T>(h.eps);
    c.eps_inside = static_cast<T>(h.eps_inside);
    c.weight_decay = static_cast<T>(h.weight_decay);
    return c;
  }

  template <typename T>
  FT_HOST_DEVICE static void update(
      const Constants<T>& c, T grad, T& param, T (&state)[kNumStates]) {
    if constexpr (kL2) grad = grad + c.weight_decay * param;
    state[0] = state[0] + grad * grad;
    param = param - c.step_size * grad / (std::sqrt(state[0] + c.eps_inside) + c.eps);
  }
};

}  // namespace fusedtricks
