// RMSprop (Tieleman & Hinton 2012), plain or centered (Graves 2013), with optional momentum.
//
//   square_avg = alpha * square_avg + (1 - alpha) * grad^2
//   grad_avg   = grad_avg + (1 - alpha) * (grad - grad_avg)          centered
//   avg        = sqrt(square_avg [- grad_avg^2] + eps_inside) + eps
//   buf        = momentum * buf + grad / avg                         momentum
//   param      = param - lr * (momentum ? buf : grad / avg)
#pragma once

#include <array>
#include <cmath>

#include "../macros.h"

namespace fusedtricks {

template <unsigned kFlags>
struct RmsProp {
  static constexpr const char* kName = "rmsprop";
  static constexpr std::array<const char*, 3> kFlagNames{"momentum", "centered", "l2"};
  static constexpr bool kMomentum = kFlags & 1;
  static constexpr bool kCentered = kFlags & 2;
  static constexpr bool kL2 = kFlags & 4;

  static constexpr std::array<const char*, 3> kStateNames{
      "square_avg", "momentum_buffer", "grad_avg"};
  static constexpr int kNumStates = 1 + (kMomentum ? 1 : 0) + (kCentered ? 1 : 0);
  static constexpr int kGradAvg = kNumStates - 1;

  // Exactly one of eps and eps_inside is zero; which one says where epsilon stands.
  struct Hyper {
    double alpha, eps, eps_inside, momentum, weight_decay;
  };
  static constexpr std::array<const char*, 5> kHyperNames{
      "alpha", "eps", "eps_inside", "momentum", "weight_decay"};

  template <typename T>
  struct Constants {
    T lr, alpha, one_minus_alpha, eps, eps_inside, momentum, weight_decay;
  };

  template <typename T>
  FT_HOST_DEVICE static Constants<T> prepare(const Hyper& h, double lr, double /*step*/) {
    Constants<T> c;
    c.lr = static_cast<T>(lr);
    c.alpha = static_cast<T>(h.alpha);
    c.one_minus_alpha = static_cast<T>(1 - h.alpha);
    c.eps = static_cast<T>(h.eps);
    c.eps_inside = static_cast<T>(h.eps_inside);
    c.momentum = static_cast<T>(h.momentum);
    c.weight_decay = static_cast<T>(h.weight_decay);
    return c;
  }

  template <typename T>
  FT_HOST_DEVICE static void update(
      const Constants<T>& c, T grad, T& param, T (&state)[kNumStates]) {
    if constexpr (kL2) grad = grad + c.weight_decay * param;
    state[0] = c.alpha * state[0] + c.one_minus_alpha * grad * grad;
    T second = state[0];
    if constexpr (kCentered) {
      T& grad_avg = state[kGradAvg];
      grad_avg = grad_avg + c.one_minus_alpha * (grad - grad_avg);
      second = second - grad_avg * grad_avg;
    }
    T direction = grad / (std::sqrt(second + c.eps_inside) + c.eps);
    if constexpr (kMomentum) {
      state[1] = c.momentum * state[1] + direction;
      direction = state[1];
    }
    param = param - c.lr * direction;
  }
};

}  // namespace fusedtricks
