// The host side of the statistics sweep.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "driver.h"
#include "table_builder.h"

namespace fusedtricks::cuda {
namespace {

struct Launch {
  StatisticsHeader header;
  std::vector<unsigned char> table;
};

// Lays out the launches for the gradients of one dtype.
class Planner {
 public:
  Planner(DType dtype, size_t table_bytes, std::vector<Launch>& launches, int64_t n_pieces)
      : dtype_(dtype),
        table_(statistics_column::kPointers, statistics_column::kCount, table_bytes),
        launches_(launches),
        n_pieces_(n_pieces) {}

  void add(const TensorArgs& view) {
    int64_t pieces_of_row = 0;
    for_each_part(view.numel, view.row_length, tunables().record_elements, [&](const Part& part) {
      if (!table_.has_room(0)) flush();
      // Whole rows if possible.
      const int64_t item = tunables().statistics_item;
      int64_t step = item;
      bool is_piece = part.within_row;
      if (part.row_length > 0 && !part.within_row) {
        step = std::max<int64_t>(item / part.row_length, 1) * part.row_length;
        is_piece = step > kMaxRowItem;
      }
      if (is_piece) step = kMaxRowItem;
      add_record(view, part, step, is_piece, pieces_of_row);
    });
  }

  void flush() {
    if (table_.is_empty()) return;
    StatisticsHeader header{};
    header.layout = table_.layout();
    header.n_items = static_cast<uint32_t>(n_items_);
    header.dtype = dtype_;
    header.combines = combines_;
    launches_.push_back({header, table_.build()});
    table_.clear();
    n_items_ = 0;
    combines_ = false;
  }

  int64_t n_pieces() const { return n_pieces_; }

 private:
  void add_record(
      const TensorArgs& view, const Part& part, int64_t step, bool is_piece,
      int64_t& pieces_of_row) {
    const int64_t length = is_piece ? part.row_length : part.numel;
    const int64_t n_rows = is_piece ? part.numel / part.row_length : 1;
    const int64_t per_row = (length + step - 1) / step;
    const int64_t first_piece = n_pieces_;
    if (is_piece) n_pieces_ += n_rows * per_row;
    pieces_of_row += per_row;
    const bool combines = is_piece && (!part.within_row || part.ends_row);
    combines_ |= combines;
    const int64_t to_combine = part.within_row ? pieces_of_row : per_row;

    const char* const data = static_cast<const char*>(view.grad.data);
    table_.add_pointer(data + part.begin * element_size(view.grad.dtype));
    table_.add_double(static_cast<double>(view.row_length));
    const int64_t words[statistics_column::kCount] = {
        part.numel,
        n_items_,
        part.row_length,
        step,
        view.first_row + part.row,
        is_piece ? first_piece : kNone,
        per_row,
        combines ? n_rows : 0,
        to_combine,
        part.within_row ? n_pieces_ - pieces_of_row : first_piece};
    for (const int64_t word : words) table_.add_word(static_cast<uint32_t>(word));
    table_.end_record(0);
    n_items_ += n_rows * per_row;
    if (part.ends_row) pieces_of_row = 0;
  }

  DType dtype_;
  TableBuilder table_;
  std::vector<Launch>& launches_;
  int64_t n_items_ = 0;
  int64_t n_pieces_;
  bool combines_ = false;  // some record of the table does
};

// The launches for all gradients, and the number of pieces of long rows.
std::pair<std::vector<Launch>, int64_t> plan(
    const std::vector<TensorArgs>& views, size_t table_bytes) {
  std::vector<Launch> launches;
  std::vector<DType> done;
  int64_t n_pieces = 0;
  for (const TensorArgs& first : views) {
    const DType dtype = first.grad.dtype;
    if (std::find(done.begin(), done.end(), dtype) != done.end()) continue;
    done.push_back(dtype);
    Planner planner(dtype, table_bytes, launches, n_pieces);
    for (const TensorArgs& view : views) {
      if (view.grad.dtype == dtype) planner.add(view);
    }
    planner.flush();
    n_pieces = planner.n_pieces();
  }
  return {std::move(launches), n_pieces};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> Driver::grad_statistics(
    at::TensorList grads, at::IntArrayRef group_sizes, at::IntArrayRef centralize,
    const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value) {
  const c10::Device device = common_device(grads, kDeviceType);
  const DeviceScope scope(device);
  Staging staging;
  const auto views = view_grads(grads, group_sizes, centralize, kDeviceType, staging);
  int64_t n_rows = 0;
  bool has_double = false;
  for (const TensorArgs& view : views) {
    if (view.row_length > 0) n_rows += view.numel / view.row_length;
    has_double |= view.grad.dtype == DType::kFloat64;
  }
  TORCH_CHECK(n_rows < kNone, "grad_statistics: more than 2^32 rows to centralize, got ", n_rows);
  auto [launches, n_pieces] = plan(views, table_limit(scope, statistics_limits()));
  uint32_t most_items = 0;
  for (const Launch& launch : launches) most_items = std::max(most_items, launch.header.n_items);

  const auto doubles = at::TensorOptions(at::kDouble).device(device);
  // The CPU's means are float64 throughout.
  const bool means_are_double = has_double || device.is_cpu();
  const at::Tensor means =
      at::empty({n_rows}, doubles.dtype(means_are_double ? at::kDouble : at::kFloat));
  const at::Tensor totals = launches.empty() ? at::zeros({2}, doubles) : at::empty({2}, doubles);
  const at::Tensor partial = at::empty({most_items, 2}, doubles);
  const at::Tensor pieces = at::empty({n_pieces}, doubles);
  const Ticket ticket(scope, device);
  at::Tensor scale;
  if (grad_scale.has_value()) {
    TORCH_CHECK_VALUE(
        grad_scale->numel() == 1, "expected grad_scale to have one element, got shape ",
        grad_scale->sizes());
    scale = on_device(*grad_scale, device, at::kFloat);
  }

  bool adds = false;
  for (Launch& launch : launches) {
    StatisticsHeader& header = launch.header;
    header.grad_scale = scale.defined() ? scale.const_data_ptr<float>() : nullptr;
    header.limit = make_limit(clip_value);
    header.ticket = ticket.address();
    header.row_means = means.mutable_data_ptr();
    header.pieces = pieces.mutable_data_ptr<double>();
    header.partial = static_cast<ItemSums*>(partial.mutable_data_ptr());
    header.totals = totals.mutable_data_ptr<double>();
    header.means_are_double = means_are_double;
    header.adds_to_totals = adds;
    launch_statistics(
        header.dtype == DType::kFloat64, header, launch.table, count_blocks(scope, header.n_items),
        scope.stream());
    scope.check_launch();
    adds = true;
  }
  return {means, totals};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> Driver::finalize_statistics(
    at::TensorList totals, std::optional<double> max_norm) {
  const c10::Device device = common_device(totals, kDeviceType);
  const DeviceScope scope(device);
  for (const at::Tensor& total : totals) {
    check_statistics("finalize_statistics: totals", total, 2, device);
    TORCH_CHECK_VALUE(
        total.scalar_type() == at::kDouble, "finalize_statistics: expected float64 totals, got ",
        total.scalar_type());
  }
  const at::Tensor all = totals.size() == 1 ? totals[0] : at::cat(totals);
  const auto options = at::TensorOptions(at::kDouble).device(device);
  const at::Tensor norm = at::empty({}, options);
  const at::Tensor coefficient = at::empty({}, options);
  const at::Tensor nonfinite = at::empty({}, options.dtype(at::kFloat));
  launch_finalize(
      all.const_data_ptr<double>(), static_cast<int>(totals.size()), max_norm.has_value(),
      max_norm.value_or(0), norm.mutable_data_ptr<double>(), coefficient.mutable_data_ptr<double>(),
      nonfinite.mutable_data_ptr<float>(), scope.stream());
  scope.check_launch();
  return {norm, coefficient, nonfinite};
}

}  // namespace fusedtricks::cuda
