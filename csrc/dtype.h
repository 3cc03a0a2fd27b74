// The element types that the drivers take, and their conversions, without any torch header.
//
// The conversions use integer operations and exact additions only, so that compilers vectorise
// them for every instruction set and all of them give the same bits. Rounding is to nearest even.
// A GPU has instructions for them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "macros.h"

namespace fusedtricks {

enum class DType : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

namespace detail {
template <typename To, typename From>
FT_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace detail

FT_HOST_DEVICE float to_float(float x) { return x; }
FT_HOST_DEVICE float to_float(BFloat16 x) {
  return detail::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
FT_HOST_DEVICE float to_float(Float16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  // Exponent bias 15 -> 127. Infinity and NaN move up by the same amount once more.
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t special = magnitude + (224u << 23);
  // A subnormal m * 2^-24 is the fraction of 2^-14 * (1 + m / 1024) above 2^-14: exact, and no
  // subnormal float appears that a flush-to-zero mode could swallow.
  const uint32_t subnormal = detail::bit_cast<uint32_t>(
      detail::bit_cast<float>(magnitude + (113u << 23)) - detail::bit_cast<float>(113u << 23));
  uint32_t bits = magnitude < (1u << 23) ? subnormal : normal;
  bits = magnitude >= (31u << 23) ? special : bits;
  return detail::bit_cast<float>(bits | sign);
#endif
}

FT_HOST_DEVICE BFloat16 to_bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  BFloat16 value;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
  return value;
#else
  const uint32_t bits = detail::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded)};
#endif
}
FT_HOST_DEVICE Float16 to_float16(float x) {
#if defined(__CUDA_ARCH__)
  Float16 rounded;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
  return rounded;
#else
  const uint32_t bits = detail::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // One unit in the last place of 0.5f is 2^-24, the smallest subnormal: the addition rounds.
  const uint32_t subnormal =
      detail::bit_cast<uint32_t>(detail::bit_cast<float>(magnitude) + 0.5f) - (126u << 23);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= (143u << 23) ? special : result;
  return {static_cast<uint16_t>(result | sign)};
#endif
}

// convert<To>(from), by way of float for the 16-bit types.
template <typename To, typename From>
FT_HOST_DEVICE To convert(From from) {
  if constexpr (sizeof(From) == 2) {
    return convert<To>(to_float(from));
  } else if constexpr (sizeof(To) == 2) {
    const auto x = static_cast<float>(from);
    if constexpr (std::is_same_v<To, BFloat16>) {
      return to_bfloat16(x);
    } else {
      return to_float16(x);
    }
  } else {
    return static_cast<To>(from);
  }
}

}  // namespace fusedtricks
