#include "snapshot.h"

#include <string>
#include <vector>

#include "prefetch.h"

namespace fusedtricks {
namespace {

namespace py = pybind11;

// Tensors whose memory is not what their sizes and strides say.
constexpr c10::DispatchKeySet kUnusual(
    {c10::DispatchKey::Negative, c10::DispatchKey::Conjugate, c10::DispatchKey::Python,
     c10::DispatchKey::NestedTensor});

bool is_plain(const c10::TensorImpl& tensor) {
  return !tensor.key_set().has_any(kUnusual) && tensor.layout() == at::kStrided &&
         tensor.has_storage();
}

// Why a tensor is not plain, as bits.
uint64_t oddities(const c10::TensorImpl& tensor) {
  const c10::DispatchKeySet keys = tensor.key_set();
  uint64_t bits = 0;
  for (const bool odd :
       {keys.has(c10::DispatchKey::Negative), keys.has(c10::DispatchKey::Conjugate),
        keys.has(c10::DispatchKey::Python), keys.has(c10::DispatchKey::NestedTensor),
        tensor.has_symbolic_sizes_strides(), !tensor.has_storage()}) {
    bits = 2 * bits + odd;
  }
  return bits;
}

// Appends one word and the dims that it announces, so that no two lists have the same words.
void append_layout(const c10::TensorImpl& tensor, bool plain, std::vector<uint64_t>& words) {
  const bool has_sizes = plain || !(tensor.is_nested() || tensor.has_symbolic_sizes_strides());
  const at::IntArrayRef sizes = has_sizes ? tensor.sizes() : at::IntArrayRef();
  const at::IntArrayRef strides = plain ? tensor.strides() : at::IntArrayRef();
  const c10::Device device = tensor.device();
  const auto dtype = c10::typeMetaToScalarType(tensor.dtype());
  const auto layout = plain ? at::kStrided : tensor.layout();
  words.push_back(
      sizes.size() | static_cast<uint64_t>(layout) << 24 | static_cast<uint64_t>(dtype) << 32 |
      static_cast<uint64_t>(static_cast<uint8_t>(device.type())) << 40 |
      static_cast<uint64_t>(static_cast<uint8_t>(device.index())) << 48 |
      (plain ? 0 : oddities(tensor)) << 56);
  words.insert(words.end(), sizes.begin(), sizes.end());
  words.insert(words.end(), strides.begin(), strides.end());
}

// The list or tuple `tensors`, of which every element that is asked for has to be a tensor.
class TensorSequence {
 public:
  explicit TensorSequence(PyObject* tensors) : tensors_(tensors) {
    if (!PyList_Check(tensors) && !PyTuple_Check(tensors)) {
      throw py::type_error(
          std::string("snapshot: expected a list or tuple of tensors, got ") +
          Py_TYPE(tensors)->tp_name);
    }
  }

  Py_ssize_t size() const { return PySequence_Fast_GET_SIZE(tensors_); }

  c10::TensorImpl& at(Py_ssize_t index) const {
    PyObject* const object = PySequence_Fast_GET_ITEM(tensors_, index);
    if (!THPVariable_Check(object)) {
      throw py::type_error(
          "snapshot: expected tensors, element " + std::to_string(index) + " is of type " +
          Py_TYPE(object)->tp_name);
    }
    return *THPVariable_Unpack(object).unsafeGetTensorImpl();
  }

  // See Note [Cold caches].
  void prefetch_after(Py_ssize_t index) const {
    constexpr Py_ssize_t kAheadSlots = kAheadObjects + kAheadContents;
    if (index + kAheadSlots < size()) {
      prefetch(PySequence_Fast_GET_ITEM(tensors_, index + kAheadSlots), 1);
    }
    if (index + static_cast<Py_ssize_t>(kAheadObjects) < size()) {
      prefetch_object(&at(index + kAheadObjects));
    }
    if (index + static_cast<Py_ssize_t>(kAheadContents) < size()) {
      prefetch(at(index + kAheadContents).unsafe_storage().unsafeGetStorageImpl(), 2);
    }
  }

 private:
  PyObject* tensors_;
};

py::bytes to_bytes(const std::vector<uint64_t>& words) {
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint64_t)};
}

}  // namespace

py::tuple snapshot(const py::object& tensors) {
  const TensorSequence sequence(tensors.ptr());
  std::vector<uint64_t> layouts, addresses;
  layouts.reserve(8 * sequence.size());
  addresses.reserve(sequence.size());
  for (Py_ssize_t i = 0; i < sequence.size(); ++i) {
    sequence.prefetch_after(i);
    c10::TensorImpl& tensor = sequence.at(i);
    const bool plain = is_plain(tensor);
    append_layout(tensor, plain, layouts);
    // As data_ptr() in Python, for memory that is copied on write may be written by a kernel.
    addresses.push_back(plain ? reinterpret_cast<uint64_t>(tensor.mutable_data()) : 0);
  }
  return py::make_tuple(to_bytes(layouts), to_bytes(addresses));
}

}  // namespace fusedtricks
