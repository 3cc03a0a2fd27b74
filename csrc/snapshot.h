// What a kernel launch depends on besides the values in memory, for drivers written in Python.
#pragma once

#include <torch/extension.h>

namespace fusedtricks {

// The layouts and the addresses of a list or tuple of tensors, as two Python bytes objects.
//
// Layouts are equal if and only if the tensors agree in number, dtype, device, sizes and strides.
// Addresses are native int64. A tensor without plain strided memory has the address 0, and its
// kind in place of the strides.
pybind11::tuple snapshot(const pybind11::object& tensors);

}  // namespace fusedtricks
