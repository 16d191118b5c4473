// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How the factors of a structured operator are stored: any row format of the library, behind one value.

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/row_format.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A factor is a matrix like any other: encoded from its values, opened from its sections.
struct FactorFormat {
  std::string scheme;  ///< of the format: "bf16", "mxfp8-e4m3"
  std::function<AnyLinear(MatrixView<const float> w, const EncodeOptions& options)> encode;
  std::function<AnyLinear(MatrixShape shape, std::span<const Section> sections)> open;

  template <RowFormat F>
  static FactorFormat of(const F& format) {
    return {format.scheme(),
            [format](MatrixView<const float> w, const EncodeOptions& options) -> AnyLinear {
              return RowMatrix<F>::encode(w, format, options);
            },
            [format](MatrixShape shape, std::span<const Section> sections) -> AnyLinear {
              return RowMatrix<F>::from_sections(shape, format, sections);
            }};
  }
  /// When the blocks of a factor are packed: float32 and bf16 are packed together, by BlockFactors.
  PackPolicy block_policy() const {
    return scheme == "f32" || scheme == "bf16" ? PackPolicy::none() : PackPolicy::on_first_use();
  }
  static FactorFormat f32() { return of(DenseFormat<float>{}); }
  static FactorFormat bf16() { return of(DenseFormat<blockpack::bf16>{}); }
};

namespace detail {

/// The sections of a part under its name: "left.values".
inline void add_sections(std::vector<Section>& all, const std::string& part, const std::vector<Section>& sections) {
  for (const Section& s : sections) all.push_back({part + "." + s.name, s.data});
}

/// The sections of one part, without its name.
inline std::vector<Section> part_sections(std::span<const Section> all, std::string_view part) {
  std::vector<Section> result;
  for (const Section& s : all)
    if (s.name.size() > part.size() && s.name.starts_with(part) && s.name[part.size()] == '.')
      result.push_back({s.name.substr(part.size() + 1), s.data});
  return result;
}

/// FormatError for a section that belongs to none of the parts.
inline void require_parts(std::span<const Section> all, std::span<const std::string_view> parts) {
  for (const Section& s : all)
    if (std::none_of(parts.begin(), parts.end(), [&](std::string_view part) {
          return s.name.size() > part.size() && s.name.starts_with(part) && s.name[part.size()] == '.';
        }))
      throw FormatError("from_sections: section " + s.name + " belongs to no factor");
}

/// Every value of an operator, row after row.
inline AlignedBuffer<float> decode_all(const AnyLinear& op) {
  auto values = AlignedBuffer<float>::uninitialized(checked_mul(op.out_features(), op.in_features(), "decode"));
  for (index_t r = 0; r < op.out_features(); ++r)
    op.decode_rows(std::span(&r, 1), MatrixView<float>(values.data() + r * op.in_features(), 1, op.in_features()));
  return values;
}

}  // namespace detail
}  // namespace blockpack::inline BLOCKPACK_ABI
