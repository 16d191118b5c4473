// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the sparse formats share: reading the stored values of a row in order.

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/row_source.hpp"

namespace blockpack::inline BLOCKPACK_ABI::detail {

/// The values of a row of format V, decoded in steps as they are asked for, ascending.
template <RowFormat V>
class RowValues {
 public:
  /// `src` has one pointer per section to the row's bytes; `count` values are stored.
  RowValues(const V& format, std::span<const std::byte* const> src, index_t count)
      : format_(format), src_(src), count_(count) {}

  float operator[](index_t v) {
    if (v >= first_ + kStep) {
      first_ = v / kStep * kStep;
      format_.decode_row(src_, count_, first_,
                         std::span(values_).first(static_cast<std::size_t>(std::min(kStep, count_ - first_))));
    }
    return values_[static_cast<std::size_t>(v - first_)];
  }

 private:
  static constexpr index_t kStep = RowSource::kColumnStep;

  const V& format_;
  std::span<const std::byte* const> src_;
  index_t count_;
  index_t first_ = -kStep;
  std::array<float, kStep> values_;
};

/// decode_row_bf16 of a format whose values are exact in bf16, from its decode_row.
template <class Decode>
void decode_as_bf16(index_t col, std::span<bf16> dst, const Decode& decode_row) {
  std::array<float, RowSource::kColumnStep> values;
  for (std::size_t at = 0; at < dst.size(); at += values.size()) {
    const std::size_t n = std::min(values.size(), dst.size() - at);
    decode_row(col + static_cast<index_t>(at), std::span(values).first(n));
    for (std::size_t i = 0; i < n; ++i) dst[at + i] = bf16(values[i]);
  }
}

/// The names of V's sections under `values.`.
inline std::vector<SectionSpec> value_sections(std::vector<SectionSpec> sections) {
  for (SectionSpec& s : sections) s.name = "values." + s.name;
  return sections;
}

}  // namespace blockpack::inline BLOCKPACK_ABI::detail
