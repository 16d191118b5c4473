// SPDX-License-Identifier: Apache-2.0
#pragma once

/// SparseGPT: prunes column after column and moves the error of each to the columns that follow, as GPTQ does with
/// rounding errors (quant/rounding.hpp, whose factorization and walk it shares); the mask is chosen on the way, from
/// weights that have seen the errors before them. And the score it chooses by as a criterion of its own.

#include <string>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/quant/weight_grids.hpp"
#include "blockpack/sparse/prune/criterion.hpp"

#if !defined(BLOCKPACK_HEADERS_ONLY)  // compiled: long, and the sums must not be contracted

namespace blockpack::inline BLOCKPACK_ABI {

struct SparseGptOptions {
  /// Columns decided at once by the scopes layer, row, column and block, rounded up to whole blocks.
  index_t block = 128;
  double damping = 0.01;    ///< times mean(diag H), added to the diagonal
  int damping_retries = 4;  ///< how often it grows tenfold (from 1e-5 at least) when H is not positive definite
  std::string layer;        ///< named in errors
};

struct SparseGptReport {
  Mask mask;
  double loss = 0;     ///< Σ (w - q)² / U_jj² with the damped H: the layer objective in exact arithmetic
  double damping = 0;  ///< relative damping that was used
};

/// With the inverse of the damped H = UᵀU, U upper triangular: where w_j is pruned q = 0, elsewhere q = w_j, or its
/// nearest value where there are grids (fitted to w here); e = (w_j - q) / U_jj and w_k -= e · U_jk for the columns k
/// after j. Scores are w² / U_jj²:
///
/// - group: decided when the sweep reaches the first column of the group;
/// - layer: one threshold for all rows of `block` columns; row and column: the density holds in every such block, for
///   each row or column;
/// - block: whole blocks of the pattern by the sum of their scores, in `block` columns at once. For 4x1 blocks with
///   `block` = 1 every column of 4 is decided when the sweep reaches it.
///
/// Columns whose diagonal is 0 count as 0.
///
/// Shapes:  w, q [out, in], grids of that shape; H [in, in]. q may be w. T is float or double.
/// Errors:  ShapeError for shapes that disagree; ValueError for weights that are NaN or infinite, for more than 64
///          columns in a group, and, naming the layer, when H stays singular; those of MaskPattern.
/// Cost:    (2/3) in³ + out · in² multiply-adds ·2, in float nearly all of them in large products of the engine; in
///          double in plain loops, for small layers. Memory: as gptq, and the mask. The mask does not depend on the
///          number of threads.
/// Source:  "SparseGPT", arXiv:2301.00774; IST-DASLab/sparsegpt, whose threshold itself is pruned: one weight more in
///          every block of an unstructured mask. Block shapes are ours.
BLOCKPACK_API SparseGptReport sparsegpt(MatrixView<const float> w, const GramMatrix& h, const MaskPattern& pattern,
                                        MatrixView<float> q, const SparseGptOptions& options = {},
                                        WeightGrids* grids = nullptr, const Execution& how = {});
BLOCKPACK_API SparseGptReport sparsegpt(MatrixView<const double> w, const GramMatrix& h, const MaskPattern& pattern,
                                        MatrixView<double> q, const SparseGptOptions& options = {},
                                        WeightGrids* grids = nullptr, const Execution& how = {});

/// SparseGPT's score without its updates: 1 / U_jj of the columns.
/// Errors: ValueError naming the layer when H stays singular. Cost: (2/3) in³ multiply-adds ·2.
BLOCKPACK_API Criterion second_order(const GramMatrix& h, const SparseGptOptions& options = {},
                                     const Execution& how = {});

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
