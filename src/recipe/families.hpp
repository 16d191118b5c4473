// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The scheme families of the library, by concept.

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/recipe/codec.hpp"
#include "blockpack/recipe/registry.hpp"

namespace blockpack::recipe_detail {

/// An operator that is named after the scheme it was made of: what it holds may say less.
template <class Op>
class Named : public Op {
 public:
  Named(Op op, std::string scheme) : Op(std::move(op)), scheme_(std::move(scheme)) {}
  std::string scheme() const { return scheme_; }

 private:
  std::string scheme_;
};

/// Encodes w as Codec::encode is asked to, by `encode` of the same arguments: all at once, or, for a codec that encodes
/// panels, panel by panel of some 64 KiB, in parallel, so that what `encode` makes of a panel stays in the caches, and
/// its memory with the process.
template <class Encode>
void encode_by_panels(const Codec& codec, MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
                      const EncodeOptions& options, const Encode& encode) {
  if (!codec.encodes_panels()) return encode(w, first_row, dst, options);
  const index_t rows = std::max<index_t>(1, 16384 / std::max<index_t>(1, w.cols()));
  const std::vector<SectionSize> row_sizes = codec.sections({1, w.cols()});
  const bool own_importance = options.importance.rows() == w.rows() && options.importance.data() != nullptr;
  parallel_for_reported(options.execution, ceil_div(w.rows(), rows), [&](index_t panel) {
    const index_t first = panel * rows, count = std::min(rows, w.rows() - first);
    std::vector<std::byte*> at(dst.begin(), dst.end());
    for (std::size_t s = 0; s < at.size(); ++s)
      if (row_sizes[s].per_row) at[s] += first * row_sizes[s].bytes;
    EncodeOptions inner = options;
    if (own_importance) inner.importance = options.importance.rows_from(first, count);
    inner.execution = options.execution.serial();
    encode(w.rows_from(first, count), first_row + first, at, inner);
  });
}

void add_dense_families(Registry& registry);       ///< f32, bf16, fp16
void add_ggml_families(Registry& registry);        ///< the blocks of ggml
void add_hadamard_family(Registry& registry);      ///< a rotation of the input before another format
void add_quant_families(Registry& registry);       ///< block floating point, MX, group integers, tables, ternary
void add_ptq161_family(Registry& registry);        ///< ptq1.61
void add_sparse_families(Registry& registry);      ///< N:M, bitmask, block-sparse
void add_structured_families(Registry& registry);  ///< low rank, block-diagonal, Monarch, BLAST, block low rank

}  // namespace blockpack::recipe_detail
