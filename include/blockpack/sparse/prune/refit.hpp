// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Refit: the exact least squares of the kept weights of any mask, from XᵀX. Stored bytes do not change.

#include <string>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/sparse/mask.hpp"

#if !defined(BLOCKPACK_HEADERS_ONLY)

namespace blockpack::inline BLOCKPACK_ABI {

struct RefitOptions {
  double damping = 0.0;     ///< times mean(diag H): draws the weights to their start
  int damping_retries = 4;  ///< how often it grows tenfold (from 1e-5 at least) when kept columns of H are singular
  std::string layer;        ///< named in errors
};

struct RefitReport {
  double loss_before = 0, loss_after = 0;  ///< tr((w - q) H (w - q)ᵀ)
  double damping = 0;                      ///< the largest relative damping that was used
  index_t factorizations = 0;              ///< one for each set of rows with equal masks
  index_t rows_left = 0;                   ///< rows whose start was not improved on: they keep it
};

/// Every row of q moves to the minimum of (w - q) H (w - q)ᵀ over the weights its mask keeps:
///
///     (H_SS + damping) d = ((w - q) H)_S,   q_S += d,   S = the kept columns of the row
///
/// Rows with equal masks share a factorization (all rows of a block pattern's block row; all rows under
/// MaskScope::column masks). No row ends with a larger loss than it began with.
///
/// Shapes:  w, q [out, in], the mask's shape; H [in, in]. q holds the start, commonly Mask::apply of w or what a pruner
///          chose; pruned weights in it become 0 first. Columns whose diagonal is 0 keep their start.
/// Errors:  ShapeError for shapes that disagree; ValueError for weights or a start that are NaN or infinite, and naming
///          the layer when kept columns stay singular.
/// Cost:    (2/3) k³ multiply-adds ·2 for each set of rows, k = kept weights of a row, in large products in float32 (a
///          row that keeps 2048 of 4096: 5.7 GFLOP), one step of refinement; memory: two float32 matrices [in, in], two
///          [out, in], two [k, k] a thread.
BLOCKPACK_API RefitReport refit(MatrixView<const float> w, const GramMatrix& h, const Mask& mask, MatrixView<float> q,
                                const RefitOptions& options = {}, const Execution& how = {});

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
