// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Which block is next. A selector is called with the objective and gives a block that stays valid until its next call;
/// it keeps what it has computed of the bounds, so it serves one objective. Anything callable in the same way will do.
///
/// Scores, of which the largest is taken (equal ones: the lowest index), with g the gradient of the smooth part:
///
///   rule       fixed blocks                   variable blocks: the tau coordinates of largest
///   gs         ||g_b||²                       |g_i|
///   gsl        ||g_b||² / L_b                 (none; use gsd)
///   gsd        Σ g_i² / L_i                   |g_i| / sqrt(L_i)
///   gsd_rows   Σ g_i² / Σ_j |H_ij|            |g_i| / sqrt(Σ_j |H_ij|)
///   gsq        g_bᵀ H_b⁺ g_b                  iterative hard thresholding of the model with H, 10 iterations
///   proximal   Σ s_i                          s_i, twice what the model of one coordinate with L_i and its penalty
///                                             predicts as decrease ("gsq-nn" where x >= 0)
///   cyclic     one after the other            a new random order for every pass
///   random     uniform                        uniform, without repetition
///   lipschitz  with probability ~ L_b         drawn one by one with probability ~ L_i
///
/// Source: J. Nutini, I. Laradji, M. Schmidt, JMLR 23 (2022), section 3.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/solve/forest.hpp"
#include "blockpack/solve/objective.hpp"
#include "blockpack/solve/partition.hpp"
#include "blockpack/solve/symmetric.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

enum class BlockRule : std::uint8_t { gs, gsl, gsd, gsd_rows, gsq, proximal, cyclic, random, lipschitz };

/// How the scores of fixed blocks add up: squares as in the table, or, as in the published code, absolute values:
/// Σ |g_i|, Σ |g_i| / sqrt(L_b), Σ |g_i| / sqrt(D_i).
enum class ScoreNorm : std::uint8_t { l2, l1 };

namespace detail {

/// H_bb of the bound.
template <class F>
SquareMatrix bound_of(const F& f, Coordinates block) {
  SquareMatrix h(block.size());
  f.bound(block, h.view());
  return h;
}

/// Scores of single coordinates.
class CoordinateScores {
 public:
  template <CurvedObjective F>
  std::span<const double> operator()(const F& f, BlockRule rule) {
    gradient_.resize(static_cast<std::size_t>(f.size()));
    scores_.resize(gradient_.size());
    f.gradient(std::span<double>(gradient_));
    if (rule == BlockRule::gsd_rows && row_sums_.empty()) {
      row_sums_.resize(gradient_.size());
      f.bound_row_sums(row_sums_);
    }
    const bool scaled = rule == BlockRule::gsd || rule == BlockRule::gsd_rows;
    const std::span<const double> curvature = rule == BlockRule::gsd_rows ? row_sums_ : f.lipschitz();
    const Penalty penalty = f.penalty();
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      const double g = gradient_[i], l = curvature[i];
      if (rule == BlockRule::proximal) {
        const double x = f.x()[i], d = penalty.minimizer(x, g, l) - x;
        scores_[i] = 2.0 * std::fabs(d * (g + 0.5 * l * d) + penalty.change(x, d));  // rounding may go below 0
      } else if (scaled) {
        scores_[i] = l > 0.0 ? g * g / l : 0.0;
      } else {
        scores_[i] = g * g;
      }
    }
    return scores_;
  }
  std::span<const double> gradient() const noexcept { return gradient_; }

 private:
  std::vector<double> gradient_, scores_, row_sums_;
};

/// An index drawn with probability ~ weights, whose sum is `total`.
inline std::size_t draw(std::span<const double> weights, double total, Random& random) {
  double left = static_cast<double>(random.uniform()) * total;
  std::size_t last = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0.0)) continue;
    last = i;
    left -= weights[i];
    if (left < 0.0) break;
  }
  return last;
}

/// The largest eigenvalue of the bound by power iteration, to 1e-12 of itself or 1000 products.
template <CurvedObjective F>
double largest_of_bound(const F& f) {
  std::vector<double> v(static_cast<std::size_t>(f.size())), image(v.size());
  Random random(0);
  for (double& e : v) e = static_cast<double>(random.normal());
  double value = 0.0;
  for (int i = 0; i < 1000; ++i) {
    const double length = std::sqrt(detail::dot(v, v));
    if (!(length > 0.0)) return 0.0;
    for (double& e : v) e /= length;
    f.bound_times(v, image);
    const double next = detail::dot(v, image);
    v.swap(image);
    if (i > 0 && std::fabs(next - value) <= 1e-12 * next) return next;
    value = next;
  }
  return value;
}

}  // namespace detail

/// One of given blocks. `cyclic` with the blocks of a trace replays it.
///
/// Errors:  ValueError for no blocks, and, at the first call, an empty block or one with a coordinate out of range or
///          twice.
/// Cost:    a gradient a call but for cyclic, random and lipschitz; gsl and lipschitz once O(tau³) a block, gsq O(tau³)
///          a block and then O(tau²).
class FixedBlocks {
 public:
  FixedBlocks(Blocks blocks, BlockRule rule, ScoreNorm norm = ScoreNorm::l2, const Random& random = Random(0))
      : blocks_(std::move(blocks)), rule_(rule), norm_(norm), random_(random) {
    if (blocks_.empty()) throw ValueError("FixedBlocks: blocks is empty");
  }

  template <CurvedObjective F>
  Coordinates operator()(const F& f) {
    prepare(f);
    const auto count = static_cast<std::uint32_t>(blocks_.size());
    std::size_t best = 0;
    if (rule_ == BlockRule::cyclic) {
      best = next_++ % blocks_.size();
    } else if (rule_ == BlockRule::random) {
      best = random_.below(count);
    } else if (rule_ == BlockRule::lipschitz) {
      double total = 0.0;
      for (const double l : block_lipschitz_) total += l;
      best = detail::draw(block_lipschitz_, total, random_);
    } else {
      const std::span<const double> scores = coordinate_scores_(f, rule_);
      score_ = -1.0;
      for (std::size_t b = 0; b < blocks_.size(); ++b)
        if (const double s = block_score(b, scores); s > score_) {
          score_ = s;
          best = b;
        }
    }
    return blocks_[best];
  }

  const Blocks& blocks() const noexcept { return blocks_; }
  /// Of the block chosen last, by the table of this header; 0 for cyclic, random and lipschitz.
  double score() const noexcept { return score_; }

 private:
  template <class F>
  void prepare(const F& f) {
    if (prepared_) return;
    prepared_ = true;
    std::vector<std::size_t> met(static_cast<std::size_t>(f.size()), blocks_.size());
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const std::string text = "FixedBlocks: block " + std::to_string(b);
      if (blocks_[b].empty()) throw ValueError(text + " is empty");
      for (const index_t i : blocks_[b]) {
        if (i < 0 || i >= f.size())
          throw ValueError(text + " holds " + std::to_string(i) + ", below " + std::to_string(f.size()) + " needed");
        if (std::exchange(met[static_cast<std::size_t>(i)], b) == b)
          throw ValueError(text + " holds " + std::to_string(i) + " twice");
      }
      if (rule_ == BlockRule::gsl || rule_ == BlockRule::lipschitz)
        block_lipschitz_.push_back(detail::largest_eigenvalue(detail::bound_of(f, blocks_[b]).view()));
      if (rule_ == BlockRule::gsq) inverses_.push_back(detail::bound_of(f, blocks_[b]).pseudoinverse());
    }
  }
  double block_score(std::size_t b, std::span<const double> scores) const {
    const std::vector<index_t>& block = blocks_[b];
    if (rule_ == BlockRule::gsq) {
      std::vector<double> g;
      for (const index_t i : block) g.push_back(coordinate_scores_.gradient()[static_cast<std::size_t>(i)]);
      return detail::dot(g, inverses_[b].times(g));
    }
    const bool roots = norm_ == ScoreNorm::l1 && rule_ != BlockRule::proximal;
    double sum = 0.0;
    for (const index_t i : block) {
      const double s = scores[static_cast<std::size_t>(i)];
      sum += roots ? std::sqrt(s) : s;
    }
    if (rule_ != BlockRule::gsl) return sum;
    const double l = roots ? std::sqrt(block_lipschitz_[b]) : block_lipschitz_[b];
    return l > 0.0 ? sum / l : 0.0;
  }

  Blocks blocks_;
  BlockRule rule_;
  ScoreNorm norm_;
  Random random_;
  bool prepared_ = false;
  std::size_t next_ = 0;
  double score_ = 0.0;
  std::vector<double> block_lipschitz_;
  std::vector<detail::SquareMatrix> inverses_;
  detail::CoordinateScores coordinate_scores_;
};

/// Any block_size coordinates, in rising order.
///
/// Errors:  ValueError for a block_size below 1, the rule gsl, and, at the first call, a block_size above the size.
/// Cost:    a gradient and O(n) a call, gsq 11 gradients; gsd_rows once O(n²) entries of the bound; cyclic and random
///          O(block_size), lipschitz O(n · block_size).
class VariableBlocks {
 public:
  VariableBlocks(index_t block_size, BlockRule rule, const Random& random = Random(0))
      : block_size_(block_size), rule_(rule), random_(random) {
    if (block_size < 1)
      throw ValueError("VariableBlocks: block_size = " + std::to_string(block_size) + ", at least 1 needed");
    if (rule == BlockRule::gsl) throw ValueError("VariableBlocks: rule gsl needs fixed blocks; gsd is its like");
  }

  template <CurvedObjective F>
  Coordinates operator()(const F& f) {
    if (block_size_ > f.size())
      throw ValueError("VariableBlocks: block_size = " + std::to_string(block_size_) + ", at most " +
                       std::to_string(f.size()) + " possible");
    const auto tau = static_cast<std::size_t>(block_size_);
    if (order_.empty()) {
      order_.resize(static_cast<std::size_t>(f.size()));
      std::iota(order_.begin(), order_.end(), index_t{0});
    }
    switch (rule_) {
      case BlockRule::cyclic: {
        if (next_ == 0) detail::shuffle(order_, random_);
        const std::size_t end = std::min(next_ + tau, order_.size());
        block_.assign(order_.begin() + static_cast<index_t>(next_), order_.begin() + static_cast<index_t>(end));
        next_ = end == order_.size() ? 0 : end;
        break;
      }
      case BlockRule::random:
        for (std::size_t k = 0; k < tau; ++k)
          std::swap(order_[k], order_[k + random_.below(static_cast<std::uint32_t>(order_.size() - k))]);
        block_.assign(order_.begin(), order_.begin() + block_size_);
        break;
      case BlockRule::lipschitz: {
        std::vector<double> weights(f.lipschitz().begin(), f.lipschitz().end());
        block_.clear();
        while (block_.size() < tau) {
          double total = 0.0;
          for (const double w : weights) total += w;
          if (!(total > 0.0)) break;  // the others have no influence
          const std::size_t i = detail::draw(weights, total, random_);
          weights[i] = 0.0;
          block_.push_back(static_cast<index_t>(i));
        }
        break;
      }
      case BlockRule::gsq:
        threshold(f);
        break;
      default: {
        const std::span<const double> scores = coordinate_scores_(f, rule_);
        take_largest(scores);
        score_ = 0.0;
        for (const index_t i : block_) score_ += scores[static_cast<std::size_t>(i)];
      }
    }
    std::sort(block_.begin(), block_.end());
    return block_;
  }

  /// Sum of the squared scores of the block chosen last (of s_i for proximal); 0 for the rules without.
  double score() const noexcept { return score_; }

 private:
  void take_largest(std::span<const double> scores) {
    block_.resize(scores.size());
    std::iota(block_.begin(), block_.end(), index_t{0});
    std::nth_element(block_.begin(), block_.begin() + block_size_ - 1, block_.end(), [&](index_t i, index_t j) {
      const double a = scores[static_cast<std::size_t>(i)], b = scores[static_cast<std::size_t>(j)];
      return a != b ? a > b : i < j;
    });
    block_.resize(static_cast<std::size_t>(block_size_));
  }

  /// d <- the block_size largest |d_i| of d - (g + H d) / λmax(H), from g_i / sqrt(L_i).
  template <class F>
  void threshold(const F& f) {
    coordinate_scores_(f, BlockRule::gs);
    if (!(largest_ >= 0.0)) largest_ = detail::largest_of_bound(f);
    const double step = largest_ > 0.0 ? 1.0 / largest_ : 0.0;
    const std::span<const double> g = coordinate_scores_.gradient();
    std::vector<double> d(g.size()), image(g.size()), size(g.size());
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = f.lipschitz()[i] > 0.0 ? g[i] / std::sqrt(f.lipschitz()[i]) : 0.0;
    for (int iteration = 0; iteration < 10; ++iteration) {
      const std::vector<double> before = d;
      f.bound_times(d, image);
      for (std::size_t i = 0; i < d.size(); ++i) {
        image[i] = d[i] - step * (g[i] + image[i]);
        size[i] = std::fabs(image[i]);
      }
      take_largest(size);
      std::fill(d.begin(), d.end(), 0.0);
      for (const index_t i : block_) d[static_cast<std::size_t>(i)] = image[static_cast<std::size_t>(i)];
      double change = 0.0;
      for (std::size_t i = 0; i < d.size(); ++i) change += (d[i] - before[i]) * (d[i] - before[i]);
      if (change < 1e-20) break;
    }
  }

  index_t block_size_;
  BlockRule rule_;
  Random random_;
  std::size_t next_ = 0;
  double score_ = 0.0;
  double largest_ = -1.0;  // eigenvalue of the bound
  std::vector<index_t> order_, block_;
  detail::CoordinateScores coordinate_scores_;
};

/// As many coordinates as form a forest in the matrix of a Quadratic, taken by falling score: gs ("GSTree"), gsd
/// ("GSLTree"), gsd_rows ("GSDTree"), proximal or random.
///
/// Errors:  ValueError for another rule.
/// Cost:    O(n log n) and the entries of the matrix a call.
class GreedyForest {
 public:
  explicit GreedyForest(BlockRule rule, const Random& random = Random(0)) : rule_(rule), random_(random) {
    if (rule == BlockRule::gsl || rule == BlockRule::gsq || rule == BlockRule::cyclic || rule == BlockRule::lipschitz)
      throw ValueError("GreedyForest: rule gs, gsd, gsd_rows, proximal or random needed");
  }

  Coordinates operator()(const Quadratic& f) {
    std::vector<double> falling(static_cast<std::size_t>(f.size()));
    if (rule_ != BlockRule::random) {
      const std::span<const double> scores = coordinate_scores_(f, rule_);
      for (std::size_t i = 0; i < falling.size(); ++i) falling[i] = -scores[i];
    }
    std::vector<index_t> order = detail::rising_order(falling);
    if (rule_ == BlockRule::random) detail::shuffle(order, random_);
    ForestBuilder forest(f.matrix());
    for (const index_t i : order) forest.add(i);
    block_ = forest.block();
    std::sort(block_.begin(), block_.end());
    return block_;
  }

 private:
  BlockRule rule_;
  Random random_;
  std::vector<index_t> block_;
  detail::CoordinateScores coordinate_scores_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
