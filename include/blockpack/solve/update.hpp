// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How a block moves. Each update minimizes a model of the function in the block, penalty included:
///
///   update        model, or step                                          the published name
///   lipschitz     gᵀd + L_b/2 ||d||² + h(x + d), L_b = λmax(H_b)           Lb; Lb-NN where x >= 0; soft threshold for
///   L1 matrix        gᵀd + 1/2 dᵀ H_b d + h(x + d)                            Hb (-H_b⁺ g); qp-nn where x >= 0
///   backtracking  as lipschitz with a constant kept a coordinate, doubled until it bounds    LA
///   newton        as matrix with the Hessian at x, and a line search       LS; prox-Newton with a penalty
///   two_metric    x >= 0 only: Newton for what is free, the gradient over Σ L_i for what is
///                 held at the bound (x_i < 1e-4, g_i > 0), projected line search             TMP-NN
///   forest        -H_b⁻¹ g by elimination; Quadratic without penalty, block a forest         bpExact
///   belief        the same by Gaussian belief propagation                  bpGabp
///
/// Source: J. Nutini, I. Laradji, M. Schmidt, JMLR 23 (2022), sections 4 to 6; line search and two-metric projection as
/// in the published code.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/solve/forest.hpp"
#include "blockpack/solve/line_search.hpp"
#include "blockpack/solve/objective.hpp"
#include "blockpack/solve/selection.hpp"
#include "blockpack/solve/symmetric.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

enum class BlockUpdate : std::uint8_t { lipschitz, matrix, backtracking, newton, two_metric, forest, belief };

/// Moves a block of an objective. Keeps the constants of blocks it has met, as many as a partition has, so it serves
/// one objective.
///
/// Errors:  ValueError for two_metric without a non-negative penalty, forest and belief with a penalty or on another
///          objective than Quadratic, and for what MessagePassing refuses.
/// Cost:    beside gradient and apply of the block, once a block: its bound and O(tau³). Then lipschitz O(tau), matrix
///          O(tau²); backtracking a value_after a trial; newton and two_metric the Hessian, O(tau³) and a value_after a
///          trial; forest and belief as MessagePassing.
class BlockUpdater {
 public:
  explicit BlockUpdater(BlockUpdate kind) : kind_(kind) {}

  template <CurvedObjective F>
  void operator()(F& f, Coordinates block) {
    const auto n = static_cast<index_t>(block.size());
    if (n == 0) return;
    Vector g(n), x(n);
    f.gradient(block, std::span<double>(g.data(), block.size()));
    for (index_t k = 0; k < n; ++k) x(k) = f.x()[static_cast<std::size_t>(block[static_cast<std::size_t>(k)])];
    Vector d;
    switch (kind_) {
      case BlockUpdate::lipschitz: {
        const Bound& bound = bound_of(f, block, false);
        d = proximal_step(x, g, bound.lipschitz, f.penalty());
        break;
      }
      case BlockUpdate::matrix: {
        const Bound& bound = bound_of(f, block, true);
        d = model_step(bound.h, bound.inverse, x, g, f.penalty());
        break;
      }
      case BlockUpdate::backtracking:
        d = backtrack(f, block, x, g);
        break;
      case BlockUpdate::newton: {
        Matrix h(n, n);
        f.hessian(block, view(h));
        d = model_step(h, {}, x, g, f.penalty());
        double slope = g.dot(d);
        for (index_t k = 0; k < n; ++k) slope += f.penalty().value(x(k) + d(k)) - f.penalty().value(x(k));
        d *= interpolating_line_search(f.value(), slope,
                                       [&](double alpha) { return value_after(f, block, Vector(alpha * d)); });
        break;
      }
      case BlockUpdate::two_metric:
        d = two_metric(f, block, x, g);
        break;
      case BlockUpdate::forest:
      case BlockUpdate::belief:
        if constexpr (std::is_same_v<F, Quadratic>) {
          if (!f.penalty().none()) throw ValueError("BlockUpdater: forest and belief take no penalty");
          const Vector r = -g;
          const std::span<const double> right(r.data(), block.size());
          d.resize(n);
          const std::span<double> step(d.data(), block.size());
          if (kind_ == BlockUpdate::forest)
            messages_.solve_forest(f.matrix(), block, right, step);
          else
            messages_.solve_belief(f.matrix(), block, right, step);
          break;
        } else {
          throw ValueError("BlockUpdater: forest and belief need the sparse matrix of a Quadratic");
        }
    }
    f.apply(block, std::span<const double>(d.data(), block.size()));
  }

 private:
  using Matrix = solve_detail::Matrix;
  using Vector = solve_detail::Vector;
  using Inverse = std::optional<solve_detail::Pseudoinverse<Matrix>>;
  struct Bound {
    double lipschitz = 0.0;
    Matrix h;
    Inverse inverse;
  };

  template <class F>
  static double value_after(const F& f, Coordinates block, const Vector& d) {
    return f.value_after(block, std::span<const double>(d.data(), block.size()));
  }

  template <class F>
  const Bound& bound_of(const F& f, Coordinates block, bool matrix) {
    std::vector<index_t> key(block.begin(), block.end());
    const auto known = bounds_.find(key);
    if (known != bounds_.end()) return known->second;
    kept_ += static_cast<index_t>(block.size());
    if (kept_ > f.size()) {
      bounds_.clear();
      kept_ = static_cast<index_t>(block.size());
    }
    Bound bound;
    bound.h = solve_detail::bound_of(f, block);
    if (matrix) {
      if (f.penalty().none()) bound.inverse.emplace(bound.h);
    } else {
      bound.lipschitz = solve_detail::largest_eigenvalue(bound.h);
      bound.h.resize(0, 0);
    }
    return bounds_.emplace(std::move(key), std::move(bound)).first->second;
  }

  static Vector proximal_step(const Vector& x, const Vector& g, double lipschitz, const Penalty& penalty) {
    Vector d(x.size());
    for (index_t k = 0; k < x.size(); ++k) d(k) = penalty.minimizer(x(k), g(k), lipschitz) - x(k);
    return d;
  }
  static Vector model_step(const Matrix& h, const Inverse& inverse, const Vector& x, const Vector& g,
                           const Penalty& penalty) {
    if (!penalty.none()) return solve_detail::penalized_minimizer(h, g, x, penalty) - x;
    return -(inverse ? inverse->times(g) : solve_detail::Pseudoinverse<Matrix>(h).times(g));
  }

  /// The largest constant of the block, doubled until f(x + d) <= f(x) + gᵀd + L/2 ||d||², then theirs.
  template <class F>
  Vector backtrack(const F& f, Coordinates block, const Vector& x, const Vector& g) {
    constants_.resize(static_cast<std::size_t>(f.size()), 1.0);
    double lipschitz = 0.0;
    for (const index_t i : block) lipschitz = std::max(lipschitz, constants_[static_cast<std::size_t>(i)]);
    const Penalty penalty = f.penalty();
    const double value = f.value(), rounding = 4.0 * std::numeric_limits<double>::epsilon() * std::fabs(value);
    Vector d;
    for (;; lipschitz *= 2.0) {
      d = proximal_step(x, g, lipschitz, penalty);
      double model = value + g.dot(d) + 0.5 * lipschitz * d.squaredNorm();
      for (index_t k = 0; k < d.size(); ++k) model += penalty.value(x(k) + d(k)) - penalty.value(x(k));
      if (value_after(f, block, d) <= model + rounding || !std::isfinite(lipschitz)) break;
    }
    for (const index_t i : block) constants_[static_cast<std::size_t>(i)] = lipschitz;
    return d;
  }

  template <class F>
  Vector two_metric(const F& f, Coordinates block, const Vector& x, const Vector& g) const {
    if (!f.penalty().nonnegative) throw ValueError("BlockUpdater: two_metric needs a penalty that is nonnegative");
    const index_t n = x.size();
    const Vector slope = g.array() + f.penalty().l1;
    std::vector<index_t> free;
    double held_lipschitz = 0.0;
    for (index_t k = 0; k < n; ++k) {
      if (x(k) < 1e-4 && slope(k) > 0.0)
        held_lipschitz += f.lipschitz()[static_cast<std::size_t>(block[static_cast<std::size_t>(k)])];
      else
        free.push_back(k);
    }
    Matrix h(n, n);
    f.hessian(block, view(h));
    Vector metric = held_lipschitz > 0.0 ? Vector(slope / held_lipschitz) : Vector::Zero(n);
    Vector p = metric;
    if (!free.empty()) {
      const auto count = static_cast<index_t>(free.size());
      Matrix part(count, count);
      Vector right(count);
      for (index_t i = 0; i < count; ++i) {
        const index_t row = free[static_cast<std::size_t>(i)];
        right(i) = metric(row) = slope(row);
        for (index_t j = 0; j < count; ++j) part(i, j) = h(row, free[static_cast<std::size_t>(j)]);
      }
      const Vector step = solve_detail::Pseudoinverse<Matrix>(part).times(right);
      for (index_t i = 0; i < count; ++i) p(free[static_cast<std::size_t>(i)]) = step(i);
    }
    const auto moved = [&](double alpha) { return Vector((x - alpha * p).cwiseMax(0.0) - x); };
    // The slope is that of the published code: the scaled gradient of what is held, not the gradient.
    return moved(interpolating_line_search(f.value(), -metric.dot(p),
                                           [&](double alpha) { return value_after(f, block, moved(alpha)); }));
  }

  BlockUpdate kind_;
  std::map<std::vector<index_t>, Bound> bounds_;
  index_t kept_ = 0;  // coordinates in bounds_
  std::vector<double> constants_;
  MessagePassing messages_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
