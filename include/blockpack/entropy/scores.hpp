// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The scorers a block can be ranked by, each with the end that is removed first.
///
/// From the weights alone:
///   weight_entropy      H_N of Gardener                                                low
///   value_entropy       H_V = -Σ q log q, q = |w| / Σ|w| (ours)                        low
///   l1, l2, abs_mean, abs_variance, abs_std                                            low
///   kurtosis            excess, of w                                                   high
///   gaussian_entropy    ½ log 2πe s²                                                   low
///   histogram_entropy   256 bins over [min, max]                                       low
///   pooled_entropy_gap  mean over the other blocks                                     high
/// From activations (hidden states [tokens, features] before and after a block):
///   block_influence     1 - mean cos                                                   low
///   angular_distance    arccos(cos) / π                                                low
///   entropy_increase    H(after) - H(before); from the depth on where H stops falling  low
///   nepenthe            binary entropy of rectifiers                                   low
///
/// Source: Gardener arXiv:2602.03918 (and its tables for the weight scorers); ShortGPT arXiv:2403.03853; "The
/// Unreasonable Ineffectiveness of the Deeper Layers" arXiv:2403.17887; EntroDrop arXiv:2504.03794; NEPENTHE
/// arXiv:2404.16890 (its score only: how the paper mixes it with magnitude is not published exactly).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/sum.hpp"
#include "blockpack/core/view.hpp"
#include "blockpack/entropy/estimators.hpp"
#include "blockpack/entropy/gardener.hpp"
#include "blockpack/entropy/histogram.hpp"
#include "blockpack/entropy/plan.hpp"
#include "blockpack/entropy/statistics.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

enum class Scorer : std::uint8_t {
  weight_entropy,
  value_entropy,
  l1,
  l2,
  abs_mean,
  abs_variance,
  abs_std,
  kurtosis,
  gaussian_entropy,
  histogram_entropy,
  pooled_entropy_gap,
  block_influence,
  angular_distance,
  entropy_increase,
  nepenthe
};

struct ScorerInfo {
  std::string_view name;
  RemoveFirst remove_first;
  bool needs_activations;
};

/// Name, direction and needs of a scorer, in the order of the enumeration.
constexpr ScorerInfo scorer_info(Scorer scorer) noexcept {
  constexpr ScorerInfo kInfo[] = {{"weight_entropy", RemoveFirst::low, false},
                                  {"value_entropy", RemoveFirst::low, false},
                                  {"l1", RemoveFirst::low, false},
                                  {"l2", RemoveFirst::low, false},
                                  {"abs_mean", RemoveFirst::low, false},
                                  {"abs_variance", RemoveFirst::low, false},
                                  {"abs_std", RemoveFirst::low, false},
                                  {"kurtosis", RemoveFirst::high, false},
                                  {"gaussian_entropy", RemoveFirst::low, false},
                                  {"histogram_entropy", RemoveFirst::low, false},
                                  {"pooled_entropy_gap", RemoveFirst::high, false},
                                  {"block_influence", RemoveFirst::low, true},
                                  {"angular_distance", RemoveFirst::low, true},
                                  {"entropy_increase", RemoveFirst::low, true},
                                  {"nepenthe", RemoveFirst::low, true}};
  return kInfo[static_cast<std::size_t>(scorer)];
}

namespace detail {

/// f(i, how to run inside) for every block: blocks side by side when they are many and small, else one after the other
/// and each in parallel. Results do not depend on which.
template <class F>
void for_each_block(std::span<const WeightBlock> blocks, const Execution& how, const F& f) {
  index_t largest = 0;
  for (const WeightBlock& b : blocks) largest = std::max(largest, b.size());
  const auto n = static_cast<index_t>(blocks.size());
  if (n > 1 && largest < 2 * kWeightsPerTask) {
    Execution inside;
    inside.threads = 1;
    inside.isa = how.isa;
    inside.stop = how.stop;
    parallel_for(how, n, [&](index_t i) { f(i, inside); });
    how.report(1.0);
    return;
  }
  for (index_t i = 0; i < n; ++i) {
    f(i, how);
    how.report(static_cast<double>(i + 1) / static_cast<double>(n));
  }
}

}  // namespace detail

/// Gardener's score of every block on one kind of grid: `automatic` is fp16 when any block holds float32. An integer
/// grid without absmax takes that of each block; give absmax for one scale throughout. Errors and cost: as
/// gardener_score.
inline std::vector<GardenerScore> gardener_scores(std::span<const WeightBlock> blocks, const ValueGrid& grid = {},
                                                  const Execution& how = {}) {
  const ValueGrid chosen =
      grid.kind == ValueGrid::Kind::automatic ? detail::resolve("gardener_scores", grid, blocks) : grid;
  std::vector<GardenerScore> scores(blocks.size());
  detail::for_each_block(blocks, how, [&](index_t i, const Execution& inside) {
    const auto k = static_cast<std::size_t>(i);
    scores[k] = gardener_score(blocks[k], chosen, inside);
  });
  return scores;
}

/// H(a) + H(b) - H(a and b concatenated), for every pair of blocks. Published as "mutual information"; it compares two
/// marginals with the entropy of the pooled sample and is not one, because the weights are not paired.
struct PooledEntropyGap {
  index_t blocks = 0;
  std::vector<double> values;          ///< [blocks, blocks], symmetric, NaN on the diagonal
  std::vector<double> mean_of_others;  ///< per block, over the other blocks; 0 for a single one

  double operator()(index_t a, index_t b) const noexcept { return values[static_cast<std::size_t>(a * blocks + b)]; }
};

/// Errors: as gardener_score. Cost: one pass over the weights, then a merge of two lists of distinct values for each
/// pair; keeps the lists of all blocks (12 bytes a distinct value).
inline PooledEntropyGap pooled_entropy_gap(std::span<const WeightBlock> blocks, const ValueGrid& grid = {},
                                           const Execution& how = {}) {
  const ValueGrid chosen = detail::resolve("pooled_entropy_gap", grid, blocks);
  std::vector<ValueCounts> counts(blocks.size());
  std::vector<double> entropy(blocks.size());
  detail::for_each_block(blocks, how, [&](index_t i, const Execution& inside) {
    const auto k = static_cast<std::size_t>(i);
    counts[k] = value_counts(blocks[k], chosen, inside);
    entropy[k] = counts[k].entropy().plug_in;
  });
  PooledEntropyGap gap;
  gap.blocks = static_cast<index_t>(blocks.size());
  const std::size_t n = blocks.size();
  gap.values.assign(n * n, std::numeric_limits<double>::quiet_NaN());
  parallel_for(how, gap.blocks, [&](index_t task) {
    const auto a = static_cast<std::size_t>(task);
    for (std::size_t b = 0; b < a; ++b) {
      EntropyOfCounts pooled;
      const ValueCounts &x = counts[a], &y = counts[b];
      for (std::size_t i = 0, j = 0; i < x.symbols.size() || j < y.symbols.size();) {
        const bool from_x = j == y.symbols.size() || (i < x.symbols.size() && x.symbols[i] <= y.symbols[j]);
        const bool from_y = i == x.symbols.size() || (j < y.symbols.size() && y.symbols[j] <= x.symbols[i]);
        pooled.add((from_x ? x.counts[i] : 0) + (from_y ? y.counts[j] : 0));
        i += from_x ? 1 : 0;
        j += from_y ? 1 : 0;
      }
      gap.values[a * n + b] = gap.values[b * n + a] = entropy[a] + entropy[b] - pooled.result().plug_in;
    }
  });
  gap.mean_of_others.assign(n, 0.0);
  for (std::size_t a = 0; a < n; ++a) {
    CompensatedSum sum;
    for (std::size_t b = 0; b < n; ++b)
      if (a != b) sum += gap.values[a * n + b];
    if (n > 1) gap.mean_of_others[a] = sum.value() / static_cast<double>(n - 1);
  }
  return gap;
}

/// One figure per block from the weights alone. ValueError for a scorer that needs activations, and from
/// histogram_entropy for weights that are not finite. Cost: that of the function behind the scorer.
inline std::vector<double> block_scores(std::span<const WeightBlock> blocks, Scorer scorer, const ValueGrid& grid = {},
                                        const Execution& how = {}) {
  if (scorer_info(scorer).needs_activations)
    throw ValueError("block_scores: " + std::string(scorer_info(scorer).name) +
                     " needs activations; call the function of that name");
  if (scorer == Scorer::pooled_entropy_gap) return pooled_entropy_gap(blocks, grid, how).mean_of_others;
  std::vector<double> scores(blocks.size());
  if (scorer == Scorer::weight_entropy) {
    const std::vector<GardenerScore> full = gardener_scores(blocks, grid, how);
    for (std::size_t k = 0; k < scores.size(); ++k) scores[k] = full[k].score();
    return scores;
  }
  detail::for_each_block(blocks, how, [&](index_t i, const Execution& inside) {
    const auto k = static_cast<std::size_t>(i);
    if (scorer == Scorer::histogram_entropy) {
      HistogramOptions options;
      options.bins = 256;
      scores[k] = histogram(blocks[k], options, inside).entropy().plug_in;
      return;
    }
    const WeightStatistics s = weight_statistics(blocks[k], inside);
    switch (scorer) {
      case Scorer::value_entropy:
        scores[k] = s.value_entropy;
        break;
      case Scorer::l1:
        scores[k] = s.l1;
        break;
      case Scorer::l2:
        scores[k] = s.l2;
        break;
      case Scorer::abs_mean:
        scores[k] = s.abs_mean;
        break;
      case Scorer::abs_variance:
        scores[k] = s.abs_variance;
        break;
      case Scorer::abs_std:
        scores[k] = s.abs_std();
        break;
      case Scorer::kurtosis:
        scores[k] = s.kurtosis_excess;
        break;
      default:
        scores[k] = gaussian_entropy(s.std_dev());
        break;
    }
  });
  return scores;
}

/// Cosines of the rows of two matrices of hidden states.
struct CosineScore {
  double value = 0;          ///< the score
  index_t zero_vectors = 0;  ///< tokens where one side is a zero vector; their cosine is taken as 0
};

namespace detail {

inline void check_states(const char* function, MatrixView<const float> before, MatrixView<const float> after) {
  if (before.shape() != after.shape())
    throw ShapeError(std::string(function) + ": after is " + to_string(after.shape()) + ", before is " +
                     to_string(before.shape()));
  if (before.empty()) throw ValueError(std::string(function) + ": no hidden states");
  for (const MatrixView<const float>& x : {before, after}) {
    const MatrixShape bad = find_non_finite(x);
    if (bad.rows >= 0)
      throw ValueError(std::string(function) + ": hidden states are not finite at row " + std::to_string(bad.rows) +
                       ", column " + std::to_string(bad.cols));
  }
}

/// Cosine of two rows; false and 0 when one of them is zero.
inline bool row_cosine(std::span<const float> a, std::span<const float> b, double& cosine) noexcept {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = a[i], y = b[i];
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  const bool defined = aa > 0 && bb > 0;
  cosine = defined ? std::clamp(ab / (std::sqrt(aa) * std::sqrt(bb)), -1.0, 1.0) : 0.0;
  return defined;
}

/// Mean over the rows of f(cosine).
template <class F>
CosineScore mean_of_cosines(MatrixView<const float> before, MatrixView<const float> after, const Execution& how,
                            const F& f) {
  std::vector<double> cosine(static_cast<std::size_t>(before.rows()));
  std::vector<char> defined(cosine.size());
  parallel_for(how, before.rows(), [&](index_t t) {
    const auto k = static_cast<std::size_t>(t);
    defined[k] = row_cosine(before.row(t), after.row(t), cosine[k]) ? 1 : 0;
  });
  CosineScore score;
  CompensatedSum sum;
  for (std::size_t t = 0; t < cosine.size(); ++t) {
    sum += f(cosine[t]);
    if (defined[t] == 0) ++score.zero_vectors;
  }
  score.value = sum.value() / static_cast<double>(before.rows());
  return score;
}

}  // namespace detail

/// Block influence, 1 - mean_t cos(before[t], after[t]); also EntroDrop's cosine importance. Remove low first.
///
/// Shapes: hidden states [tokens, features] that enter and leave the block. Errors: ShapeError if they differ,
/// ValueError when there are none or one is NaN or infinite.
inline CosineScore block_influence(MatrixView<const float> before, MatrixView<const float> after,
                                   const Execution& how = {}) {
  detail::check_states("block_influence", before, after);
  CosineScore score = detail::mean_of_cosines(before, after, how, [](double c) { return c; });
  score.value = 1.0 - score.value;
  return score;
}

enum class AngularTokens : std::uint8_t { last, mean };

/// Angular distance (1/π) arccos(cos), of the last token or the mean over tokens, between the states before a run of
/// layers and after it. Remove low first. Shapes and errors: as block_influence.
inline CosineScore angular_distance(MatrixView<const float> before, MatrixView<const float> after,
                                    AngularTokens tokens = AngularTokens::last, const Execution& how = {}) {
  detail::check_states("angular_distance", before, after);
  if (tokens == AngularTokens::last) {
    before = before.rows_from(before.rows() - 1, 1);
    after = after.rows_from(after.rows() - 1, 1);
  }
  return detail::mean_of_cosines(before, after, how, [](double c) { return std::acos(c) / std::numbers::pi; });
}

/// How entropy_increase measures hidden states: bins per feature, nearest neighbours, or the Rényi kernel estimate.
struct ActivationEntropy {
  enum class Kind : std::uint8_t { bins, neighbours, renyi };
  Kind kind = Kind::bins;
  index_t bins = 20;
  index_t k = 25;
  double alpha = 4.0;
};

/// Entropy of hidden states [tokens, features], nats. Errors and cost: those of the estimator.
inline double activation_entropy(MatrixView<const float> states, const ActivationEntropy& estimator = {},
                                 const Execution& how = {}) {
  switch (estimator.kind) {
    case ActivationEntropy::Kind::neighbours:
      return knn_entropy(states, estimator.k, how);
    case ActivationEntropy::Kind::renyi:
      return renyi_entropy(states, estimator.alpha, how);
    case ActivationEntropy::Kind::bins:
      break;
  }
  return marginal_bin_entropy(states, estimator.bins, how).total;
}

/// EntroDrop's score of a block, H(after) - H(before). Remove low first.
inline double entropy_increase(MatrixView<const float> before, MatrixView<const float> after,
                               const ActivationEntropy& estimator = {}, const Execution& how = {}) {
  return activation_entropy(after, estimator, how) - activation_entropy(before, estimator, how);
}

/// EntroDrop's plan from the entropies of the hidden states H_0 … H_L around L blocks: removes the `count` blocks of
/// smallest increase H_{l+1} - H_l, but none before the depth where H is lowest (where it stops falling).
/// Errors: ValueError for fewer than 2 entropies, or when fewer than count blocks lie behind that depth.
inline PruningPlan entrodrop_plan(std::span<const double> state_entropies, index_t count) {
  if (state_entropies.size() < 2)
    throw ValueError("entrodrop_plan: " + std::to_string(state_entropies.size()) +
                     " entropies, those of the states before and after each block needed");
  std::vector<double> increase(state_entropies.size() - 1);
  for (std::size_t l = 0; l < increase.size(); ++l) increase[l] = state_entropies[l + 1] - state_entropies[l];
  const auto lowest = std::min_element(state_entropies.begin(), state_entropies.end()) - state_entropies.begin();
  const index_t behind = static_cast<index_t>(increase.size()) - lowest;
  if (count > behind)
    throw ValueError("entrodrop_plan: count = " + std::to_string(count) + ", but only " + std::to_string(behind) +
                     " blocks lie behind the depth of the lowest entropy, " + std::to_string(lowest));
  return prune_count(increase, count, RemoveFirst::low, lowest);
}

/// NEPENTHE's score of a layer of rectifiers: per unit p = share of pre-activations > 0, h = -p log2 p - (1 - p)
/// log2(1 - p); the score is the mean of h over the units, in [0, 1]. A layer of score 0 is linear and can be folded.
class NepentheScore {
 public:
  explicit NepentheScore(index_t units) : positive_(static_cast<std::size_t>(checked_mul(units, 1, "NepentheScore"))) {}

  /// Pre-activations [samples and positions, units]. ShapeError for another number of units; NaN counts as not
  /// positive.
  void add(MatrixView<const float> z) {
    if (z.cols() != static_cast<index_t>(positive_.size()))
      throw ShapeError("NepentheScore::add: z has " + std::to_string(z.cols()) + " columns, " +
                       std::to_string(positive_.size()) + " needed");
    for (index_t i = 0; i < z.rows(); ++i)
      for (std::size_t j = 0; j < positive_.size(); ++j) positive_[j] += z.row(i)[j] > 0 ? 1u : 0u;
    samples_ += z.rows();
  }

  index_t samples() const noexcept { return samples_; }
  double unit_entropy(index_t unit) const noexcept {
    if (samples_ == 0) return 0;
    const double p = static_cast<double>(positive_[static_cast<std::size_t>(unit)]) / static_cast<double>(samples_);
    return p <= 0 || p >= 1 ? 0.0 : -p * std::log2(p) - (1 - p) * std::log2(1 - p);
  }
  double score() const noexcept {
    CompensatedSum sum;
    for (std::size_t j = 0; j < positive_.size(); ++j) sum += unit_entropy(static_cast<index_t>(j));
    return positive_.empty() ? 0.0 : sum.value() / static_cast<double>(positive_.size());
  }

 private:
  std::vector<std::uint64_t> positive_;
  index_t samples_ = 0;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
