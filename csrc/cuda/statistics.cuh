// The statistics sweep: each gradient is read once, for the sum of squares, the non-finite flag and
// the sums of its rows, all after unscaling and clipping by value.
#pragma once

#include <limits>

#include "../grad/transform.h"
#include "pack.cuh"
#include "reduce.cuh"
#include "table.h"

namespace fusedtricks::cuda {

template <int kArgumentBytes>
struct StatisticsArgs : StatisticsHeader {
  Table<(kArgumentBytes - sizeof(StatisticsHeader)) / 8 * 8> table;
};

template <typename A>
struct Sums {
  A sum = 0;
  A squares = 0;
};

// What a thread found in its elements.
struct Found {
  double sum = 0;
  double squares = 0;
  bool nonfinite = false;
};

// Elements [begin, end) of a gradient, shared by `n_threads` threads, of which this is `thread`.
template <typename T>
class Stretch {
 public:
  FT_DEVICE Stretch(
      T inv_scale, T limit, const void* data, DType dtype, uint32_t begin, uint32_t end,
      uint32_t thread, uint32_t n_threads)
      : data_(data),
        dtype_(dtype),
        begin_(begin),
        end_(end),
        thread_(thread),
        n_threads_(n_threads),
        inv_scale_(inv_scale),
        limit_(limit) {
    const uint64_t size = sizeof(T) == 8 ? 8 : element_bytes(dtype);
    is_aligned_ = (reinterpret_cast<uint64_t>(data) + size * begin) % 16 == 0;
  }

  // Note [Float sums]
  // A thread adds at most 256 elements in float, in packs of eight, and all threads' sums are added
  // in double. Should a square overflow or vanish, which the largest magnitude tells, the thread
  // adds its elements again in double: large, tiny and non-finite gradients get exact answers, and
  // the loop that all others take has no float64 instruction.
  FT_DEVICE Found add_up() const {
    T largest = 0;
    bool nonfinite = false;
    const Sums<T> sums = accumulate<T>(largest, nonfinite);
    const bool in_range = largest == 0 || (largest > T(1e-15) && largest < T(1e17));
    if (sizeof(T) == 4 && !in_range) {
      const Sums<double> exact = accumulate<double>(largest, nonfinite);
      return {exact.sum, exact.squares, nonfinite};
    }
    return {static_cast<double>(sums.sum), static_cast<double>(sums.squares), nonfinite};
  }

 private:
  // `largest` becomes inf if an element is.
  template <typename A>
  FT_DEVICE Sums<A> accumulate(T& largest, bool& nonfinite) const {
    Sums<A> total;
    for (uint32_t tile = begin_; tile < end_; tile += n_threads_ * kPack<T>) {
      const Lanes lanes = lanes_of<T>(tile, end_, thread_, n_threads_, is_aligned_);
      if (lanes.base >= end_) break;
      T values[kPack<T>];
      if (lanes.full) {
        RawPack<T> raw;
        load_raw(data_, dtype_, lanes.base, raw);
        decode(raw, dtype_, values);
      } else {
        load_scalars(data_, dtype_, lanes, values);
      }
      Sums<A> pack;
#pragma unroll
      for (uint32_t k = 0; k < kPack<T>; ++k) {
        nonfinite |= !(magnitude(values[k]) <= std::numeric_limits<T>::max());
        const T value = unscale_and_clamp(values[k], inv_scale_, limit_);
        // A NaN may get lost here, but not in the sums.
        largest = magnitude(value) <= largest ? largest : magnitude(value);
        const A wide = static_cast<A>(value);
        pack.sum = pack.sum + wide;
        pack.squares = pack.squares + wide * wide;
      }
      total.sum = total.sum + pack.sum;
      total.squares = total.squares + pack.squares;
    }
    return total;
  }

  static FT_DEVICE T magnitude(T value) { return value < 0 ? -value : value; }

  const void* data_;
  DType dtype_;
  uint32_t begin_, end_, thread_, n_threads_;
  T inv_scale_, limit_;
  bool is_aligned_;
};

FT_DEVICE void write_mean(const StatisticsHeader& header, uint32_t row, double mean) {
  if (header.means_are_double) {
    static_cast<double*>(header.row_means)[row] = mean;
  } else {
    static_cast<float*>(header.row_means)[row] = static_cast<float>(mean);
  }
}

// One work item: whole rows, a piece of a row, or a part of a tensor whose rows do not matter.
template <typename T, class Args>
class StatisticsTask {
 public:
  FT_DEVICE StatisticsTask(const Args& args, T inv_scale, uint32_t item)
      : args_(args), inv_scale_(inv_scale) {
    namespace column = statistics_column;
    record_ = find_record(args, column::kFirstItem, item);
    data_ = args.table.template at<const void*>(args.layout.pointer_at(column::kGrad, record_));
    local_ = item - word(column::kFirstItem);
    row_length_ = word(column::kRowLength);
    const uint32_t step = word(column::kItemElements);
    if (is_piece()) {
      const uint32_t row = local_ / word(column::kPiecesPerRow);
      begin_ = row * row_length_ + (local_ - row * word(column::kPiecesPerRow)) * step;
      end_ = min(begin_ + step, (row + 1) * row_length_);
    } else {
      begin_ = local_ * step;
      end_ = min(begin_ + step, word(column::kNumel));
    }
  }

  // Writes the sums of rows or of the piece; the result is the thread's part of the rest.
  FT_DEVICE Found run() const {
    if (row_length_ > 0 && !is_piece()) {
      // A warp has a row of up to 2,048 elements, several rows if they are short.
      uint32_t width = kThreads;
      if (row_length_ <= kWarp * 64) {
        for (width = 1; width < kWarp && width * 2 * kPack<T> <= row_length_;) width *= 2;
      }
      return add_rows(width);
    }
    const Found found = stretch(begin_, end_, threadIdx.x, kThreads).add_up();
    if (row_length_ > 0) {
      const double sum = block_sum(found.sum);
      const uint32_t piece = word(statistics_column::kFirstPiece) + local_;
      if (threadIdx.x == 0) args_.pieces[piece] = sum;
    }
    return found;
  }

 private:
  // `width` threads share a row.
  FT_DEVICE Found add_rows(uint32_t width) const {
    namespace column = statistics_column;
    const uint32_t n_rows = (end_ - begin_) / row_length_;
    const uint32_t first = word(column::kFirstRow) + begin_ / row_length_;
    const double length = args_.table.template at<double>(
        args_.layout.pointer_at(column::kRowLengthAsDouble, record_));
    const uint32_t lane = threadIdx.x % width;
    Found total;
    // All threads take part in the sums over threads, with or without a row.
    for (uint32_t base = 0; base < n_rows; base += kThreads / width) {
      const uint32_t row = base + threadIdx.x / width;
      Found found;
      if (row < n_rows) {
        const uint32_t begin = begin_ + row * row_length_;
        found = stretch(begin, begin + row_length_, lane, width).add_up();
      }
      const double sum = width == kThreads ? block_sum(found.sum) : group_sum(found.sum, width);
      if (lane == 0 && row < n_rows) write_mean(args_, first + row, sum / length);
      total.squares += found.squares;
      total.nonfinite |= found.nonfinite;
    }
    return total;
  }

  FT_DEVICE Stretch<T> stretch(
      uint32_t begin, uint32_t end, uint32_t thread, uint32_t n_threads) const {
    return {inv_scale_, args_.limit.template as<T>(), data_, args_.dtype, begin, end, thread,
            n_threads};
  }
  FT_DEVICE bool is_piece() const { return word(statistics_column::kFirstPiece) != kNone; }
  FT_DEVICE uint32_t word(uint32_t column) const {
    return args_.table.template at<uint32_t>(args_.layout.word_at(column, record_));
  }

  const Args& args_;
  T inv_scale_;
  uint32_t record_, local_, row_length_, begin_, end_;
  const void* data_;
};

// The last block adds up what the others left, in the order of the items.
template <class Args>
FT_DEVICE void combine(const Args& args) {
  Found found;
  for (uint32_t i = threadIdx.x; i < args.n_items; i += kThreads) {
    found.squares += args.partial[i].squares;
    found.sum += args.partial[i].nonfinite;
  }
  const double squares = block_sum(found.squares);
  const double nonfinite = block_sum(found.sum);
  if (threadIdx.x == 0) {
    args.totals[0] = squares + (args.adds_to_totals ? args.totals[0] : 0);
    args.totals[1] = nonfinite + (args.adds_to_totals ? args.totals[1] : 0) > 0;
  }
  if (!args.combines) return;
  for (uint32_t record = 0; record < args.layout.n_records; ++record) {
    namespace column = statistics_column;
    const auto word = [&](uint32_t which) {
      return args.table.template at<uint32_t>(args.layout.word_at(which, record));
    };
    const double length =
        args.table.template at<double>(args.layout.pointer_at(column::kRowLengthAsDouble, record));
    const uint32_t n_pieces = word(column::kPiecesToCombine);
    for (uint32_t row = threadIdx.x; row < word(column::kRowsToCombine); row += kThreads) {
      const double* const pieces = args.pieces + word(column::kPiecesFrom) + row * n_pieces;
      double sum = 0;
      for (uint32_t piece = 0; piece < n_pieces; ++piece) sum += pieces[piece];
      write_mean(args, word(column::kFirstRow) + row, sum / length);
    }
  }
}

template <typename T, class Args>
__global__ void __launch_bounds__(kThreads) statistics_kernel(const __grid_constant__ Args args) {
  const T inv_scale = static_cast<T>(inverse_scale(args));
  for (uint32_t item = blockIdx.x; item < args.n_items; item += gridDim.x) {
    const Found found = StatisticsTask<T, Args>(args, inv_scale, item).run();
    const double squares = block_sum(found.squares);
    const double nonfinite = block_sum(found.nonfinite);
    if (threadIdx.x == 0) args.partial[item] = {squares, nonfinite > 0 ? 1.0 : 0.0};
  }
  if (is_last_block(args.ticket)) combine(args);
}

// As in clip_grad_norm_: a NaN norm gives a NaN coefficient, an infinite one gives zero.
__global__ void finalize_kernel(
    const double* totals, int n, bool clips, double max_norm, double* norm, double* coefficient,
    float* nonfinite) {
  double squares = 0, flags = 0;
  for (int i = 0; i < n; ++i) {
    squares += totals[2 * i];
    flags += totals[2 * i + 1];
  }
  *norm = sqrt(squares);
  *coefficient = 1;
  if (clips) {
    const double wanted = max_norm / (*norm + 1e-6);
    *coefficient = wanted > 1 ? 1 : wanted;
  }
  *nonfinite = static_cast<float>(flags);
}

}  // namespace fusedtricks::cuda
