#include "variants.h"

#include <array>
#include <cstring>
#include <utility>

#include "../optimizers/all.h"
#include "tiles.h"

namespace fusedtricks::cpu {
namespace {

template <class Functor, typename T>
void prepare(const double* hyper, double lr, double step, void* constants) {
  typename Functor::Hyper h;
  static_assert(sizeof(h) == Functor::kHyperNames.size() * sizeof(double));
  std::memcpy(&h, hyper, sizeof(h));
  const auto c = Functor::template prepare<T>(h, lr, step);
  static_assert(sizeof(c) <= kMaxConstantBytes);
  std::memcpy(constants, &c, sizeof(c));
}

template <class Functor>
Variant make_variant(Isa isa) {
  static_assert(Functor::kNumStates <= kMaxStates);
  return {
      Functor::kNumStates,
      {&prepare<Functor, float>, compiled_for<Update<Functor, float>>(isa)},
      {&prepare<Functor, double>, compiled_for<Update<Functor, double>>(isa)}};
}

template <template <unsigned> class Functor, size_t... kFlags>
Variant look_up(unsigned flags, Isa isa, std::index_sequence<kFlags...>) {
  using Make = Variant (*)(Isa);
  static constexpr std::array<Make, sizeof...(kFlags)> kMakers{&make_variant<Functor<kFlags>>...};
  return kMakers.at(flags)(isa);
}

template <template <unsigned> class Functor>
Variant variant_of(unsigned flags, Isa isa) {
  constexpr size_t kCount = size_t{1} << Functor<0>::kFlagNames.size();
  return look_up<Functor>(flags, isa, std::make_index_sequence<kCount>{});
}

template <template <unsigned> class Functor>
Algorithm describe() {
  using F = Functor<0>;
  return {
      F::kName,
      {F::kFlagNames.begin(), F::kFlagNames.end()},
      {F::kHyperNames.begin(), F::kHyperNames.end()},
      {F::kStateNames.begin(), F::kStateNames.end()},
      &variant_of<Functor>};
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

}  // namespace fusedtricks::cpu
