// Runs CUDA kernels on the CPU, so that tests and sanitizers see them without a GPU.
//
// Build the kernels and this file with g++ -std=c++20 -I<this folder> (a .cu file after -x c++)
// into one library; cuda_runtime.h declares what a kernel may use, FT_LAUNCH runs one. Works under
// -fsanitize=address,undefined.
//
// The blocks of a grid run one after another, the threads of a block as fibers. A thread runs until
// it waits for others or ends; then any thread that can run is next, chosen by a generator that
// starts from set_seed or, when the library is loaded, FUSEDTRICKS_SHIM_SEED. In half of the blocks
// one warp runs as far as it can before the next, in the other half all are mixed. The order of the
// blocks is random too. So a missing barrier gives a wrong result with some seeds: test with
// several.
//
// As on a GPU from sm_70 on, a thread that has returned counts as arrived wherever others wait for
// it, and the lanes of a warp do not run in step. Errors that a GPU answers with a hang or with
// anything, FT_LAUNCH reports as std::runtime_error: threads that wait for each other for ever, or
// at different __syncthreads; lanes that meet with different operations or masks, or with a mask
// that does not include themselves. An exception in a kernel comes out of FT_LAUNCH.
//
// Not found: missing fences and atomics, since blocks do not overlap; writes past the end of a
// __shared__ array, unless -fsanitize=undefined sees the index. A loop that waits for another
// thread without a barrier never ends. In a noexcept function the errors above end the process.
//
// Switching to the next thread takes about 30 ns (`samples waits 256 40000 1` on an AMD EPYC), 105
// ns under both sanitizers, 270 ns where fiber.h knows no faster way than swapcontext.
#include "engine.h"

#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "block.h"
#include "fiber.h"
#include "report.h"
#include "schedule.h"
#include "shared_memory.h"

namespace fusedtricks::shim {

uint3 thread_index, block_index;
dim3 block_dim, grid_dim;

namespace {

class Engine {
 public:
  std::mutex mutex;  // One launch at a time.
  Random random;

  Engine() {
    const char* seed = std::getenv("FUSEDTRICKS_SHIM_SEED");
    random.seed(seed ? std::strtoull(seed, nullptr, 0) : 0);
  }

  void run_grid(const char* name, void (*body)(const void*), const void* args);

  // Called by the running thread.
  unsigned lane() const { return current_->lane(); }
  uint64_t wait_at_warp_op(
      Op op, unsigned mask, uint64_t value, unsigned source, const std::source_location& where);
  int wait_at_barrier(bool predicate, const std::source_location& where);

 private:
  void run_block();
  void run_fiber();
  Thread* run_thread();
  void let_others_run();
  void switch_to(Thread& next, Fiber& from, bool finished);
  void become(Thread& thread, Fiber& fiber);
  Fiber& free_fiber();

  const char* kernel_name_ = "";
  void (*body_)(const void*) = nullptr;
  const void* args_ = nullptr;
  Block block_;
  Thread* current_ = nullptr;
  std::exception_ptr error_;
  Fiber caller_;
  std::deque<Fiber> fibers_;  // Their stacks are kept for ever.
  std::vector<Fiber*> free_fibers_;
};

Engine engine;

void Engine::run_grid(const char* name, void (*body)(const void*), const void* args) {
  kernel_name_ = name;
  body_ = body;
  args_ = args;
  SharedMemory shared_memory;
  std::vector<uint64_t> blocks(uint64_t{grid_dim.x} * grid_dim.y * grid_dim.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  random.shuffle(blocks.data(), blocks.size());
  for (const uint64_t i : blocks) {
    block_index = unravel(i, grid_dim);
    shared_memory.fill_with_garbage();
    run_block();
  }
}

void Engine::run_block() {
  block_.start(block_dim, random);
  switch_to(*block_.next(random), caller_, false);
  if (error_ == nullptr) return;
  free_fibers_.clear();
  for (Fiber& fiber : fibers_) {
    fiber.abandon();
    free_fibers_.push_back(&fiber);
  }
  std::rethrow_exception(std::exchange(error_, nullptr));
}

Fiber& Engine::free_fiber() {
  if (free_fibers_.empty()) {
    fibers_.emplace_back().allocate_stack(fibers_.size());
    free_fibers_.push_back(&fibers_.back());
  }
  Fiber& fiber = *free_fibers_.back();
  free_fibers_.pop_back();
  fiber.start([] { engine.run_fiber(); });
  return fiber;
}

void Engine::become(Thread& thread, Fiber& fiber) {
  thread.fiber = &fiber;
  current_ = &thread;
  thread_index = thread.index;
}

void Engine::switch_to(Thread& next, Fiber& from, bool finished) {
  become(next, next.fiber == nullptr ? free_fiber() : *next.fiber);
  from.switch_to(*next.fiber, finished);
}

// The life of a fiber: one thread after the other, while the choice falls on one that has not
// started. Nothing here may need destruction, as the function is never left.
void Engine::run_fiber() {
  Fiber::arrived(nullptr);
  Fiber& self = *current_->fiber;
  Thread* next = run_thread();
  while (next != nullptr && next->fiber == nullptr) {
    become(*next, self);
    next = run_thread();
  }
  free_fibers_.push_back(&self);
  if (next != nullptr) {
    switch_to(*next, self, true);
  } else {
    self.switch_to(caller_, true);
  }
}

// Who is next; null if the block has ended or failed.
Thread* Engine::run_thread() {
  try {
    body_(args_);
    block_.end(*current_);
    Thread* next = block_.next(random);
    if (next == nullptr && !block_.has_ended()) block_.fail_stuck();
    return next;
  } catch (const Misuse& misuse) {
    error_ = std::make_exception_ptr(
        std::runtime_error(
            std::string("cuda shim: kernel ") + kernel_name_ + ", block " + describe(block_index) +
            ": " + misuse.what()));
  } catch (...) {
    error_ = std::current_exception();
  }
  return nullptr;
}

// Returns when the running thread, which waits, can run and is chosen.
void Engine::let_others_run() {
  Thread* next = block_.next(random);
  if (next == nullptr) block_.fail_stuck();
  switch_to(*next, *current_->fiber, false);
}

uint64_t Engine::wait_at_warp_op(
    Op op, unsigned mask, uint64_t value, unsigned source, const std::source_location& where) {
  Thread& self = *current_;
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.where = where;
  if (!block_.arrive_at_warp_op(self)) let_others_run();
  return self.result;
}

int Engine::wait_at_barrier(bool predicate, const std::source_location& where) {
  Thread& self = *current_;
  self.op = Op::barrier;
  self.value = predicate;
  self.where = where;
  if (!block_.arrive_at_barrier(self)) let_others_run();
  return static_cast<int>(block_.n_true());
}

}  // namespace

unsigned lane_index() { return engine.lane(); }

uint64_t warp_op(
    Op op, unsigned mask, uint64_t value, unsigned source, const std::source_location& where) {
  return engine.wait_at_warp_op(op, mask, value, source, where);
}

int block_barrier(bool predicate, const std::source_location& where) {
  return engine.wait_at_barrier(predicate, where);
}

void fail(const char* what, const std::source_location& where) {
  throw Misuse(std::string(what) + ", at " + describe(where));
}

uint64_t n_launches = 0;

void run_grid(
    const char* kernel_name, dim3 grid, dim3 block, void (*body)(const void*), const void* args) {
  const bool fits = block.x <= kMaxThreads && block.y <= kMaxThreads && block.z <= 64;
  const uint64_t n_threads = fits ? uint64_t{block.x} * block.y * block.z : 0;
  if (n_threads < 1 || n_threads > kMaxThreads || grid.x < 1 || grid.x > 0x7fffffff || grid.y < 1 ||
      grid.y > 65535 || grid.z < 1 || grid.z > 65535) {
    throw std::runtime_error(
        std::string("cuda shim: kernel ") + kernel_name +
        ": expected a grid and a block that CUDA can launch, got " + describe(grid) + " and " +
        describe(block));
  }
  const std::lock_guard lock(engine.mutex);
  ++n_launches;
  grid_dim = grid;
  block_dim = block;
  engine.run_grid(kernel_name, body, args);
}

void set_seed(uint64_t seed) {
  const std::lock_guard lock(engine.mutex);
  engine.random.seed(seed);
}

}  // namespace fusedtricks::shim

// All launches so far.
extern "C" [[gnu::visibility("default")]] uint64_t fusedtricks_shim_launches() {
  return fusedtricks::shim::n_launches;
}

extern "C" [[gnu::visibility("default")]] void fusedtricks_shim_set_seed(uint64_t seed) {
  fusedtricks::shim::set_seed(seed);
}
