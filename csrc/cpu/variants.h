// Type-erased access to the functors: one table per optimizer, indexed by its flags.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "isa.h"

namespace fusedtricks::cpu {

// Room for the constants of any functor in double.
inline constexpr size_t kMaxConstantBytes = 128;

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

struct Algorithm {
  std::string name;
  std::vector<std::string> flags, hyper, states;
  Variant (*variant)(unsigned flags, Isa isa);
};

const std::vector<Algorithm>& algorithms();

}  // namespace fusedtricks::cpu
