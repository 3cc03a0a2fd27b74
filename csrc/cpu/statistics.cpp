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

// Accumulates [begin, end) of one gradient, converting tile by tile where it is stored in 16 bits.
template <typename T>
Sums accumulate(const TensorArgs& view, int64_t begin, int64_t end, const Sweep& sweep) {
  const auto run = compiled_for<Accumulate<T>>(sweep.isa);
  const auto inv_scale = static_cast<T>(sweep.inv_scale);
  const auto limit = static_cast<T>(sweep.limit);
  Sums total;
  if (view.grad.dtype == kComputeType<T>) {
    run(reinterpret_cast<const T*>(at_element(view.grad, begin)), end - begin, inv_scale, limit,
        &total);
    return total;
  }
  const ConvertFn load = to_compute<T>(view.grad.dtype, sweep.isa);
  alignas(64) T tile[kTileElements];
  for (int64_t at = begin; at < end; at += kTileElements) {
    const int64_t n = std::min(kTileElements, end - at);
    load(at_element(view.grad, at), tile, n);
    Sums sums;
    run(tile, n, inv_scale, limit, &sums);
    total.sum += sums.sum;
    total.squares += sums.squares;
    total.poison += sums.poison;
  }
  return total;
}

// The partial result of one work item; whole rows go straight to row_sums.
template <typename T>
Sums sweep_item(const TensorArgs& view, const WorkItem& item, const Sweep& sweep) {
  const bool has_whole_rows = view.row_length > 0 && view.row_length <= kItemElements;
  if (!has_whole_rows) return accumulate<T>(view, item.begin, item.end, sweep);
  Sums total;
  for (int64_t at = item.begin; at < item.end; at += view.row_length) {
    const Sums row = accumulate<T>(view, at, at + view.row_length, sweep);
    sweep.row_sums[view.first_row + at / view.row_length] = row.sum;
    total.squares += row.squares;
    total.poison += row.poison;
  }
  return total;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> grad_statistics(
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

  double squares = 0, poison = 0;
  for (size_t i = 0; i < partial.size(); ++i) {
    squares += partial[i].squares;
    poison += partial[i].poison;
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
  totals.mutable_data_ptr<double>()[0] = squares;
  totals.mutable_data_ptr<double>()[1] = poison == 0 ? 0 : 1;
  return {row_means, totals};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> finalize_statistics(
    at::TensorList totals, std::optional<double> max_norm) {
  double squares = 0, nonfinite = 0;
  for (const at::Tensor& total : totals) {
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
