// The kernels of all optimizers, and the choice among them.
#include <array>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "update.cuh"

namespace fusedtricks::cuda {
namespace {

using SmallArgs = UpdateArgs<kSmallArguments>;
using LargeArgs = UpdateArgs<kLargeArguments>;
static_assert(sizeof(SmallArgs) <= kSmallArguments && sizeof(LargeArgs) <= kLargeArguments);
static_assert(std::is_trivially_copyable_v<LargeArgs>);
using Launch = void (*)(
    const UpdateHeader& header, const std::vector<unsigned char>& table, unsigned n_blocks,
    cudaStream_t stream);

template <template <unsigned> class Functor, int kStates, bool kAverages, typename T, class Args>
void launch_with(
    const UpdateHeader& header, const std::vector<unsigned char>& table, unsigned n_blocks,
    cudaStream_t stream) {
  Args args;
  static_cast<UpdateHeader&>(args) = header;
  std::memcpy(args.table.bytes, table.data(), table.size());
  const auto kernel = &update_kernel<Functor, kStates, kAverages, T, Args>;
  FT_LAUNCH(kernel, n_blocks, kThreads, stream, args);
}

template <template <unsigned> class Functor, int kStates, bool kAverages>
void launch_sized(
    bool in_double, const UpdateHeader& header, const std::vector<unsigned char>& table,
    unsigned n_blocks, cudaStream_t stream) {
  const bool is_small = table.size() <= sizeof(SmallArgs::table);
  const Launch launch =
      in_double  ? is_small ? &launch_with<Functor, kStates, kAverages, double, SmallArgs>
                            : &launch_with<Functor, kStates, kAverages, double, LargeArgs>
      : is_small ? &launch_with<Functor, kStates, kAverages, float, SmallArgs>
                 : &launch_with<Functor, kStates, kAverages, float, LargeArgs>;
  launch(header, table, n_blocks, stream);
}

// Whether some variant of the optimizer has kStates states.
template <template <unsigned> class Functor, int kStates, unsigned kFlags = 0>
constexpr bool has_states() {
  if constexpr (kFlags == Variants<Functor, kStates>::kCount) {
    return false;
  } else {
    return Functor<kFlags>::kNumStates == kStates || has_states<Functor, kStates, kFlags + 1>();
  }
}

template <template <unsigned> class Functor, int kStates = 0>
void launch_optimizer(
    int n_states, bool in_double, const UpdateHeader& header,
    const std::vector<unsigned char>& table, unsigned n_blocks, cudaStream_t stream) {
  if constexpr (has_states<Functor, kStates>()) {
    if (n_states == kStates) {
      const auto launch = header.has_average ? &launch_sized<Functor, kStates, true>
                                             : &launch_sized<Functor, kStates, false>;
      launch(in_double, header, table, n_blocks, stream);
      return;
    }
  }
  if constexpr (kStates < kMaxStates) {
    launch_optimizer<Functor, kStates + 1>(n_states, in_double, header, table, n_blocks, stream);
  }
}

}  // namespace

TableLimits update_limits() { return {sizeof(SmallArgs::table), sizeof(LargeArgs::table)}; }

void launch_update(
    size_t algorithm, int n_states, bool in_double, const UpdateHeader& header,
    const std::vector<unsigned char>& table, unsigned n_blocks, cudaStream_t stream) {
  using LaunchOptimizer = decltype(&launch_optimizer<Sgd>);
  static constexpr std::array kLaunchers{
#define FT_LAUNCHER(Functor) static_cast<LaunchOptimizer>(&launch_optimizer<Functor>),
      FT_FOR_EACH_OPTIMIZER(FT_LAUNCHER)
#undef FT_LAUNCHER
  };
  kLaunchers.at(algorithm)(n_states, in_double, header, table, n_blocks, stream);
}

}  // namespace fusedtricks::cuda
