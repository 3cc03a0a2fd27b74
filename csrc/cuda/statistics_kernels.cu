#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "statistics.cuh"

namespace fusedtricks::cuda {
namespace {

using SmallArgs = StatisticsArgs<kSmallArguments>;
using LargeArgs = StatisticsArgs<kLargeArguments>;
static_assert(sizeof(SmallArgs) <= kSmallArguments && sizeof(LargeArgs) <= kLargeArguments);
static_assert(std::is_trivially_copyable_v<LargeArgs>);

__device__ uint32_t tickets[kTickets];

template <typename T, class Args>
void launch_with(
    const StatisticsHeader& header, const std::vector<unsigned char>& table, unsigned n_blocks,
    cudaStream_t stream) {
  Args args;
  static_cast<StatisticsHeader&>(args) = header;
  std::memcpy(args.table.bytes, table.data(), table.size());
  const auto kernel = &statistics_kernel<T, Args>;
  FT_LAUNCH(kernel, n_blocks, kThreads, stream, args);
}

}  // namespace

uint32_t* device_tickets() {
  void* address = nullptr;
  return cudaGetSymbolAddress(&address, tickets) == cudaSuccess ? static_cast<uint32_t*>(address)
                                                                : nullptr;
}

TableLimits statistics_limits() { return {sizeof(SmallArgs::table), sizeof(LargeArgs::table)}; }

void launch_statistics(
    bool in_double, const StatisticsHeader& header, const std::vector<unsigned char>& table,
    unsigned n_blocks, cudaStream_t stream) {
  const bool is_small = table.size() <= sizeof(SmallArgs::table);
  const auto launch =
      in_double  ? is_small ? &launch_with<double, SmallArgs> : &launch_with<double, LargeArgs>
      : is_small ? &launch_with<float, SmallArgs>
                 : &launch_with<float, LargeArgs>;
  launch(header, table, n_blocks, stream);
}

void launch_finalize(
    const double* totals, int n, bool clips, double max_norm, double* norm, double* coefficient,
    float* nonfinite, cudaStream_t stream) {
  FT_LAUNCH(
      finalize_kernel, 1, 1, stream, totals, n, clips, max_norm, norm, coefficient, nonfinite);
}

}  // namespace fusedtricks::cuda
