// What cuda_runtime.h and the engine of the CPU shim share. The explanation is in engine.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

namespace fusedtricks::shim {

// Start the order of blocks and threads anew. FUSEDTRICKS_SHIM_SEED sets the first seed.
void set_seed(uint64_t seed);

// The operations at which a thread waits for others.
enum class Op : uint8_t { barrier, warp_sync, shfl, shfl_up, shfl_down, shfl_xor, vote };

// The indices of the running thread and of its block. The engine sets them at every switch.
extern uint3 thread_index, block_index;
extern dim3 block_dim, grid_dim;

// Lane of the running thread in its warp of 32.
unsigned lane_index();

// Wait for all lanes of `mask` that have not returned. The result of a shuffle is the `value` of
// lane `source`, garbage if that lane takes no part; of a vote, a bit for every lane that takes
// part and whose `value` is not 0; of a plain synchronisation, nothing.
uint64_t warp_op(
    Op op, unsigned mask, uint64_t value, unsigned source, const std::source_location& where);

// Wait for all threads of the block that have not returned; the number of those with `predicate`.
int block_barrier(bool predicate, const std::source_location& where);

// Give up the launch from inside a kernel: FT_LAUNCH throws std::runtime_error(what).
[[noreturn]] void fail(const char* what, const std::source_location& where);

// Run `body(args)` once for every thread of every block.
void run_grid(
    const char* kernel_name, dim3 grid, dim3 block, void (*body)(const void*), const void* args);

}  // namespace fusedtricks::shim
