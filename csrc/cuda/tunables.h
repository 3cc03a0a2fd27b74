// What may be tuned for a device without changing a result (norms and means change by roundings).
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace fusedtricks::cuda {

struct Tunables {
  // Elements of a block's share. 8,192 are four packs per thread: ResNet-50 gives 3,120 items, six
  // rounds of the 396 blocks that an H100 runs at a time, so the last round idles little, and
  // 230 KB of traffic hide what a block does before its first load.
  int64_t update_item = 8192;
  int64_t statistics_item = 16384;
  // Blocks per multiprocessor of a persistent grid; 0: a block for every item, so that the hardware
  // balances them.
  int64_t blocks_per_sm = 0;
  int64_t backward = 1;  // Note [Backward walk]
  // Kernel arguments of a launch; lowered by tests and measurements only.
  int64_t table_bytes = 32764;
  // Larger tensors are split; lowered by tests only.
  int64_t record_elements = int64_t{1} << 30;
};

const Tunables& tunables();
std::map<std::string, int64_t> get_tunables();
// Throws std::invalid_argument for unknown names and impossible values.
void set_tunables(const std::map<std::string, int64_t>& changes);

}  // namespace fusedtricks::cuda
