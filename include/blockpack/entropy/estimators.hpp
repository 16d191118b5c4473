// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Entropy estimators. Everything is in nats (natural logarithm) unless the name says bits.
///
/// Discrete, from counts c_v with n = Σ c_v:
///     plug-in        H = log n - (1/n) Σ c_v log c_v          biased low by about (K - 1) / (2n), K occupied symbols
///     Miller-Madow   H + (K_occupied - 1) / (2n)              the first-order correction
/// Differential, from samples: histogram (H + log width), Gaussian (½ log 2πe s²), spacings of the sorted sample
/// (Vasicek, van Es, Ebrahimi, Correa) and nearest neighbours (Kozachenko-Leonenko) for points in D dimensions.
///
/// Ties make a spacing or a distance zero and its logarithm -inf: the estimate is -inf then, which is right for data
/// that are not continuous.
///
/// Source: G. Miller, "Note on the bias of information estimates" (1955); O. Vasicek, JRSS B 38 (1976); B. van Es,
/// Scand. J. Stat. 19 (1992); N. Ebrahimi et al., Stat. Probab. Lett. 20 (1994); J. Correa, Commun. Stat. 24 (1995); L.
/// Kozachenko and N. Leonenko, Probl. Inf. Transm. 23 (1987). The spacing estimators agree with
/// scipy.stats.differential_entropy.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/core/sum.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// What a table of counts says. All zero for an empty table.
struct DiscreteEntropy {
  double plug_in = 0;       ///< nats
  double miller_madow = 0;  ///< nats
  std::uint64_t count = 0;  ///< n, the sum of the counts
  index_t distinct = 0;     ///< K, symbols that occur

  double bits() const noexcept { return plug_in / std::numbers::ln2; }
  /// plug_in / log n, in [0, 1]: 1 when every value is distinct; 0 for n < 2.
  double efficiency() const noexcept { return count < 2 ? 0.0 : plug_in / std::log(static_cast<double>(count)); }
  /// Miller-Madow where the bias matters (more than n / 100 symbols occur), else the plug-in figure.
  double recommended() const noexcept {
    return static_cast<std::uint64_t>(distinct) > count / 100 ? miller_madow : plug_in;
  }
};

/// Gathers counts one by one. The result depends on their order in the last bit only.
class EntropyOfCounts {
 public:
  void add(std::uint64_t count) noexcept { add(count, 1); }
  /// `symbols` symbols that occur `count` times each.
  void add(std::uint64_t count, index_t symbols) noexcept {
    if (count == 0 || symbols == 0) return;
    const double weights = static_cast<double>(count) * static_cast<double>(symbols);
    total_ += count * static_cast<std::uint64_t>(symbols);
    distinct_ += symbols;
    if (count > 1) sum_ += weights * std::log(static_cast<double>(count));
  }
  void merge(const EntropyOfCounts& other) noexcept {
    total_ += other.total_;
    distinct_ += other.distinct_;
    sum_.merge(other.sum_);
  }
  DiscreteEntropy result() const noexcept {
    DiscreteEntropy h;
    h.count = total_;
    h.distinct = distinct_;
    if (distinct_ < 2) return h;  // exactly 0
    const double n = static_cast<double>(total_);
    h.plug_in = std::max(0.0, std::log(n) - sum_.value() / n);
    h.miller_madow = h.plug_in + static_cast<double>(distinct_ - 1) / (2.0 * n);
    return h;
  }

 private:
  CompensatedSum sum_;  // Σ c log c
  std::uint64_t total_ = 0;
  index_t distinct_ = 0;
};

/// Entropy of a table of counts; zeros are skipped.
inline DiscreteEntropy discrete_entropy(std::span<const std::uint64_t> counts) {
  EntropyOfCounts h;
  for (const std::uint64_t c : counts) h.add(c);
  return h.result();
}

/// Entropy of a normal density with that standard deviation: ½ log(2πe s²); -inf for 0.
inline double gaussian_entropy(double standard_deviation) noexcept {
  return 0.5 * std::log(2.0 * std::numbers::pi * std::numbers::e) + std::log(standard_deviation);
}

/// The same with the population standard deviation of a sample. ValueError for an empty sample.
inline double gaussian_entropy(std::span<const float> sample) {
  if (sample.empty()) throw ValueError("gaussian_entropy: the sample is empty");
  const double n = static_cast<double>(sample.size());
  CompensatedSum sum, square;
  for (const float v : sample) sum += v;
  const double mean = sum.value() / n;
  for (const float v : sample) square += (v - mean) * (v - mean);
  return gaussian_entropy(std::sqrt(square.value() / n));
}

enum class SpacingEstimator : std::uint8_t { vasicek, van_es, ebrahimi, correa };

/// Differential entropy from spacings of the sorted sample.
///
/// `window` is m, 0 = floor(sqrt(n) + 0.5). Errors: ValueError unless 1 <= m and 2m < n, or when a value is NaN or
/// infinite. Cost: sorts a copy, 8 bytes a sample; Correa also n·(2m + 1) steps.
inline double spacing_entropy(std::span<const float> sample, SpacingEstimator estimator, index_t window = 0) {
  const auto n = static_cast<index_t>(sample.size());
  const index_t m = window != 0 ? window : static_cast<index_t>(std::sqrt(static_cast<double>(n)) + 0.5);
  if (m < 1 || 2 * m >= n)
    throw ValueError("spacing_entropy: window " + std::to_string(m) + " and " + std::to_string(n) +
                     " samples, 2 <= 2 * window < samples needed");
  std::vector<double> x(sample.begin(), sample.end());
  for (index_t i = 0; i < n; ++i)
    if (!std::isfinite(x[static_cast<std::size_t>(i)]))
      throw ValueError("spacing_entropy: the sample is not finite at index " + std::to_string(i));
  std::sort(x.begin(), x.end());
  const auto at = [&](index_t i) { return x[static_cast<std::size_t>(std::clamp<index_t>(i, 0, n - 1))]; };
  const double count = static_cast<double>(n), width = static_cast<double>(m);
  CompensatedSum sum;

  switch (estimator) {
    case SpacingEstimator::vasicek:
      for (index_t i = 0; i < n; ++i) sum += std::log(count / (2.0 * width) * (at(i + m) - at(i - m)));
      return sum.value() / count;
    case SpacingEstimator::van_es: {
      for (index_t i = 0; i + m < n; ++i) sum += std::log((count + 1.0) / width * (at(i + m) - at(i)));
      CompensatedSum harmonic;
      for (index_t k = m; k <= n; ++k) harmonic += 1.0 / static_cast<double>(k);
      return sum.value() / (count - width) + harmonic.value() + std::log(width) - std::log(count + 1.0);
    }
    case SpacingEstimator::ebrahimi:
      for (index_t i = 0; i < n; ++i) {  // the window is cut at both ends, and the weight follows
        const index_t reach = std::min({i, n - 1 - i, m});
        const double c = i < m || i >= n - m ? 1.0 + static_cast<double>(reach) / width : 2.0;
        sum += std::log(count / (c * width) * (at(i + m) - at(i - m)));
      }
      return sum.value() / count;
    case SpacingEstimator::correa:
      break;
  }
  for (index_t i = 0; i < n; ++i) {  // slope of the local least-squares line through 2m + 1 order statistics
    double mean = 0;
    for (index_t j = i - m; j <= i + m; ++j) mean += at(j);
    mean /= static_cast<double>(2 * m + 1);
    double numerator = 0, denominator = 0;
    for (index_t j = i - m; j <= i + m; ++j) {
      const double d = at(j) - mean;
      numerator += d * static_cast<double>(j - i);
      denominator += d * d;
    }
    sum += denominator == 0 ? -std::numeric_limits<double>::infinity() : std::log(numerator / (count * denominator));
    if (denominator == 0) return -std::numeric_limits<double>::infinity();
  }
  return -sum.value() / count;
}

namespace detail {

/// ψ(x) for x > 0: upward recurrence to 10, then the asymptotic series (error below 1e-15).
inline double digamma(double x) noexcept {
  double result = 0;
  for (; x < 10.0; x += 1.0) result -= 1.0 / x;
  const double s = 1.0 / (x * x);
  const double series =
      s * (1.0 / 12 - s * (1.0 / 120 - s * (1.0 / 252 - s * (1.0 / 240 - s * (1.0 / 132 - s * (691.0 / 32760))))));
  return result + std::log(x) - 0.5 / x - series;
}

/// log of the volume of the unit ball in D dimensions.
inline double log_unit_ball(index_t dimensions) noexcept {
  const double half = 0.5 * static_cast<double>(dimensions);
  return half * std::log(std::numbers::pi) - std::lgamma(half + 1.0);
}

inline double squared_distance(std::span<const float> a, std::span<const float> b) noexcept {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d;
  }
  return sum;
}

inline void check_points(const char* function, MatrixView<const float> points, index_t least) {
  if (points.rows() < least || points.cols() < 1)
    throw ValueError(std::string(function) + ": points are " + to_string(points.shape()) + ", at least " +
                     std::to_string(least) + " rows and 1 column needed");
  const MatrixShape bad = find_non_finite(points);
  if (bad.rows >= 0)
    throw ValueError(std::string(function) + ": points are not finite at row " + std::to_string(bad.rows) +
                     ", column " + std::to_string(bad.cols));
}

/// Mean over the points of log(r + floor), r = distance to the k-th nearest other point.
inline double mean_log_neighbour_distance(const char* function, MatrixView<const float> points, index_t k, double floor,
                                          const Execution& how) {
  check_points(function, points, 2);
  const index_t n = points.rows();
  if (k < 1 || k >= n)
    throw ValueError(std::string(function) + ": k = " + std::to_string(k) + ", 1 <= k < " + std::to_string(n) +
                     " points needed");
  std::vector<double> logs(static_cast<std::size_t>(n));
  constexpr index_t kPointsPerTask = 16;
  parallel_for(how, ceil_div(n, kPointsPerTask), [&](index_t task) {
    std::vector<double> d(static_cast<std::size_t>(n));
    for (index_t i = task * kPointsPerTask; i < std::min(n, (task + 1) * kPointsPerTask); ++i) {
      for (index_t j = 0; j < n; ++j) d[static_cast<std::size_t>(j)] = squared_distance(points.row(i), points.row(j));
      d[static_cast<std::size_t>(i)] = -1.0;  // the point itself comes first
      std::nth_element(d.begin(), d.begin() + k, d.end());
      logs[static_cast<std::size_t>(i)] = std::log(std::sqrt(d[static_cast<std::size_t>(k)]) + floor);
    }
  });
  CompensatedSum sum;
  for (const double v : logs) sum += v;
  return sum.value() / static_cast<double>(n);
}

}  // namespace detail

/// Kozachenko-Leonenko: ψ(n) - ψ(k) + log V_D + (D/n) Σ log r_{i,k} for points [n, D]; -inf when a point has k copies.
///
/// Errors: ValueError unless 1 <= k < n and all values are finite. Cost: n²·D; n doubles for each thread.
inline double kozachenko_leonenko_entropy(MatrixView<const float> points, index_t k = 5, const Execution& how = {}) {
  const double mean = detail::mean_log_neighbour_distance("kozachenko_leonenko_entropy", points, k, 0.0, how);
  return detail::digamma(static_cast<double>(points.rows())) - detail::digamma(static_cast<double>(k)) +
         detail::log_unit_ball(points.cols()) + static_cast<double>(points.cols()) * mean;
}

/// EntroDrop's form of it: log n and log k instead of ψ, distances raised by 1e-10 (so copies do not give -inf).
/// Source: arXiv:2504.03794.
inline double knn_entropy(MatrixView<const float> points, index_t k = 5, const Execution& how = {}) {
  const double mean = detail::mean_log_neighbour_distance("knn_entropy", points, k, 1e-10, how);
  return std::log(static_cast<double>(points.rows())) - std::log(static_cast<double>(k)) +
         detail::log_unit_ball(points.cols()) + static_cast<double>(points.cols()) * mean;
}

/// Rényi entropy of order alpha with a Gaussian kernel, as EntroDrop has it: columns standardised (sample standard
/// deviation + 1e-10), sigma = lower median of all n² distances, K = max(exp(-d²/2σ²), 1e-10), H = log(mean K^(α-1)) /
/// (1 - α), the mean clamped at 1e-10. With sigma = 0 (most points equal) K is 1 for equal points and 1e-10 for others.
///
/// Errors: ValueError unless n >= 2, alpha > 0, alpha != 1 and all values are finite. Cost: n²·D / 2; 4·n² bytes.
inline double renyi_entropy(MatrixView<const float> points, double alpha = 4.0, const Execution& how = {}) {
  detail::check_points("renyi_entropy", points, 2);
  if (!(alpha > 0) || alpha == 1.0 || !std::isfinite(alpha))
    throw ValueError("renyi_entropy: alpha = " + std::to_string(alpha) + ", alpha > 0 and other than 1 needed");
  const index_t n = points.rows(), dims = points.cols();
  std::vector<double> x(static_cast<std::size_t>(checked_mul(n, dims, "renyi_entropy")));
  for (index_t j = 0; j < dims; ++j) {
    CompensatedSum sum, square;
    for (index_t i = 0; i < n; ++i) sum += points(i, j);
    const double mean = sum.value() / static_cast<double>(n);
    for (index_t i = 0; i < n; ++i) square += (points(i, j) - mean) * (points(i, j) - mean);
    const double scale = std::sqrt(square.value() / static_cast<double>(n - 1)) + 1e-10;
    for (index_t i = 0; i < n; ++i) x[static_cast<std::size_t>(i * dims + j)] = (points(i, j) - mean) / scale;
  }
  // Pairs i > j once; the diagonal is n zeros and every other distance counts twice.
  std::vector<double> squared(static_cast<std::size_t>(checked_mul(n, n - 1, "renyi_entropy") / 2));
  parallel_for(how, n, [&](index_t i) {
    double* row = squared.data() + i * (i - 1) / 2;
    for (index_t j = 0; j < i; ++j) {
      double sum = 0;
      for (index_t k = 0; k < dims; ++k) {
        const double d = x[static_cast<std::size_t>(i * dims + k)] - x[static_cast<std::size_t>(j * dims + k)];
        sum += d * d;
      }
      row[j] = sum;
    }
  });
  const index_t middle = (n * n - 1) / 2;
  double sigma_squared = 0;
  if (middle >= n) {
    const auto nth = squared.begin() + (middle - n) / 2;
    std::nth_element(squared.begin(), nth, squared.end());
    sigma_squared = *nth;
  }
  CompensatedSum sum;
  for (const double d : squared) {
    const double kernel = sigma_squared > 0 ? std::exp(-d / (2.0 * sigma_squared)) : (d == 0 ? 1.0 : 0.0);
    sum += std::pow(std::max(kernel, 1e-10), alpha - 1.0);
  }
  const double mean = (static_cast<double>(n) + 2.0 * sum.value()) / (static_cast<double>(n) * static_cast<double>(n));
  return std::log(std::max(mean, 1e-10)) / (1.0 - alpha);
}

/// Sum over columns of the entropy of equal-width bins, as EntroDrop has it.
struct MarginalEntropy {
  double total = 0;                ///< nats, the sum over the columns
  std::vector<double> per_column;  ///< nats
};

/// Points [n, D]; per column the edges e_b = min + (b / bins)·(max - min), and the bin of x is the number of edges e_0
/// … e_{bins-1} that are <= x, less 1; p is raised to 1e-10 before p log p, so an empty bin adds 2.3e-9. A constant
/// column has entropy (almost) 0. Errors: ValueError for no points, bins < 1 or values that are not finite.
inline MarginalEntropy marginal_bin_entropy(MatrixView<const float> points, index_t bins = 20,
                                            const Execution& how = {}) {
  detail::check_points("marginal_bin_entropy", points, 1);
  if (bins < 1) throw ValueError("marginal_bin_entropy: bins = " + std::to_string(bins) + ", at least 1 needed");
  MarginalEntropy h;
  h.per_column.resize(static_cast<std::size_t>(points.cols()));
  parallel_for(how, points.cols(), [&](index_t j) {
    float low = points(0, j), high = low;
    for (index_t i = 1; i < points.rows(); ++i) {
      low = std::min(low, points(i, j));
      high = std::max(high, points(i, j));
    }
    std::vector<double> edges(static_cast<std::size_t>(bins));
    for (index_t b = 0; b < bins; ++b)
      edges[static_cast<std::size_t>(b)] =
          low + strict_mul(static_cast<double>(b) / static_cast<double>(bins), static_cast<double>(high) - low);
    std::vector<std::uint64_t> counts(static_cast<std::size_t>(bins));
    for (index_t i = 0; i < points.rows(); ++i) {
      const auto above = std::upper_bound(edges.begin(), edges.end(), static_cast<double>(points(i, j)));
      ++counts[static_cast<std::size_t>(above - edges.begin() - 1)];
    }
    CompensatedSum sum;
    for (const std::uint64_t c : counts) {
      const double p = std::max(static_cast<double>(c) / static_cast<double>(points.rows()), 1e-10);
      sum += -p * std::log(p);
    }
    h.per_column[static_cast<std::size_t>(j)] = sum.value();
  });
  CompensatedSum total;
  for (const double v : h.per_column) total += v;
  h.total = total.value();
  return h;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
