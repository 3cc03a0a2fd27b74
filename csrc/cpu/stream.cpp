// The streaming limit: a plain loop with the memory traffic of an optimizer.
#include <array>

#include "driver.h"
#include "isa.h"
#include "parallel.h"

namespace fusedtricks::cpu {
namespace {

constexpr int kMaxStreams = 6;

// All streams in one loop, as an update has them, with one addition per value read.
template <int kReads, int kWrites>
struct StreamLoop {
  static FT_HOST_DEVICE void run(
      const float* const* reads, float* const* writes, int64_t begin, int64_t end) {
    std::array<const float*, kMaxStreams> from{};
    std::array<float*, kMaxStreams> to{};
    std::copy(reads, reads + kReads, from.begin());
    std::copy(writes, writes + kWrites, to.begin());
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) {
      float sum = 1;
      for (int r = 0; r < kReads; ++r) sum += from[r][i];
      for (int w = 0; w < kWrites; ++w) to[w][i] = sum;
    }
  }
};

using StreamFn = void (*)(const float* const*, float* const*, int64_t, int64_t);

template <int kReads, int kWrites>
StreamFn find_loop(int n_reads, int n_writes, Isa isa) {
  if (n_reads == kReads && n_writes == kWrites)
    return compiled_for<StreamLoop<kReads, kWrites>>(isa);
  if constexpr (kWrites < kMaxStreams) {
    return find_loop<kReads, kWrites + 1>(n_reads, n_writes, isa);
  } else if constexpr (kReads < kMaxStreams) {
    return find_loop<kReads + 1, 1>(n_reads, n_writes, isa);
  } else {
    return nullptr;
  }
}

}  // namespace

void stream(at::TensorList reads, at::TensorList writes) {
  const auto run = find_loop<1, 1>(
      static_cast<int>(reads.size()), static_cast<int>(writes.size()), current_isa());
  TORCH_CHECK_VALUE(
      run != nullptr, "stream: expected 1 to ", kMaxStreams,
      " tensors in reads and in writes, got ", reads.size(), " and ", writes.size());
  const int64_t numel = writes[0].numel();
  std::vector<const float*> sources;
  std::vector<float*> targets;
  for (at::TensorList list : {reads, writes}) {
    for (const at::Tensor& tensor : list) {
      TORCH_CHECK_VALUE(
          tensor.is_contiguous() && tensor.numel() == numel && tensor.scalar_type() == at::kFloat &&
              tensor.is_cpu(),
          "stream: expected contiguous float32 CPU tensors of ", numel, " elements");
    }
  }
  for (const at::Tensor& tensor : reads) sources.push_back(tensor.const_data_ptr<float>());
  for (const at::Tensor& tensor : writes) targets.push_back(tensor.mutable_data_ptr<float>());
  for_each_item(make_work_list({{numel, 0}}), [&](const WorkItem& item, int64_t) {
    run(sources.data(), targets.data(), item.begin, item.end);
  });
}

}  // namespace fusedtricks::cpu
