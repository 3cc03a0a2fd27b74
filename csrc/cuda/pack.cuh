// Between memory and registers: the elements that one thread handles at a time.
//
// A kernel that computes in float takes float32, bfloat16 and float16 streams; one that computes in
// double takes float64 only, so that no float64 instruction gets into the other. The host stages
// mixtures.
#pragma once

#include <type_traits>

#include "../dtype.h"
#include "launch.h"

namespace fusedtricks::cuda {

// 32 bytes of compute type, so that fp32 takes two accesses of 16 bytes and 16-bit data takes one.
template <typename T>
inline constexpr uint32_t kPack = 32 / sizeof(T);

// Which elements a thread has: base, base + stride, ... below end.
struct Lanes {
  uint32_t base, stride, end;
  bool full;  // stride is 1, all kPack are below end and every access may take 16 bytes

  FT_DEVICE uint32_t index(uint32_t k) const { return base + k * stride; }
  FT_DEVICE bool has(uint32_t k) const { return index(k) < end; }
};

// The pack of `thread` in the tile of `n_threads` packs that begins at `tile`. Where accesses of 16
// bytes are possible, a thread has neighbours, else a warp has.
template <typename T>
FT_DEVICE Lanes
lanes_of(uint32_t tile, uint32_t end, uint32_t thread, uint32_t n_threads, bool is_aligned) {
  if (!is_aligned) return {tile + thread, n_threads, end, false};
  const uint32_t base = tile + thread * kPack<T>;
  return {base, 1, end, base + kPack<T> <= end};
}

FT_DEVICE uint32_t word_of(const uint4& quad, int index) {
  return index == 0 ? quad.x : index == 1 ? quad.y : index == 2 ? quad.z : quad.w;
}

// The bits of a full pack, 16 bytes each. Separate from decoding, so that the loads of all streams
// are under way before the first is waited for. (Doubles by way of integers would be loaded with
// 8 bytes at a time on sm_100.)
template <typename T>
struct RawPack {
  std::conditional_t<sizeof(T) == sizeof(double), double2, uint4> parts[2];
};

FT_DEVICE uint64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

FT_DEVICE void load_raw(const void* data, DType dtype, uint32_t index, RawPack<float>& raw) {
  const auto* const parts =
      reinterpret_cast<const uint4*>(static_cast<const char*>(data) + element_bytes(dtype) * index);
  raw.parts[0] = parts[0];
  if (dtype == DType::kFloat32) raw.parts[1] = parts[1];
}

FT_DEVICE void load_raw(const void* data, DType, uint32_t index, RawPack<double>& raw) {
  const auto* const parts =
      reinterpret_cast<const double2*>(static_cast<const double*>(data) + index);
  raw.parts[0] = parts[0];
  raw.parts[1] = parts[1];
}

template <typename Stored>
FT_DEVICE void decode_halves(const uint4& quad, float (&values)[kPack<float>]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = word_of(quad, i);
    values[2 * i] = to_float(Stored{static_cast<uint16_t>(word)});
    values[2 * i + 1] = to_float(Stored{static_cast<uint16_t>(word >> 16)});
  }
}

FT_DEVICE void decode(const RawPack<float>& raw, DType dtype, float (&values)[kPack<float>]) {
  if (dtype == DType::kFloat32) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[i] = detail::bit_cast<float>(word_of(raw.parts[i / 4], i % 4));
    }
  } else if (dtype == DType::kBFloat16) {
    decode_halves<BFloat16>(raw.parts[0], values);
  } else {
    decode_halves<Float16>(raw.parts[0], values);
  }
}

FT_DEVICE void decode(const RawPack<double>& raw, DType, double (&values)[kPack<double>]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    values[2 * i] = raw.parts[i].x;
    values[2 * i + 1] = raw.parts[i].y;
  }
}

FT_DEVICE uint4 quad_of(const uint32_t* words) {
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename Stored>
FT_DEVICE uint32_t encode_pair(float low, float high) {
  return convert<Stored>(low).bits | static_cast<uint32_t>(convert<Stored>(high).bits) << 16;
}

FT_DEVICE void store_raw(void* data, DType dtype, uint32_t index, const float* values) {
  auto* const quads =
      reinterpret_cast<uint4*>(static_cast<char*>(data) + element_bytes(dtype) * index);
  uint32_t words[8];
  if (dtype == DType::kFloat32) {
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = detail::bit_cast<uint32_t>(values[i]);
    quads[1] = quad_of(words + 4);
  } else if (dtype == DType::kBFloat16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = encode_pair<BFloat16>(values[2 * i], values[2 * i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = encode_pair<Float16>(values[2 * i], values[2 * i + 1]);
    }
  }
  quads[0] = quad_of(words);
}

FT_DEVICE void store_raw(void* data, DType, uint32_t index, const double* values) {
  auto* const parts = reinterpret_cast<double2*>(static_cast<double*>(data) + index);
  parts[0] = make_double2(values[0], values[1]);
  parts[1] = make_double2(values[2], values[3]);
}

template <typename Stored, typename T>
FT_DEVICE void load_each(const void* data, const Lanes& lanes, T (&values)[kPack<T>]) {
  Stored stored[kPack<T>];
#pragma unroll
  for (uint32_t k = 0; k < kPack<T>; ++k) {
    stored[k] = lanes.has(k) ? static_cast<const Stored*>(data)[lanes.index(k)] : Stored{};
  }
#pragma unroll
  for (uint32_t k = 0; k < kPack<T>; ++k) values[k] = convert<T>(stored[k]);
}

template <typename Stored, typename T>
FT_DEVICE void store_each(void* data, const Lanes& lanes, const T (&values)[kPack<T>]) {
#pragma unroll
  for (uint32_t k = 0; k < kPack<T>; ++k) {
    if (lanes.has(k)) static_cast<Stored*>(data)[lanes.index(k)] = convert<Stored>(values[k]);
  }
}

// The general case: any alignment; elements beyond the end read as zero.
template <typename T>
FT_DEVICE void load_scalars(
    const void* data, DType dtype, const Lanes& lanes, T (&values)[kPack<T>]) {
  if constexpr (sizeof(T) == 8) {
    load_each<double>(data, lanes, values);
  } else if (dtype == DType::kFloat32) {
    load_each<float>(data, lanes, values);
  } else if (dtype == DType::kBFloat16) {
    load_each<BFloat16>(data, lanes, values);
  } else {
    load_each<Float16>(data, lanes, values);
  }
}

template <typename T>
FT_DEVICE void store_scalars(
    void* data, DType dtype, const Lanes& lanes, const T (&values)[kPack<T>]) {
  if constexpr (sizeof(T) == 8) {
    store_each<double>(data, lanes, values);
  } else if (dtype == DType::kFloat32) {
    store_each<float>(data, lanes, values);
  } else if (dtype == DType::kBFloat16) {
    store_each<BFloat16>(data, lanes, values);
  } else {
    store_each<Float16>(data, lanes, values);
  }
}

template <typename T>
FT_DEVICE void store(void* data, DType dtype, const Lanes& lanes, const T (&values)[kPack<T>]) {
  if (lanes.full) {
    store_raw(data, dtype, lanes.base, values);
  } else {
    store_scalars(data, dtype, lanes, values);
  }
}

}  // namespace fusedtricks::cuda
