// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Magnitude statistics of a block of weights: the scorers Gardener is compared with.
///
/// 16-bit weights are counted first and the sums run over the at most 65,536 distinct values; float32 weights are
/// summed in runs of 2,048 whose moments are merged in order. Either way the figures do not depend on the threads.
///
/// Source: merging of moments: P. Pébay, "Formulas for robust, one-pass parallel computation of covariances and
/// arbitrary-order statistical moments", Sandia report SAND2008-6212 (2008).

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/sum.hpp"
#include "blockpack/entropy/value_counts.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Over the finite weights w_i; variances are population variances. All zero for an empty block.
struct WeightStatistics {
  std::uint64_t count = 0;       ///< finite weights
  std::uint64_t non_finite = 0;  ///< NaN and infinities, left out of everything below
  double l1 = 0;                 ///< Σ |w|
  double l2 = 0;                 ///< sqrt(Σ w²)
  double abs_mean = 0;           ///< mean |w|
  double abs_max = 0;
  double abs_variance = 0;     ///< variance of |w|
  double mean = 0;             ///< of w
  double variance = 0;         ///< of w
  double kurtosis_excess = 0;  ///< of w: m4 / m2² - 3 with biased moments; 0 where the variance is 0
  double value_entropy = 0;    ///< H_V = -Σ q log q, q = |w| / Σ|w|, nats

  double abs_std() const noexcept { return std::sqrt(abs_variance); }
  double std_dev() const noexcept { return std::sqrt(variance); }
};

namespace detail {

/// Central moments of values with multiplicities, in double.
struct Moments {
  double n = 0, mean = 0, m2 = 0, m3 = 0, m4 = 0;

  void merge(const Moments& b) noexcept {
    if (b.n == 0) return;
    if (n == 0) {
      *this = b;
      return;
    }
    const double total = n + b.n, d = b.mean - mean, d2 = d * d;
    m4 += b.m4 + d2 * d2 * n * b.n * (n * n - n * b.n + b.n * b.n) / (total * total * total) +
          6.0 * d2 * (n * n * b.m2 + b.n * b.n * m2) / (total * total) + 4.0 * d * (n * b.m3 - b.n * m3) / total;
    m3 += b.m3 + d * d2 * n * b.n * (n - b.n) / (total * total) + 3.0 * d * (n * b.m2 - b.n * m2) / total;
    m2 += b.m2 + d2 * n * b.n / total;
    mean += d * b.n / total;
    n = total;
  }
};

/// What weight_statistics gathers from part of a block.
struct StatisticsPart {
  std::uint64_t non_finite = 0;
  double abs_max = 0;
  CompensatedSum l1, square, abs_log;  // Σ|w|, Σw², Σ|w| log|w|
  Moments signed_moments, abs_moments;

  /// value(i) occurs weight(i) times, i < n; all finite.
  template <class Value, class Weight>
  void add(std::size_t n, Value value, Weight weight) {
    Moments s, a;
    CompensatedSum sum, abs_sum;
    for (std::size_t i = 0; i < n; ++i) {
      const double v = value(i), c = weight(i), magnitude = std::fabs(v);
      s.n += c;
      sum += c * v;
      abs_sum += c * magnitude;
      square += c * (v * v);
      if (magnitude > 0) abs_log += c * (magnitude * std::log(magnitude));
      abs_max = std::max(abs_max, magnitude);
    }
    if (s.n == 0) return;
    a.n = s.n;
    l1.merge(abs_sum);
    s.mean = sum.value() / s.n;
    a.mean = abs_sum.value() / s.n;
    CompensatedSum m2, m3, m4, abs_m2;
    for (std::size_t i = 0; i < n; ++i) {
      const double c = weight(i), d = value(i) - s.mean, e = std::fabs(value(i)) - a.mean;
      m2 += c * (d * d);
      m3 += c * (d * d * d);
      m4 += c * (d * d) * (d * d);
      abs_m2 += c * (e * e);
    }
    s.m2 = m2.value();
    s.m3 = m3.value();
    s.m4 = m4.value();
    a.m2 = abs_m2.value();
    signed_moments.merge(s);
    abs_moments.merge(a);
  }

  void merge(const StatisticsPart& other) noexcept {
    non_finite += other.non_finite;
    abs_max = std::max(abs_max, other.abs_max);
    l1.merge(other.l1);
    square.merge(other.square);
    abs_log.merge(other.abs_log);
    signed_moments.merge(other.signed_moments);
    abs_moments.merge(other.abs_moments);
  }

  WeightStatistics result() const noexcept {
    WeightStatistics r;
    r.count = static_cast<std::uint64_t>(signed_moments.n);
    r.non_finite = non_finite;
    if (r.count == 0) return r;
    r.l1 = l1.value();
    r.l2 = std::sqrt(square.value());
    r.abs_mean = r.l1 / signed_moments.n;
    r.abs_max = abs_max;
    r.abs_variance = abs_moments.m2 / signed_moments.n;
    r.mean = signed_moments.mean;
    r.variance = signed_moments.m2 / signed_moments.n;
    if (r.variance > 0) r.kurtosis_excess = signed_moments.m4 / signed_moments.n / (r.variance * r.variance) - 3.0;
    if (r.l1 > 0) r.value_entropy = std::max(0.0, std::log(r.l1) - abs_log.value() / r.l1);
    return r;
  }
};

inline bool is_finite_symbol(std::uint32_t symbol) noexcept { return (symbol & 0x7f800000u) != 0x7f800000u; }

/// Of matrices that are all 16-bit: sums over their distinct values.
inline StatisticsPart statistics_of_counts(const ValueCounts& values) {
  StatisticsPart part;
  std::vector<double> value, count;
  for (std::size_t i = 0; i < values.symbols.size(); ++i) {
    if (!is_finite_symbol(values.symbols[i])) {
      part.non_finite += values.counts[i];
      continue;
    }
    value.push_back(std::bit_cast<float>(values.symbols[i]));
    count.push_back(static_cast<double>(values.counts[i]));
  }
  part.add(
      value.size(), [&](std::size_t i) { return value[i]; }, [&](std::size_t i) { return count[i]; });
  return part;
}

/// Of float32 matrices: the weights themselves.
inline StatisticsPart statistics_of_floats(const WeightBlock& block, const Execution& how) {
  constexpr index_t kRunsPerTask = 128;
  constexpr index_t kRun = 2048;
  const index_t n = block.size(), per_task = kRunsPerTask * kRun;
  std::vector<StatisticsPart> parts(static_cast<std::size_t>(ceil_div(n, per_task)));
  parallel_for(how, static_cast<index_t>(parts.size()), [&](index_t task) {
    StatisticsPart& part = parts[static_cast<std::size_t>(task)];
    std::array<double, static_cast<std::size_t>(kRun)> values;
    const index_t end = std::min(n, (task + 1) * per_task);
    for (index_t begin = task * per_task; begin < end; begin += kRun) {
      std::size_t used = 0;
      for_each_run(block, begin, std::min(end, begin + kRun), [&](auto run) {
        for (const auto w : run) {
          const auto v = static_cast<double>(static_cast<float>(w));
          if (std::isfinite(v)) {
            values[used++] = v;
          } else {
            ++part.non_finite;
          }
        }
      });
      part.add(
          used, [&](std::size_t i) { return values[i]; }, [](std::size_t) { return 1.0; });
    }
  });
  StatisticsPart total;
  for (const StatisticsPart& part : parts) total.merge(part);
  return total;
}

}  // namespace detail

/// Statistics of the stored weights of a block (no grid).
///
/// Cost: one pass over 16-bit data (2 bytes moved a weight); float32 data are read once (4 bytes moved a weight) and
/// cost
///       a logarithm each.
inline WeightStatistics weight_statistics(const WeightBlock& block, const Execution& how = {}) {
  WeightBlock floats, codes;
  for (const WeightView& w : block.matrices) (w.type() == StoredType::f32 ? floats : codes).matrices.push_back(w);
  detail::StatisticsPart total = detail::statistics_of_counts(value_counts(codes, ValueGrid::as_stored(), how));
  total.merge(detail::statistics_of_floats(floats, how));
  return total.result();
}

}  // namespace blockpack::inline BLOCKPACK_ABI
