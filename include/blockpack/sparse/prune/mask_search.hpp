// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Mask search: the mask of an N:M or row pattern improved by exact swaps, with the least squares of the kept weights
/// in hand all the while. Stored bytes do not change.

#include <string>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/sparse/mask.hpp"

#if !defined(BLOCKPACK_HEADERS_ONLY)

namespace blockpack::inline BLOCKPACK_ABI {

struct MaskSearchOptions {
  index_t window = 512;      ///< columns whose weights are free at once; rows of no more are searched as a whole
  int rounds = 2;            ///< over the windows of a row that has several
  int passes = 20;           ///< over the groups of a window, at most
  double damping = 1e-4;     ///< times mean(diag H), added to the diagonal: keeps every choice of columns regular
  double least_gain = 1e-6;  ///< of the loss of the row: smaller improvements are left
  std::string layer;         ///< named in errors
};

struct MaskSearchReport {
  Mask mask;
  double loss_before = 0, loss_after = 0;  ///< tr((w - q) H (w - q)ᵀ) with the damped H
  index_t swaps = 0;
};

/// Row by row block coordinate descent on the loss (w - q) H (w - q)ᵀ, a block being the support of one group of the
/// pattern: of all exchanges of a kept weight for a pruned one of its group the best is taken, judged exactly, that is
/// with all kept weights of the window free to move to their new least squares. With S the kept columns and T the
/// tableau of H swept on S (T_SS = -H_SS⁻¹, T_SP = H_SS⁻¹ H_SP, T_PP the Schur complement), v_S = q_S, v_P the gradient
/// of the pruned ones, an exchange of p for r changes the loss by
///
///     q_p² / a - (v_r + t q_p / a)² / (T_rr + t² / a),   a = -T_pp, t = T_pr
///
/// and two pivots of T carry it out. Passes end when none gains. The loss never rises.
///
/// Shapes:  w, q [out, in], the mask's shape; H [in, in]. q holds the start, commonly Mask::apply of w or what a pruner
///          chose, and receives the result; pruned weights in it become 0 first. `start` is a mask that has the
///          pattern. `of` weights side by side are a group, the last one may be short; of = 0: the whole window is one.
///          After an error or a cancellation q holds rows of either.
/// Errors:  ShapeError for shapes that disagree; ValueError for weights or a start that are NaN or infinite, and naming
///          the layer when kept columns are singular beside the damping. Columns whose diagonal is 0 count as 0.
/// Cost:    window²/2 multiply-adds in double for every kept weight and twice for every exchange, out · in · window² /
/// 4
///          and more in all, and out · in² a round; memory 8·in² bytes and 8·window² a thread. Rows run in parallel;
///          the result does not depend on the threads. A row of a 512x512 layer takes 14 ms of one core, of
///          4096x4096 0.17 s.
/// Source:  ours; the sweep operator is Beaton's (1964), the exact price of one removal that of Optimal Brain Surgeon.
BLOCKPACK_API MaskSearchReport mask_search(MatrixView<const float> w, const GramMatrix& h, const Mask& start,
                                           index_t of, MatrixView<float> q, const MaskSearchOptions& options = {},
                                           const Execution& how = {});

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
