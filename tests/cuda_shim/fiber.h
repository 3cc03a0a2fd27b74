// Fibers: stacks that one thread of the operating system switches between. For engine.cpp only.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define FT_SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FT_SHIM_ASAN 1
#endif
#endif
#if defined(FT_SHIM_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// swapcontext saves the signal mask with a system call at every switch. Where the few registers
// that a call must preserve are known, they are switched here. FUSEDTRICKS_SHIM_UCONTEXT chooses
// the portable way also there.
#if defined(__x86_64__) && !defined(FUSEDTRICKS_SHIM_UCONTEXT)
#define FT_SHIM_OWN_SWITCH 1
// Saves the stack pointer of the running fiber in *save and continues the fiber that left `load`.
// A jump and not `ret`, which the processor would predict wrongly every time.
extern "C" void fusedtricks_shim_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type fusedtricks_shim_switch, @function
fusedtricks_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size fusedtricks_shim_switch, .-fusedtricks_shim_switch
)");
#endif

namespace fusedtricks::shim {
namespace {

// Room for a kernel with the largest parameter list, which is passed by value.
#if defined(FT_SHIM_ASAN)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

// A stack and what it takes to continue on it. Without a stack of its own: the fiber that stands
// for the caller of a launch.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // `number` spreads the tops of the stacks over the sets of the first-level cache.
  void allocate_stack(size_t number) {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(
        nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    // A kernel that overflows its stack ends with a signal instead of writing to its neighbour.
    mprotect(memory, guard, PROT_NONE);
    bottom_ = static_cast<char*>(memory) + guard;
    size_ = kStackBytes - 64 * (number % 64);
  }

  // The next switch to this fiber calls `entry`, which must not return, on an empty stack.
  void start(void (*entry)()) {
#if defined(FT_SHIM_OWN_SWITCH)
    constexpr size_t n_registers = 6;
    // The zero is where a caller would have put the return address: debuggers stop there.
    auto** top = reinterpret_cast<void**>(bottom_ + size_);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (size_t i = 0; i < n_registers; ++i) *--top = nullptr;
    stack_pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom_;
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Leave this fiber, which runs, for `next`. A fiber that has `finished` is not continued.
  void switch_to(Fiber& next, [[maybe_unused]] bool finished) {
#if defined(FT_SHIM_ASAN)
    leaving = this;
    // The frames that are left for ever would keep their red zones.
    if (finished) __asan_handle_no_return();
    __sanitizer_start_switch_fiber(finished ? nullptr : &fake_stack_, next.bottom_, next.size_);
#endif
#if defined(FT_SHIM_OWN_SWITCH)
    fusedtricks_shim_switch(&stack_pointer_, next.stack_pointer_);
#else
    swapcontext(&context_, &next.context_);
#endif
    arrived(this);
  }

  // `entry` calls this first, with null.
  static void arrived([[maybe_unused]] Fiber* self) {
#if defined(FT_SHIM_ASAN)
    const void* bottom = nullptr;
    __sanitizer_finish_switch_fiber(self ? self->fake_stack_ : nullptr, &bottom, &leaving->size_);
    leaving->bottom_ = static_cast<char*>(const_cast<void*>(bottom));
#endif
  }

  // Forget the frames of a fiber that will never be continued.
  void abandon() {
#if defined(FT_SHIM_ASAN)
    __asan_unpoison_memory_region(bottom_, size_);
#endif
  }

 private:
  char* bottom_ = nullptr;
  size_t size_ = 0;
#if defined(FT_SHIM_OWN_SWITCH)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_ = {};
#endif
#if defined(FT_SHIM_ASAN)
  void* fake_stack_ = nullptr;
  // Set before a switch; its stack's bounds, unknown for the caller of a launch, come after it.
  static inline Fiber* leaving = nullptr;
#endif
};

}  // namespace
}  // namespace fusedtricks::shim
