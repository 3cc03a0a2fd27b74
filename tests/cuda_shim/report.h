// Words for error messages. For engine.cpp only.
#pragma once

#include <cstdio>
#include <cstring>
#include <source_location>
#include <string>

#include "engine.h"
#include "schedule.h"

namespace fusedtricks::shim {
namespace {

inline std::string describe(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

inline std::string describe(const std::source_location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

inline const char* name_of(Op op) {
  switch (op) {
    case Op::barrier: return "__syncthreads";
    case Op::warp_sync: return "__syncwarp";
    case Op::shfl: return "__shfl_sync";
    case Op::shfl_up: return "__shfl_up_sync";
    case Op::shfl_down: return "__shfl_down_sync";
    case Op::shfl_xor: return "__shfl_xor_sync";
    case Op::vote: return "__ballot_sync, __any_sync or __all_sync";
  }
  return "?";
}

inline bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

// What a thread waits for.
inline std::string describe_wait(const Thread& thread) {
  std::string text = name_of(thread.op);
  if (thread.op != Op::barrier) {
    char mask[32];
    std::snprintf(mask, sizeof(mask), ", mask 0x%08x", thread.mask);
    text += mask;
  }
  return text + ", at " + describe(thread.where);
}

inline std::string describe(const Thread& thread) {
  return "thread " + describe(thread.index) + " at " + describe_wait(thread);
}

}  // namespace
}  // namespace fusedtricks::shim
