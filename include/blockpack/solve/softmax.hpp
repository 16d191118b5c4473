// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Multi-class logistic regression.

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "blockpack/solve/objective.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Σ_t log Σ_c exp(z_tc) - z_t,label(t), z = A X, X [features, classes] row by row in x.
///
/// The bound of a block is (I - 1 1ᵀ / k') / 2 ⊗ AᵀA, k' one more than the classes in it, at most all k.
///
/// Shapes:  a [m, features], labels [m] in [0, classes); x [features · classes].
/// Errors:  ShapeError, ValueError that name a, labels, classes, x or penalty.
/// Cost:    as LinearModel with m · classes for the state of a step: exponentials of all classes.
class Softmax : public detail::ObjectiveState {
 public:
  Softmax(MatrixView<const double> a, std::span<const index_t> labels, index_t classes, const Penalty& penalty = {})
      : ObjectiveState("Softmax", checked_mul(a.cols(), classes, "Softmax: classes"), penalty),
        a_("Softmax", a),
        labels_(labels.begin(), labels.end()),
        classes_(classes) {
    if (classes < 1) throw ValueError("Softmax: classes = " + std::to_string(classes) + ", at least 1 needed");
    detail::check_length("Softmax", "labels", labels.size(), a.rows());
    for (std::size_t t = 0; t < labels.size(); ++t)
      if (labels[t] < 0 || labels[t] >= classes)
        throw ValueError("Softmax: labels has " + std::to_string(labels[t]) + " at " + std::to_string(t) +
                         ", below classes = " + std::to_string(classes) + " needed");
    z_.resize(labels.size() * static_cast<std::size_t>(classes));
    slope_.resize(z_.size());
    update_slope();
    for (index_t i = 0; i < size(); ++i)
      lipschitz_[static_cast<std::size_t>(i)] = 0.25 * a_.product(i / classes, i / classes);
  }

  double value() const { return loss(z_) + penalty_value(); }
  double value_after(Coordinates block, std::span<const double> delta) const {
    std::vector<double> z = z_;
    add_columns(block, delta, z);
    return loss(z) + penalty_after(block, delta);
  }

  void gradient(std::span<double> g) const noexcept {
    for (index_t i = 0; i < size(); ++i) g[static_cast<std::size_t>(i)] = slope_along(i);
  }
  void gradient(Coordinates block, std::span<double> g) const noexcept {
    for (std::size_t k = 0; k < block.size(); ++k) g[k] = slope_along(block[k]);
  }

  void apply(Coordinates block, std::span<const double> delta) {
    move(block, delta);
    add_columns(block, delta, z_);
    update_slope();
  }
  void set_x(std::span<const double> x) {
    set_point("set_x", x);
    std::fill(z_.begin(), z_.end(), 0.0);
    for (index_t i = 0; i < size(); ++i)
      detail::add_scaled(x_[static_cast<std::size_t>(i)], a_[i / classes_], class_of(z_, i));
    update_slope();
  }

  void bound(Coordinates block, MatrixView<double> h) const {
    std::vector<bool> met(static_cast<std::size_t>(classes_));
    for (const index_t i : block) met[static_cast<std::size_t>(i % classes_)] = true;
    const index_t k = std::min(classes_, static_cast<index_t>(std::count(met.begin(), met.end(), true)) + 1);
    for (std::size_t i = 0; i < block.size(); ++i)
      for (std::size_t j = 0; j <= i; ++j) {
        const auto row = static_cast<index_t>(i), col = static_cast<index_t>(j);
        h(row, col) = h(col, row) =
            0.5 * coupling(block[i], block[j], k) * a_.product(block[i] / classes_, block[j] / classes_);
      }
  }
  void hessian(Coordinates block, MatrixView<double> h) const {
    const auto m = static_cast<std::size_t>(a_.rows());
    std::vector<double> weighted(m);
    for (std::size_t i = 0; i < block.size(); ++i)
      for (std::size_t j = 0; j <= i; ++j) {
        const bool same = block[i] % classes_ == block[j] % classes_;
        const double* const first = class_of(slope_, block[i]);
        const double* const second = class_of(slope_, block[j]);
        const std::span<const double> column = a_[block[i] / classes_];
        for (std::size_t t = 0; t < m; ++t) {
          const double p = first[t] + is_label(t, block[i]), q = second[t] + is_label(t, block[j]);
          weighted[t] = column[t] * p * ((same ? 1.0 : 0.0) - q);
        }
        const auto row = static_cast<index_t>(i), col = static_cast<index_t>(j);
        h(row, col) = h(col, row) = detail::dot(weighted, a_[block[j] / classes_]);
      }
  }
  void bound_times(std::span<const double> v, std::span<double> y) const {
    std::vector<double> image(z_.size());
    for (index_t i = 0; i < size(); ++i)
      if (const double scale = v[static_cast<std::size_t>(i)]; scale != 0.0)
        detail::add_scaled(0.5 * scale, a_[i / classes_], class_of(image, i));
    const auto m = static_cast<std::size_t>(a_.rows()), k = static_cast<std::size_t>(classes_);
    for (std::size_t t = 0; t < m; ++t) {
      double mean = 0.0;
      for (std::size_t c = 0; c < k; ++c) mean += image[c * m + t];
      mean /= static_cast<double>(k);
      for (std::size_t c = 0; c < k; ++c) image[c * m + t] -= mean;
    }
    for (index_t i = 0; i < size(); ++i)
      y[static_cast<std::size_t>(i)] = detail::dot(a_[i / classes_].data(), class_of(image, i), m);
  }
  void bound_row_sums(std::span<double> sums) const {
    std::vector<double> of_feature(static_cast<std::size_t>(a_.cols()));
    for (index_t i = 0; i < a_.cols(); ++i)
      for (index_t j = 0; j <= i; ++j) {
        const double entry = std::fabs(a_.product(i, j));
        of_feature[static_cast<std::size_t>(i)] += entry;
        if (j != i) of_feature[static_cast<std::size_t>(j)] += entry;
      }
    const double share =
        1.0 - 1.0 / static_cast<double>(classes_);  // (1 - 1/k) / 2 of its class, as much of the others
    for (index_t i = 0; i < size(); ++i)
      sums[static_cast<std::size_t>(i)] = share * of_feature[static_cast<std::size_t>(i / classes_)];
  }

 private:
  /// Values of one class lie together: [classes, m].
  double* class_of(std::vector<double>& values, index_t i) const noexcept {
    return values.data() + i % classes_ * a_.rows();
  }
  const double* class_of(const std::vector<double>& values, index_t i) const noexcept {
    return values.data() + i % classes_ * a_.rows();
  }
  double is_label(std::size_t t, index_t i) const noexcept { return labels_[t] == i % classes_ ? 1.0 : 0.0; }
  double coupling(index_t i, index_t j, index_t k) const noexcept {
    return (i % classes_ == j % classes_ ? 1.0 : 0.0) - 1.0 / static_cast<double>(k);
  }
  double slope_along(index_t i) const noexcept {
    return detail::dot(a_[i / classes_].data(), class_of(slope_, i), static_cast<std::size_t>(a_.rows()));
  }
  void add_columns(Coordinates block, std::span<const double> delta, std::vector<double>& z) const noexcept {
    for (std::size_t k = 0; k < block.size(); ++k)
      if (delta[k] != 0.0) detail::add_scaled(delta[k], a_[block[k] / classes_], class_of(z, block[k]));
  }
  /// f(t, largest, Σ_c exp(z_tc - largest)) for every row.
  template <class Row>
  void each_row(const std::vector<double>& z, const Row& f) const {
    const auto m = static_cast<std::size_t>(a_.rows());
    std::vector<double> largest(m, -HUGE_VAL), sum(m);
    for (std::size_t i = 0; i < z.size(); ++i) largest[i % m] = std::max(largest[i % m], z[i]);
    for (std::size_t i = 0; i < z.size(); ++i) sum[i % m] += std::exp(z[i] - largest[i % m]);
    for (std::size_t t = 0; t < m; ++t) f(t, largest[t], sum[t]);
  }
  double loss(const std::vector<double>& z) const {
    double total = 0.0;
    const auto m = static_cast<std::size_t>(a_.rows());
    each_row(z, [&](std::size_t t, double largest, double sum) {
      total += largest + std::log(sum) - z[static_cast<std::size_t>(labels_[t]) * m + t];
    });
    return total;
  }
  void update_slope() {
    const auto m = static_cast<std::size_t>(a_.rows());
    each_row(z_, [&](std::size_t t, double largest, double sum) {
      for (std::size_t i = t; i < z_.size(); i += m) slope_[i] = std::exp(z_[i] - largest) / sum;
      slope_[static_cast<std::size_t>(labels_[t]) * m + t] -= 1.0;
    });
  }

  detail::Columns a_;
  std::vector<index_t> labels_;
  index_t classes_;
  std::vector<double> z_, slope_;  // [classes, m]; slope = softmax - label
};

}  // namespace blockpack::inline BLOCKPACK_ABI
