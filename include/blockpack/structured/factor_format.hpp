// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How the factors of a structured operator are stored: any row format of the library, behind one value.

#include <functional>
#include <span>
#include <string>
#include <utility>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/pack_policy.hpp"
#include "blockpack/core/parts.hpp"
#include "blockpack/core/row_format.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A factor is a matrix like any other: encoded from its values, opened from its sections.
struct FactorFormat {
  std::string scheme;  ///< of the format: "bf16", "mxfp8-e4m3"
  std::function<AnyLinear(MatrixView<const float> w, const EncodeOptions& options, PackPolicy policy)> encoder;
  std::function<AnyLinear(MatrixShape shape, std::span<const Section> sections, PackPolicy policy)> opener;

  /// Tells no progress: a factor is one of several.
  AnyLinear encode(MatrixView<const float> w, EncodeOptions options, PackPolicy policy = {}) const {
    options.execution = options.execution.quiet();
    return encoder(w, options, policy);
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy = {}) const {
    return opener(shape, sections, policy);
  }

  template <RowFormat F>
  static FactorFormat of(const F& format) {
    return {format.scheme(),
            [format](MatrixView<const float> w, const EncodeOptions& options, PackPolicy policy) -> AnyLinear {
              return RowMatrix<F>::encode(w, format, options, policy);
            },
            [format](MatrixShape shape, std::span<const Section> sections, PackPolicy policy) -> AnyLinear {
              return RowMatrix<F>::from_sections(shape, format, sections, policy);
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

/// ShapeError that names the form and the factor.
inline void require_factor(const char* form, const char* factor, MatrixShape came, MatrixShape needed) {
  if (came != needed)
    throw ShapeError(std::string(form) + ": " + factor + " is " + to_string(came) + ", " + to_string(needed) +
                     " needed");
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
