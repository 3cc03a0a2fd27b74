// Fetching the objects of tensors, not their data, into the cache before they are used.
//
// Note [Cold caches]
// After a forward and backward pass nothing that a step walks is in the cache, and its objects are
// small and far apart: 35 cache lines per parameter, each of them a wait. So they are fetched ahead
// in two rounds, the objects and then what they point to. It saves a sixth of a cold step's time
// before the update (bench/bench_host.py).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

namespace fusedtricks {

inline constexpr size_t kAheadContents = 4;
inline constexpr size_t kAheadObjects = 8;

inline void prefetch(const void* object, int n_lines) {
  for (int line = 0; line < n_lines; ++line) {
    __builtin_prefetch(static_cast<const char*>(object) + 64 * line);
  }
}

inline void prefetch_object(const at::TensorImpl* tensor) { prefetch(tensor, 3); }

inline void prefetch_contents(const at::TensorImpl* tensor) {
  prefetch(tensor->unsafe_storage().unsafeGetStorageImpl(), 2);
  prefetch(tensor->autograd_meta(), 2);
}

}  // namespace fusedtricks
