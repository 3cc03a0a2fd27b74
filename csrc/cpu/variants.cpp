#include "variants.h"

#include <array>
#include <cstring>
#include <utility>

#include "../algorithms.h"
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
  std::memcpy(constants, &c, sizeof(c));
}

template <class Functor>
Variant make_variant(Isa isa) {
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

}  // namespace

Variant find_variant(size_t algorithm, unsigned flags, Isa isa) {
  using Find = Variant (*)(unsigned, Isa);
  static constexpr std::array kFinders{
#define FT_FIND(Functor) static_cast<Find>(&variant_of<Functor>),
      FT_FOR_EACH_OPTIMIZER(FT_FIND)
#undef FT_FIND
  };
  return kFinders.at(algorithm)(flags, isa);
}

}  // namespace fusedtricks::cpu
