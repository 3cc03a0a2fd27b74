// The loops over contiguous memory. Each is a Body for isa.h; none knows a torch type.
#pragma once

#include <cmath>
#include <limits>

#include "../dtype.h"
#include "../grad/transform.h"
#include "isa.h"

namespace fusedtricks::cpu {

inline constexpr int kMaxStates = 3;
// Elements that are staged at a time when something must be converted or transformed: grad, param
// and three states of 512 floats are 10 KiB, which leaves room in a 32 KiB L1 cache.
inline constexpr int64_t kTileElements = 512;

template <typename From, typename To>
struct Convert {
  static FT_HOST_DEVICE void run(const void* from, void* to, int64_t n) {
    const From* source = static_cast<const From*>(from);
    To* target = static_cast<To*>(to);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) target[i] = convert<To>(source[i]);
  }
};

template <typename T>
struct TransformGrad {
  static FT_HOST_DEVICE void run(
      const GradTransform<T>* transform_args, T row_mean, const T* from, T* to, int64_t n) {
    const GradTransform<T> args = *transform_args;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = transform(args, from[i], row_mean);
  }
};

template <class Functor, typename T>
struct Update {
  static constexpr int kStates = Functor::kNumStates;
  using Constants = typename Functor::template Constants<T>;

  static FT_HOST_DEVICE void run(
      const void* constants, const T* grad, T* param, T* const* states, int64_t n) {
    const Constants c = *static_cast<const Constants*>(constants);
    T* const state0 = kStates > 0 ? states[0] : nullptr;
    T* const state1 = kStates > 1 ? states[1] : nullptr;
    T* const state2 = kStates > 2 ? states[2] : nullptr;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      T state[kStates > 0 ? kStates : 1];
      if constexpr (kStates > 0) state[0] = state0[i];
      if constexpr (kStates > 1) state[1] = state1[i];
      if constexpr (kStates > 2) state[2] = state2[i];
      T p = param[i];
      Functor::update(c, grad[i], p, state);
      param[i] = p;
      if constexpr (kStates > 0) state0[i] = state[0];
      if constexpr (kStates > 1) state1[i] = state[1];
      if constexpr (kStates > 2) state2[i] = state[2];
    }
  }
};

struct Sums {
  double sum = 0;
  double squares = 0;
  double poison = 0;  // 0, or NaN if any element was not finite
};

// Sums of the unscaled, value-clipped gradient, in double: squares of finite floats cannot
// overflow, and 16 lanes in a fixed order (Note [Deterministic reductions]).
template <typename T>
struct Accumulate {
  static constexpr int kLanes = 8;
  typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));
  typedef T Values __attribute__((vector_size(kLanes * sizeof(T))));

  struct Lanes {
    Doubles sum{}, squares{}, poison{};
  };

  static FT_HOST_DEVICE void add(const T* x, T inv_scale, T limit, Lanes& lanes) {
    Values value;
    __builtin_memcpy(&value, x, sizeof(value));
    const Doubles raw = __builtin_convertvector(value, Doubles);
    const Doubles clamped =
        __builtin_convertvector(unscale_and_clamp(value, inv_scale, limit), Doubles);
    lanes.sum += clamped;
    lanes.squares += clamped * clamped;
    lanes.poison += raw * 0.0;
  }

  static FT_HOST_DEVICE void run(const T* x, int64_t n, T inv_scale, T limit, Sums* sums) {
    Lanes even, odd;
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      add(x + i, inv_scale, limit, even);
      add(x + i + kLanes, inv_scale, limit, odd);
    }
    if (i < n) {
      T tail[2 * kLanes] = {};
      __builtin_memcpy(tail, x + i, (n - i) * sizeof(T));
      add(tail, inv_scale, limit, even);
      add(tail + kLanes, inv_scale, limit, odd);
    }
    Sums result;
    for (int lane = 0; lane < kLanes; ++lane) {
      result.sum += even.sum[lane] + odd.sum[lane];
      result.squares += even.squares[lane] + odd.squares[lane];
      result.poison += even.poison[lane] + odd.poison[lane];
    }
    *sums = result;
  }
};

}  // namespace fusedtricks::cpu
