// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Packed weights without their blocks of zeros, and the product with them.

#if !defined(BLOCKPACK_HEADERS_ONLY)

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Rows on demand, and where they may hold weights other than 0.
struct SparseRowSource {
  RowSource rows;
  /// Sets kept[s] to 1 for every step s, columns [32 s, 32 s + 32), in which one of the rows [row, end) may.
  void (*mark_steps)(const void* self, index_t row, index_t end, std::uint8_t* kept) = nullptr;
  /// For weights that are int8 times a scale of their row: the integers of a row to dst[0 … cols), zeros between the
  /// blocks; returns the scale. Null for others.
  float (*read_int8)(const void* self, index_t row, std::int8_t* dst) = nullptr;
};

/// How packed weights are listed.
enum class BlockLayout : std::uint8_t {
  units,   ///< pieces of 16 rows x 32 columns
  strips,  ///< int8: columns of 4 rows
  bitmask  ///< bf16: pieces as above without their zeros, and a bit a weight
};

/// Half-panels of 16 rows, each a list of steps of 32 columns and their weights as the kernels want them; the same at
/// every level. What lies between the steps is neither kept nor multiplied. Where weights stand apart more finely,
/// zeros within steps are dropped too (BlockLayout), if that leaves less to read or to multiply. A cache, as
/// PackedWeights.
class PackedBlockSparse {
 public:
  static constexpr index_t kStep = 32;  ///< columns

  PackedBlockSparse() = default;

  /// Bytes of memory the packed weights take, lists not counted. Cost: marks every row.
  BLOCKPACK_API static std::size_t bytes_needed(const SparseRowSource& w, WeightType type);

  /// Packs `w` for `how.level()`, into `memory` when it is not empty, as units then. ShapeError if memory is too small
  /// or unaligned.
  BLOCKPACK_API static PackedBlockSparse pack(const SparseRowSource& w, WeightType type, const Execution& how,
                                              std::span<std::byte> memory = {});

  /// The integers of weights that have them (`read_int8`), for int8_token at a level that multiplies_int8_blocks().
  BLOCKPACK_API static PackedBlockSparse pack_int8(const SparseRowSource& w, const Execution& how);

  std::size_t bytes() const noexcept { return bytes_; }
  MatrixShape shape() const noexcept { return shape_; }
  WeightType type() const noexcept { return type_; }
  Isa level() const noexcept { return level_; }
  BlockLayout layout() const noexcept { return layout_; }
  const std::byte* data() const noexcept { return data_; }
  /// The steps of half-panel h are [first()[h], first()[h + 1]) of steps(), rising. Of strips: the groups of strip i
  /// are [first()[i], first()[i + 1]), with four places of columns each in steps().
  const std::vector<index_t>& first() const noexcept { return first_; }
  const std::vector<std::int32_t>& steps() const noexcept { return steps_; }
  /// Of the bitmask: where the weights of half-panel h begin, in bytes.
  const std::vector<index_t>& weights_first() const noexcept { return weights_first_; }
  /// Half-panels [groups()[g], groups()[g + 1]) are multiplied in one task: at most 64 columns, or so many steps that
  /// there are tasks enough of about equal work.
  const std::vector<index_t>& groups() const noexcept { return groups_; }
  /// Of packed integers, else empty: the scale of a row, and -128 times the sum of its integers.
  const std::vector<float>& scales() const noexcept { return scales_; }
  const std::vector<std::int32_t>& starts() const noexcept { return starts_; }

 private:
  std::shared_ptr<const void> owner_;
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  MatrixShape shape_;
  WeightType type_ = WeightType::f32;
  Isa level_ = Isa::scalar;
  BlockLayout layout_ = BlockLayout::units;
  std::vector<index_t> first_, groups_, weights_first_;
  std::vector<std::int32_t> steps_, starts_;
  std::vector<float> scales_;
};

/// Whether a level multiplies packed integers of blocks by int8_token activations in integers.
BLOCKPACK_API bool multiplies_int8_blocks(index_t cols, Isa level);

/// y = epilogue(x · Wᵀ) at the level w was packed for. `mode` is not automatic, and int8_token for packed integers;
/// other weights meet activations of that mode in float32. Shapes are the caller's to check. y may not overlap x. Bits
/// of y do not depend on the threads.
BLOCKPACK_API void matmul(ActivationView x, const PackedBlockSparse& w, ResultView y, Activations mode,
                          const ApplyOptions& how);

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
