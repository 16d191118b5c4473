// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What operators made of other operators share: the sections of a part under a prefix, and memory between two parts.

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/linear_operator.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace detail {

/// A float matrix that lives for one call.
class CallMatrix {
 public:
  CallMatrix(index_t rows, index_t cols)
      : buffer_(AlignedBuffer<float>::uninitialized(checked_mul(rows, cols, "CallMatrix"))), rows_(rows), cols_(cols) {}
  MatrixView<float> view() noexcept { return {buffer_.data(), rows_, cols_}; }

 private:
  AlignedBuffer<float> buffer_;
  index_t rows_, cols_;
};

/// The sections whose names start with `prefix`, without it.
inline std::vector<Section> sections_of(std::span<const Section> all, const std::string& prefix) {
  std::vector<Section> part;
  for (const Section& s : all)
    if (s.name.starts_with(prefix)) part.push_back({s.name.substr(prefix.size()), s.data});
  return part;
}
/// The sections of an operator with `prefix` before their names.
template <class Op>
void append_sections(std::vector<Section>& all, const std::string& prefix, const Op& op) {
  for (Section& s : op.sections()) all.push_back({prefix + s.name, std::move(s.data)});
}

template <class Op>
std::size_t packed_bytes_of(const Op& op) {
  if constexpr (requires { op.packed_bytes(); }) return op.packed_bytes();
  return 0;
}

/// FormatError for a section whose name starts with none of the prefixes.
inline void require_prefixes(std::span<const Section> all, std::span<const std::string_view> prefixes) {
  for (const Section& s : all)
    if (std::none_of(prefixes.begin(), prefixes.end(), [&](std::string_view p) { return s.name.starts_with(p); }))
      throw FormatError("from_sections: section " + s.name + " belongs to no part");
}

}  // namespace detail
}  // namespace blockpack::inline BLOCKPACK_ABI
