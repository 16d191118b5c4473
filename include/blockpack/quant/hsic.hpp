// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Sensitivity of a layer by the Hilbert-Schmidt independence criterion: how much its output z tells about the target y
/// beyond what it merely copies from the model's input x.
///
///     HSIC(A, B) = tr(K_A Hc K_B Hc) / (n - 1)²,  Hc = I - 11ᵀ/n
///     score = -input_weight · HSIC(X, Z) + target_weight · HSIC(Z, Y)
///
/// with Gaussian kernels of x and z and the linear kernel of y. All in double.
///
/// Source: ActQuant, arXiv:2605.24011, repository arashakb/ActQuant.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

/// Squared distances of the rows of a, [n, n].
inline AlignedBuffer<double> squared_distances(MatrixView<const double> a, const Execution& how) {
  const index_t n = a.rows();
  AlignedBuffer<double> d(checked_mul(n, n, "hsic"));
  parallel_for(how, n, [&](index_t i) {
    for (index_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (index_t k = 0; k < a.cols(); ++k) sum += (a(i, k) - a(j, k)) * (a(i, k) - a(j, k));
      d[i * n + j] = sum;
    }
  });
  return d;
}

/// exp(-D / (2 m²)) where m is the median of D over the pairs i < j, at least 0.01; with a given sigma
/// exp(-D / (2 sigma² columns)).
inline AlignedBuffer<double> gaussian_kernel(MatrixView<const double> a, double sigma, const Execution& how) {
  AlignedBuffer<double> d = squared_distances(a, how);
  const index_t n = a.rows();
  double denominator = 2.0 * sigma * sigma * static_cast<double>(a.cols());
  if (!(sigma > 0.0)) {
    std::vector<double> pairs;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = i + 1; j < n; ++j) pairs.push_back(d[i * n + j]);
    double median = 0.0;
    if (!pairs.empty()) {
      const auto middle = pairs.begin() + static_cast<std::ptrdiff_t>(pairs.size() / 2);
      std::nth_element(pairs.begin(), middle, pairs.end());
      median = *middle;
      if (pairs.size() % 2 == 0) median = 0.5 * (median + *std::max_element(pairs.begin(), middle));
    }
    median = std::max(median, 1e-2);
    denominator = 2.0 * median * median;
  }
  for (double& v : d) v = std::exp(-v / denominator);
  return d;
}

/// a aᵀ.
inline AlignedBuffer<double> linear_kernel(MatrixView<const double> a) {
  const index_t n = a.rows();
  AlignedBuffer<double> k(checked_mul(n, n, "hsic"));
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < n; ++j)
      for (index_t c = 0; c < a.cols(); ++c) k[i * n + j] += a(i, c) * a(j, c);
  return k;
}

/// tr(A Hc B Hc) / (n - 1)²: B against A with the means of its rows and columns taken off.
inline double hsic_of_kernels(const AlignedBuffer<double>& a, const AlignedBuffer<double>& b, index_t n) {
  std::vector<double> means(static_cast<std::size_t>(n));
  double mean = 0.0;
  for (index_t i = 0; i < n; ++i) {
    double sum = 0.0;
    for (index_t j = 0; j < n; ++j) sum += a[i * n + j];
    means[static_cast<std::size_t>(i)] = sum / static_cast<double>(n);
    mean += sum / static_cast<double>(n) / static_cast<double>(n);
  }
  double trace = 0.0;
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < n; ++j)
      trace += (a[i * n + j] - means[static_cast<std::size_t>(i)] - means[static_cast<std::size_t>(j)] + mean) *
               b[i * n + j];
  return trace / (static_cast<double>(n - 1) * static_cast<double>(n - 1));
}

inline void check_samples(const char* function, MatrixView<const double> a, MatrixView<const double> b) {
  if (a.rows() != b.rows() || a.rows() < 2)
    throw ShapeError(std::string(function) + ": " + std::to_string(a.rows()) + " and " + std::to_string(b.rows()) +
                     " samples, the same number and at least 2 needed");
}

}  // namespace detail

struct HsicOptions {
  double sigma = 0.0;  ///< of the Gaussian kernels; 0: from the median of the distances
  double input_weight = 1.0;
  double target_weight = 1.0;
};

/// HSIC with Gaussian kernels on both sides. a, b [samples, features]. Cost: samples² · features; two [samples,
/// samples] matrices.
inline double hsic_gaussian(MatrixView<const double> a, MatrixView<const double> b, double sigma = 0.0,
                            const Execution& how = {}) {
  detail::check_samples("hsic_gaussian", a, b);
  return detail::hsic_of_kernels(detail::gaussian_kernel(a, sigma, how), detail::gaussian_kernel(b, sigma, how),
                                 a.rows());
}

/// HSIC with linear kernels, |Acᵀ Bc|² / (n - 1)², Ac and Bc without their column means: no [samples, samples] matrix.
inline double hsic_linear(MatrixView<const double> a, MatrixView<const double> b) {
  detail::check_samples("hsic_linear", a, b);
  const auto means = [](MatrixView<const double> m) {
    std::vector<double> sums(static_cast<std::size_t>(m.cols()), 0.0);
    for (index_t i = 0; i < m.rows(); ++i)
      for (index_t j = 0; j < m.cols(); ++j) sums[static_cast<std::size_t>(j)] += m(i, j);
    for (double& s : sums) s /= static_cast<double>(m.rows());
    return sums;
  };
  const std::vector<double> mean_a = means(a), mean_b = means(b);
  double total = 0.0;
  for (index_t i = 0; i < a.cols(); ++i)
    for (index_t j = 0; j < b.cols(); ++j) {
      double sum = 0.0;
      for (index_t t = 0; t < a.rows(); ++t)
        sum += (a(t, i) - mean_a[static_cast<std::size_t>(i)]) * (b(t, j) - mean_b[static_cast<std::size_t>(j)]);
      total += sum * sum;
    }
  const auto n = static_cast<double>(a.rows() - 1);
  return total / (n * n);
}

/// What a layer's score is made of.
struct HsicScore {
  double input = 0;   ///< HSIC(X, Z)
  double target = 0;  ///< HSIC(Z, Y)
  double score = 0;
};

/// (y - mean) / (deviation + 1e-8) of every column, [samples, columns].
inline AlignedBuffer<double> standardize_columns(MatrixView<const double> y) {
  const index_t n = y.rows();
  AlignedBuffer<double> result(checked_mul(n, y.cols(), "standardize_columns"));
  for (index_t j = 0; j < y.cols(); ++j) {
    double mean = 0.0, variance = 0.0;
    for (index_t i = 0; i < n; ++i) mean += y(i, j) / static_cast<double>(n);
    for (index_t i = 0; i < n; ++i) variance += (y(i, j) - mean) * (y(i, j) - mean) / static_cast<double>(n);
    for (index_t i = 0; i < n; ++i) result[i * y.cols() + j] = (y(i, j) - mean) / (std::sqrt(variance) + 1e-8);
  }
  return result;
}

/// Scores the output z of one layer. x, z, y [samples, ·]; y is taken as it is: the targets through
/// `standardize_columns`. The "sens" option of the source is score(output) - score(input of the layer).
///
/// Errors: ShapeError for different numbers of samples or fewer than 2.
inline HsicScore hsic_score(MatrixView<const double> x, MatrixView<const double> z, MatrixView<const double> y,
                            const HsicOptions& options = {}, const Execution& how = {}) {
  detail::check_samples("hsic_score", x, z);
  detail::check_samples("hsic_score", z, y);
  const index_t n = y.rows();
  const AlignedBuffer<double> kernel = detail::gaussian_kernel(z, options.sigma, how);
  HsicScore s;
  s.input = detail::hsic_of_kernels(kernel, detail::gaussian_kernel(x, options.sigma, how), n);
  s.target = detail::hsic_of_kernels(kernel, detail::linear_kernel(y), n);
  s.score = -options.input_weight * s.input + options.target_weight * s.target;
  return s;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
