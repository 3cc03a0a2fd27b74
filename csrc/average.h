// The exponential moving average of a parameter, which a step may take along.
#pragma once

#include "macros.h"

namespace fusedtricks {

// `weight` is 1 - decay.
template <typename T>
FT_HOST_DEVICE T moved_average(T average, T param, T weight) {
  return average + weight * (param - average);
}

}  // namespace fusedtricks
