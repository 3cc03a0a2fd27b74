// The part of CUDA C++ that the project's kernels use, for g++ and the CPU. Test-only: put this
// folder before the toolkit's with -I and link engine.cpp, which explains how it works.
#pragma once

// libstdc++ spells an attribute `__noinline__`: the headers that do come before the macro.
#include <math.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>

#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
// One instance per thread of the operating system, and one such thread runs a whole launch; see
// Note [Shared memory] in shared_memory.h. `alignas` stands before `__shared__`, as nvcc allows.
#define __shared__ static thread_local

// `kernel` is a name, a function pointer, or a template instance in parentheses.
#define FT_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream),                       \
   ::fusedtricks::shim::launch(#kernel, kernel, grid, block __VA_OPT__(, ) __VA_ARGS__))

#define FT_SHIM_VECTOR(name, T, alignment2, alignment4)                             \
  struct alignas(alignment2) name##2 { T x, y; };                                   \
  struct alignas(alignment4) name##4 { T x, y, z, w; };                             \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                 \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; } \
  static_assert(sizeof(name##2) == 2 * sizeof(T) && sizeof(name##4) == 4 * sizeof(T), "")
FT_SHIM_VECTOR(char, signed char, 2, 4);
FT_SHIM_VECTOR(uchar, unsigned char, 2, 4);
FT_SHIM_VECTOR(short, short, 4, 8);
FT_SHIM_VECTOR(ushort, unsigned short, 4, 8);
FT_SHIM_VECTOR(int, int, 8, 16);
FT_SHIM_VECTOR(uint, unsigned, 8, 16);
FT_SHIM_VECTOR(float, float, 8, 16);
FT_SHIM_VECTOR(longlong, long long, 16, 16);
FT_SHIM_VECTOR(ulonglong, unsigned long long, 16, 16);
FT_SHIM_VECTOR(double, double, 16, 16);
#undef FT_SHIM_VECTOR

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
// Errors of a launch are C++ exceptions here.
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <typename T>
static inline cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  *address = &symbol;
  return cudaSuccess;
}
static inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

static const uint3& threadIdx = fusedtricks::shim::thread_index;
static const uint3& blockIdx = fusedtricks::shim::block_index;
static const dim3& blockDim = fusedtricks::shim::block_dim;
static const dim3& gridDim = fusedtricks::shim::grid_dim;
static constexpr int warpSize = 32;

namespace fusedtricks::shim {

// The largest parameter list of a kernel from sm_70 and CUDA 12.1 on.
constexpr size_t kMaxParameterBytes = 32764;

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, Args&&... args) {
  static_assert((sizeof(Params) + ... + 0) <= kMaxParameterBytes, "too large for parameters");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "copied to the device byte by byte");
  using Values = std::tuple<void (*)(Params...), Params...>;
  const Values values(kernel, static_cast<Params>(args)...);
  const auto body = [](const void* p) {
    std::apply([](auto f, const auto&... v) { f(v...); }, *static_cast<const Values*>(p));
  };
  run_grid(name, grid, block, body, &values);
}

template <class T>
T shuffle(Op op, unsigned mask, T value, unsigned source, const std::source_location& where) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_op(op, mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// First lane of the group of `width` lanes that the running lane belongs to.
inline unsigned group_start(int width, const std::source_location& where) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("the width of a shuffle is not a power of two of at most 32", where);
  }
  return lane_index() & ~(static_cast<unsigned>(width) - 1);
}

}  // namespace fusedtricks::shim

#define FT_SHIM_HERE const std::source_location& here = std::source_location::current()

static inline void __syncthreads(FT_SHIM_HERE) { fusedtricks::shim::block_barrier(false, here); }
static inline int __syncthreads_count(int predicate, FT_SHIM_HERE) {
  return fusedtricks::shim::block_barrier(predicate != 0, here);
}
static inline int __syncthreads_or(int predicate, FT_SHIM_HERE) {
  return fusedtricks::shim::block_barrier(predicate != 0, here) != 0;
}
static inline int __syncthreads_and(int predicate, FT_SHIM_HERE) {
  return fusedtricks::shim::block_barrier(predicate == 0, here) == 0;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, FT_SHIM_HERE) {
  fusedtricks::shim::warp_op(fusedtricks::shim::Op::warp_sync, mask, 0, 0, here);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, FT_SHIM_HERE) {
  using namespace fusedtricks::shim;
  return static_cast<unsigned>(warp_op(Op::vote, mask, predicate != 0, 0, here));
}
static inline int __any_sync(unsigned mask, int predicate, FT_SHIM_HERE) {
  return __ballot_sync(mask, predicate, here) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, FT_SHIM_HERE) {
  return __ballot_sync(mask, predicate == 0, here) == 0;
}

// The source lanes follow the PTX reference of `shfl.sync`: only the low five bits of the distance
// count, and a lane whose source lies outside its group keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FT_SHIM_HERE) {
  const unsigned start = fusedtricks::shim::group_start(width, here);
  const unsigned from = start + (static_cast<unsigned>(source) & (width - 1));
  return fusedtricks::shim::shuffle(fusedtricks::shim::Op::shfl, mask, value, from, here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FT_SHIM_HERE) {
  const unsigned lane = fusedtricks::shim::lane_index();
  const unsigned start = fusedtricks::shim::group_start(width, here);
  const unsigned from = lane >= start + (delta & 31) ? lane - (delta & 31) : lane;
  return fusedtricks::shim::shuffle(fusedtricks::shim::Op::shfl_up, mask, value, from, here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FT_SHIM_HERE) {
  const unsigned lane = fusedtricks::shim::lane_index();
  const unsigned end = fusedtricks::shim::group_start(width, here) + width;
  const unsigned from = lane + (delta & 31) < end ? lane + (delta & 31) : lane;
  return fusedtricks::shim::shuffle(fusedtricks::shim::Op::shfl_down, mask, value, from, here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, FT_SHIM_HERE) {
  const unsigned lane = fusedtricks::shim::lane_index();
  const unsigned end = fusedtricks::shim::group_start(width, here) + width;
  const unsigned other = lane ^ (static_cast<unsigned>(lane_mask) & 31);
  const unsigned from = other < end ? other : lane;
  return fusedtricks::shim::shuffle(fusedtricks::shim::Op::shfl_xor, mask, value, from, here);
}
#undef FT_SHIM_HERE

static inline void __threadfence() {}
static inline void __threadfence_block() {}

// Blocks run one after another and a thread runs until it waits, so plain accesses are atomic.
#define FT_SHIM_ATOMIC(name, expression)              \
  template <class T>                                  \
    requires std::is_arithmetic_v<T>                  \
  T name(T* address, std::type_identity_t<T> value) { \
    const T old = *address;                           \
    *address = expression;                            \
    return old;                                       \
  }                                                   \
  static_assert(true)
FT_SHIM_ATOMIC(atomicAdd, old + value);
FT_SHIM_ATOMIC(atomicExch, value);
FT_SHIM_ATOMIC(atomicMin, value < old ? value : old);
FT_SHIM_ATOMIC(atomicMax, value > old ? value : old);
FT_SHIM_ATOMIC(atomicOr, old | value);
FT_SHIM_ATOMIC(atomicInc, old >= value ? 0 : old + 1);
#undef FT_SHIM_ATOMIC

#define FT_SHIM_CACHE_HINT(kind)   \
  template <class T>               \
  T __ld##kind(const T* address) { \
    return *address;               \
  }                                \
  static_assert(true)
FT_SHIM_CACHE_HINT(g);
FT_SHIM_CACHE_HINT(cs);
FT_SHIM_CACHE_HINT(cg);
FT_SHIM_CACHE_HINT(ca);
FT_SHIM_CACHE_HINT(lu);
FT_SHIM_CACHE_HINT(cv);
#undef FT_SHIM_CACHE_HINT

#define FT_SHIM_CACHE_HINT(kind)                                      \
  template <class T>                                                  \
  void __st##kind(T* address, const std::type_identity_t<T>& value) { \
    *address = value;                                                 \
  }                                                                   \
  static_assert(true)
FT_SHIM_CACHE_HINT(cs);
FT_SHIM_CACHE_HINT(cg);
FT_SHIM_CACHE_HINT(wb);
FT_SHIM_CACHE_HINT(wt);
#undef FT_SHIM_CACHE_HINT

static inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
static inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
static inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
static inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
static inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
static inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }

static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline int __popc(unsigned v) { return std::popcount(v); }
static inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
static inline int __ffs(int v) {
  return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1;
}

// Rounding is to nearest even everywhere; build with -ffp-contract=off for the `_rn` functions,
// which nvcc never fuses.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return std::sqrt(a); }
static inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// The overloads of CUDA's math_functions.hpp: no template, so that none is ambiguous with std's.
#define FT_SHIM_MIN_MAX(A, B)                            \
  static inline std::common_type_t<A, B> min(A a, B b) { \
    return std::min<std::common_type_t<A, B>>(a, b);     \
  }                                                      \
  static inline std::common_type_t<A, B> max(A a, B b) { \
    return std::max<std::common_type_t<A, B>>(a, b);     \
  }                                                      \
  static_assert(true)
FT_SHIM_MIN_MAX(int, int);
FT_SHIM_MIN_MAX(unsigned, unsigned);
FT_SHIM_MIN_MAX(int, unsigned);
FT_SHIM_MIN_MAX(unsigned, int);
FT_SHIM_MIN_MAX(long, long);
FT_SHIM_MIN_MAX(unsigned long, unsigned long);
FT_SHIM_MIN_MAX(long, unsigned long);
FT_SHIM_MIN_MAX(unsigned long, long);
FT_SHIM_MIN_MAX(long long, long long);
FT_SHIM_MIN_MAX(unsigned long long, unsigned long long);
FT_SHIM_MIN_MAX(long long, unsigned long long);
FT_SHIM_MIN_MAX(unsigned long long, long long);
#undef FT_SHIM_MIN_MAX
// Like fminf and fmaxf, a number beats NaN.
static inline float min(float a, float b) { return std::fmin(a, b); }
static inline float max(float a, float b) { return std::fmax(a, b); }
static inline double min(double a, double b) { return std::fmin(a, b); }
static inline double max(double a, double b) { return std::fmax(a, b); }
static inline double min(float a, double b) { return std::fmin(a, b); }
static inline double max(float a, double b) { return std::fmax(a, b); }
static inline double min(double a, float b) { return std::fmin(a, b); }
static inline double max(double a, float b) { return std::fmax(a, b); }
static inline unsigned umin(unsigned a, unsigned b) { return std::min(a, b); }
static inline unsigned umax(unsigned a, unsigned b) { return std::max(a, b); }
