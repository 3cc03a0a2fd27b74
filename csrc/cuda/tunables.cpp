#include "tunables.h"

#include <functional>
#include <stdexcept>

#include "table.h"

namespace fusedtricks::cuda {
namespace {

Tunables& current() {
  static Tunables values;
  return values;
}

struct Range {
  int64_t Tunables::* member;
  int64_t smallest, largest;
  bool power_of_two;
};

const std::map<std::string, Range>& ranges() {
  static const std::map<std::string, Range> all{
      {"update_item", {&Tunables::update_item, 64, kMaxRowItem, true}},
      {"statistics_item", {&Tunables::statistics_item, 64, kMaxRowItem, true}},
      {"blocks_per_sm", {&Tunables::blocks_per_sm, 0, 32, false}},
      {"backward", {&Tunables::backward, 0, 1, false}},
      {"table_bytes", {&Tunables::table_bytes, 512, kLargeArguments, false}},
      {"record_elements", {&Tunables::record_elements, kMaxRowItem, kMaxRecordElements, true}},
  };
  return all;
}

}  // namespace

const Tunables& tunables() { return current(); }

std::map<std::string, int64_t> get_tunables() {
  std::map<std::string, int64_t> values;
  for (const auto& [name, range] : ranges()) values[name] = current().*range.member;
  return values;
}

void set_tunables(const std::map<std::string, int64_t>& changes) {
  Tunables changed = current();
  for (const auto& [name, value] : changes) {
    const auto found = ranges().find(name);
    if (found == ranges().end()) throw std::invalid_argument("there is no tunable " + name);
    const Range& range = found->second;
    if (value < range.smallest || value > range.largest ||
        (range.power_of_two && (value & (value - 1)) != 0)) {
      throw std::invalid_argument(
          "expected " + name + " from " + std::to_string(range.smallest) + " to " +
          std::to_string(range.largest) + (range.power_of_two ? ", a power of two" : "") +
          ", got " + std::to_string(value));
    }
    changed.*range.member = value;
  }
  current() = changed;
}

}  // namespace fusedtricks::cuda
