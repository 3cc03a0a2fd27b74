// Type-erased access to the functors: one table per optimizer, indexed by its flags.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace fusedtricks::cpu {

template <typename T>
struct Kernel {
  void (*prepare)(const double* hyper, double lr, double step, void* constants);
  void (*update)(const void* constants, const T* grad, T* param, T* const* states, int64_t n);
};

struct Variant {
  int n_states;
  Kernel<float> f32;
  Kernel<double> f64;

  template <typename T>
  const Kernel<T>& kernel() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return f32;
    } else {
      return f64;
    }
  }
};

// `algorithm` is a position in algorithms(), `flags` below the size of its n_states.
Variant find_variant(size_t algorithm, unsigned flags, Isa isa);

}  // namespace fusedtricks::cpu
