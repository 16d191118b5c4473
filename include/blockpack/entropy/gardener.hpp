// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Gardener: a data-free ranking of whole transformer blocks. The score of a block is the discrete entropy of the exact
/// stored values of its matrices, concatenated without scaling; the blocks with the lowest score are removed first.
///
///     p_v = c_v / n        H_N = -Σ_v p_v log p_v = log n - (1/n) Σ_v c_v log c_v  nats        efficiency = H_N / log
///     n
///
/// +0 and -0 are one symbol; all NaN are one symbol, and `has_nan` warns. On a floating grid the score measures the
/// spread of exponents: multiplying all weights by a power of two leaves it as it is.
///
/// Grid dependence: on float32 values nearly every weight is distinct, H_N comes close to log n for every block and the
/// ranking is noise. `saturated` warns when the efficiency is above 0.95; the default grid for float32 is fp16.
///
/// Source: "Entropy Reveals Block Importance in Masked Self-Supervised Vision Transformers", arXiv:2602.03918.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/entropy/estimators.hpp"
#include "blockpack/entropy/value_counts.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct GardenerScore {
  static constexpr double kSaturation = 0.95;

  DiscreteEntropy entropy;  ///< plug-in nats (the published score), Miller-Madow, n, distinct values
  double efficiency = 0;    ///< H_N / log n
  bool saturated = false;   ///< efficiency > 0.95: the grid is too fine for n, do not rank by this
  bool has_nan = false;
  ValueGrid grid;            ///< what was counted
  index_t weight_bytes = 0;  ///< bytes of the stored weights, what one pass moves
  double score() const noexcept { return entropy.plug_in; }
};

/// Score of one block.
///
/// Errors: ValueError for an integer grid of other than 2 to 16 bits or a bad absmax.
/// Cost:   one pass over the stored bytes (docs/entropy.md has the speed); float32 as stored: 8 bytes of scratch memory
/// a
///         weight and three scatter passes. The result does not depend on the threads.
inline GardenerScore gardener_score(const WeightBlock& block, const ValueGrid& grid = {}, const Execution& how = {}) {
  GardenerScore score;
  score.grid = detail::resolve("gardener_score", grid, {&block, 1});
  score.weight_bytes = block.bytes();
  if (score.grid.kind == ValueGrid::Kind::as_stored && block.has(StoredType::f32)) {
    std::vector<EntropyOfCounts> parts(static_cast<std::size_t>(detail::kBuckets));
    detail::sort_symbols(block, how, [&](index_t b, std::span<const std::uint32_t> sorted) {
      detail::for_each_symbol_count(sorted,
                                    [&](std::uint32_t, std::uint64_t c) { parts[static_cast<std::size_t>(b)].add(c); });
      if (sorted.back() == detail::kNanSymbol) score.has_nan = true;  // true for one bucket only: no race
    });
    EntropyOfCounts total;
    for (const EntropyOfCounts& part : parts) total.merge(part);
    score.entropy = total.result();
  } else {
    const ValueCounts counts = value_counts(block, score.grid, how);
    score.entropy = counts.entropy();
    score.has_nan = counts.nan_count > 0;
  }
  score.efficiency = score.entropy.efficiency();
  score.saturated = score.efficiency > GardenerScore::kSaturation;
  return score;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
