// The statistics sweep: each gradient is read once.
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "convert.h"
#include "driver.h"
#include "parallel.h"

namespace fusedtricks::cpu {
namespace {

struct Sweep {
  double inv_scale, limit;
  Isa isa;
  double* row_sums;
};

template <typename T>
using AccumulateFn = void (*)(
    const void* x, int64_t n_rows, int64_t row_length, T inv_scale, T limit, double* row_sums,
    Sums* total);

template <typename T>
AccumulateFn<T> accumulate_for(DType dtype, Isa isa) {
  switch (dtype) {
    case DType::kFloat64: return compiled_for<Accumulate<double, T>>(isa);
    case DType::kBFloat16: return compiled_for<Accumulate<BFloat16, T>>(isa);
    case DType::kFloat16: return compiled_for<Accumulate<Float16, T>>(isa);
    default: return compiled_for<Accumulate<float, T>>(isa);
  }
}

// The partial result of one work item; sums of whole rows go straight to row_sums.
template <typename T>
Sums sweep_item(const TensorArgs& view, const WorkItem& item, const Sweep& sweep) {
  const bool has_whole_rows = view.row_length > 0 && view.row_length <= kItemElements;
  const int64_t length = has_whole_rows ? view.row_length : item.end - item.begin;
  double* const row_sums =
      has_whole_rows ? sweep.row_sums + view.first_row + item.begin / length : nullptr;
  Sums total;
  accumulate_for<T>(view.grad.dtype, sweep.isa)(
      at_element(view.grad, item.begin), (item.end - item.begin) / length, length,
      static_cast<T>(sweep.inv_scale), static_cast<T>(sweep.limit), row_sums, &total);
  return total;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> Driver::grad_statistics(
    at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
    const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value) {
  Staging staging;
  const auto views = view_grads(grads, group_sizes, centralize, at::kCPU, staging);
  std::vector<Extent> extents;
  extents.reserve(views.size());
  int64_t n_rows = 0;
  for (const TensorArgs& view : views) {
    extents.push_back({view.numel, view.row_length});
    if (view.row_length > 0) n_rows += view.numel / view.row_length;
  }
  const WorkList list = make_work_list(extents);
  at::Tensor row_means = at::zeros({n_rows}, at::kDouble);
  double* const rows = row_means.mutable_data_ptr<double>();
  const Sweep sweep{
      1 / scalar_or(grad_scale, 1), clip_value.value_or(std::numeric_limits<double>::infinity()),
      current_isa(), rows};

  std::vector<Sums> partial(list.items.size());
  for_each_item(list, [&](const WorkItem& item, int64_t index) {
    const TensorArgs& view = views[item.tensor];
    partial[index] = computes_in_double(view.grad.dtype) ? sweep_item<double>(view, item, sweep)
                                                         : sweep_item<float>(view, item, sweep);
  });

  Sums total;
  for (size_t i = 0; i < partial.size(); ++i) {
    total += partial[i];
    const WorkItem& item = list.items[i];
    const TensorArgs& view = views[item.tensor];
    if (view.row_length > kItemElements) {
      rows[view.first_row + item.begin / view.row_length] += partial[i].sum;
    }
  }
  for (const TensorArgs& view : views) {
    const int64_t n = view.row_length > 0 ? view.numel / view.row_length : 0;
    for (int64_t r = 0; r < n; ++r) rows[view.first_row + r] /= view.row_length;
  }
  at::Tensor totals = at::empty({2}, at::kDouble);
  totals.mutable_data_ptr<double>()[0] = total.squares;
  totals.mutable_data_ptr<double>()[1] = total.nonfinite ? 1 : 0;
  return {row_means, totals};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> Driver::finalize_statistics(
    at::TensorList totals, std::optional<double> max_norm) {
  double squares = 0, nonfinite = 0;
  for (const at::Tensor& total : totals) {
    check_statistics("finalize_statistics: totals", total, 2, at::kCPU);
    squares += total.const_data_ptr<double>()[0];
    nonfinite += total.const_data_ptr<double>()[1];
  }
  const double norm = std::sqrt(squares);
  // As in clip_grad_norm_: a NaN norm gives a NaN coefficient, an infinite one gives zero.
  double coefficient = 1;
  if (max_norm.has_value()) {
    coefficient = *max_norm / (norm + 1e-6);
    if (coefficient > 1) coefficient = 1;
  }
  return {
      at::scalar_tensor(norm, at::kDouble), at::scalar_tensor(coefficient, at::kDouble),
      at::scalar_tensor(nonfinite, at::kFloat)};
}

}  // namespace fusedtricks::cpu
