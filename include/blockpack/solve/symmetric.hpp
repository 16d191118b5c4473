// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Symmetric positive semidefinite blocks: largest eigenvalue, pseudoinverse, and the minimizer of a quadratic with a
/// penalty.

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/eigen.hpp"
#include "blockpack/solve/objective.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

namespace solve_detail {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;

// Templates, so that who includes this and calls nothing compiles nothing of Eigen.

/// T is double.
template <class T>
double largest_eigenvalue(const Eigen::MatrixBase<T>& h) {
  if (h.rows() == 1) return h(0, 0);
  return Eigen::SelfAdjointEigenSolver<typename T::PlainObject>(h, Eigen::EigenvaluesOnly).eigenvalues().maxCoeff();
}

/// h⁺: a Cholesky factor where h is well conditioned; else eigenvalues, those below n·2^-52 of the largest left out.
template <class M>
class Pseudoinverse {
 public:
  explicit Pseudoinverse(const M& h) : cholesky_(h) {
    if (cholesky_.info() == Eigen::Success && cholesky_.rcond() > 1e-10) return;
    const Eigen::SelfAdjointEigenSolver<M> eigen(h);
    const Vector& values = eigen.eigenvalues();
    const double least =
        static_cast<double>(h.rows()) * std::numeric_limits<double>::epsilon() * values.cwiseAbs().maxCoeff();
    const Vector inverse = values.unaryExpr([=](double v) { return v > least ? 1.0 / v : 0.0; });
    inverse_ = eigen.eigenvectors() * inverse.asDiagonal() * eigen.eigenvectors().transpose();
  }
  /// h⁺ g.
  Vector times(const Vector& g) const {
    return inverse_.size() > 0 ? Vector(inverse_ * g) : Vector(cholesky_.solve(g));
  }

 private:
  Eigen::LLT<M> cholesky_;
  M inverse_;  // empty where the factor serves
};

/// The u that minimizes gᵀ(u - x) + 1/2 (u - x)ᵀ H (u - x) + Σ h(u_i), by coordinate descent and, whenever a sweep
/// leaves the set of zeros and the signs as they were, an exact solve on what is not zero. Exact for a positive
/// definite H; for a singular one it ends when a sweep changes nothing by more than 1e-12 of the largest |u_i|.
template <class M>
Vector penalized_minimizer(const M& h, const Vector& g, const Vector& x, const Penalty& penalty) {
  constexpr int kSweeps = 10000;
  const Eigen::Index n = x.size();
  const auto sign = [](double v) { return v > 0.0 ? 1 : v < 0.0 ? -1 : 0; };
  Vector u = x, slope = g;  // slope = g + H (u - x)
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool same_signs = true;
    double moved = 0.0;
    for (Eigen::Index i = 0; i < n; ++i) {
      const double next = penalty.minimizer(u(i), slope(i), h(i, i));
      same_signs = same_signs && sign(next) == sign(u(i));
      moved = std::max(moved, std::fabs(next - u(i)));
      slope += h.col(i) * (next - u(i));
      u(i) = next;
    }
    if (moved <= 1e-15 * u.cwiseAbs().maxCoeff()) break;
    if (!same_signs) continue;

    std::vector<Eigen::Index> support;
    for (Eigen::Index i = 0; i < n; ++i)
      if (u(i) != 0.0) support.push_back(i);
    M part(support.size(), support.size());
    Vector right(support.size());
    for (std::size_t i = 0; i < support.size(); ++i) {
      const auto row = static_cast<Eigen::Index>(i);
      right(row) = -(slope(support[i]) + penalty.l1 * sign(u(support[i])));
      for (std::size_t j = 0; j < support.size(); ++j)
        part(row, static_cast<Eigen::Index>(j)) = h(support[i], support[j]);
    }
    if (support.empty()) break;
    const Vector step = Pseudoinverse<M>(part).times(right);
    Vector exact = u;
    for (std::size_t i = 0; i < support.size(); ++i) exact(support[i]) += step(static_cast<Eigen::Index>(i));
    const Vector exact_slope = g + h * (exact - x);
    const double scale = g.cwiseAbs().maxCoeff() + penalty.l1;
    bool optimal = true;
    for (Eigen::Index i = 0; i < n && optimal; ++i) {
      const double s = exact_slope(i), highest = penalty.nonnegative ? HUGE_VAL : penalty.l1;
      optimal = u(i) != 0.0 ? sign(exact(i)) == sign(u(i)) && std::fabs(s + penalty.l1 * sign(u(i))) <= 1e-10 * scale
                            : s >= -penalty.l1 - 1e-10 * scale && s <= highest + 1e-10 * scale;
    }
    if (optimal) return exact;
  }
  return u;
}

}  // namespace solve_detail

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
