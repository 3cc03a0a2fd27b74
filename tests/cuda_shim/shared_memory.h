// The memory behind `__shared__`. For engine.cpp only.
#pragma once

#include <link.h>

#include <cstring>
#include <stdexcept>
#include <vector>

namespace fusedtricks::shim {
namespace {

// Note [Shared memory]
// A block needs one instance of every `__shared__` array, and the macro is a prefix that sees
// neither the type nor the name. A section of their own does not work: gcc 12 ignores the section
// of a static variable in a template, and elsewhere refuses to mix both kinds. So the arrays are
// thread-local: all threads of a block run on one thread of the operating system and share them,
// and the loader tells where this library's thread-local variables lie. Before a block they are
// overwritten with 0xff, NaN for a floating-point number, since the memory of a GPU holds anything
// then. The other thread-local variables of the library get back their values after the launch.
class SharedMemory {
 public:
  SharedMemory() : begin_(range().offset + anchor_address()), saved_(begin_, begin_ + bytes()) {}
  ~SharedMemory() { std::memcpy(begin_, saved_.data(), bytes()); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void fill_with_garbage() { std::memset(begin_, 0xff, bytes()); }

 private:
  // Variables without an initial value, relative to the anchor: the same in every thread.
  struct Range {
    ptrdiff_t offset = 0;
    size_t bytes = 0;
  };

  static char* anchor_address() {
    static thread_local char anchor;
    char* address = &anchor;
    asm("" : "+r"(address));  // Nothing reads the variable, yet it must exist.
    return address;
  }

  static const Range& range() {
    static const Range found = [] {
      Range result;
      dl_iterate_phdr(find, &result);
      if (result.bytes == 0) throw std::runtime_error("cuda shim: no thread-local memory found");
      return result;
    }();
    return found;
  }

  static size_t bytes() { return range().bytes; }

  // Called for every loaded library, until one contains the anchor.
  static int find(dl_phdr_info* info, size_t, void* result) {
    const char* begin = static_cast<const char*>(info->dlpi_tls_data);
    const char* anchor = anchor_address();
    for (int i = 0; begin != nullptr && i < info->dlpi_phnum; ++i) {
      const auto& header = info->dlpi_phdr[i];
      if (header.p_type != PT_TLS || anchor < begin || anchor >= begin + header.p_memsz) continue;
      const ptrdiff_t offset = begin + header.p_filesz - anchor;
      *static_cast<Range*>(result) = {offset, header.p_memsz - header.p_filesz};
      return 1;
    }
    return 0;
  }

  char* begin_;
  std::vector<char> saved_;
};

}  // namespace
}  // namespace fusedtricks::shim
