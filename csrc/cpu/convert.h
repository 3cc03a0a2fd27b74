// Pointers to the conversion loops between stored and compute types.
#pragma once

#include "../step_args.h"
#include "tiles.h"

namespace fusedtricks::cpu {

using ConvertFn = void (*)(const void* from, void* to, int64_t n);

template <typename T>
ConvertFn to_compute(DType from, Isa isa) {
  switch (from) {
    case DType::kFloat32: return compiled_for<Convert<float, T>>(isa);
    case DType::kFloat64: return compiled_for<Convert<double, T>>(isa);
    case DType::kBFloat16: return compiled_for<Convert<BFloat16, T>>(isa);
    default: return compiled_for<Convert<Float16, T>>(isa);
  }
}

template <typename T>
ConvertFn from_compute(DType to, Isa isa) {
  switch (to) {
    case DType::kFloat32: return compiled_for<Convert<T, float>>(isa);
    case DType::kFloat64: return compiled_for<Convert<T, double>>(isa);
    case DType::kBFloat16: return compiled_for<Convert<T, BFloat16>>(isa);
    default: return compiled_for<Convert<T, Float16>>(isa);
  }
}

template <typename T>
using TransformFn = void (*)(
    const GradTransform<T>* args, const double* means, int64_t row_length, int64_t at,
    const void* from, T* to, int64_t n);

template <typename T>
TransformFn<T> transform_for(DType from, Isa isa) {
  switch (from) {
    case DType::kFloat32: return compiled_for<TransformGrad<float, T>>(isa);
    case DType::kFloat64: return compiled_for<TransformGrad<double, T>>(isa);
    case DType::kBFloat16: return compiled_for<TransformGrad<BFloat16, T>>(isa);
    default: return compiled_for<TransformGrad<Float16, T>>(isa);
  }
}

template <typename T>
inline constexpr DType kComputeType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

// All 16-bit and 32-bit data is computed in float, float64 in double.
inline bool computes_in_double(DType dtype) { return dtype == DType::kFloat64; }

inline char* at_element(const Memory& memory, int64_t index) {
  return static_cast<char*>(memory.data) + index * element_size(memory.dtype);
}

}  // namespace fusedtricks::cpu
