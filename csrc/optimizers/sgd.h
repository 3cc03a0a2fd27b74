// SGD and SGDW with momentum, dampening and Nesterov's look-ahead, as torch.optim.SGD has them.
//
//   buf   = grad                                     the first time a parameter is updated
//   buf   = momentum * buf + (1 - dampening) * grad  afterwards
//   param = param - lr * (nesterov ? grad + momentum * buf : buf)
#pragma once

#include <array>

#include "../macros.h"

namespace fusedtricks {

template <unsigned kFlags>
struct Sgd {
  static constexpr const char* kName = "sgd";
  static constexpr std::array<const char*, 3> kFlagNames{"momentum", "nesterov", "l2"};
  static constexpr bool kMomentum = kFlags & 1;
  static constexpr bool kNesterov = kFlags & 2;
  static constexpr bool kL2 = kFlags & 4;

  static constexpr std::array<const char*, 1> kStateNames{"momentum_buffer"};
  static constexpr int kNumStates = kMomentum ? 1 : 0;

  struct Hyper {
    double momentum, dampening, weight_decay;
  };
  static constexpr std::array<const char*, 3> kHyperNames{"momentum", "dampening", "weight_decay"};

  template <typename T>
  struct Constants {
    T lr, momentum, buffer_keep, grad_scale, keep, weight_decay;
  };

  // A new buffer is zero, so "buf = grad" is the general formula with other constants.
  template <typename T>
  FT_HOST_DEVICE static Constants<T> prepare(const Hyper& h, double lr, double step) {
    const bool first = step <= 1;
    Constants<T> c;
    c.lr = static_cast<T>(lr);
    c.momentum = static_cast<T>(h.momentum);
    c.buffer_keep = static_cast<T>(first ? 0 : h.momentum);
    c.grad_scale = static_cast<T>(first ? 1 : 1 - h.dampening);
    c.keep = static_cast<T>(1 - lr * h.weight_decay);
    c.weight_decay = static_cast<T>(h.weight_decay);
    return c;
  }

  template <typename T>
  FT_HOST_DEVICE static void update(
      const Constants<T>& c, T grad, T& param, T (&state)[kNumStates > 0 ? kNumStates : 1]) {
    if constexpr (kL2) {
      grad = grad + c.weight_decay * param;
    } else {
      param = param * c.keep;
    }
    T direction = grad;
    if constexpr (kMomentum) {
      state[0] = c.buffer_keep * state[0] + c.grad_scale * grad;
      direction = kNesterov ? grad + c.momentum * state[0] : state[0];
    }
    param = param - c.lr * direction;
  }
};

}  // namespace fusedtricks
