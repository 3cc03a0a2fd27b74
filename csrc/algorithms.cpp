#include "algorithms.h"

#include <cstddef>
#include <stdexcept>
#include <utility>

#include "optimizers/all.h"

namespace fusedtricks {
namespace {

template <template <unsigned> class Functor, size_t... kFlags>
std::vector<int> count_states(std::index_sequence<kFlags...>) {
  static_assert(((Functor<kFlags>::kNumStates <= kMaxStates) && ...));
  static_assert(
      ((sizeof(typename Functor<kFlags>::template Constants<double>) <= kMaxConstantBytes) && ...));
  return {Functor<kFlags>::kNumStates...};
}

template <template <unsigned> class Functor>
Algorithm describe() {
  using F = Functor<0>;
  static_assert(F::kHyperNames.size() <= kMaxHyper);
  return {
      F::kName,
      {F::kFlagNames.begin(), F::kFlagNames.end()},
      {F::kHyperNames.begin(), F::kHyperNames.end()},
      {F::kStateNames.begin(), F::kStateNames.end()},
      count_states<Functor>(std::make_index_sequence<size_t{1} << F::kFlagNames.size()>{})};
}

}  // namespace

const std::vector<Algorithm>& algorithms() {
  static const std::vector<Algorithm> list{
#define FT_DESCRIBE(Functor) describe<Functor>(),
      FT_FOR_EACH_OPTIMIZER(FT_DESCRIBE)
#undef FT_DESCRIBE
  };
  return list;
}

size_t find_algorithm(const std::string& name) {
  for (size_t i = 0; i < algorithms().size(); ++i) {
    if (algorithms()[i].name == name) return i;
  }
  throw std::out_of_range("no optimizer named " + name);
}

}  // namespace fusedtricks
