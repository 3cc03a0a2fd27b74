#include "driver.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "table.h"

namespace fusedtricks::cuda {

// Concurrent replays of captured graphs must not share a ticket with eager steps, so that a graph
// has its own, set to zero by each replay.
at::Tensor ticket(const DeviceScope& scope, c10::Device device) {
  const auto make = [&] { return at::zeros({1}, at::TensorOptions(at::kInt).device(device)); };
  if (scope.is_capturing()) return make();
  // Never destroyed, because CUDA may be gone before static objects are.
  static auto& of_streams = *new std::map<std::pair<int64_t, int64_t>, at::Tensor>;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  at::Tensor& mine = of_streams[{device.index(), scope.stream_id()}];
  if (!mine.defined()) mine = make();
  return mine;
}

at::Tensor on_device(const at::Tensor& tensor, c10::Device device, at::ScalarType dtype) {
  if (tensor.device() == device && tensor.scalar_type() == dtype) return tensor;
  return tensor.to(tensor.options().device(device).dtype(dtype), /*non_blocking=*/true);
}

unsigned count_blocks(const DeviceScope& scope, int64_t n_items) {
  int64_t n_blocks = n_items;
  if (tunables().blocks_per_sm > 0) {
    n_blocks = std::min(n_blocks, tunables().blocks_per_sm * scope.n_multiprocessors());
  }
  return static_cast<unsigned>(std::max<int64_t>(n_blocks, 1));
}

size_t table_limit(size_t limit) {
  const int64_t header = kLargeArguments - static_cast<int64_t>(limit);
  return std::max<int64_t>(tunables().table_bytes - header, 256);
}

}  // namespace fusedtricks::cuda
