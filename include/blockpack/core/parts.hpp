// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What operators made of other operators share: the sections of a part under a prefix, and memory between two parts.

#include <algorithm>
#include <array>
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

/// A float matrix that lives for one call. The thread keeps the memory of the last ones, up to 4 of 16 MB, for the
/// next: fresh pages can cost more than a product of some tokens.
class CallMatrix {
 public:
  CallMatrix(index_t rows, index_t cols) : rows_(rows), cols_(cols) {
    const index_t size = checked_mul(rows, cols, "CallMatrix");
    for (AlignedBuffer<float>& b : kept()) {
      if (b.size() < size || (buffer_.size() >= size && buffer_.size() <= b.size())) continue;
      std::swap(buffer_, b);
    }
    if (buffer_.size() < size) buffer_ = AlignedBuffer<float>::uninitialized(size);
  }
  ~CallMatrix() {
    if (buffer_.size() > kKept) return;
    const auto smallest = std::min_element(kept().begin(), kept().end(),
                                           [](const auto& a, const auto& b) { return a.size() < b.size(); });
    if (smallest->size() < buffer_.size()) std::swap(*smallest, buffer_);
  }
  CallMatrix(const CallMatrix&) = delete;
  CallMatrix& operator=(const CallMatrix&) = delete;
  MatrixView<float> view() noexcept { return {buffer_.data(), rows_, cols_}; }

 private:
  static constexpr index_t kKept = index_t{4} << 20;  // floats
  static std::array<AlignedBuffer<float>, 4>& kept() {
    thread_local std::array<AlignedBuffer<float>, 4> buffers;
    return buffers;
  }

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
