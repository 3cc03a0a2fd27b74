// Sums over the threads of a block, in a fixed order.
#pragma once

#include "launch.h"
#include "table.h"

namespace fusedtricks::cuda {

inline constexpr uint32_t kWarp = 32;
inline constexpr uint32_t kWarps = kThreads / kWarp;

// Over groups of `width` lanes, a power of two; every lane of a group gets its sum. All lanes of
// the warp take part.
FT_DEVICE double group_sum(double value, uint32_t width) {
  for (uint32_t offset = width / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Over the block; every thread gets the sum.
FT_DEVICE double block_sum(double value) {
  __shared__ double of_warps[kWarps];
  value = group_sum(value, kWarp);
  // The last call's sums may still be read.
  __syncthreads();
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  for (uint32_t warp = 0; warp < kWarps; ++warp) sum += of_warps[warp];
  return sum;
}

// Whether this block is the last of the launch to call this.
//
// Note [Last block]
// Work that needs all blocks, adding up partial results and advancing step counts, is done by the
// block that finishes last, which saves a launch. It does not matter which one that is: what it
// does has a fixed order. The ticket is an integer and goes back to zero.
// Only what thread 0 of a block wrote is certain to be seen by the last block: a fence of all
// threads would make all of them wait for their stores.
FT_DEVICE bool is_last_block(uint32_t* ticket) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (is_last) *ticket = 0;
  }
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}

// The record that has item `index`: the last one whose first item is not beyond it. Empty tensors
// have the first item of their successor and are never found.
template <typename Args>
FT_DEVICE uint32_t find_record(const Args& args, uint32_t first_item_column, uint32_t index) {
  uint32_t low = 0, high = args.layout.n_records;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    const uint32_t first =
        args.table.template at<uint32_t>(args.layout.word_at(first_item_column, middle));
    if (first <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

FT_DEVICE double inverse_scale(const CommonHeader& header) {
  return header.grad_scale == nullptr ? 1.0 : 1.0 / *header.grad_scale;
}

}  // namespace fusedtricks::cuda
