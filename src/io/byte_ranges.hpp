// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Which bytes of a tensor have been written.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {

/// A set of bytes as disjoint, non-adjacent ranges. Writing in order keeps it at one range.
class ByteRanges {
 public:
  /// Adds [begin, end), begin < end.
  void add(std::uint64_t begin, std::uint64_t end) {
    auto next = ranges_.upper_bound(begin);  // the first that starts after `begin`
    if (next != ranges_.begin()) {
      const auto before = std::prev(next);
      if (before->second >= begin) {  // overlaps or touches: grow it in place, which allocates nothing
        before->second = std::max(before->second, end);
        swallow(before);
        return;
      }
    }
    swallow(ranges_.emplace_hint(next, begin, end));
  }

  /// The first byte of [0, size) that is not in the set, if any.
  std::optional<std::uint64_t> first_gap(std::uint64_t size) const {
    if (size == 0) return std::nullopt;
    if (ranges_.empty() || ranges_.begin()->first != 0) return 0;
    const std::uint64_t end = ranges_.begin()->second;
    return end >= size ? std::nullopt : std::optional(end);
  }

 private:
  /// Merges what follows `at` into it as long as they touch.
  void swallow(std::map<std::uint64_t, std::uint64_t>::iterator at) {
    for (auto next = std::next(at); next != ranges_.end() && next->first <= at->second; next = ranges_.erase(next))
      at->second = std::max(at->second, next->second);
  }

  std::map<std::uint64_t, std::uint64_t> ranges_;  // begin -> end
};

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
