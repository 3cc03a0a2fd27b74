// Who runs, who waits and who is next. For engine.cpp only.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <utility>

#include "engine.h"
#include "fiber.h"

namespace fusedtricks::shim {
namespace {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;

inline uint3 unravel(uint64_t i, dim3 shape) {
  const uint64_t row = i / shape.x;
  return {
      static_cast<unsigned>(i % shape.x), static_cast<unsigned>(row % shape.y),
      static_cast<unsigned>(row / shape.y)};
}

// xorshift64*, whose upper half is good enough to choose who runs next.
class Random {
 public:
  // Any seed gives a state that is not 0.
  void seed(uint64_t seed) { state_ = (seed + 1) * 0x9e3779b97f4a7c15u | 1; }

  uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
  }

  template <class T>
  void shuffle(T* values, size_t n) {
    for (size_t i = n; i > 1; --i) {
      std::swap(values[i - 1], values[(static_cast<uint64_t>(next()) * i) >> 32]);
    }
  }

 private:
  uint64_t state_ = 1;
};

// A bit that is set in `bits`, each with some probability.
inline unsigned choose_bit(uint32_t bits, unsigned random) {
  const int turn = random % 32;
  return (std::countr_zero(std::rotr(bits, turn)) + turn) % 32;
}

struct Thread {
  unsigned lane() const { return number % kWarpSize; }

  unsigned number;  // In the block, x fastest.
  uint3 index;
  Fiber* fiber;  // Null until the thread starts.
  // What it waits for, or waited for last.
  Op op;
  unsigned mask, source;
  uint64_t value, result;
  std::source_location where;
};

// Sets of lanes.
struct Warp {
  uint32_t alive, runnable, waiting;  // `waiting` at warp operations, not at the barrier.
  unsigned position;                  // In the order of this block.
};

}  // namespace
}  // namespace fusedtricks::shim
