// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Quadratic cardinality-constrained binary optimization: min xᵀQx over x in {0, 1}^n with Σ x = k, Q symmetric.
/// Solvers exchange a one for a zero; with the fields f = Q x an exchange of i (on) and j (off) changes the value by
///
///     2 (f_j - f_i) + Q_ii + Q_jj - 2 Q_ij
///
/// in O(1), and carrying it out costs O(n). Exports to QUBO and Ising for solvers of others.
///
/// Source: the cardinality-preserving annealing of amazon-science/icbs (arXiv:2411.17796), which computes every
/// difference in O(n) and starts from the first k; fields, the start from a given x and the descent are ours.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/solve/objective.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct QcboSolution {
  std::vector<std::uint8_t> x;  ///< 0 or 1
  double value = 0.0;           ///< xᵀQx
};

/// Inverse temperatures are in units of 1 / (mean |Q_ij| of those that are not 0).
struct QcboAnnealing {
  double first = 1e-3, growth = 1.1, last = 100.0;
  int restarts = 10;  ///< each from the given x, by a stream of its own of `seed`
  std::uint64_t seed = 0;
};

/// More variables than this take too long to enumerate.
inline constexpr index_t kQcboExhaustive = 24;

namespace detail {

/// ShapeError unless q is a square (of n, where n >= 0); ValueError unless it is finite and symmetric.
inline void check_qcbo(const char* function, MatrixView<const double> q, index_t n = -1) {
  if (q.rows() != q.cols() || (n >= 0 && q.rows() != n))
    throw ShapeError(std::string(function) + ": q is " + to_string(q.shape()) +
                     (n >= 0 ? ", x has " + std::to_string(n) + " elements" : ", a square needed"));
  for (index_t i = 0; i < q.rows(); ++i)
    for (index_t j = 0; j <= i; ++j)
      if (!std::isfinite(q(i, j)) || q(i, j) != q(j, i))
        throw ValueError(std::string(function) + ": q is not finite or not symmetric at row " + std::to_string(i) +
                         ", column " + std::to_string(j));
}
inline void check_cardinality(const char* function, index_t k, index_t n) {
  if (k < 0 || k > n)
    throw ValueError(std::string(function) + ": k = " + std::to_string(k) + ", 0 to " + std::to_string(n) + " needed");
}

/// x and its fields. Coordinates of a group stand together, the ones first.
class QcboState {
 public:
  QcboState(MatrixView<const double> q, std::span<const std::uint8_t> x, Coordinates groups)
      : q_(q), fields_(x.size()), order_(x.size()), place_(x.size()), group_of_(x.size()) {
    const auto label = [&](index_t i) { return groups.empty() ? index_t{0} : groups[static_cast<std::size_t>(i)]; };
    const auto one = [&](index_t i) { return x[static_cast<std::size_t>(i)] != 0; };
    std::iota(order_.begin(), order_.end(), index_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](index_t i, index_t j) {
      return label(i) != label(j) ? label(i) < label(j) : one(i) && !one(j);
    });
    for (std::size_t k = 0; k < order_.size(); ++k) {
      const index_t i = order_[k];
      if (k == 0 || label(order_[k - 1]) != label(i)) groups_.push_back({k, k, k});
      Group& group = groups_.back();
      ++group.end;
      if (one(i)) {
        ++group.zeros;
        add_scaled(1.0, q.row(i), fields_.data());
      }
      place_[static_cast<std::size_t>(i)] = k;
      group_of_[static_cast<std::size_t>(i)] = groups_.size() - 1;
    }
  }

  bool on(index_t i) const noexcept {
    const auto at = static_cast<std::size_t>(i);
    return place_[at] < groups_[group_of_[at]].zeros;
  }
  /// What i can be exchanged with.
  Coordinates partners(index_t i) const noexcept {
    const Group& g = groups_[group_of_[static_cast<std::size_t>(i)]];
    return on(i) ? part(g.zeros, g.end) : part(g.begin, g.zeros);
  }
  /// Of the value, if i (on) and j (off) are exchanged.
  double change(index_t i, index_t j) const noexcept {
    return 2.0 * (fields_[static_cast<std::size_t>(j)] - fields_[static_cast<std::size_t>(i)]) + q_(i, i) + q_(j, j) -
           2.0 * q_(i, j);
  }
  void exchange(index_t i, index_t j) noexcept {
    std::size_t &a = place_[static_cast<std::size_t>(i)], &b = place_[static_cast<std::size_t>(j)];
    std::swap(order_[a], order_[b]);
    std::swap(a, b);
    const double *in = q_.row_data(j), *out = q_.row_data(i);
    for (std::size_t k = 0; k < fields_.size(); ++k) fields_[k] += in[k] - out[k];
  }
  /// The best exchange again and again, as long as it lowers the value by more than 1e-12 of the largest |Q_ij|.
  void descend(const Execution& how) {
    double largest = 0.0;
    for (index_t i = 0; i < q_.rows(); ++i)
      for (const double v : q_.row(i)) largest = std::max(largest, std::fabs(v));
    for (;;) {
      how.throw_if_stopped();
      double best = -1e-12 * largest;
      std::pair<index_t, index_t> pair{-1, -1};
      for (const Group& g : groups_)
        for (const index_t i : part(g.begin, g.zeros))
          for (const index_t j : part(g.zeros, g.end))
            if (const double d = change(i, j); d < best) {
              best = d;
              pair = {i, j};
            }
      if (pair.first < 0) return;
      exchange(pair.first, pair.second);
    }
  }
  /// Computed anew.
  QcboSolution solution() const {
    QcboSolution s{std::vector<std::uint8_t>(fields_.size()), 0.0};
    for (const Group& g : groups_)
      for (const index_t i : part(g.begin, g.zeros)) s.x[static_cast<std::size_t>(i)] = 1;
    for (index_t i = 0; i < q_.rows(); ++i)
      if (on(i))
        for (index_t j = 0; j < q_.rows(); ++j) s.value += on(j) ? q_(i, j) : 0.0;
    return s;
  }

 private:
  struct Group {
    std::size_t begin, zeros, end;  ///< in order_
  };
  Coordinates part(std::size_t begin, std::size_t end) const noexcept {
    return Coordinates(order_).subspan(begin, end - begin);
  }

  MatrixView<const double> q_;
  std::vector<double> fields_;
  std::vector<Group> groups_;
  std::vector<index_t> order_;
  std::vector<std::size_t> place_, group_of_;
};

inline QcboState checked_state(const char* function, MatrixView<const double> q, std::span<const std::uint8_t> x,
                               Coordinates groups) {
  check_qcbo(function, q, static_cast<index_t>(x.size()));
  if (!groups.empty()) check_length(function, "groups", groups.size(), q.rows());
  if (std::any_of(x.begin(), x.end(), [](std::uint8_t v) { return v > 1; }))
    throw ValueError(std::string(function) + ": x has an element that is neither 0 nor 1");
  return {q, x, groups};
}

}  // namespace detail

/// The optimum, of equal ones the first in the order of ascending coordinates. n <= kQcboExhaustive; ValueError for
/// more and for k outside [0, n]. Cost: C(n, k) · k.
inline QcboSolution qcbo_exhaustive(MatrixView<const double> q, index_t k) {
  detail::check_qcbo("qcbo_exhaustive", q);
  const index_t n = q.rows();
  detail::check_cardinality("qcbo_exhaustive", k, n);
  if (n > kQcboExhaustive)
    throw ValueError("qcbo_exhaustive: " + std::to_string(n) + " variables, at most " +
                     std::to_string(kQcboExhaustive) + " can be enumerated");
  std::vector<index_t> chosen, best;
  double best_value = HUGE_VAL;
  const auto extend = [&](const auto& self, index_t first, double value) -> void {
    if (static_cast<index_t>(chosen.size()) == k) {
      if (value < best_value) {
        best_value = value;
        best = chosen;
      }
      return;
    }
    for (index_t i = first; i <= n - (k - static_cast<index_t>(chosen.size())); ++i) {
      double more = q(i, i);
      for (const index_t j : chosen) more += 2.0 * q(i, j);
      chosen.push_back(i);
      self(self, i + 1, value + more);
      chosen.pop_back();
    }
  };
  extend(extend, 0, 0.0);
  std::vector<std::uint8_t> x(static_cast<std::size_t>(n));
  for (const index_t i : best) x[static_cast<std::size_t>(i)] = 1;
  return detail::QcboState(q, x, {}).solution();
}

/// Best-exchange descent from x. Never worse than x. Cost: k · (n - k) a step. With `groups`, a label for each
/// coordinate, only coordinates of one label are exchanged: every group keeps its number of ones.
/// Errors: ShapeError, ValueError for q and x that are none; CancelledError between two steps.
inline QcboSolution qcbo_descend(MatrixView<const double> q, std::span<const std::uint8_t> x, const Execution& how = {},
                                 Coordinates groups = {}) {
  detail::QcboState state = detail::checked_state("qcbo_descend", q, x, groups);
  QcboSolution start = state.solution();
  state.descend(how);
  QcboSolution end = state.solution();
  return end.value < start.value ? end : start;
}

/// Annealing from x: at each inverse temperature every coordinate is offered an exchange with a random one of the other
/// value; it ends when a temperature accepts none. The best point of every restart is descended from, the best of all
/// returned. Never worse than x. `groups` as in qcbo_descend. Restarts run side by side; the result does not depend on
/// how many do.
///
/// Errors:  those of qcbo_descend; ValueError for options that are not positive.
/// Cost:    n · (1 + accepted share · n) a temperature, 121 of them by default, for each restart.
inline QcboSolution qcbo_anneal(MatrixView<const double> q, std::span<const std::uint8_t> x,
                                const QcboAnnealing& options = {}, const Execution& how = {}, Coordinates groups = {}) {
  if (!(options.first > 0.0) || !(options.growth > 1.0) || options.restarts < 1)
    throw ValueError("qcbo_anneal: first and restarts must be positive, growth above 1");
  const detail::QcboState start = detail::checked_state("qcbo_anneal", q, x, groups);
  QcboSolution best = start.solution();
  double sum = 0.0;
  index_t count = 0;
  for (index_t i = 0; i < q.rows(); ++i)
    for (const double v : q.row(i)) {
      sum += std::fabs(v);
      count += v != 0.0 ? 1 : 0;
    }
  const double unit = count == 0 ? 1.0 : static_cast<double>(count) / sum;
  std::vector<QcboSolution> found(static_cast<std::size_t>(options.restarts));
  parallel_for(how, options.restarts, [&](index_t restart) {
    Random random(options.seed, static_cast<std::uint64_t>(restart));
    detail::QcboState state = start, lowest = start;
    double value = 0.0, lowest_value = 0.0;  // over that of x
    for (double beta = options.first; beta <= options.last; beta *= options.growth) {
      how.throw_if_stopped();
      bool accepted = false;
      for (index_t i = 0; i < q.rows(); ++i) {
        const bool on = state.on(i);
        const Coordinates others = state.partners(i);
        if (others.empty()) continue;
        const index_t j = others[random.below(static_cast<std::uint32_t>(others.size()))];
        const double d = on ? state.change(i, j) : state.change(j, i);
        if (d > 0.0 && !(static_cast<double>(random.uniform()) < std::exp(-beta * unit * d))) continue;
        on ? state.exchange(i, j) : state.exchange(j, i);
        accepted = true;
        value += d;
        if (value < lowest_value) {
          lowest_value = value;
          lowest = state;
        }
      }
      if (!accepted) break;
    }
    lowest.descend(how);
    found[static_cast<std::size_t>(restart)] = lowest.solution();
  });
  for (QcboSolution& s : found)
    if (s.value < best.value) best = std::move(s);
  return best;
}

/// xᵀ matrix x + constant over all x in {0, 1}^n.
struct Qubo {
  std::vector<double> matrix;  ///< [n, n]
  double constant = 0.0;
};

/// The constraint as a penalty: Q + P (1 1ᵀ - 2 k I), constant P k², so that xᵀQx + P (Σ x - k)².
inline Qubo qcbo_to_qubo(MatrixView<const double> q, index_t k, double penalty) {
  detail::check_qcbo("qcbo_to_qubo", q);
  detail::check_cardinality("qcbo_to_qubo", k, q.rows());
  Qubo qubo{{}, penalty * static_cast<double>(k) * static_cast<double>(k)};
  for (index_t i = 0; i < q.rows(); ++i)
    for (index_t j = 0; j < q.rows(); ++j)
      qubo.matrix.push_back(q(i, j) + penalty * (i == j ? 1.0 - 2.0 * static_cast<double>(k) : 1.0));
  return qubo;
}

/// sᵀ coupling s + fieldᵀ s + constant over s in {-1, 1}^n.
struct Ising {
  std::vector<double> coupling;  ///< [n, n], 0 on the diagonal
  std::vector<double> field;
  double constant = 0.0;
};

/// x = (1 + s) / 2.
inline Ising qubo_to_ising(const Qubo& qubo) {
  const auto n = static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(qubo.matrix.size()))));
  detail::check_qcbo("qubo_to_ising", {qubo.matrix.data(), static_cast<index_t>(n),
                                       static_cast<index_t>(n == 0 ? 0 : qubo.matrix.size() / n)});
  Ising ising{std::vector<double>(n * n), std::vector<double>(n), qubo.constant};
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      const double v = qubo.matrix[i * n + j];
      ising.coupling[i * n + j] = i == j ? 0.0 : 0.25 * v;
      ising.field[i] += 0.5 * v;
      ising.constant += (i == j ? 0.5 : 0.25) * v;
    }
  }
  return ising;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
