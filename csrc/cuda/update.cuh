// The update sweep: reads gradient, parameter and states once, writes states, parameter, its
// average and the 16-bit model copy once.
//
// Note [Backward walk]
// The statistics sweep reads the gradients from first to last, so that the last ones are still in
// the L2 cache (50 MB on an H100, half the gradients of a ResNet-50). This sweep begins with them.
#pragma once

#include "../average.h"
#include "../grad/transform.h"
#include "../optimizers/all.h"
#include "pack.cuh"
#include "reduce.cuh"
#include "table.h"

namespace fusedtricks::cuda {

template <int kArgumentBytes>
struct UpdateArgs : UpdateHeader {
  Table<(kArgumentBytes - sizeof(UpdateHeader)) / 8 * 8> table;
};

// The mean of the row that an element is in.
template <typename T>
class RowMeans {
 public:
  FT_DEVICE RowMeans(const void* means, uint32_t first_row, uint32_t row_length)
      : means_(static_cast<const T*>(means) + first_row), row_length_(row_length) {}

  // `follows` tells that the last call was for the element before.
  FT_DEVICE T at(uint32_t index, bool follows) {
    if (follows && ++column_ < row_length_) return mean_;
    if (follows) {
      ++row_;
      column_ = 0;
    } else {
      row_ = index / row_length_;
      column_ = index - row_ * row_length_;
    }
    return mean_ = means_[row_];
  }

 private:
  const T* means_;
  uint32_t row_length_, row_ = 0, column_ = 0;
  T mean_ = 0;
};

// The variants of an optimizer that have kStates states.
//
// Note [Variants in one launch]
// Parameter groups may differ in their flags, say weight decay in one only. So the variants of the
// same number of states are in one kernel, which branches once per pack, the same way in all
// threads of a block.
template <template <unsigned> class Functor, int kStates>
struct Variants {
  template <unsigned kFlags>
  static constexpr bool kHas = Functor<kFlags>::kNumStates == kStates;
  static constexpr unsigned kCount = 1u << Functor<0>::kFlagNames.size();

  // Calls visit(Functor<flags>{}).
  template <unsigned kFlags = 0, class Visit>
  static FT_DEVICE void visit(unsigned flags, const Visit& visitor) {
    if constexpr (kHas<kFlags>) {
      if (flags == kFlags) {
        visitor(Functor<kFlags>{});
        return;
      }
    }
    if constexpr (kFlags + 1 < kCount) visit<kFlags + 1>(flags, visitor);
  }
};

// One record, as a block sees it.
template <template <unsigned> class Functor, int kStates, bool kAverages, typename T>
class UpdateTask {
 public:
  static constexpr int kStreams = kStates + 2 + kAverages;

  template <class Args>
  FT_DEVICE UpdateTask(const Args& args, uint32_t record) : header_(args) {
    namespace column = update_column;
    const TableLayout& layout = args.layout;
    const auto pointer = [&](uint32_t which) {
      return args.table.template at<char*>(layout.pointer_at(which, record));
    };
    const auto word = [&](uint32_t which) {
      return args.table.template at<uint32_t>(layout.word_at(which, record));
    };
#pragma unroll
    for (int s = 0; s < kStreams; ++s) data_[s] = pointer(s);
    if (args.has_model) model_ = pointer(kStreams);
    if (args.has_step) step_ = pointer(kStreams + args.has_model);
    numel_ = word(column::kNumel);
    first_item_ = word(column::kFirstItem);
    row_length_ = word(column::kRowLength);
    first_row_ = word(column::kFirstRow);
    const auto half = args.table.template at<uint16_t>(layout.half_at(record));
    is_aligned_ = half & column::kAligned;
    group_ = &args.table.template at<GroupEntry>((half & column::kGroup) * sizeof(GroupEntry));
  }

  // Computes what the update needs of this step; one thread does it for the block.
  FT_DEVICE void prepare(unsigned char* constants) const {
    double lr = group_->lr;
    if (group_->device_lr != nullptr) {
      lr = group_->device_lr_is_double ? *static_cast<const double*>(group_->device_lr)
                                       : *static_cast<const float*>(group_->device_lr);
    }
    double step = 1;
    if (step_ != nullptr) {
      step += header_.step_is_double ? *reinterpret_cast<const double*>(step_)
                                     : *reinterpret_cast<const float*>(step_);
    }
    Variants<Functor, kStates>::visit(group_->flags, [&](auto functor) {
      using F = decltype(functor);
      typename F::Hyper hyper;
      static_assert(sizeof(hyper) == F::kHyperNames.size() * sizeof(double));
      __builtin_memcpy(&hyper, group_->hyper, sizeof(hyper));
      const auto c = F::template prepare<T>(hyper, lr, step);
      __builtin_memcpy(constants, &c, sizeof(c));
    });
  }

  FT_DEVICE void run(
      uint32_t item, GradTransform<T> grad, const unsigned char* constants,
      T average_weight) const {
    if (group_->maximizes) grad.coefficient = -grad.coefficient;
    const uint32_t begin = (item - first_item_) * header_.item_elements;
    const uint32_t end = min(begin + header_.item_elements, numel_);
    for (uint32_t tile = begin; tile < end; tile += kThreads * kPack<T>) {
      const Lanes lanes = lanes_of<T>(tile, end, threadIdx.x, kThreads, is_aligned_);
      if (lanes.base >= end) break;
      T values[kStreams][kPack<T>];
      load(lanes, values);
      transform_all(lanes, grad, values[0]);
      Variants<Functor, kStates>::visit(
          group_->flags, [&](auto functor) { update<decltype(functor)>(constants, values); });
      if constexpr (kAverages) {
        T(&averages)[kPack<T>] = values[kStreams - 1];
#pragma unroll
        for (uint32_t k = 0; k < kPack<T>; ++k) {
          averages[k] = moved_average(averages[k], values[1][k], average_weight);
        }
      }
#pragma unroll
      for (int s = 1; s < kStreams; ++s) store(data_[s], header_.dtypes[s], lanes, values[s]);
      if (header_.has_model) store(model_, header_.model_dtype, lanes, values[1]);
    }
  }

 private:
  FT_DEVICE void load(const Lanes& lanes, T (&values)[kStreams][kPack<T>]) const {
    if (lanes.full) {
      RawPack<T> raw[kStreams];
#pragma unroll
      for (int s = 0; s < kStreams; ++s) {
        load_raw(data_[s], header_.dtypes[s], lanes.base, raw[s]);
      }
#pragma unroll
      for (int s = 0; s < kStreams; ++s) decode(raw[s], header_.dtypes[s], values[s]);
    } else {
#pragma unroll
      for (int s = 0; s < kStreams; ++s) {
        load_scalars(data_[s], header_.dtypes[s], lanes, values[s]);
      }
    }
  }

  FT_DEVICE void transform_all(
      const Lanes& lanes, const GradTransform<T>& grad, T (&values)[kPack<T>]) const {
    if (row_length_ == 0) {
#pragma unroll
      for (uint32_t k = 0; k < kPack<T>; ++k) values[k] = transform<true>(grad, values[k], T(0));
      return;
    }
    RowMeans<T> means(header_.row_means, first_row_, row_length_);
#pragma unroll
    for (uint32_t k = 0; k < kPack<T>; ++k) {
      if (!lanes.has(k)) continue;
      const T mean = means.at(lanes.index(k), k > 0 && lanes.stride == 1);
      values[k] = transform<true>(grad, values[k], mean);
    }
  }

  template <class F>
  FT_DEVICE void update(const unsigned char* constants, T (&values)[kStreams][kPack<T>]) const {
    typename F::template Constants<T> c;
    __builtin_memcpy(&c, __builtin_assume_aligned(constants, 16), sizeof(c));
    // Elements beyond the end are computed too, from zeros, and not stored.
#pragma unroll
    for (uint32_t k = 0; k < kPack<T>; ++k) {
      T state[kStates > 0 ? kStates : 1];
#pragma unroll
      for (int s = 0; s < kStates; ++s) state[s] = values[s + 2][k];
      F::update(c, values[0][k], values[1][k], state);
#pragma unroll
      for (int s = 0; s < kStates; ++s) values[s + 2][k] = state[s];
    }
  }

  const UpdateHeader& header_;
  char* data_[kStreams];
  char* model_ = nullptr;
  char* step_ = nullptr;
  uint32_t numel_, first_item_, row_length_, first_row_;
  bool is_aligned_;
  const GroupEntry* group_;
};

template <int kStreams, class Args>
FT_DEVICE void advance_steps(const Args& args) {
  if (!args.has_step || !is_last_block(args.ticket)) return;
  for (uint32_t record = threadIdx.x; record < args.layout.n_records; record += kThreads) {
    const auto half = args.table.template at<uint16_t>(args.layout.half_at(record));
    if (!(half & update_column::kLastPart)) continue;
    void* const step =
        args.table.template at<void*>(args.layout.pointer_at(kStreams + args.has_model, record));
    if (args.step_is_double) {
      *static_cast<double*>(step) += 1;
    } else {
      *static_cast<float*>(step) += 1;
    }
  }
}

struct alignas(16) ConstantBytes {
  unsigned char bytes[kMaxConstantBytes];
};

// Blocks of 256 threads on a multiprocessor at a time, which limits the registers to 80 or, with
// many states or in double, to 128. 768 threads with two streams of 32 bytes under way are 48 KB;
// an H100 needs about 25 KB per multiprocessor (3.35 TB/s * 1 us / 132) to be busy. For sm_100 and
// later nvcc 13.0 spills two states at 80; 512 threads with four streams are 64 KB there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr int kStatesInFewRegisters = 1;
#else
inline constexpr int kStatesInFewRegisters = 2;
#endif
// An average is one state more in this.
template <int kStates, typename T>
inline constexpr int kBlocksAtATime = kStates <= kStatesInFewRegisters && sizeof(T) == 4 ? 3 : 2;

template <template <unsigned> class Functor, int kStates, bool kAverages, typename T, class Args>
__global__ void __launch_bounds__(kThreads, (kBlocksAtATime<kStates + kAverages, T>))
    update_kernel(const __grid_constant__ Args args) {
  __shared__ ConstantBytes constants;
  if (args.found_inf != nullptr && *args.found_inf != 0) {
    const bool counts = args.skipped_steps != nullptr && blockIdx.x == 0 && threadIdx.x == 0;
    if (counts) *args.skipped_steps += 1;
    return;
  }
  const double coefficient = args.coefficient == nullptr ? 1.0 : *args.coefficient;
  const GradTransform<T> grad{
      static_cast<T>(inverse_scale(args)), args.limit.template as<T>(), static_cast<T>(coefficient),
      true};
  using Task = UpdateTask<Functor, kStates, kAverages, T>;
  uint32_t prepared = kNone;
  for (uint32_t i = blockIdx.x; i < args.n_items; i += gridDim.x) {
    const uint32_t item = args.backward ? args.n_items - 1 - i : i;
    const uint32_t record = find_record(args, update_column::kFirstItem, item);
    const Task task(args, record);
    if (record != prepared) {
      // Others may still use the last record's.
      __syncthreads();
      if (threadIdx.x == 0) task.prepare(constants.bytes);
      __syncthreads();
      prepared = record;
    }
    task.run(item, grad, constants.bytes, args.average_weight.template as<T>());
  }
  advance_steps<Task::kStreams>(args);
}

}  // namespace fusedtricks::cuda
