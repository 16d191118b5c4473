// SPDX-License-Identifier: Apache-2.0
#pragma once

/// From scores to a one-shot pruning plan: rank once, remove the first r, never score again. A removed block is
/// replaced by the identity (the residual stream passes through).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Which end of a score is removed first.
enum class RemoveFirst : std::uint8_t { low, high };

/// Indices in the order of removal. Ties keep the lower index first; NaN scores come last, so a block without a
/// meaningful score is never removed before one with.
inline std::vector<index_t> removal_order(std::span<const double> scores, RemoveFirst direction = RemoveFirst::low) {
  std::vector<index_t> order(scores.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
    const double x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
    if (std::isnan(x) || std::isnan(y)) return !std::isnan(x) && std::isnan(y);
    return direction == RemoveFirst::low ? x < y : x > y;
  });
  return order;
}

/// Place of every block in the order of removal: 0 goes first.
inline std::vector<index_t> removal_ranks(std::span<const double> scores, RemoveFirst direction = RemoveFirst::low) {
  const std::vector<index_t> order = removal_order(scores, direction);
  std::vector<index_t> ranks(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) ranks[static_cast<std::size_t>(order[i])] = static_cast<index_t>(i);
  return ranks;
}

/// (s - min) / (max - min), for display, with min and max over the finite scores; zeros when all are equal. Infinities
/// become 0 and 1, NaN stays NaN.
inline std::vector<double> normalised_scores(std::span<const double> scores) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const double s : scores) {
    if (!std::isfinite(s)) continue;
    low = std::min(low, s);
    high = std::max(high, s);
  }
  std::vector<double> result(scores.begin(), scores.end());
  for (double& s : result) {
    if (std::isnan(s)) continue;
    s = std::isinf(s) ? (s > 0 ? 1.0 : 0.0) : (high > low ? (s - low) / (high - low) : 0.0);
  }
  return result;
}

/// lambda · rank(a) + (1 - lambda) · rank(b), to be removed low first. Weight entropy is blind to what a block does:
/// mix it as a prior with a score that measures function (0.3 of entropy is a published choice). Errors: ShapeError if
/// the scores differ in number, ValueError unless 0 <= lambda <= 1.
inline std::vector<double> mixed_ranks(std::span<const double> a, RemoveFirst direction_a, std::span<const double> b,
                                       RemoveFirst direction_b, double lambda) {
  if (a.size() != b.size())
    throw ShapeError("mixed_ranks: b has " + std::to_string(b.size()) + " scores, a has " + std::to_string(a.size()));
  if (!(lambda >= 0 && lambda <= 1))
    throw ValueError("mixed_ranks: lambda = " + std::to_string(lambda) + ", 0 to 1 needed");
  const std::vector<index_t> x = removal_ranks(a, direction_a), y = removal_ranks(b, direction_b);
  std::vector<double> mixed(a.size());
  for (std::size_t i = 0; i < mixed.size(); ++i)
    mixed[i] = lambda * static_cast<double>(x[i]) + (1.0 - lambda) * static_cast<double>(y[i]);
  return mixed;
}

struct PruningPlan {
  std::vector<index_t> removed;  ///< in the order of removal
  std::vector<index_t> kept;     ///< ascending
};

/// Removes `count` of the blocks from `first_prunable` on; blocks before it are always kept.
/// ValueError if count is negative or above the number of blocks that may go, or first_prunable is out of range.
inline PruningPlan prune_count(std::span<const double> scores, index_t count, RemoveFirst direction = RemoveFirst::low,
                               index_t first_prunable = 0) {
  const auto blocks = static_cast<index_t>(scores.size());
  if (first_prunable < 0 || first_prunable > blocks)
    throw ValueError("prune_count: first_prunable = " + std::to_string(first_prunable) + ", 0 to " +
                     std::to_string(blocks) + " needed");
  if (count < 0 || count > blocks - first_prunable)
    throw ValueError("prune_count: count = " + std::to_string(count) + ", 0 to " +
                     std::to_string(blocks - first_prunable) + " needed");
  PruningPlan plan;
  plan.removed = removal_order(scores.subspan(static_cast<std::size_t>(first_prunable)), direction);
  plan.removed.resize(static_cast<std::size_t>(count));
  std::vector<bool> gone(scores.size());
  for (index_t& i : plan.removed) {
    i += first_prunable;
    gone[static_cast<std::size_t>(i)] = true;
  }
  for (index_t i = 0; i < blocks; ++i)
    if (!gone[static_cast<std::size_t>(i)]) plan.kept.push_back(i);
  return plan;
}

/// The same with count = round(ratio · blocks), halves up (12 blocks: 0.083 is 1, 0.25 is 3, 0.917 is 11).
/// ValueError unless 0 <= ratio <= 1, or when fewer blocks may go.
inline PruningPlan prune_ratio(std::span<const double> scores, double ratio, RemoveFirst direction = RemoveFirst::low,
                               index_t first_prunable = 0) {
  if (!(ratio >= 0 && ratio <= 1))
    throw ValueError("prune_ratio: ratio = " + std::to_string(ratio) + ", 0 to 1 needed");
  const double count = std::floor(ratio * static_cast<double>(scores.size()) + 0.5);
  return prune_count(scores, static_cast<index_t>(count), direction, first_prunable);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
