// Host side of table.h: collects the records of a launch and lays them out.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "table.h"

namespace fusedtricks::cuda {

// A tensor, or a part of one that is larger than a record may be.
struct Part {
  int64_t begin;  // first element in the tensor
  uint32_t numel;
  uint32_t row_length;  // 0: rows do not matter; numel if the part lies within one row
  int64_t row;          // the first row, counted in the tensor
  bool within_row;      // the row is longer than a record
  bool ends_row;        // of a part within a row: the last one
  bool is_last;         // of the tensor
};

// Calls visit(part) for the parts of a tensor, once for an empty one.
template <class Visit>
void for_each_part(int64_t numel, int64_t row_length, int64_t largest, const Visit& visit) {
  const bool within_row = row_length > largest;
  const int64_t row_end = within_row ? row_length : std::max<int64_t>(numel, 1);
  const int64_t step = row_length == 0 || within_row ? largest : largest / row_length * row_length;
  int64_t begin = 0;
  do {
    const int64_t to_row_end = row_end - begin % row_end;
    const int64_t n = std::min({step, to_row_end, numel - begin});
    const int64_t row = row_length == 0 ? 0 : begin / row_length;
    visit(
        Part{
            begin, static_cast<uint32_t>(n), static_cast<uint32_t>(within_row ? n : row_length),
            row, within_row, n == to_row_end, begin + n == numel});
    begin += n;
  } while (begin < numel);
}

// Record-major values, written column by column by build().
class TableBuilder {
 public:
  TableBuilder(uint32_t n_pointers, uint32_t n_words, size_t largest)
      : layout_{0, 0, n_pointers, n_words}, largest_(largest) {}

  bool is_empty() const { return layout_.n_records == 0; }
  const TableLayout& layout() const { return layout_; }

  bool has_room(uint32_t n_more_groups) const {
    TableLayout wanted = layout_;
    wanted.n_records += 1;
    wanted.n_groups += n_more_groups;
    return wanted.bytes() <= largest_;
  }

  // Returns the group's index in this table.
  uint16_t add_group(const GroupEntry& group) {
    groups_.push_back(group);
    return static_cast<uint16_t>(layout_.n_groups++);
  }

  // A record: its pointers (or 8 bytes of anything), its words, and 2 bytes.
  void add_pointer(const void* pointer) {
    pointers_.push_back(reinterpret_cast<uint64_t>(pointer));
  }
  void add_double(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    pointers_.push_back(bits);
  }
  void add_word(uint32_t word) { words_.push_back(word); }
  void end_record(uint16_t half) {
    halves_.push_back(half);
    ++layout_.n_records;
  }

  std::vector<unsigned char> build() const {
    std::vector<unsigned char> bytes(layout_.bytes());
    const auto put = [&](uint32_t offset, const auto& value) {
      std::memcpy(bytes.data() + offset, &value, sizeof(value));
    };
    for (uint32_t g = 0; g < layout_.n_groups; ++g) put(g * sizeof(GroupEntry), groups_[g]);
    for (uint32_t r = 0; r < layout_.n_records; ++r) {
      for (uint32_t k = 0; k < layout_.n_pointers; ++k) {
        put(layout_.pointer_at(k, r), pointers_[r * layout_.n_pointers + k]);
      }
      for (uint32_t k = 0; k < layout_.n_words; ++k) {
        put(layout_.word_at(k, r), words_[r * layout_.n_words + k]);
      }
      put(layout_.half_at(r), halves_[r]);
    }
    return bytes;
  }

  void clear() {
    layout_.n_records = layout_.n_groups = 0;
    groups_.clear();
    pointers_.clear();
    words_.clear();
    halves_.clear();
  }

 private:
  TableLayout layout_;
  size_t largest_;
  std::vector<GroupEntry> groups_;
  std::vector<uint64_t> pointers_;
  std::vector<uint32_t> words_;
  std::vector<uint16_t> halves_;
};

}  // namespace fusedtricks::cuda
