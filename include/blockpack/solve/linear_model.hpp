// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Objectives that are a sum over rows of a function of A x: least squares and logistic regression.

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "blockpack/solve/objective.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Σ_t loss(z_t, b_t) of z = A x + penalty.
///
/// Shapes:  a [m, n], b [m]; x [n]. A and b are copied, A column by column.
/// Errors:  ShapeError, ValueError that name a, b, x or penalty.
/// Cost:    construction O(m n); gradient O(m n), of a block O(m tau); apply, value_after O(m tau), with an L1 penalty
///          + n; bound, hessian O(m tau²); bound_times O(m n); bound_row_sums O(m n²).
template <class Loss>
class LinearModel : public detail::ObjectiveState {
 public:
  LinearModel(MatrixView<const double> a, std::span<const double> b, const Penalty& penalty = {})
      : ObjectiveState(Loss::kName, a.cols(), penalty), a_(Loss::kName, a), b_(b.begin(), b.end()) {
    detail::check_length(Loss::kName, "b", b.size(), a.rows());
    detail::check_finite(Loss::kName, "b", b);
    Loss::check(b);
    z_.resize(b.size());
    slope_.resize(b.size());
    update_slope();
    for (index_t j = 0; j < size(); ++j) lipschitz_[static_cast<std::size_t>(j)] = Loss::kCurvature * a_.product(j, j);
  }

  double value() const noexcept { return loss(z_) + penalty_value(); }
  double value_after(Coordinates block, std::span<const double> delta) const {
    std::vector<double> z = z_;
    add_columns(block, delta, z);
    return loss(z) + penalty_after(block, delta);
  }

  void gradient(std::span<double> g) const noexcept {
    for (index_t j = 0; j < size(); ++j) g[static_cast<std::size_t>(j)] = detail::dot(a_[j], slope_);
  }
  void gradient(Coordinates block, std::span<double> g) const noexcept {
    for (std::size_t k = 0; k < block.size(); ++k) g[k] = detail::dot(a_[block[k]], slope_);
  }

  void apply(Coordinates block, std::span<const double> delta) noexcept {
    move(block, delta);
    add_columns(block, delta, z_);
    update_slope();
  }
  void set_x(std::span<const double> x) {
    set_point("set_x", x);
    std::fill(z_.begin(), z_.end(), 0.0);
    for (index_t j = 0; j < size(); ++j) detail::add_scaled(x_[static_cast<std::size_t>(j)], a_[j], z_.data());
    update_slope();
  }

  void bound(Coordinates block, MatrixView<double> h) const noexcept {
    for (std::size_t i = 0; i < block.size(); ++i)
      for (std::size_t j = 0; j <= i; ++j) {
        const auto row = static_cast<index_t>(i), col = static_cast<index_t>(j);
        h(row, col) = h(col, row) = Loss::kCurvature * a_.product(block[i], block[j]);
      }
  }
  void hessian(Coordinates block, MatrixView<double> h) const {
    std::vector<double> weighted(z_.size());
    for (std::size_t i = 0; i < block.size(); ++i) {
      const std::span<const double> column = a_[block[i]];
      for (std::size_t t = 0; t < z_.size(); ++t) weighted[t] = column[t] * Loss::curvature(z_[t], b_[t]);
      for (std::size_t j = 0; j <= i; ++j) {
        const auto row = static_cast<index_t>(i), col = static_cast<index_t>(j);
        h(row, col) = h(col, row) = detail::dot(weighted, a_[block[j]]);
      }
    }
  }
  void bound_times(std::span<const double> v, std::span<double> y) const {
    std::vector<double> image(z_.size());
    for (index_t j = 0; j < size(); ++j)
      if (const double scale = v[static_cast<std::size_t>(j)]; scale != 0.0)
        detail::add_scaled(Loss::kCurvature * scale, a_[j], image.data());
    for (index_t j = 0; j < size(); ++j) y[static_cast<std::size_t>(j)] = detail::dot(a_[j], image);
  }
  void bound_row_sums(std::span<double> sums) const {
    std::copy(lipschitz_.begin(), lipschitz_.end(), sums.begin());
    for (index_t i = 0; i < size(); ++i)
      for (index_t j = 0; j < i; ++j) {
        const double entry = std::fabs(Loss::kCurvature * a_.product(i, j));
        sums[static_cast<std::size_t>(i)] += entry;
        sums[static_cast<std::size_t>(j)] += entry;
      }
  }

 private:
  double loss(const std::vector<double>& z) const noexcept {
    double sum = 0.0;
    for (std::size_t t = 0; t < z.size(); ++t) sum += Loss::value(z[t], b_[t]);
    return sum;
  }
  void update_slope() noexcept {
    for (std::size_t t = 0; t < z_.size(); ++t) slope_[t] = Loss::slope(z_[t], b_[t]);
  }
  void add_columns(Coordinates block, std::span<const double> delta, std::vector<double>& z) const noexcept {
    for (std::size_t k = 0; k < block.size(); ++k)
      if (delta[k] != 0.0) detail::add_scaled(delta[k], a_[block[k]], z.data());
  }

  detail::Columns a_;
  std::vector<double> b_, z_, slope_;
};

struct SquaredLoss {
  static constexpr const char* kName = "LeastSquares";
  static constexpr double kCurvature = 1.0;
  static void check(std::span<const double>) noexcept {}
  static double value(double z, double b) noexcept { return 0.5 * (z - b) * (z - b); }
  static double slope(double z, double b) noexcept { return z - b; }
  static double curvature(double, double) noexcept { return 1.0; }
};

/// log(1 + exp(-b z)), b = ±1.
struct LogisticLoss {
  static constexpr const char* kName = "Logistic";
  static constexpr double kCurvature = 0.25;
  static void check(std::span<const double> b) {
    for (std::size_t t = 0; t < b.size(); ++t)
      if (std::fabs(b[t]) != 1.0)
        throw ValueError("Logistic: b is " + std::to_string(b[t]) + " at " + std::to_string(t) + ", 1 or -1 needed");
  }
  static double value(double z, double b) noexcept {
    const double margin = b * z;
    return std::log1p(std::exp(-std::fabs(margin))) + std::max(-margin, 0.0);
  }
  static double slope(double z, double b) noexcept { return -b / (1.0 + std::exp(b * z)); }
  static double curvature(double z, double) noexcept {
    const double e = std::exp(-std::fabs(z));
    return e / ((1.0 + e) * (1.0 + e));
  }
};

/// 1/2 ||A x - b||².
using LeastSquares = LinearModel<SquaredLoss>;
/// Σ_t log(1 + exp(-b_t (A x)_t)), bounded by H = AᵀA / 4.
using Logistic = LinearModel<LogisticLoss>;

}  // namespace blockpack::inline BLOCKPACK_ABI
