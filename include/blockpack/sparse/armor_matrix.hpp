// SPDX-License-Identifier: Apache-2.0
#pragma once

/// ARMOR's stored form, W = A S B: a block-diagonal layer, an N:M core and a block-diagonal layer, composed. Schemes
/// `armor-b16-2:4-bf16`. The fit is sparse/prune/armor.hpp.

#include <utility>

#include "blockpack/core/compose.hpp"
#include "blockpack/sparse/n_m.hpp"
#include "blockpack/sparse/prune/armor.hpp"
#include "blockpack/structured/block_diagonal.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// y = A (S (B x)). Sections: `outer.outer.…` of A, `outer.inner.…` of S, `inner.…` of B.
template <RowFormat V>
using ArmorMatrix = Compose<Compose<BlockDiagonal, NmMatrix<V>>, BlockDiagonal>;

#if !defined(BLOCKPACK_HEADERS_ONLY)

/// The operator of fitted factors. Errors: those of the parts; ShapeError where blocks do not divide the shape.
template <RowFormat V>
ArmorMatrix<V> make_armor(const ArmorFactors<float>& f, const NmFormat<V>& core, const FactorFormat& blocks,
                          const Execution& how = {}) {
  const auto [out, in] = f.shape;
  if (f.block.rows < 1 || f.block.cols < 1 || out % f.block.rows != 0 || in % f.block.cols != 0)
    throw ShapeError("make_armor: blocks of " + to_string(f.block) + " do not divide " + to_string(f.shape));
  EncodeOptions options;
  options.execution = how;
  return ArmorMatrix<V>(Compose<BlockDiagonal, NmMatrix<V>>(
                            BlockDiagonal::encode({out, out}, f.left_view(), {out / f.block.rows, blocks}, options),
                            NmMatrix<V>::encode(f.core_view(), fitted(core, f.core_view(), options), options)),
                        BlockDiagonal::encode({in, in}, f.right_view(), {in / f.block.cols, blocks}, options));
}

#endif

}  // namespace blockpack::inline BLOCKPACK_ABI
