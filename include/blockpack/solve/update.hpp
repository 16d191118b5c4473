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
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/solve/forest.hpp"
#include "blockpack/solve/line_search.hpp"
#include "blockpack/solve/objective.hpp"
#include "blockpack/solve/selection.hpp"
#include "blockpack/solve/symmetric.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

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
    if (block.empty()) return;
    std::vector<double> g(block.size()), x;
    f.gradient(block, std::span<double>(g));
    for (const index_t i : block) x.push_back(f.x()[static_cast<std::size_t>(i)]);
    f.apply(block, step(f, block, x, g));
  }

 private:
  using Vector = std::vector<double>;
  using Matrix = detail::SquareMatrix;
  struct Bound {
    double lipschitz = 0.0;
    Matrix h, inverse;
  };

  template <class F>
  Vector step(const F& f, Coordinates block, const Vector& x, const Vector& g) {
    const Penalty penalty = f.penalty();
    switch (kind_) {
      case BlockUpdate::lipschitz:
        return proximal_step(x, g, bound_of(f, block).lipschitz, penalty);
      case BlockUpdate::matrix: {
        const Bound& bound = bound_of(f, block);
        return penalty.none() ? scaled(-1.0, bound.inverse.times(g)) : model_step(bound.h, x, g, penalty);
      }
      case BlockUpdate::backtracking:
        return backtrack(f, block, x, g);
      case BlockUpdate::newton: {
        Matrix h(block.size());
        f.hessian(block, h.view());
        const Vector d = penalty.none() ? scaled(-1.0, h.pseudoinverse().times(g)) : model_step(h, x, g, penalty);
        const double slope = detail::dot(g, d) + penalty_change(x, d, penalty);
        const auto along = [&](double alpha) { return f.value_after(block, scaled(alpha, d)); };
        return scaled(interpolating_line_search(f.value(), slope, along), d);
      }
      case BlockUpdate::two_metric:
        return two_metric(f, block, x, g);
      case BlockUpdate::forest:
      case BlockUpdate::belief:
        break;
    }
    if constexpr (std::is_same_v<F, Quadratic>) {
      if (!penalty.none()) throw ValueError("BlockUpdater: forest and belief take no penalty");
      Vector d(block.size());
      if (kind_ == BlockUpdate::forest)
        messages_.solve_forest(f.matrix(), block, scaled(-1.0, g), d);
      else
        messages_.solve_belief(f.matrix(), block, scaled(-1.0, g), d);
      return d;
    } else {
      throw ValueError("BlockUpdater: forest and belief need the sparse matrix of a Quadratic");
    }
  }

  static Vector scaled(double alpha, Vector v) noexcept {
    for (double& e : v) e *= alpha;
    return v;
  }
  static Vector difference(Vector u, const Vector& x) noexcept {
    for (std::size_t k = 0; k < u.size(); ++k) u[k] -= x[k];
    return u;
  }
  static double penalty_change(const Vector& x, const Vector& d, const Penalty& penalty) noexcept {
    double sum = 0.0;
    for (std::size_t k = 0; k < x.size(); ++k) sum += penalty.change(x[k], d[k]);
    return sum;
  }
  static Vector proximal_step(const Vector& x, const Vector& g, double lipschitz, const Penalty& penalty) {
    Vector d;
    for (std::size_t k = 0; k < x.size(); ++k) d.push_back(penalty.minimizer(x[k], g[k], lipschitz) - x[k]);
    return d;
  }
  static Vector model_step(const Matrix& h, const Vector& x, const Vector& g, const Penalty& penalty) {
    return difference(detail::penalized_minimizer(h, g, x, penalty), x);
  }

  /// The bound of a block, once: λmax or the inverse. As many are kept as a partition has.
  template <class F>
  const Bound& bound_of(const F& f, Coordinates block) {
    const std::size_t size = block.size();
    std::vector<index_t> key(block.begin(), block.end());
    if (const auto known = bounds_.find(key); known != bounds_.end()) return known->second;
    if (kept_ + size > static_cast<std::size_t>(f.size())) {
      bounds_.clear();
      kept_ = 0;
    }
    kept_ += size;
    Bound bound;
    Matrix h = detail::bound_of(f, block);
    if (kind_ == BlockUpdate::lipschitz)
      bound.lipschitz = detail::largest_eigenvalue(h.view());
    else if (f.penalty().none())
      bound.inverse = h.pseudoinverse();
    else
      bound.h = std::move(h);
    return bounds_.emplace(std::move(key), std::move(bound)).first->second;
  }

  /// The largest constant of the block, doubled until f(x + d) <= f(x) + gᵀd + L/2 ||d||², becomes that of its
  /// coordinates.
  template <class F>
  Vector backtrack(const F& f, Coordinates block, const Vector& x, const Vector& g) {
    constants_.resize(static_cast<std::size_t>(f.size()), 1.0);
    double lipschitz = 0.0;
    for (const index_t i : block) lipschitz = std::max(lipschitz, constants_[static_cast<std::size_t>(i)]);
    const Penalty penalty = f.penalty();
    const double value = f.value(), rounding = 4.0 * std::numeric_limits<double>::epsilon() * std::fabs(value);
    for (;; lipschitz *= 2.0) {
      const Vector d = proximal_step(x, g, lipschitz, penalty);
      const double model =
          value + detail::dot(g, d) + 0.5 * lipschitz * detail::dot(d, d) + penalty_change(x, d, penalty);
      if (!(f.value_after(block, d) <= model + rounding) && std::isfinite(lipschitz)) continue;
      for (const index_t i : block) constants_[static_cast<std::size_t>(i)] = lipschitz;
      return d;
    }
  }

  template <class F>
  Vector two_metric(const F& f, Coordinates block, const Vector& x, const Vector& g) const {
    const Penalty penalty = f.penalty();
    if (!penalty.nonnegative) throw ValueError("BlockUpdater: two_metric needs a penalty that is nonnegative");
    std::vector<std::size_t> free, held;
    double held_lipschitz = 0.0;
    Vector metric = g;
    for (std::size_t k = 0; k < x.size(); ++k) {
      metric[k] += penalty.l1;
      const bool at_bound = x[k] < 1e-4 && metric[k] > 0.0;
      (at_bound ? held : free).push_back(k);
      if (at_bound) held_lipschitz += f.lipschitz()[static_cast<std::size_t>(block[k])];
    }
    if (held_lipschitz > 0.0)
      for (const std::size_t k : held) metric[k] /= held_lipschitz;
    Matrix h(block.size());
    f.hessian(block, h.view());
    const Vector newton = h.part(free).pseudoinverse().times(detail::gather(metric, free));
    Vector p = metric;
    for (std::size_t k = 0; k < free.size(); ++k) p[free[k]] = newton[k];
    const auto moved = [&](double alpha) {
      Vector d = x;
      for (std::size_t k = 0; k < d.size(); ++k) d[k] = std::max(x[k] - alpha * p[k], 0.0) - x[k];
      return d;
    };
    // The slope is that of the published code: with the scaled gradient of what is held.
    const auto along = [&](double alpha) { return f.value_after(block, moved(alpha)); };
    return moved(interpolating_line_search(f.value(), -detail::dot(metric, p), along));
  }

  BlockUpdate kind_;
  std::map<std::vector<index_t>, Bound> bounds_;
  std::size_t kept_ = 0;  // coordinates in bounds_
  std::vector<double> constants_;
  MessagePassing messages_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
