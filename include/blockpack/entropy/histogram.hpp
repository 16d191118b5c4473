// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Histograms of equal-width bins with the contract of numpy.histogram, and its rules for the number of bins.
///
/// The range is [min, max] of the data unless given; bin i holds edge_i <= x < edge_{i+1}, the last bin holds its right
/// edge too. Edges of float data are rounded to float, and an index computed by multiplication is corrected by
/// comparing with them, so counts are exact with respect to the edges. Constant data use [x - 0.5, x + 0.5]. Weights
/// outside a given range are left out and counted. NaN and infinity are refused.
///
/// Rules (numpy.histogram_bin_edges), n values, s their population standard deviation; bins = ceil(range / width), 1
/// where the width is 0:
///     sturges  range / (log2 n + 1)          rice   range / (2 n^⅓)            square_root  range / sqrt n
///     scott    s · (24 sqrt(π) / n)^⅓        freedman_diaconis   2 · IQR · n^-⅓
///     doane    range / (1 + log2 n + log2(1 + |skewness| / sqrt(6(n - 2) / ((n + 1)(n + 3)))))
///     automatic  the smaller of freedman_diaconis and sturges, sturges where the IQR is 0
/// Heavy tails make freedman_diaconis explode: the number is cut at `max_bins` and `capped` says so.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/core/sum.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/entropy/estimators.hpp"
#include "blockpack/entropy/weights.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

enum class BinRule : std::uint8_t { automatic, sturges, rice, square_root, scott, freedman_diaconis, doane };

struct ValueRange {
  double low = 0;
  double high = 0;
};

struct HistogramOptions {
  index_t bins = 0;                   ///< 0: by the rule
  BinRule rule = BinRule::automatic;  ///< used when bins = 0
  std::optional<ValueRange> range;    ///< empty: [min, max] of the data
  index_t max_bins = 65536;           ///< cap of the rule's answer
};

struct Histogram {
  ValueRange range;
  std::vector<std::uint64_t> counts;
  std::uint64_t outside = 0;  ///< values outside a given range
  bool capped = false;        ///< the rule wanted more than max_bins

  index_t bins() const noexcept { return static_cast<index_t>(counts.size()); }
  double width() const noexcept { return (range.high - range.low) / static_cast<double>(counts.size()); }
  DiscreteEntropy entropy() const { return discrete_entropy(counts); }
  /// Differential entropy, H + log(width), nats.
  double differential_entropy() const { return entropy().plug_in + std::log(width()); }
};

namespace detail {

/// Values of a block as floats, in order. ValueError with the place of the first NaN or infinity.
inline std::vector<float> finite_values(const char* function, const WeightBlock& block) {
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(block.size()));
  for (std::size_t m = 0; m < block.matrices.size(); ++m)
    block.matrices[m].visit([&](auto w) {
      for (index_t i = 0; i < w.rows(); ++i)
        for (index_t j = 0; j < w.cols(); ++j) {
          const float v = static_cast<float>(w.row_data(i)[j]);
          if (!std::isfinite(v))
            throw ValueError(std::string(function) + ": matrix " + std::to_string(m) + " is not finite at row " +
                             std::to_string(i) + ", column " + std::to_string(j));
          values.push_back(v);
        }
    });
  return values;
}

/// Linear interpolation between order statistics; reorders the values.
inline double quantile(std::span<float> values, double q) {
  const double place = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::ptrdiff_t>(place);
  std::nth_element(values.begin(), values.begin() + below, values.end());
  const double low = values[static_cast<std::size_t>(below)];
  if (below + 1 >= static_cast<std::ptrdiff_t>(values.size())) return low;
  const double high = *std::min_element(values.begin() + below + 1, values.end());
  return low + (high - low) * (place - static_cast<double>(below));
}

/// The width a rule asks for; 0 means one bin. Reorders the values.
inline double bin_width(BinRule rule, std::span<float> values) {
  if (values.empty()) return 0;
  const double n = static_cast<double>(values.size());
  const auto [min, max] = std::minmax_element(values.begin(), values.end());
  const double range = static_cast<double>(*max) - static_cast<double>(*min);
  const auto central = [&](double mean, int power) {
    CompensatedSum sum;
    for (const float v : values) sum += power == 2 ? (v - mean) * (v - mean) : (v - mean) * (v - mean) * (v - mean);
    return sum.value() / n;
  };
  const auto mean = [&] {
    CompensatedSum sum;
    for (const float v : values) sum += v;
    return sum.value() / n;
  };
  switch (rule) {
    case BinRule::sturges:
      return range / (std::log2(n) + 1.0);
    case BinRule::rice:
      return range / (2.0 * std::cbrt(n));
    case BinRule::square_root:
      return range / std::sqrt(n);
    case BinRule::scott:
      return std::cbrt(24.0 * std::sqrt(std::numbers::pi) / n) * std::sqrt(central(mean(), 2));
    case BinRule::freedman_diaconis:
      return 2.0 * (quantile(values, 0.75) - quantile(values, 0.25)) / std::cbrt(n);
    case BinRule::doane: {
      if (n <= 2) return 0;
      const double m = mean(), sigma = std::sqrt(central(m, 2));
      if (!(sigma > 0)) return 0;
      const double skewness = central(m, 3) / (sigma * sigma * sigma);
      const double deviation = std::sqrt(6.0 * (n - 2.0) / ((n + 1.0) * (n + 3.0)));
      return range / (1.0 + std::log2(n) + std::log2(1.0 + std::fabs(skewness) / deviation));
    }
    case BinRule::automatic:
      break;
  }
  const double spread = bin_width(BinRule::freedman_diaconis, values);
  const double sturges = bin_width(BinRule::sturges, values);
  return spread > 0 ? std::min(spread, sturges) : sturges;
}

}  // namespace detail

/// Histogram of all weights of a block (a view is a block of one matrix).
///
/// Errors: ValueError on NaN or infinity, bins < 0, max_bins < 1 or a range that is not low <= high.
/// Cost:   4 bytes of scratch memory a value; counting in parallel, the counts do not depend on the threads.
inline Histogram histogram(const WeightBlock& block, const HistogramOptions& options = {}, const Execution& how = {}) {
  if (options.bins < 0 || options.max_bins < 1)
    throw ValueError("histogram: bins = " + std::to_string(options.bins) +
                     ", max_bins = " + std::to_string(options.max_bins) + "; bins >= 0 and max_bins >= 1 needed");
  if (options.range && !(options.range->low <= options.range->high && std::isfinite(options.range->low) &&
                         std::isfinite(options.range->high)))
    throw ValueError("histogram: range is " + std::to_string(options.range->low) + " to " +
                     std::to_string(options.range->high) + ", finite numbers low <= high needed");
  std::vector<float> values = detail::finite_values("histogram", block);

  Histogram h;
  h.range = {0, 1};
  if (options.range) {
    h.range = *options.range;
    const auto inside = [&](float v) { return v >= h.range.low && v <= h.range.high; };
    const auto end = std::partition(values.begin(), values.end(), inside);
    h.outside = static_cast<std::uint64_t>(values.end() - end);
    values.erase(end, values.end());
  } else if (!values.empty()) {
    const auto [min, max] = std::minmax_element(values.begin(), values.end());
    h.range = {*min, *max};
  }
  if (h.range.low == h.range.high) h.range = {h.range.low - 0.5, h.range.high + 0.5};

  index_t bins = options.bins;
  if (bins == 0) {
    const double width = detail::bin_width(options.rule, values);
    const double wanted = width > 0 ? std::ceil((h.range.high - h.range.low) / width) : 1.0;
    h.capped = wanted > static_cast<double>(options.max_bins);
    bins = h.capped ? options.max_bins : std::max<index_t>(1, static_cast<index_t>(wanted));
  }

  const double step = (h.range.high - h.range.low) / static_cast<double>(bins);
  std::vector<float> edges(static_cast<std::size_t>(checked_add(bins, 1, "histogram")));
  for (index_t b = 0; b < bins; ++b)
    edges[static_cast<std::size_t>(b)] = static_cast<float>(h.range.low + strict_mul(static_cast<double>(b), step));
  edges.back() = static_cast<float>(h.range.high);

  h.counts.assign(static_cast<std::size_t>(bins), 0);
  std::mutex merging;  // integer sums: the order of merging does not matter
  constexpr index_t kValuesPerTask = 1 << 20;
  const auto n = static_cast<index_t>(values.size());
  parallel_for(how, ceil_div(n, kValuesPerTask), [&](index_t task) {
    std::vector<std::uint64_t> local(h.counts.size());
    for (index_t i = task * kValuesPerTask; i < std::min(n, (task + 1) * kValuesPerTask); ++i) {
      const float v = values[static_cast<std::size_t>(i)];
      auto b = static_cast<index_t>((static_cast<double>(v) - h.range.low) / step);
      b = std::clamp<index_t>(b, 0, bins - 1);
      if (b > 0 && v < edges[static_cast<std::size_t>(b)]) --b;
      if (b + 1 < bins && v >= edges[static_cast<std::size_t>(b + 1)]) ++b;
      ++local[static_cast<std::size_t>(b)];
    }
    const std::lock_guard lock(merging);
    for (std::size_t b = 0; b < local.size(); ++b) h.counts[b] += local[b];
  });
  return h;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
