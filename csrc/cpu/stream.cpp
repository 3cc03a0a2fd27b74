#include <numeric>

#include "driver.h"
#include "parallel.h"

namespace fusedtricks::cpu {
namespace {

struct StreamLoop {
  static FT_HOST_DEVICE void run(
      const float* const* reads, int64_t n_reads, float* const* writes, int64_t n_writes,
      int64_t begin, int64_t end) {
    // Blocks of one L1-resident tile, so that each stream passes through memory once.
    alignas(64) float sum[kTileElements];
    for (int64_t at = begin; at < end; at += kTileElements) {
      const int64_t n = std::min(kTileElements, end - at);
      for (int64_t i = 0; i < n; ++i) sum[i] = 0;
      for (int64_t r = 0; r < n_reads; ++r) {
        for (int64_t i = 0; i < n; ++i) sum[i] += reads[r][at + i];
      }
      for (int64_t w = 0; w < n_writes; ++w) {
        for (int64_t i = 0; i < n; ++i) writes[w][at + i] = sum[i];
      }
    }
  }
};

}  // namespace

void stream(at::TensorList reads, at::TensorList writes) {
  TORCH_CHECK_VALUE(!writes.empty(), "stream: expected at least one tensor in writes");
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
  const auto run = compiled_for<StreamLoop>(current_isa());
  for_each_item(make_work_list({{numel, 0}}), [&](const WorkItem& item, int64_t) {
    run(sources.data(), sources.size(), targets.data(), targets.size(), item.begin, item.end);
  });
}

}  // namespace fusedtricks::cpu
