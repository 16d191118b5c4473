// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Products with a matrix that is cut into blocks, each given through ranks or as it is: what block-diagonal, Monarch,
/// BLAST and block low-rank layers have in common, and how the engine computes them in one call.
///
/// Input block l is x_l, columns [l·p, (l + 1)·p) of x, output block k is y_k, columns [k·q, (k + 1)·q) of y; the last
/// ones may be short. A matrix right_l [R_l, p] turns x_l into R_l values v_l = x_l · right_lᵀ, a matrix left_k
/// [q, K_k] turns K_k values z_k into y_k = z_k · left_kᵀ, plus x_l · tileᵀ for the blocks that are kept as they are.
/// What z_k holds:
///
///   runs       stretches of the v_l, in the order of `BlockSource::runs`             (Monarch, block low-rank)
///   coupling   z_k = Σ_l coupling[k, l] ∘ v_l, every v_l and z_k of one length  (BLAST)

#include <memory>
#include <span>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/row_source.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The next `count` values of z_k, k = out_block, are v_l[first, first + count), l = in_block.
struct RankRun {
  index_t out_block = 0;
  index_t in_block = 0;
  index_t first = 0;
  index_t count = 0;
};

#if !defined(BLOCKPACK_HEADERS_ONLY)

/// A block that is not given through ranks, W_kl [q, p].
struct BlockTile {
  index_t out_block = 0;
  index_t in_block = 0;
  RowSource w;
};

/// The parts of such a matrix; a `left` may lack the last rows of its block, which are zeros. Runs and tiles are
/// ordered by their output block; the runs of an input block cover the rows of its `right` in order. Without ranks
/// `right` and `left` have no rows and no columns.
struct BlockSource {
  MatrixShape shape;
  index_t in_block = 1;   ///< p
  index_t out_block = 1;  ///< q
  std::vector<RowSource> right;
  std::vector<RowSource> left;
  std::vector<RankRun> runs;
  std::vector<BlockTile> tiles;
  MatrixView<const float> coupling;  ///< [out blocks · in blocks, rank], row k · in blocks + l; empty: runs

  index_t in_blocks() const noexcept { return static_cast<index_t>(right.size()); }
  index_t out_blocks() const noexcept { return static_cast<index_t>(left.size()); }
};

/// All parts in the panel layout of one level, each with its ranks as they are. A cache, as PackedWeights is.
class PackedBlocks {
 public:
  /// Bytes of memory the packed form takes.
  BLOCKPACK_API static std::size_t bytes_needed(const BlockSource& w, WeightType type);

  /// Packs `w` for `how.level()`, into `memory` when it is not empty. ShapeError if memory is too small or unaligned.
  BLOCKPACK_API static PackedBlocks pack(const BlockSource& w, WeightType type, const Execution& how,
                                         std::span<std::byte> memory = {});

  /// Values [offset, offset + count) of z_k are v_l[first, first + count), l = in_block.
  struct Run {
    index_t in_block, first, count, offset;
  };
  struct Tile {
    index_t in_block;
    PackedWeights w;
  };
  /// What one output block is made of.
  struct Output {
    PackedWeights left;  ///< [rows of the block, ranks]
    std::vector<Run> runs;
    std::vector<Tile> tiles;
  };
  /// A run of output block `output`.
  struct GroupRun {
    index_t output;
    Run run;
  };
  /// Output blocks whose values are computed together, so that panels of ranks which they share are computed once.
  struct Group {
    index_t first, count;
    std::vector<GroupRun> runs;  ///< of all of them, ordered by input block and row
  };

  std::size_t bytes() const noexcept { return bytes_; }
  MatrixShape shape() const noexcept { return shape_; }
  WeightType type() const noexcept { return type_; }
  Isa level() const noexcept { return level_; }
  index_t in_block() const noexcept { return in_block_; }
  index_t out_block() const noexcept { return out_block_; }
  std::span<const PackedWeights> right() const noexcept { return right_; }
  std::span<const Output> outputs() const noexcept { return outputs_; }
  std::span<const Group> groups() const noexcept { return groups_; }
  /// Coupling in panels of 32 ranks: [rank / 32][out block][in block][32], or null.
  const float* coupling() const noexcept { return coupling_; }

 private:
  std::shared_ptr<const void> owner_;
  std::size_t bytes_ = 0;
  MatrixShape shape_;
  WeightType type_ = WeightType::f32;
  Isa level_ = Isa::scalar;
  index_t in_block_ = 1, out_block_ = 1;
  std::vector<PackedWeights> right_;
  std::vector<Output> outputs_;
  std::vector<Group> groups_;
  const float* coupling_ = nullptr;
};

/// y = epilogue(x · Wᵀ) at the level W was packed for, in mode f32 or bf16 (which rounds x and the values between the
/// two stages). One pass over the packed form for few tokens; for many, a token tile at a time, so that what lies
/// between the stages stays in L2. Shapes are the caller's to check. y may not overlap x.
BLOCKPACK_API void matmul(ActivationView x, const PackedBlocks& w, ResultView y, Activations mode,
                          const ApplyOptions& how);

#endif

}  // namespace blockpack::inline BLOCKPACK_ABI
