// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Symmetric positive semidefinite blocks: largest eigenvalue, pseudoinverse, and the minimizer of a quadratic with a
/// penalty.

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/solve/objective.hpp"
#if defined(BLOCKPACK_HEADERS_ONLY)
#include "blockpack/solve/symmetric_eigen.hpp"
#endif

namespace blockpack::inline BLOCKPACK_ABI {
namespace detail {

/// λmax of h [n, n], n >= 1.
#if defined(BLOCKPACK_HEADERS_ONLY)
inline double largest_eigenvalue(MatrixView<const double> h) { return solve_detail::largest_eigenvalue(h); }
#else
BLOCKPACK_API double largest_eigenvalue(MatrixView<const double> h);
#endif

/// inverse = h⁺: through Cholesky where h is well conditioned; else through eigenvalues, those below n · 2^-52 of the
/// largest left out. Cost: O(n³).
#if defined(BLOCKPACK_HEADERS_ONLY)
inline void pseudoinverse(MatrixView<const double> h, MatrixView<double> inverse) {
  solve_detail::pseudoinverse(h, inverse);
}
#else
BLOCKPACK_API void pseudoinverse(MatrixView<const double> h, MatrixView<double> inverse);
#endif

/// A square matrix with its values.
class SquareMatrix {
 public:
  explicit SquareMatrix(std::size_t n = 0) : n_(static_cast<index_t>(n)), values_(n * n) {}
  MatrixView<double> view() noexcept { return {values_.data(), n_, n_}; }
  MatrixView<const double> view() const noexcept { return {values_.data(), n_, n_}; }
  bool empty() const noexcept { return n_ == 0; }

  SquareMatrix pseudoinverse() const {
    SquareMatrix inverse(static_cast<std::size_t>(n_));
    detail::pseudoinverse(view(), inverse.view());
    return inverse;
  }
  std::vector<double> times(std::span<const double> v) const {
    std::vector<double> y;
    for (index_t i = 0; i < n_; ++i) y.push_back(dot(view().row(i), v));
    return y;
  }
  /// Rows and columns `chosen`.
  SquareMatrix part(std::span<const std::size_t> chosen) const {
    SquareMatrix m(chosen.size());
    for (std::size_t i = 0; i < chosen.size(); ++i)
      for (std::size_t j = 0; j < chosen.size(); ++j)
        m.values_[i * chosen.size() + j] = values_[chosen[i] * static_cast<std::size_t>(n_) + chosen[j]];
    return m;
  }

 private:
  index_t n_;
  std::vector<double> values_;
};

inline std::vector<double> gather(std::span<const double> values, std::span<const std::size_t> chosen) {
  std::vector<double> part;
  for (const std::size_t i : chosen) part.push_back(values[i]);
  return part;
}

/// The u that minimizes gᵀ(u - x) + 1/2 (u - x)ᵀ H (u - x) + Σ h(u_i), by coordinate descent and, whenever a sweep
/// leaves signs and zeros as they were, an exact solve for what is not zero. Exact for a positive definite H; else it
/// may end where a sweep moves nothing by more than 1e-15 of the largest |u_i|.
inline std::vector<double> penalized_minimizer(const SquareMatrix& h, std::span<const double> g,
                                               std::span<const double> x, const Penalty& penalty) {
  constexpr int kSweeps = 10000;
  const auto sign = [](double v) { return v > 0.0 ? 1 : v < 0.0 ? -1 : 0; };
  std::vector<double> u(x.begin(), x.end()), slope(g.begin(), g.end());  // slope = g + H (u - x)
  double scale = penalty.l1;
  for (const double v : g) scale = std::max(scale, std::fabs(v));
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool same_signs = true;
    double moved = 0.0, largest = 0.0;
    for (std::size_t i = 0; i < u.size(); ++i) {
      const std::span<const double> row = h.view().row(static_cast<index_t>(i));
      const double next = penalty.minimizer(u[i], slope[i], row[i]);
      same_signs = same_signs && sign(next) == sign(u[i]);
      moved = std::max(moved, std::fabs(next - u[i]));
      largest = std::max(largest, std::fabs(next));
      add_scaled(next - u[i], row, slope.data());
      u[i] = next;
    }
    if (moved <= 1e-15 * largest) break;
    if (!same_signs) continue;

    std::vector<std::size_t> support;
    for (std::size_t i = 0; i < u.size(); ++i)
      if (u[i] != 0.0) support.push_back(i);
    const SquareMatrix inverse = h.part(support).pseudoinverse();
    std::vector<double> exact = u, exact_slope = slope;
    for (int refinement = 0; refinement < 2; ++refinement) {
      std::vector<double> right;
      for (const std::size_t i : support) right.push_back(-(exact_slope[i] + penalty.l1 * sign(u[i])));
      const std::vector<double> step = inverse.times(right);
      for (std::size_t i = 0; i < support.size(); ++i) {
        exact[support[i]] += step[i];
        add_scaled(step[i], h.view().row(static_cast<index_t>(support[i])), exact_slope.data());
      }
    }
    bool optimal = true;
    for (std::size_t i = 0; i < u.size() && optimal; ++i) {
      const double s = exact_slope[i], highest = penalty.nonnegative ? HUGE_VAL : penalty.l1;
      optimal = u[i] != 0.0 ? sign(exact[i]) == sign(u[i]) && std::fabs(s + penalty.l1 * sign(u[i])) <= 1e-10 * scale
                            : s >= -penalty.l1 - 1e-10 * scale && s <= highest + 1e-10 * scale;
    }
    if (optimal) return exact;
  }
  return u;
}

}  // namespace detail
}  // namespace blockpack::inline BLOCKPACK_ABI
