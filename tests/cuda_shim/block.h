// Which threads of the running block can run, and what the others wait for. For engine.cpp only.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "report.h"
#include "schedule.h"

namespace fusedtricks::shim {
namespace {

// A kernel breaks a rule of CUDA.
struct Misuse : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Block {
 public:
  Block() : threads_(kMaxThreads) {}

  // All threads can run.
  void start(dim3 shape, Random& random);

  // A thread that can run and from now on does; null if there is none.
  Thread* next(Random& random);

  // The running thread ends, which may complete what others wait for.
  void end(const Thread& thread);

  // The running thread arrives where its fields `op` to `where` say. True if it was the last, so
  // that its `result` is known and it goes on; the others of that operation can run then.
  bool arrive_at_warp_op(const Thread& thread);
  bool arrive_at_barrier(const Thread& thread);

  bool has_ended() const { return n_alive_ == 0; }

  // Every thread that is left waits.
  [[noreturn]] void fail_stuck() const;

  // Threads whose value was not 0 at the last barrier. Read before the next one can complete.
  uint64_t n_true() const { return n_true_released_; }

 private:
  static uint32_t bit_of(const Thread& thread) { return uint32_t{1} << thread.lane(); }
  Warp& warp_of(const Thread& thread) { return warps_[thread.number / kWarpSize]; }
  void make_runnable(Warp& warp, uint32_t lanes);
  bool complete_warp_op(const Thread& member, uint32_t running);
  void release_barrier(const Thread& running);

  std::vector<Thread> threads_;
  std::array<Warp, kMaxThreads / kWarpSize> warps_;
  std::array<Warp*, kMaxThreads / kWarpSize> order_;
  uint32_t runnable_warps_ = 0;  // By position in order_.
  bool one_warp_first_ = false;
  unsigned n_threads_ = 0, n_alive_ = 0;
  // At the barrier.
  unsigned n_arrived_ = 0;
  const Thread* first_arrived_ = nullptr;
  uint64_t n_true_ = 0, n_true_released_ = 0;
};

inline void Block::start(dim3 shape, Random& random) {
  n_threads_ = shape.x * shape.y * shape.z;
  for (unsigned i = 0; i < n_threads_; ++i) {
    threads_[i].number = i;
    threads_[i].index = unravel(i, shape);
    threads_[i].fiber = nullptr;
  }
  const unsigned n_warps = (n_threads_ + kWarpSize - 1) / kWarpSize;
  for (unsigned i = 0; i < n_warps; ++i) {
    const unsigned n_lanes = std::min(kWarpSize, n_threads_ - kWarpSize * i);
    const uint32_t lanes = ~uint32_t{0} >> (kWarpSize - n_lanes);
    warps_[i] = {.alive = lanes, .runnable = lanes, .waiting = 0, .position = 0};
    order_[i] = &warps_[i];
  }
  random.shuffle(order_.data(), n_warps);
  for (unsigned i = 0; i < n_warps; ++i) order_[i]->position = i;
  runnable_warps_ = ~uint32_t{0} >> (32 - n_warps);
  one_warp_first_ = random.next() % 2 == 0;
  n_alive_ = n_threads_;
  n_arrived_ = 0;
  n_true_ = 0;
}

inline Thread* Block::next(Random& random) {
  if (runnable_warps_ == 0) return nullptr;
  const uint32_t number = random.next();
  const unsigned position = one_warp_first_ ? std::countr_zero(runnable_warps_)
                                            : choose_bit(runnable_warps_, number >> 8);
  Warp& warp = *order_[position];
  const unsigned lane = choose_bit(warp.runnable, number);
  warp.runnable &= ~(uint32_t{1} << lane);
  if (warp.runnable == 0) runnable_warps_ &= ~(uint32_t{1} << position);
  return &threads_[(&warp - warps_.data()) * kWarpSize + lane];
}

inline void Block::end(const Thread& thread) {
  Warp& warp = warp_of(thread);
  warp.alive &= ~bit_of(thread);
  --n_alive_;
  if (n_arrived_ > 0 && n_arrived_ == n_alive_) release_barrier(thread);
  const Thread* lanes = &thread - thread.lane();
  for (uint32_t left = warp.waiting; left != 0; left &= left - 1) {
    const unsigned i = std::countr_zero(left);
    // The operation of an earlier lane may have been that of this one too.
    if (warp.waiting >> i & 1) complete_warp_op(lanes[i], 0);
  }
}

inline void Block::make_runnable(Warp& warp, uint32_t lanes) {
  warp.runnable |= lanes;
  if (lanes != 0) runnable_warps_ |= uint32_t{1} << warp.position;
}

inline bool Block::arrive_at_warp_op(const Thread& thread) {
  if ((thread.mask & bit_of(thread)) == 0) {
    throw Misuse("a mask does not include the lane itself: " + describe(thread));
  }
  warp_of(thread).waiting |= bit_of(thread);
  return complete_warp_op(thread, bit_of(thread));
}

// Do the operation of `member` if all its lanes wait for it; all but `running` can run then.
inline bool Block::complete_warp_op(const Thread& member, uint32_t running) {
  Warp& warp = warp_of(member);
  const uint32_t members = member.mask & warp.alive;
  if ((warp.waiting & members) != members) return false;
  Thread* lanes = &threads_[member.number - member.lane()];
  uint64_t ballot = 0;
  for (uint32_t left = members; left != 0; left &= left - 1) {
    const unsigned i = std::countr_zero(left);
    ballot |= uint64_t{lanes[i].value != 0} << i;
    if (lanes[i].mask == member.mask && lanes[i].op == member.op) continue;
    // The other may still get on without this one, and then come here.
    if ((lanes[i].mask & bit_of(member)) == 0) return false;
    throw Misuse(
        "lanes of a warp meet at different operations or masks: " + describe(member) + " and " +
        describe(lanes[i]));
  }
  for (uint32_t left = members; left != 0; left &= left - 1) {
    Thread& lane = lanes[std::countr_zero(left)];
    const bool has_source = members >> lane.source & 1;
    lane.result = has_source ? lanes[lane.source].value : ~uint64_t{0};
    if (member.op == Op::vote) lane.result = ballot;
  }
  warp.waiting &= ~members;
  make_runnable(warp, members & ~running);
  return true;
}

inline bool Block::arrive_at_barrier(const Thread& thread) {
  if (n_arrived_ == 0) first_arrived_ = &thread;
  if (!same_place(first_arrived_->where, thread.where)) {
    throw Misuse(
        "threads of a block meet at different barriers: " + describe(*first_arrived_) + " and " +
        describe(thread));
  }
  n_true_ += thread.value != 0;
  if (++n_arrived_ < n_alive_) return false;
  release_barrier(thread);
  return true;
}

// All threads but `running` can run.
inline void Block::release_barrier(const Thread& running) {
  n_true_released_ = std::exchange(n_true_, 0);
  n_arrived_ = 0;
  for (unsigned i = 0; i * kWarpSize < n_threads_; ++i) {
    const uint32_t others = &warps_[i] == &warp_of(running) ? ~bit_of(running) : ~uint32_t{0};
    make_runnable(warps_[i], warps_[i].alive & others);
  }
}

inline void Block::fail_stuck() const {
  std::map<std::string, unsigned> n_waiting;
  for (unsigned i = 0; i < n_threads_; ++i) {
    const Warp& warp = warps_[i / kWarpSize];
    if (warp.alive & bit_of(threads_[i])) ++n_waiting[describe_wait(threads_[i])];
  }
  std::string text = "threads wait for each other for ever";
  for (const auto& [wait, n] : n_waiting) text += "\n  " + std::to_string(n) + " at " + wait;
  throw Misuse(text);
}

}  // namespace
}  // namespace fusedtricks::shim
