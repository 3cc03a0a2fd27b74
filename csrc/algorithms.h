// What the drivers and Python know of each optimizer: names, and the states of each variant.
#pragma once

#include <string>
#include <vector>

namespace fusedtricks {

inline constexpr int kMaxStates = 3;
inline constexpr int kMaxHyper = 5;
// Room for the constants of any functor in double.
inline constexpr int kMaxConstantBytes = 64;

struct Algorithm {
  std::string name;
  std::vector<std::string> flags, hyper, states;
  std::vector<int> n_states;  // [2^flags.size()] by the value of the flags
};

// In the order of FT_FOR_EACH_OPTIMIZER.
const std::vector<Algorithm>& algorithms();
// The position of `name` in algorithms(); throws std::out_of_range if there is none.
size_t find_algorithm(const std::string& name);

}  // namespace fusedtricks
