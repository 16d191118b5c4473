// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What block coordinate descent needs to know of a function, and the functions it is used with. An objective holds the
/// point x (0 at first) and everything that follows from it, so that a step of a block costs what the block costs:
/// least squares keep A·x, and a block of tau columns of m rows takes O(m · tau).
///
/// The function is smooth(x) + Σ_i h(x_i), h being the penalty; gradients, Hessians and bounds are those of the smooth
/// part.
///
/// Source: J. Nutini, I. Laradji, M. Schmidt, "Let's Make Block Coordinate Descent Converge Faster", JMLR 23 (2022),
/// arXiv:1712.08859.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A block: distinct coordinates.
using Coordinates = std::span<const index_t>;
using Blocks = std::vector<std::vector<index_t>>;

/// h(x) = l1·|x|; with `nonnegative` h(x) = l1·x for x >= 0, infinite below.
struct Penalty {
  double l1 = 0.0;
  bool nonnegative = false;

  bool none() const noexcept { return l1 == 0.0 && !nonnegative; }

  /// h at a point that is allowed.
  double value(double x) const noexcept { return l1 * std::fabs(x); }

  /// h(x + d) - h(x), without cancellation where both lie on one side of 0.
  double change(double x, double d) const noexcept {
    if (x >= 0.0 && x + d >= 0.0) return l1 * d;
    if (x <= 0.0 && x + d <= 0.0) return -l1 * d;
    return value(x + d) - value(x);
  }

  /// The u that minimizes g·(u - x) + curvature/2·(u - x)² + h(u), curvature >= 0. Without curvature and slope: 0 where
  /// h is not, else x.
  double minimizer(double x, double g, double curvature) const noexcept {
    if (!(curvature > 0.0)) return l1 > 0.0 ? 0.0 : x;
    const double u = x - g / curvature, shift = l1 / curvature;
    if (nonnegative) return std::max(u - shift, 0.0);
    return std::copysign(std::max(std::fabs(u) - shift, 0.0), u);
  }
};

/// A function that block coordinate descent can minimize, with its state.
template <class F>
concept Objective = requires(F& f, const F& at, Coordinates block, std::span<const double> delta, std::span<double> g) {
  { at.size() } -> std::convertible_to<index_t>;
  { at.x() } -> std::convertible_to<std::span<const double>>;
  { at.penalty() } -> std::convertible_to<Penalty>;
  { at.value() } -> std::convertible_to<double>;                    // penalty included
  { at.value_after(block, delta) } -> std::convertible_to<double>;  // value() after apply(block, delta)
  at.gradient(g);                                                   // of the smooth part, [size]
  at.gradient(block, g);                                            // [block]
  f.apply(block, delta);                                            // x_b += delta
};

/// An objective with a constant bound H of its Hessian (the Hessian itself where it is constant) and the Hessian at x.
template <class F>
concept CurvedObjective = Objective<F> &&
    requires(const F& at, Coordinates block, MatrixView<double> h, std::span<const double> v, std::span<double> y) {
  { at.lipschitz() } -> std::convertible_to<std::span<const double>>;  // L_i, the diagonal of H
  at.bound(block, h);                                                  // H_bb [block, block]
  at.hessian(block, h);                                                // the Hessian at x, [block, block]
  at.bound_times(v, y);                                                // y = H v
  at.bound_row_sums(y);                                                // Σ_j |H_ij|
};

namespace detail {

/// Σ a_i b_i in eight running sums.
template <class T>
T dot(const T* a, const T* b, std::size_t n) noexcept {
  T sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (std::size_t k = 0; k < 8; ++k) sums[k] += a[i + k] * b[i + k];
  for (; i < n; ++i) sums[0] += a[i] * b[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}
inline double dot(std::span<const double> a, std::span<const double> b) noexcept {
  return dot(a.data(), b.data(), a.size());
}

/// y += s·a.
template <class T>
void add_scaled(T s, const T* a, std::size_t n, T* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] += s * a[i];
}
inline void add_scaled(double s, std::span<const double> a, double* y) noexcept {
  add_scaled(s, a.data(), a.size(), y);
}

inline void check_finite(const char* function, const char* name, std::span<const double> values) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw ValueError(std::string(function) + ": " + name + " is not finite at " + std::to_string(i));
}

inline void check_length(const char* function, const char* name, std::size_t length, index_t needed) {
  if (static_cast<index_t>(length) != needed)
    throw ShapeError(std::string(function) + ": " + name + " has " + std::to_string(length) + " elements, " +
                     std::to_string(needed) + " needed");
}

/// The point, the penalty and the curvatures of an objective.
class ObjectiveState {
 public:
  index_t size() const noexcept { return static_cast<index_t>(x_.size()); }
  std::span<const double> x() const noexcept { return x_; }
  const Penalty& penalty() const noexcept { return penalty_; }
  std::span<const double> lipschitz() const noexcept { return lipschitz_; }

 protected:
  ObjectiveState(const char* function, index_t size, const Penalty& penalty)
      : x_(static_cast<std::size_t>(size)), lipschitz_(x_.size()), penalty_(penalty) {
    if (!(penalty.l1 >= 0.0) || !std::isfinite(penalty.l1))
      throw ValueError(std::string(function) + ": penalty.l1 must be a number that is not negative");
  }

  double penalty_value() const noexcept {
    double sum = 0.0;
    if (penalty_.l1 > 0.0)
      for (const double v : x_) sum += penalty_.value(v);
    return sum;
  }
  double penalty_after(Coordinates block, std::span<const double> delta) const noexcept {
    double sum = penalty_value();
    if (penalty_.l1 > 0.0)
      for (std::size_t k = 0; k < block.size(); ++k) {
        sum += penalty_.change(x_[static_cast<std::size_t>(block[k])], delta[k]);
      }
    return sum;
  }
  void move(Coordinates block, std::span<const double> delta) noexcept {
    for (std::size_t k = 0; k < block.size(); ++k) {
      double& x = x_[static_cast<std::size_t>(block[k])];
      x += delta[k];
      if (penalty_.nonnegative) x = std::max(x, 0.0);  // -1e-17 of rounding
    }
  }
  void set_point(const char* function, std::span<const double> x) {
    check_length(function, "x", x.size(), size());
    check_finite(function, "x", x);
    if (penalty_.nonnegative && std::any_of(x.begin(), x.end(), [](double v) { return v < 0.0; }))
      throw ValueError(std::string(function) + ": x has a negative element, the penalty allows none");
    x_.assign(x.begin(), x.end());
  }

  std::vector<double> x_, lipschitz_;
  Penalty penalty_;
};

/// The columns of a matrix, one after the other in memory.
class Columns {
 public:
  Columns(const char* function, MatrixView<const double> a) : rows_(a.rows()), cols_(a.cols()) {
    values_.resize(static_cast<std::size_t>(checked_mul(rows_, cols_, function)));
    for (index_t t = 0; t < rows_; ++t)
      for (index_t j = 0; j < cols_; ++j) {
        if (!std::isfinite(a(t, j)))
          throw ValueError(std::string(function) + ": a is not finite at row " + std::to_string(t) + ", column " +
                           std::to_string(j));
        values_[static_cast<std::size_t>(j * rows_ + t)] = a(t, j);
      }
  }
  index_t rows() const noexcept { return rows_; }
  index_t cols() const noexcept { return cols_; }
  std::span<const double> operator[](index_t j) const noexcept {
    return {values_.data() + j * rows_, static_cast<std::size_t>(rows_)};
  }
  double product(index_t i, index_t j) const noexcept { return dot((*this)[i], (*this)[j]); }

 private:
  index_t rows_, cols_;
  std::vector<double> values_;
};

}  // namespace detail

}  // namespace blockpack::inline BLOCKPACK_ABI
