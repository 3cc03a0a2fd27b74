#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fusedtricks::cpu {
namespace {

Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa parse(const std::string& name) {
  if (name == "auto") return best_isa();
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (name != isa_name(isa)) continue;
    if (isa > best_isa()) {
      throw std::invalid_argument(
          "instruction set " + name + " is not supported by this machine, whose best is " +
          isa_name(best_isa()));
    }
    return isa;
  }
  throw std::invalid_argument(
      "expected an instruction set among auto, baseline, avx2, avx512, got " + name);
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa = [] {
    const char* wanted = std::getenv("FUSEDTRICKS_ISA");
    return parse(wanted != nullptr ? wanted : "auto");
  }();
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    default: return "baseline";
  }
}

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) { chosen().store(parse(name)); }

}  // namespace fusedtricks::cpu
