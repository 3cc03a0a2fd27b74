#include "driver.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "kernels.h"

namespace fusedtricks::cuda {

Ticket::Ticket(const DeviceScope& scope, c10::Device device) {
  // One for each stream, whose launches wait for each other. Concurrent replays of captured graphs
  // must not share one with eager steps: a graph has its own, set to zero by each replay. The
  // others are not torch's memory, because an allocation that outlives a call would be taken for a
  // leak where torch.compile records graphs.
  if (!scope.is_capturing()) {
    static std::map<std::pair<int64_t, int64_t>, int> slots;
    static std::map<int64_t, int> used;
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [slot, is_new] = slots.try_emplace({device.index(), scope.stream_id()}, 0);
    if (is_new) slot->second = used[device.index()]++;
    uint32_t* const all = device_tickets();
    if (slot->second < kTickets && all != nullptr) {
      address_ = all + slot->second;
      return;
    }
  }
  kept_ = at::zeros({1}, at::TensorOptions(at::kInt).device(device));
  address_ = static_cast<uint32_t*>(kept_.mutable_data_ptr());
}

at::Tensor on_device(const at::Tensor& tensor, c10::Device device, at::ScalarType dtype) {
  if (tensor.device() == device && tensor.scalar_type() == dtype) return tensor;
  return tensor.to(tensor.options().device(device).dtype(dtype), /*non_blocking=*/true);
}

HostScalar make_limit(std::optional<double> clip_value) {
  return HostScalar::of(clip_value.value_or(std::numeric_limits<double>::infinity()));
}

unsigned count_blocks(const DeviceScope& scope, int64_t n_items) {
  int64_t n_blocks = n_items;
  if (tunables().blocks_per_sm > 0) {
    n_blocks = std::min(n_blocks, tunables().blocks_per_sm * scope.n_multiprocessors());
  }
  return static_cast<unsigned>(std::max<int64_t>(n_blocks, 1));
}

size_t table_limit(const DeviceScope& scope, TableLimits limits) {
  if (!scope.takes_large_arguments()) return limits.small;
  const int64_t header = kLargeArguments - static_cast<int64_t>(limits.large);
  return std::max<int64_t>(tunables().table_bytes - header, 256);
}

}  // namespace fusedtricks::cuda
