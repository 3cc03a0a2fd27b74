// What the driver calls of the code that nvcc compiles. No torch header here nor there, so that
// nvcc takes seconds.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <vector>

#include "table.h"

namespace fusedtricks::cuda {

// Bytes that the table of a launch may have: 0 if the arguments are too large for it.
struct TableLimits {
  size_t small, large;
};
TableLimits update_limits();
TableLimits statistics_limits();

// Zeros on the current device for Note [Last block] in reduce.cuh, outside of torch's allocator.
inline constexpr int kTickets = 1024;
uint32_t* device_tickets();

// `algorithm` is a position in algorithms().
void launch_update(
    size_t algorithm, int n_states, bool in_double, const UpdateHeader& header,
    const std::vector<unsigned char>& table, unsigned n_blocks, cudaStream_t stream);

void launch_statistics(
    bool in_double, const StatisticsHeader& header, const std::vector<unsigned char>& table,
    unsigned n_blocks, cudaStream_t stream);

// totals: {squares, nonfinite} [n]
void launch_finalize(
    const double* totals, int n, bool clips, double max_norm, double* norm, double* coefficient,
    float* nonfinite, cudaStream_t stream);

}  // namespace fusedtricks::cuda
