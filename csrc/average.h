// The exponential moving average of a parameter, which a step may take along.
#pragma once

#include "macros.h"

namespace fusedtricks {

// average + weight * (param - average), from the end that is nearer, as torch.lerp has it: so the
// weights 0 and 1 are exact.
template <typename T>
FT_HOST_DEVICE T moved_average(T average, T param, T weight) {
  const T way = param - average;
  return weight < T(0.5) ? average + weight * way : param - (1 - weight) * way;
}

}  // namespace fusedtricks
