// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Quadratics of sparse matrices.

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/solve/objective.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A symmetric matrix by its non-zero entries, row by row; the graph of message passing. Zeros off the diagonal are
/// not kept.
class SparseSymmetric {
 public:
  struct Entry {
    index_t col;
    double value;
  };

  SparseSymmetric() = default;
  /// ShapeError for another shape than a square; ValueError for NaN, infinity or a matrix that is not symmetric.
  explicit SparseSymmetric(MatrixView<const double> a) {
    if (a.rows() != a.cols()) throw ShapeError("SparseSymmetric: a is " + to_string(a.shape()) + ", a square needed");
    for (index_t i = 0; i < a.rows(); ++i) {
      for (index_t j = 0; j < a.cols(); ++j) {
        const double v = a(i, j);
        if (!std::isfinite(v) || v != a(j, i))
          throw ValueError("SparseSymmetric: a is not finite or not symmetric at row " + std::to_string(i) +
                           ", column " + std::to_string(j));
        if (v != 0.0 || i == j) entries_.push_back({j, v});
      }
      starts_.push_back(entries_.size());
    }
  }
  /// From rows of their own; each must hold its diagonal. `rows` is checked as above.
  explicit SparseSymmetric(const std::vector<std::vector<Entry>>& rows) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (const Entry& e : rows[i]) {
        const auto at = static_cast<index_t>(i);
        if (e.col < 0 || e.col >= static_cast<index_t>(rows.size()) || !std::isfinite(e.value))
          throw ValueError("SparseSymmetric: rows has a column out of range or a value that is not finite in row " +
                           std::to_string(i));
        const std::vector<Entry>& other = rows[static_cast<std::size_t>(e.col)];
        if (std::count_if(other.begin(), other.end(),
                          [&](const Entry& o) { return o.col == at && o.value == e.value; }) != 1)
          throw ValueError("SparseSymmetric: rows is not symmetric at row " + std::to_string(i) + ", column " +
                           std::to_string(e.col));
        entries_.push_back(e);
      }
      starts_.push_back(entries_.size());
    }
  }

  index_t size() const noexcept { return static_cast<index_t>(starts_.size()) - 1; }
  std::span<const Entry> row(index_t i) const noexcept {
    const auto at = static_cast<std::size_t>(i);
    return std::span(entries_).subspan(starts_[at], starts_[at + 1] - starts_[at]);
  }
  double diagonal(index_t i) const noexcept {
    for (const Entry& e : row(i))
      if (e.col == i) return e.value;
    return 0.0;
  }

 private:
  std::vector<Entry> entries_;
  std::vector<std::size_t> starts_ = {0};
};

/// 1/2 xᵀA x - bᵀx, A symmetric and positive semidefinite: H = A. A block of coordinates costs the entries of its rows.
///
/// Shapes:  a [n, n], b [n].
/// Errors:  ShapeError, ValueError that name b, x or penalty; ValueError for a diagonal that is not positive.
class Quadratic : public detail::ObjectiveState {
 public:
  Quadratic(SparseSymmetric a, std::span<const double> b, const Penalty& penalty = {})
      : ObjectiveState("Quadratic", a.size(), penalty), a_(std::move(a)), b_(b.begin(), b.end()), product_(b.size()) {
    detail::check_length("Quadratic", "b", b.size(), a_.size());
    detail::check_finite("Quadratic", "b", b);
    for (index_t i = 0; i < size(); ++i) {
      const double d = a_.diagonal(i);
      if (!(d > 0.0)) throw ValueError("Quadratic: the diagonal of a is not positive in row " + std::to_string(i));
      lipschitz_[static_cast<std::size_t>(i)] = d;
    }
  }

  const SparseSymmetric& matrix() const noexcept { return a_; }

  double value() const noexcept {
    double sum = 0.0;
    for (std::size_t i = 0; i < x_.size(); ++i) sum += x_[i] * (0.5 * product_[i] - b_[i]);
    return sum + penalty_value();
  }
  double value_after(Coordinates block, std::span<const double> delta) const {
    double sum = value() - penalty_value() + penalty_after(block, delta);
    std::vector<double> moved(x_.size());
    for (std::size_t k = 0; k < block.size(); ++k) moved[static_cast<std::size_t>(block[k])] = delta[k];
    for (std::size_t k = 0; k < block.size(); ++k) {
      double image = 0.0;
      for (const auto& e : a_.row(block[k])) image += e.value * moved[static_cast<std::size_t>(e.col)];
      sum += delta[k] * (slope(block[k]) + 0.5 * image);
    }
    return sum;
  }

  void gradient(std::span<double> g) const noexcept {
    for (index_t i = 0; i < size(); ++i) g[static_cast<std::size_t>(i)] = slope(i);
  }
  void gradient(Coordinates block, std::span<double> g) const noexcept {
    for (std::size_t k = 0; k < block.size(); ++k) g[k] = slope(block[k]);
  }

  void apply(Coordinates block, std::span<const double> delta) noexcept {
    move(block, delta);
    for (std::size_t k = 0; k < block.size(); ++k)
      for (const auto& e : a_.row(block[k])) product_[static_cast<std::size_t>(e.col)] += e.value * delta[k];
  }
  void set_x(std::span<const double> x) {
    set_point("set_x", x);
    bound_times(x_, product_);
  }

  void bound(Coordinates block, MatrixView<double> h) const {
    std::vector<std::pair<index_t, index_t>> places;  // coordinate, place in the block
    for (std::size_t k = 0; k < block.size(); ++k) places.emplace_back(block[k], static_cast<index_t>(k));
    std::sort(places.begin(), places.end());
    for (std::size_t k = 0; k < block.size(); ++k) {
      const auto row = static_cast<index_t>(k);
      for (index_t j = 0; j < h.cols(); ++j) h(row, j) = 0.0;
      for (const auto& e : a_.row(block[k])) {
        const auto at = std::lower_bound(places.begin(), places.end(), std::pair<index_t, index_t>(e.col, 0));
        if (at != places.end() && at->first == e.col) h(row, at->second) = e.value;
      }
    }
  }
  void hessian(Coordinates block, MatrixView<double> h) const { bound(block, h); }
  void bound_times(std::span<const double> v, std::span<double> y) const noexcept {
    for (index_t i = 0; i < size(); ++i) {
      double sum = 0.0;
      for (const auto& e : a_.row(i)) sum += e.value * v[static_cast<std::size_t>(e.col)];
      y[static_cast<std::size_t>(i)] = sum;
    }
  }
  void bound_row_sums(std::span<double> sums) const noexcept {
    for (index_t i = 0; i < size(); ++i) {
      double sum = 0.0;
      for (const auto& e : a_.row(i)) sum += std::fabs(e.value);
      sums[static_cast<std::size_t>(i)] = sum;
    }
  }

 private:
  double slope(index_t i) const noexcept {
    return product_[static_cast<std::size_t>(i)] - b_[static_cast<std::size_t>(i)];
  }

  SparseSymmetric a_;
  std::vector<double> b_, product_;  // product = A x
};

}  // namespace blockpack::inline BLOCKPACK_ABI
