// One binary, the best instruction set of the machine it runs on.
//
// Note [Instruction sets]
// A loop is written once, as Body::run, always inlined. It is instantiated inside functions with
// different target attributes, and a pointer to the best one is chosen at run time. Contraction to
// fused multiply-adds is off and reductions use a fixed number of lanes, so that every instruction
// set gives the same bits (tested).
#pragma once

#include <cstdint>
#include <string>

namespace fusedtricks::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best supported one, unless FUSEDTRICKS_ISA or set_isa narrowed it.
Isa current_isa();
const char* isa_name(Isa isa);
// Takes baseline, avx2, avx512 or auto; throws std::invalid_argument for others and for
// instruction sets that this machine lacks.
void set_isa(const std::string& name);

#if defined(__x86_64__) && defined(__GNUC__)
#define FT_TARGET_AVX2 __attribute__((target("avx2")))
#define FT_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#else
#define FT_TARGET_AVX2
#define FT_TARGET_AVX512
#endif

template <class Body, class... Args>
void run_baseline(Args... args) {
  Body::run(args...);
}
template <class Body, class... Args>
FT_TARGET_AVX2 void run_avx2(Args... args) {
  Body::run(args...);
}
template <class Body, class... Args>
FT_TARGET_AVX512 void run_avx512(Args... args) {
  Body::run(args...);
}

template <class Body, class... Args>
auto pick(void (*)(Args...), Isa isa) -> void (*)(Args...) {
  switch (isa) {
    case Isa::kAvx512: return &run_avx512<Body, Args...>;
    case Isa::kAvx2: return &run_avx2<Body, Args...>;
    default: return &run_baseline<Body, Args...>;
  }
}

// A pointer to Body::run compiled for `isa`.
template <class Body>
auto compiled_for(Isa isa) {
  return pick<Body>(&Body::run, isa);
}

}  // namespace fusedtricks::cpu
