// The metadata of one launch, passed to the kernel by value.
//
// Note [Tables by value]
// A kernel's arguments may be 32,764 bytes, which live in constant memory: no allocation, no copy,
// nothing to keep alive, and a captured graph owns its own. A launch takes 561 tensors with AdamW's
// five pointers; more take more launches. Small launches use a small table, because all of it is
// copied whatever it holds. The table is
//   groups   [n_groups]     GroupEntry
//   pointers [k][n_records] 8 bytes each
//   words    [k][n_records] 4 bytes each
//   halves   [n_records]    2 bytes each
// with columns one after the other, so that nothing is lost to alignment. A record is a tensor, or
// a part of one with more than kMaxRecordElements, so that kernels count elements in 32 bits.
#pragma once

#include <cstdint>

#include "../algorithms.h"
#include "../dtype.h"

namespace fusedtricks::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kSmallArguments = 4096;
inline constexpr int kLargeArguments = 32764;
// A multiple of every work item, so that a part begins where an item would.
inline constexpr int64_t kMaxRecordElements = int64_t{1} << 30;
// A longer row is summed in pieces; see Note [Float sums] in statistics.cuh.
inline constexpr int64_t kMaxRowItem = 65536;
inline constexpr uint32_t kNone = 0xffffffffu;

struct GroupEntry {
  double lr;
  const void* device_lr;  // replaces lr if not null
  double hyper[kMaxHyper];
  uint16_t flags;
  bool device_lr_is_double;
  bool maximizes;
};

// Where the columns are. Counts and offsets in bytes.
struct TableLayout {
  uint32_t n_records, n_groups, n_pointers, n_words;

  FT_HOST_DEVICE uint32_t pointer_at(uint32_t column, uint32_t record) const {
    return n_groups * static_cast<uint32_t>(sizeof(GroupEntry)) + 8 * (column * n_records + record);
  }
  FT_HOST_DEVICE uint32_t word_at(uint32_t column, uint32_t record) const {
    return pointer_at(n_pointers, 0) + 4 * (column * n_records + record);
  }
  FT_HOST_DEVICE uint32_t half_at(uint32_t record) const {
    return word_at(n_words, 0) + 2 * record;
  }
  FT_HOST_DEVICE uint32_t bytes() const { return half_at(n_records); }
};

template <int kBytes>
struct Table {
  alignas(8) unsigned char bytes[kBytes];

  template <typename T>
  FT_HOST_DEVICE const T& at(uint32_t offset) const {
    return *reinterpret_cast<const T*>(bytes + offset);
  }
};

// A number of the host in both types, because a compiler may put off a conversion until it stands
// in the hot loop.
struct HostScalar {
  double as_double;
  float as_float;

  static HostScalar of(double value) { return {value, static_cast<float>(value)}; }

  template <typename T>
  FT_HOST_DEVICE T as() const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return as_double;
    } else {
      return as_float;
    }
  }
};

// What a launch needs beside its table. Each sweep adds its own.
struct CommonHeader {
  TableLayout layout;
  uint32_t n_items;
  const float* grad_scale;  // null: 1
  HostScalar limit;         // clip by value, +inf when off
  uint32_t* ticket;         // 0, and 0 again after the launch
};

// Columns of the update sweep. The states follow kStates; then, if there are any, the averages, the
// 16-bit model copies and the step counts.
namespace update_column {
enum Pointer : uint32_t { kGrad, kParam, kStates };
enum Word : uint32_t { kNumel, kFirstItem, kRowLength, kFirstRow, kCount };
inline constexpr uint16_t kAligned = 0x8000;   // all streams allow accesses of 16 bytes
inline constexpr uint16_t kLastPart = 0x4000;  // the step count is advanced after this record
inline constexpr uint16_t kGroup = 0x3fff;
}  // namespace update_column

struct UpdateHeader : CommonHeader {
  const void* row_means;      // float or double, as the kernel computes; null if none is used
  const double* coefficient;  // null: 1
  const float* found_inf;     // null: 0
  int64_t* skipped_steps;     // null: not counted
  uint32_t item_elements;
  DType dtypes[3 + kMaxStates];  // of grad, param, the states and the average
  DType model_dtype;
  HostScalar average_weight;
  bool has_average, has_model, has_step, step_is_double;
  bool backward;  // see Note [Backward walk] in update.cuh
};

// Columns of the statistics sweep.
namespace statistics_column {
enum Pointer : uint32_t { kGrad, kRowLengthAsDouble, kPointers };
enum Word : uint32_t {
  kNumel,
  kFirstItem,
  kRowLength,      // 0: rows do not matter
  kItemElements,   // whole rows, or a piece of one
  kFirstRow,       // in row_means
  kFirstPiece,     // in pieces, kNone if items have whole rows
  kPiecesPerRow,   // of this record
  kRowsToCombine,  // after this record: rows, each the sum of kPiecesToCombine pieces in a row,
  kPiecesToCombine,
  kPiecesFrom,  // starting with this one
  kCount
};
}  // namespace statistics_column

struct ItemSums {
  double squares;
  double nonfinite;  // 0 or 1
};

struct StatisticsHeader : CommonHeader {
  void* row_means;    // float or double
  double* pieces;     // sums of pieces of rows that are longer than an item
  ItemSums* partial;  // [n_items]
  double* totals;     // {squares, nonfinite}
  DType dtype;
  bool means_are_double;
  bool adds_to_totals;  // not the first launch of this call
  bool combines;        // some record has pieces to combine
};

}  // namespace fusedtricks::cuda
