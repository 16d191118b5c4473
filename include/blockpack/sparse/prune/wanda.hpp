// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Wanda: a weight matters as much as it is large and as its input is: |w_ij| · |x_j|₂ over the calibration tokens. Its
/// own pattern for unstructured masks is MaskPattern::rows. The public code keeps a running mean of the squared norms
/// over its samples; that mean is a common factor of the sums here, which no mask depends on.
///
/// Source: "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695; locuslab/wanda.

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/sparse/prune/criterion.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

inline Criterion wanda(const ColumnStats& x) {
  Criterion c;
  for (index_t j = 0; j < x.in_features(); ++j) c.column.push_back(x.l2_norm(j));
  return c;
}
inline Criterion wanda(const GramMatrix& h) {
  Criterion c;
  for (index_t j = 0; j < h.in_features(); ++j) c.column.push_back(std::sqrt(h(j, j)));
  return c;
}

/// Rows of different densities: every row prunes its smallest scores as long as their sum is at most alpha times the
/// sum of all; alpha is found by bisection in [0, 0.8] from 0.4 on, until the fraction pruned is within 1e-3 of
/// `sparsity` or the interval is empty.
///
/// Shapes:  w [out, in]; criterion as of prune_mask.
/// Errors:  as prune_mask; ValueError for a sparsity outside [0, 1].
/// Cost:    one sort of each row; keeps all scores, sorted, and their running sums.
/// Source:  the variant of locuslab/wanda (`--use_variant`), which stops at an interval of 1e-3. A row none of whose
///          scores fits keeps all; there the index wraps around and the row loses all.
inline Mask row_threshold_mask(MatrixView<const float> w, const Criterion& criterion, double sparsity,
                               const Execution& how = {}) {
  if (!(sparsity >= 0.0 && sparsity <= 1.0))
    throw ValueError("row_threshold_mask: sparsity = " + std::to_string(sparsity) + ", 0 to 1 needed");
  Mask mask(w.shape(), true);
  if (w.empty()) return mask;
  const detail::ScoreRows<float> score_rows("row_threshold_mask", w, criterion);
  std::vector<std::vector<std::pair<float, index_t>>> rows(static_cast<std::size_t>(w.rows()));
  std::vector<std::vector<double>> sums(rows.size());
  parallel_for(how, w.rows(), [&](index_t i) {
    std::vector<float> scores(static_cast<std::size_t>(w.cols()));
    detail::checked_scores<float>("row_threshold_mask", score_rows, i, scores);
    auto& row = rows[static_cast<std::size_t>(i)];
    for (std::size_t j = 0; j < scores.size(); ++j) row.emplace_back(scores[j], -static_cast<index_t>(j));
    std::sort(row.begin(), row.end());  // of equal scores the higher index goes first
    double sum = 0;
    for (const auto& entry : row) sums[static_cast<std::size_t>(i)].push_back(sum += static_cast<double>(entry.first));
  });
  const auto pruned_of_row = [&](std::size_t i, double alpha) {
    const std::vector<double>& s = sums[i];
    return std::upper_bound(s.begin(), s.end(), alpha * s.back()) - s.begin();
  };
  double low = 0.0, high = 0.8, alpha = 0.4;
  for (;;) {
    index_t pruned = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) pruned += pruned_of_row(i, alpha);
    const double reached = static_cast<double>(pruned) / static_cast<double>(w.rows() * w.cols());
    if (std::fabs(reached - sparsity) <= 1e-3 || high - low < 1e-15) break;
    (reached > sparsity ? high : low) = alpha;
    alpha = 0.5 * (low + high);
  }
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (index_t k = 0; k < pruned_of_row(i, alpha); ++k)
      mask.set(static_cast<index_t>(i), -rows[i][static_cast<std::size_t>(k)].second, false);
  return mask;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
