// The host side of the update sweep.
#include <list>

#include "driver.h"
#include "table_builder.h"

namespace fusedtricks::cuda {
namespace {

// Tensors that agree in all of this share launches.
struct Signature {
  std::array<DType, 3 + kMaxStates> dtypes{};
  DType model_dtype{};
  bool has_average = false, has_model = false, has_step = false, step_is_double = false;

  bool operator==(const Signature&) const = default;
  bool in_double() const { return dtypes[update_column::kParam] == DType::kFloat64; }
};

Signature signature_of(const TensorArgs& view, int n_states) {
  Signature signature;
  signature.dtypes[update_column::kGrad] = view.grad.dtype;
  signature.dtypes[update_column::kParam] = view.param.dtype;
  for (int s = 0; s < n_states; ++s) {
    signature.dtypes[update_column::kStates + s] = view.states[s].dtype;
  }
  signature.has_average = view.average.data != nullptr;
  if (signature.has_average) {
    signature.dtypes[update_column::kStates + n_states] = view.average.dtype;
  }
  signature.has_model = view.model.data != nullptr;
  signature.model_dtype = view.model.dtype;
  signature.has_step = view.step != nullptr;
  signature.step_is_double = view.step_is_double;
  return signature;
}

// The arguments that are the same for all launches of a call, and the tensors they point to.
class Scalars {
 public:
  Scalars(const StepRequest& request, c10::Device device) : device_(device) {
    header.grad_scale = pointer<float>("grad_scale", request.grad_scale, at::kFloat);
    header.found_inf = pointer<float>("found_inf", request.found_inf, at::kFloat);
    header.coefficient = pointer<double>("coefficient", request.coefficient, at::kDouble);
    header.limit = make_limit(request.clip_value);
    header.average_weight = HostScalar::of(request.average_weight);
    if (request.skipped_steps.has_value()) {
      header.skipped_steps = request.skipped_steps->mutable_data_ptr<int64_t>();
    }
    header.item_elements = static_cast<uint32_t>(tunables().update_item);
    header.backward = tunables().backward != 0;
  }

  GroupEntry group(const StepRequest& request, size_t index, size_t n_hyper) {
    GroupEntry entry{};
    const at::Tensor& lr = request.lr[index];
    if (lr.is_cpu() && !device_.is_cpu()) {
      entry.lr = lr.item<double>();
    } else {
      entry.device_lr_is_double = lr.scalar_type() != at::kFloat;
      kept_.push_back(on_device(lr, device_, entry.device_lr_is_double ? at::kDouble : at::kFloat));
      entry.device_lr = kept_.back().const_data_ptr();
    }
    std::copy_n(request.hyper.data() + index * n_hyper, n_hyper, entry.hyper);
    entry.flags = static_cast<uint16_t>(request.variants[index]);
    entry.maximizes = request.maximize[index] != 0;
    return entry;
  }

  const void* means(const std::optional<at::Tensor>& row_means, bool in_double) {
    if (!row_means.has_value()) return nullptr;
    kept_.push_back(on_device(*row_means, device_, in_double ? at::kDouble : at::kFloat));
    return kept_.back().const_data_ptr();
  }

  UpdateHeader header{};

 private:
  template <typename T>
  const T* pointer(
      const char* name, const std::optional<at::Tensor>& tensor, at::ScalarType dtype) {
    if (!tensor.has_value()) return nullptr;
    TORCH_CHECK_VALUE(
        tensor->numel() == 1, "expected ", name, " to have one element, got shape ",
        tensor->sizes());
    kept_.push_back(on_device(*tensor, device_, dtype));
    return kept_.back().const_data_ptr<T>();
  }

  c10::Device device_;
  std::list<at::Tensor> kept_;
};

// Lays out and makes the launches for the tensors of one signature.
class Launcher {
 public:
  Launcher(
      const Signature& signature, int n_states, const std::vector<GroupEntry>& groups,
      const UpdateHeader& header, size_t table_bytes)
      : signature_(signature),
        n_states_(n_states),
        groups_(groups),
        header_(header),
        table_(
            2 + n_states + signature.has_average + signature.has_model + signature.has_step,
            update_column::kCount, table_bytes),
        group_in_table_(groups.size(), kNone) {
    std::copy(signature.dtypes.begin(), signature.dtypes.end(), header_.dtypes);
    header_.model_dtype = signature.model_dtype;
    header_.has_average = signature.has_average;
    header_.has_model = signature.has_model;
    header_.has_step = signature.has_step;
    header_.step_is_double = signature.step_is_double;
  }

  // launch(header, table) is called for each full table, and by flush() for the last.
  template <class Launch>
  void add(const TensorArgs& view, const Launch& launch) {
    for_each_part(view.numel, view.row_length, tunables().record_elements, [&](const Part& part) {
      if (!table_.has_room(group_in_table_[view.group] == kNone)) flush(launch);
      uint32_t& group = group_in_table_[view.group];
      if (group == kNone) group = table_.add_group(groups_[view.group]);
      add_record(view, part, static_cast<uint16_t>(group));
    });
  }

  template <class Launch>
  void flush(const Launch& launch) {
    if (table_.is_empty()) return;
    header_.layout = table_.layout();
    header_.n_items = static_cast<uint32_t>(n_items_);
    launch(header_, table_.build());
    // A skipped call counts once, however many launches it takes.
    header_.skipped_steps = nullptr;
    table_.clear();
    std::fill(group_in_table_.begin(), group_in_table_.end(), kNone);
    n_items_ = 0;
  }

 private:
  void add_record(const TensorArgs& view, const Part& part, uint16_t group) {
    bool is_aligned = true;
    const auto add_stream = [&](const Memory& memory) {
      const char* const data =
          static_cast<const char*>(memory.data) + part.begin * element_size(memory.dtype);
      is_aligned &= reinterpret_cast<uintptr_t>(data) % 16 == 0;
      table_.add_pointer(data);
    };
    add_stream(view.grad);
    add_stream(view.param);
    for (int s = 0; s < n_states_; ++s) add_stream(view.states[s]);
    if (signature_.has_average) add_stream(view.average);
    if (signature_.has_model) add_stream(view.model);
    if (signature_.has_step) table_.add_pointer(view.step);
    table_.add_word(part.numel);
    table_.add_word(static_cast<uint32_t>(n_items_));
    table_.add_word(part.row_length);
    table_.add_word(static_cast<uint32_t>(view.first_row + part.row));
    namespace column = update_column;
    table_.end_record(
        group | (is_aligned ? column::kAligned : 0) | (part.is_last ? column::kLastPart : 0));
    n_items_ += (part.numel + header_.item_elements - 1) / header_.item_elements;
  }

  const Signature& signature_;
  int n_states_;
  const std::vector<GroupEntry>& groups_;
  UpdateHeader header_;
  TableBuilder table_;
  std::vector<uint32_t> group_in_table_;
  int64_t n_items_ = 0;
};

std::vector<Signature> distinct_signatures(const std::vector<TensorArgs>& views, int n_states) {
  std::vector<Signature> distinct;
  for (const TensorArgs& view : views) {
    const Signature signature = signature_of(view, n_states);
    if (std::find(distinct.begin(), distinct.end(), signature) == distinct.end()) {
      distinct.push_back(signature);
    }
  }
  return distinct;
}

}  // namespace

void Driver::step(size_t index, const StepRequest& request) {
  const Algorithm& algorithm = algorithms()[index];
  const c10::Device device = common_device(request.params, kDeviceType);
  const DeviceScope scope(device);
  Staging staging(/*separates_double=*/true);
  const auto views = view_step(algorithm, request, kDeviceType, staging);
  if (views.empty()) return;

  const int n_states = algorithm.n_states[request.variants[views[0].group]];
  Scalars scalars(request, device);
  std::vector<GroupEntry> groups;
  for (size_t g = 0; g < request.group_sizes.size(); ++g) {
    groups.push_back(scalars.group(request, g, algorithm.hyper.size()));
  }
  const Ticket ticket(scope, device);
  scalars.header.ticket = ticket.address();
  const size_t table_bytes = table_limit(scope, update_limits());
  for (const Signature& signature : distinct_signatures(views, n_states)) {
    const bool in_double = signature.in_double();
    scalars.header.row_means = scalars.means(request.row_means, in_double);
    Launcher launcher(signature, n_states, groups, scalars.header, table_bytes);
    const auto launch = [&](const UpdateHeader& header, const std::vector<unsigned char>& table) {
      launch_update(
          index, n_states, in_double, header, table, count_blocks(scope, header.n_items),
          scope.stream());
      scope.check_launch();
      scalars.header.skipped_steps = nullptr;
    };
    for (const TensorArgs& view : views) {
      if (signature_of(view, n_states) == signature) launcher.add(view, launch);
    }
    launcher.flush(launch);
  }
  staging.write_back(request.found_inf);
}

}  // namespace fusedtricks::cuda
