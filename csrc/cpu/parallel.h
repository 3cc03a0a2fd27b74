// One parallel region over a work list; threads take units as they become free.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>

#include "../work_list.h"

namespace fusedtricks::cpu {

// Below this many elements, waking other threads costs more than the work (about 5 us of waking
// against 32 K elements * 28 bytes at 20 GB/s = 45 us on one thread).
inline constexpr int64_t kSerialElements = 32768;

// Calls work(item, index) once for every item. A static split would wait for the slowest thread
// whenever another program takes a core; here the others take over its share.
template <class Work>
void for_each_item(const WorkList& list, const Work& work) {
  const auto run_unit = [&](int64_t unit) {
    for (int64_t i = list.units[unit]; i < list.units[unit + 1]; ++i) work(list.items[i], i);
  };
  const int64_t n_units = list.n_units();
  const int64_t n_threads = std::min<int64_t>(at::get_num_threads(), n_units);
  if (list.elements <= kSerialElements || n_threads <= 1) {
    for (int64_t unit = 0; unit < n_units; ++unit) run_unit(unit);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, n_threads, 1, [&](int64_t, int64_t) {
    for (int64_t unit = next++; unit < n_units; unit = next++) run_unit(unit);
  });
}

}  // namespace fusedtricks::cpu
