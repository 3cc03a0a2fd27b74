// The loops over contiguous memory. Each is a Body for isa.h; none knows a torch type.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../algorithms.h"
#include "../average.h"
#include "../dtype.h"
#include "../grad/transform.h"
#include "isa.h"

namespace fusedtricks::cpu {

// Elements that are staged at a time when something must be converted or transformed: grad, param,
// average and three states of 512 floats are 12 KiB, which leaves room in a 32 KiB L1 cache.
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

// Converts and transforms gradient elements [at, at + n) of a tensor. `means` belong to its rows of
// `row_length` elements, null if it is not centralized.
template <typename From, typename T>
struct TransformGrad {
  static FT_HOST_DEVICE void run(
      const GradTransform<T>* args, const double* means, int64_t row_length, int64_t at,
      const void* from, T* to, int64_t n) {
    const From* source = static_cast<const From*>(from);
    for (int64_t begin = 0; begin < n;) {
      T mean = 0;
      int64_t end = n;
      if (means != nullptr) {
        const int64_t row = (at + begin) / row_length;
        end = std::min(n, (row + 1) * row_length - at);
        mean = static_cast<T>(means[row]);
      }
      if (args->rescales) {
        transform_row<true>(*args, mean, source + begin, to + begin, end - begin);
      } else {
        transform_row<false>(*args, mean, source + begin, to + begin, end - begin);
      }
      begin = end;
    }
  }

 private:
  template <bool kRescales>
  static FT_HOST_DEVICE void transform_row(
      GradTransform<T> args, T mean, const From* from, T* to, int64_t n) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = transform<kRescales>(args, convert<T>(from[i]), mean);
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

template <typename T>
struct Average {
  static FT_HOST_DEVICE void run(T weight, const T* param, T* average, int64_t n) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) average[i] = moved_average(average[i], param[i], weight);
  }
};

// Sums of the unscaled, value-clipped gradient.
struct Sums {
  double sum = 0;
  double squares = 0;
  bool nonfinite = false;  // some element of the gradient as it is stored was inf or NaN

  void operator+=(const Sums& other) {
    sum += other.sum;
    squares += other.squares;
    nonfinite |= other.nonfinite;
  }
};

// Adds up rows of a gradient, in a fixed order (Note [Deterministic reductions]).
//
// Note [Two precisions]
// Floats are added in 32 float lanes, at most 16 values in each, and the lanes in double: as
// exact as adding in double throughout to 1e-7, at a quarter of the instructions. A block whose
// squares overflow, vanish or are not finite is added again in double, where no square of a finite
// float overflows or underflows; so large, tiny and non-finite gradients get exact answers.
template <typename From, typename T>
struct Accumulate {
  static FT_HOST_DEVICE void run(
      const void* x, int64_t n_rows, int64_t row_length, T inv_scale, T limit, double* row_sums,
      Sums* total) {
    const From* row = static_cast<const From*>(x);
    Sums sums;
    for (int64_t r = 0; r < n_rows; ++r, row += row_length) {
      Sums of_row;
      for (int64_t at = 0; at < row_length; at += kTileElements) {
        of_row += add_block(row + at, std::min(kTileElements, row_length - at), inv_scale, limit);
      }
      if (row_sums != nullptr) row_sums[r] = of_row.sum;
      sums += of_row;
    }
    *total = sums;
  }

 private:
  static constexpr double kTiny = 1e-30, kHuge = 1e38;

  static FT_HOST_DEVICE Sums add_block(const From* x, int64_t n, T inv_scale, T limit) {
    alignas(64) T tile[kTileElements];
    const T* values;
    if constexpr (std::is_same_v<From, T>) {
      values = x;
    } else {
      Convert<From, T>::run(x, tile, n);
      values = tile;
    }
    if constexpr (std::is_same_v<T, float>) {
      const bool rescales = inv_scale != 1 || limit < std::numeric_limits<T>::infinity();
      const Sums sums = rescales ? add_lanes<float, true>(values, n, inv_scale, limit)
                                 : add_lanes<float, false>(values, n, inv_scale, limit);
      if (sums.squares > kTiny && sums.squares < kHuge && !sums.nonfinite) return sums;
    }
    return add_lanes<double, true>(values, n, inv_scale, limit);
  }

  // Sums in 2 x 64 bytes of lanes of type A. Explicit vectors, because compilers keep arrays of
  // lanes in memory.
  template <typename A>
  struct Lanes {
    static constexpr int kCount = 64 / sizeof(A);
    typedef A Wide __attribute__((vector_size(64)));
    typedef T Narrow __attribute__((vector_size(kCount * sizeof(T))));
    Wide sum{}, squares{}, poison{};

    template <bool kRescales>
    FT_HOST_DEVICE void add(const T* x, T inv_scale, T limit) {
      Narrow value;
      __builtin_memcpy(&value, x, sizeof(value));
      if constexpr (kRescales) {
        poison += __builtin_convertvector(value * 0, Wide);
        value = unscale_and_clamp(value, inv_scale, limit);
      }
      const Wide wide = __builtin_convertvector(value, Wide);
      sum += wide;
      squares += wide * wide;
    }
  };

  // Without kRescales a value that is not finite shows in the squares alone.
  template <typename A, bool kRescales>
  static FT_HOST_DEVICE Sums add_lanes(const T* x, int64_t n, T inv_scale, T limit) {
    constexpr int kCount = Lanes<A>::kCount;
    Lanes<A> even, odd;
    int64_t i = 0;
    for (; i + 2 * kCount <= n; i += 2 * kCount) {
      even.template add<kRescales>(x + i, inv_scale, limit);
      odd.template add<kRescales>(x + i + kCount, inv_scale, limit);
    }
    if (i < n) {
      alignas(64) T tail[2 * kCount] = {};
      std::copy(x + i, x + n, tail);
      even.template add<kRescales>(tail, inv_scale, limit);
      odd.template add<kRescales>(tail + kCount, inv_scale, limit);
    }
    return {
        fold<A>(even.sum, odd.sum), fold<A>(even.squares, odd.squares),
        fold<A>(even.poison, odd.poison) != 0};
  }

  // The sum of the lanes, by halves.
  template <typename A>
  static FT_HOST_DEVICE double fold(typename Lanes<A>::Wide even, typename Lanes<A>::Wide odd) {
    constexpr int kCount = Lanes<A>::kCount;
    double sums[kCount];
    for (int i = 0; i < kCount; ++i) {
      sums[i] = static_cast<double>(even[i]) + static_cast<double>(odd[i]);
    }
    for (int half = kCount / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
  }
};

}  // namespace fusedtricks::cpu
