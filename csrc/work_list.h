// Cuts tensors into work items of about equal size, independent of the number of threads.
//
// Note [Deterministic reductions]
// Where the cuts lie depends on shapes alone. Each item reduces its elements in a fixed order and
// leaves one partial result; the partial results are then added in the order of the items. So a
// norm or a row mean has the same bits for every number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fusedtricks {

// 64 K elements are 256 KiB of each fp32 stream: long enough for the hardware prefetchers, which
// start anew with every item (16 K cost 4 to 6 % of a combined step), short enough that ResNet-50
// gives 500 items and no thread waits long for the last one.
inline constexpr int64_t kItemElements = 65536;
// Inner cuts stay on multiples of a cache line for every dtype.
inline constexpr int64_t kCutAlignment = 64;

struct Extent {
  int64_t numel;
  int64_t row_length;  // 0: the rows do not matter and the tensor may be cut anywhere
};

struct WorkItem {
  int64_t tensor;
  int64_t begin, end;  // elements of the tensor
};

struct WorkList {
  std::vector<WorkItem> items;
  std::vector<int64_t> units;  // unit u is items [units[u], units[u + 1]); a thread takes a unit
  int64_t elements = 0;
  int64_t n_units() const { return static_cast<int64_t>(units.size()) - 1; }
};

namespace detail {

inline void cut(int64_t tensor, int64_t begin, int64_t end, int64_t step, WorkList& list) {
  for (int64_t at = begin; at < end; at += step) {
    list.items.push_back({tensor, at, std::min(at + step, end)});
  }
}

inline int64_t even_step(int64_t length) {
  const int64_t n_pieces = (length + kItemElements - 1) / kItemElements;
  const int64_t step = (length + n_pieces - 1) / n_pieces;
  return (step + kCutAlignment - 1) / kCutAlignment * kCutAlignment;
}

}  // namespace detail

// An item holds whole rows, or a piece of one row when the row is longer than an item.
inline WorkList make_work_list(const std::vector<Extent>& extents) {
  WorkList list;
  int64_t expected = 0;
  for (const Extent& extent : extents) expected += extent.numel / kItemElements + 1;
  list.items.reserve(expected);
  for (size_t i = 0; i < extents.size(); ++i) {
    const auto [numel, row_length] = extents[i];
    const auto tensor = static_cast<int64_t>(i);
    if (numel == 0) continue;
    list.elements += numel;
    if (row_length == 0) {
      detail::cut(tensor, 0, numel, detail::even_step(numel), list);
    } else if (row_length <= kItemElements) {
      detail::cut(tensor, 0, numel, kItemElements / row_length * row_length, list);
    } else {
      const int64_t step = detail::even_step(row_length);
      for (int64_t row = 0; row < numel; row += row_length) {
        detail::cut(tensor, row, row + row_length, step, list);
      }
    }
  }
  // Small neighbours share a unit, so that 2,000 tiny tensors do not cost 2,000 atomic additions.
  int64_t filled = 0;
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (filled == 0) list.units.push_back(static_cast<int64_t>(i));
    filled += list.items[i].end - list.items[i].begin;
    if (filled >= kItemElements / 2) filled = 0;
  }
  list.units.push_back(static_cast<int64_t>(list.items.size()));
  return list;
}

}  // namespace fusedtricks
