// SPDX-License-Identifier: Apache-2.0
#pragma once

/// LoRA, y = base(x) + scaling · B(A x), A [r, in], B [out, r]; and block-diagonal LoRA, in which one of the factors is
/// block-diagonal with a block per shard, so that a layer that is split over shards needs no exchange for its adapter:
///
///     column-parallel (the output is split): B block-diagonal; shard g owns rows g of A, of B and of y
///     row-parallel (the input is split):     A block-diagonal; shard g owns columns g of x and of B, and y is a sum
///
/// Source: "Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA Serving",
/// arXiv:2510.23346; storage as in huggingface/peft, tuners/lora/variants.py. docs/adapters.md.

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/row_matrix.hpp"
#include "blockpack/structured/adapter.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A block-diagonal matrix [blocks · q, blocks · p] that stores its blocks [q, p] one below the other, as one matrix
/// [blocks · q, p] in row format F: row n acts on the columns of block n / q.
template <RowFormat F = DenseFormat<float>>
class StackedBlocks {
 public:
  StackedBlocks() : StackedBlocks(RowMatrix<F>(), 1) {}

  /// ShapeError unless `blocks` >= 1 divides the rows.
  StackedBlocks(RowMatrix<F> stacked, index_t blocks) : stacked_(std::move(stacked)), count_(blocks) {
    if (blocks < 1 || stacked_.out_features() % blocks != 0)
      throw ShapeError("StackedBlocks: " + std::to_string(stacked_.out_features()) + " rows in " +
                       std::to_string(blocks) + " blocks; 1 or more needed, of equal height");
    for (index_t g = 0; g < blocks; ++g) blocks_.push_back(stacked_.row_range(g * block_rows(), block_rows()));
  }

  /// Encodes the stacked blocks w [blocks · q, p].
  static StackedBlocks encode(MatrixView<const float> w, index_t blocks, const F& format = {},
                              const EncodeOptions& options = {}) {
    return {RowMatrix<F>::encode(w, format, options, PackPolicy::none()), blocks};
  }

  struct Parameters {
    index_t blocks = 1;
    F format;
  };
  Parameters parameters() const { return {count_, stacked_.parameters()}; }

  /// FormatError unless the number of blocks divides both sides of the shape; errors of RowMatrix.
  static StackedBlocks from_sections(MatrixShape shape, const Parameters& parameters,
                                     std::span<const Section> sections) {
    const index_t n = parameters.blocks;
    if (n < 1 || shape.rows % n != 0 || shape.cols % n != 0)
      throw FormatError("from_sections: " + to_string(shape) + " has no " + std::to_string(n) + " equal blocks");
    return {RowMatrix<F>::from_sections({shape.rows, shape.cols / n}, parameters.format, sections, PackPolicy::none()),
            n};
  }

  index_t out_features() const noexcept { return stacked_.out_features(); }
  index_t in_features() const noexcept { return stacked_.in_features() * count_; }
  index_t blocks() const noexcept { return count_; }
  index_t block_rows() const noexcept { return stacked_.out_features() / count_; }
  index_t block_cols() const noexcept { return stacked_.in_features(); }
  const RowMatrix<F>& stacked() const noexcept { return stacked_; }
  /// Block g as an operator of its own, over the same bytes.
  const RowMatrix<F>& block(index_t g) const { return blocks_.at(static_cast<std::size_t>(g)); }

  std::vector<Section> sections() const { return stacked_.sections(); }
  std::size_t storage_bytes() const noexcept { return stacked_.storage_bytes(); }
  std::size_t packed_bytes() const noexcept {
    std::size_t sum = 0;
    for (const RowMatrix<F>& b : blocks_) sum += b.packed_bytes();
    return sum;
  }

  /// One product a block, blocks in parallel. An int8 group of activations does not reach over a block.
  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", out_features(), in_features(), x.shape(), y.shape(), how.epilogue);
    const index_t p = block_cols(), q = block_rows();
    each_block(how, [&](index_t g, ApplyOptions part) {
      Epilogue& e = part.epilogue;
      if (!e.bias.empty()) e.bias = e.bias.subspan(static_cast<std::size_t>(g * q), static_cast<std::size_t>(q));
      if (e.gate.data() != nullptr) e.gate = e.gate.block(0, g * q, y.rows(), q);
      if (e.residual.data() != nullptr) e.residual = e.residual.block(0, g * q, y.rows(), q);
      block(g).apply(x.block(0, g * p, x.rows(), p), y.block(0, g * q, y.rows(), q), part);
    });
  }

  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", in_features(), out_features(), y.shape(), x.shape(), {});
    const index_t p = block_cols(), q = block_rows();
    each_block(how, [&](index_t g, const ApplyOptions& part) {
      block(g).apply_transpose(y.block(0, g * q, y.rows(), q), x.block(0, g * p, x.rows(), p), part);
    });
  }

  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {out_features(), in_features()}, rows, y.shape());
    const index_t p = block_cols(), q = block_rows();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto m = static_cast<index_t>(i);
      std::fill_n(y.row_data(m), y.cols(), 0.0f);
      stacked_.decode_rows(rows.subspan(i, 1), y.block(m, rows[i] / q * p, 1, p));
    }
  }

 private:
  /// f(g, options) for every block: several blocks in parallel, each on one thread; a single one as the caller says.
  template <class Each>
  void each_block(const ApplyOptions& how, const Each& f) const {
    if (count_ == 1) return f(0, how);
    ApplyOptions part = how;
    part.execution = how.execution.serial();
    parallel_for(how.execution, count_, [&](index_t g) { f(g, part); });
  }

  RowMatrix<F> stacked_;
  index_t count_;
  std::vector<RowMatrix<F>> blocks_;
};

using LoraUpdate = AdapterUpdate<Dense<float>, Dense<float>>;
using ColumnParallelUpdate = AdapterUpdate<Dense<float>, StackedBlocks<>>;
using RowParallelUpdate = AdapterUpdate<StackedBlocks<>, Dense<float>>;

template <LinearOperator Base>
using Lora = Adapted<Base, LoraUpdate>;
template <LinearOperator Base>
using ColumnParallelLora = Adapted<Base, ColumnParallelUpdate>;
template <LinearOperator Base>
using RowParallelLora = Adapted<Base, RowParallelUpdate>;

/// scaling · B A as an update, the factors copied as float32.
///
/// Shapes:  a [r, in], b [out, r]. For other storage of the factors build an AdapterUpdate of their operators.
/// Errors:  ShapeError when the ranks differ; ValueError for r = 0, a scaling or a factor that is not finite.
/// Source:  "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. (3).
inline LoraUpdate lora_update(MatrixView<const float> a, MatrixView<const float> b, float scaling = 1.0f) {
  return {Dense<float>::encode(a), Dense<float>::encode(b), scaling};
}

/// Which side of the layer is split over the shards.
enum class ShardedSide : std::uint8_t {
  output,  ///< column-parallel: query, key, value, up, gate. B is block-diagonal
  input    ///< row-parallel: attention output, down. A is block-diagonal
};

namespace detail {
inline void check_shards(const char* function, ShardedSide side, MatrixShape a, MatrixShape b, index_t shards) {
  const auto fail = [&](const std::string& text) { throw ShapeError(std::string(function) + ": " + text); };
  if (shards < 1) fail(std::to_string(shards) + " shards, 1 or more needed");
  const bool output = side == ShardedSide::output;
  if (a.rows % shards != 0)
    fail("the rank " + std::to_string(a.rows) + " is not a multiple of " + std::to_string(shards) + " shards");
  if (output && b.rows % shards != 0)
    fail("b has " + std::to_string(b.rows) + " rows, not a multiple of " + std::to_string(shards) + " shards");
  const index_t inner = output ? a.rows / shards : a.rows;
  if (b.cols != inner)
    fail("b has " + std::to_string(b.cols) + " columns, " + std::to_string(inner) + " needed for a with " +
         std::to_string(a.rows) + " rows and " + std::to_string(shards) + " shards");
}
}  // namespace detail

/// Block-diagonal LoRA whose output is split: y[g] += scaling · B_g (A_g x).
///
/// Shapes:  a [r, in]; b [out, r / shards], its blocks B_g [out / shards, r / shards] one below the other.
/// Errors:  ShapeError unless `shards` divides r and out and b has r / shards columns; ValueError as lora_update.
/// Source:  arXiv:2510.23346, section 3.
inline ColumnParallelUpdate column_parallel_update(MatrixView<const float> a, MatrixView<const float> b, index_t shards,
                                                   float scaling = 1.0f) {
  detail::check_shards("column_parallel_update", ShardedSide::output, a.shape(), b.shape(), shards);
  return {Dense<float>::encode(a), StackedBlocks<>::encode(b, shards), scaling};
}

/// Block-diagonal LoRA whose input is split: y += scaling · Σ_g B[:, g] (A_g x[g]).
///
/// Shapes:  a [r, in / shards], its blocks A_g [r / shards, in / shards] one below the other; b [out, r].
/// Errors:  ShapeError unless `shards` divides r and b has r columns; ValueError as lora_update.
/// Source:  arXiv:2510.23346, section 3.
inline RowParallelUpdate row_parallel_update(MatrixView<const float> a, MatrixView<const float> b, index_t shards,
                                             float scaling = 1.0f) {
  detail::check_shards("row_parallel_update", ShardedSide::input, a.shape(), b.shape(), shards);
  return {StackedBlocks<>::encode(a, shards), Dense<float>::encode(b), scaling};
}

/// What shard g holds of a block-diagonal LoRA: a LoRA of its own, from columns [in_first, in_first + a.cols()) of x to
/// columns [out_first, out_first + b.rows()) of y. When the output is split the shards write different columns, when
/// the input is split their results add up with those of the base layer.
struct LoraShard {
  MatrixView<const float> a;  ///< [r / shards, in] or [r / shards, in / shards]
  MatrixView<const float> b;  ///< [out / shards, r / shards] or [out, r / shards]
  index_t in_first = 0;
  index_t out_first = 0;
};

/// Views of shard g in the stacked factors. ShapeError as for the update, or when g is not a shard.
inline LoraShard lora_shard(ShardedSide side, MatrixView<const float> a, MatrixView<const float> b, index_t shards,
                            index_t g) {
  detail::check_shards("lora_shard", side, a.shape(), b.shape(), shards);
  if (g < 0 || g >= shards)
    throw ShapeError("lora_shard: shard " + std::to_string(g) + " of " + std::to_string(shards));
  const index_t rank = a.rows() / shards;
  const MatrixView<const float> mine = a.rows_from(g * rank, rank);
  if (side == ShardedSide::input) return {mine, b.block(0, g * rank, b.rows(), rank), g * a.cols(), 0};
  const index_t rows = b.rows() / shards;
  return {mine, b.rows_from(g * rows, rows), 0, g * rows};
}

/// Parameters of a LoRA, r (in + out), and of a block-diagonal one, r (in + out / N) or r (in / N + out).
inline index_t lora_parameters(MatrixShape w, index_t rank) {
  return checked_mul(rank, checked_add(w.rows, w.cols, "lora_parameters"), "lora_parameters");
}
inline index_t lora_parameters(MatrixShape w, index_t rank, ShardedSide side, index_t shards) {
  return side == ShardedSide::output ? lora_parameters({w.rows / shards, w.cols}, rank)
                                     : lora_parameters({w.rows, w.cols / shards}, rank);
}

/// The rank of a block-diagonal LoRA of a layer w [out, in] with as many parameters as a LoRA of `rank`: the largest
/// multiple of `shards` that has no more. ShapeError unless `shards` divides the side it splits; ValueError when even
/// r = shards has more.
inline index_t equal_parameter_rank(MatrixShape w, index_t rank, ShardedSide side, index_t shards) {
  const index_t split = side == ShardedSide::output ? w.rows : w.cols;
  if (shards < 1 || split % shards != 0)
    throw ShapeError("equal_parameter_rank: " + std::to_string(split) + " features over " + std::to_string(shards) +
                     " shards");
  const index_t per_step = lora_parameters(w, shards, side, shards);
  const index_t steps = per_step == 0 ? 0 : lora_parameters(w, rank) / per_step;
  if (steps == 0)
    throw ValueError("equal_parameter_rank: a rank of " + std::to_string(shards) +
                     ", one for each shard, has more parameters than a LoRA of rank " + std::to_string(rank));
  return steps * shards;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
