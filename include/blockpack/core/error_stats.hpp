// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How far an approximation lies from what it stands for: one type with many norms, because no single figure tells the
/// whole story (a good SQNR can hide one ruined weight). Accumulates by panels, so a matrix that does not fit in memory
/// can be compared row by row.
///
/// With r the reference, a the approximation, e = a - r, over all entries added:
///
///     SQNR      = 10 log10(Σ r² / Σ e²)   dB        relative Frobenius = sqrt(Σ e² / Σ r²)
///     cosine    = Σ r·a / sqrt(Σ r² · Σ a²)         mean error = Σ e / n,  RMS = sqrt(Σ e² / n)
///     max error = max |e| and where it lies
///
/// Defined everywhere: nothing added, or r = a = 0: SQNR +inf, relative Frobenius 0, cosine 1. r = 0, a != 0: SQNR
/// -inf, relative Frobenius +inf, cosine 0. An entry where r and a are the same non-finite value (both NaN, or the same
/// infinity) is counted in `matching_non_finite` and otherwise left out; one where only one of them is non-finite, or
/// they differ, is counted in `broken`, and then max error and relative Frobenius are +inf, SQNR is -inf, cosine is 0
/// and mean error is NaN.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/sum.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

class ErrorStats {
 public:
  /// Adds a panel whose first row is row `first_row` of the whole matrix (it only matters for positions).
  ///
  /// Shapes:  both views [rows, cols]. Errors: ShapeError if they differ, nothing is added then.
  /// Numbers: products of two floats are exact in double; sums are compensated every 512 entries of a row and over
  ///          rows in order, so the result depends on the panels but not on the threads.
  /// Cost:    reads each view once.
  void add(MatrixView<const float> reference, MatrixView<const float> approximation, index_t first_row = 0,
           const Execution& how = {}) {
    if (reference.shape() != approximation.shape())
      throw ShapeError("ErrorStats::add: approximation is " + to_string(approximation.shape()) + ", reference is " +
                       to_string(reference.shape()));
    if (reference.empty()) return;
    const index_t rows_per_task = std::max<index_t>(1, kEntriesPerTask / reference.cols());
    const index_t tasks = ceil_div(reference.rows(), rows_per_task);
    std::vector<ErrorStats> parts(static_cast<std::size_t>(tasks));
    parallel_for(how, tasks, [&](index_t task) {
      ErrorStats& part = parts[static_cast<std::size_t>(task)];
      const index_t end = std::min(reference.rows(), (task + 1) * rows_per_task);
      for (index_t i = task * rows_per_task; i < end; ++i)
        for (index_t j = 0; j < reference.cols(); j += kRun)
          part.add_run(reference.row_data(i) + j, approximation.row_data(i) + j, std::min(kRun, reference.cols() - j),
                       first_row + i, j);
    });
    for (const ErrorStats& part : parts) merge(part);
  }

  /// Adds what another object has seen; positions of equal maxima: the one that comes first by row and column.
  void merge(const ErrorStats& other) noexcept {
    count_ += other.count_;
    matching_non_finite_ += other.matching_non_finite_;
    broken_ += other.broken_;
    signal_.merge(other.signal_);
    noise_.merge(other.noise_);
    approximation_.merge(other.approximation_);
    dot_.merge(other.dot_);
    error_.merge(other.error_);
    absolute_error_.merge(other.absolute_error_);
    offer_max(other.max_error_, other.max_row_, other.max_col_);
  }

  index_t count() const noexcept { return count_; }  ///< entries added, the non-finite ones included
  index_t matching_non_finite() const noexcept { return matching_non_finite_; }
  index_t broken() const noexcept { return broken_; }

  double signal_energy() const noexcept { return signal_.value(); }  ///< Σ r²
  double noise_energy() const noexcept { return broken_ > 0 ? kInfinity : noise_.value(); }

  double sqnr_db() const noexcept {
    const double noise = noise_energy();
    if (noise == 0) return kInfinity;
    if (noise == kInfinity || signal_energy() == 0) return -kInfinity;
    return 10.0 * (std::log10(signal_energy()) - std::log10(noise));
  }
  double relative_frobenius() const noexcept {
    const double noise = noise_energy();
    if (noise == 0) return 0;
    if (noise == kInfinity || signal_energy() == 0) return kInfinity;
    return std::sqrt(noise / signal_energy());
  }
  double cosine() const noexcept {
    if (broken_ > 0) return 0;
    const double r = signal_energy(), a = approximation_.value();
    if (r == 0 && a == 0) return 1;
    if (r == 0 || a == 0) return 0;
    return std::clamp(dot_.value() / (std::sqrt(r) * std::sqrt(a)), -1.0, 1.0);
  }
  double mean_error() const noexcept { return mean_of(error_); }
  double mean_absolute_error() const noexcept { return broken_ > 0 ? kInfinity : mean_of(absolute_error_); }
  double rms_error() const noexcept { return broken_ > 0 ? kInfinity : std::sqrt(mean_of(noise_)); }

  /// max |e|, 0 when nothing was added; where it first occurs ({-1, -1} when nothing was added).
  double max_error() const noexcept { return std::max(max_error_, 0.0); }
  MatrixShape max_error_position() const noexcept { return {max_row_, max_col_}; }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  static constexpr index_t kEntriesPerTask = 1 << 16;
  static constexpr index_t kRun = 512;
  static constexpr std::size_t kLanes = 4;
  using Lanes = std::array<double, kLanes>;

  double mean_of(const CompensatedSum& sum) const noexcept {
    if (broken_ > 0) return std::numeric_limits<double>::quiet_NaN();
    const index_t finite = count_ - matching_non_finite_;
    return finite == 0 ? 0.0 : sum.value() / static_cast<double>(finite);
  }

  void offer_max(double value, index_t row, index_t col) noexcept {
    if (row < 0) return;
    const bool earlier = row < max_row_ || (row == max_row_ && col < max_col_);
    if (value > max_error_ || (value == max_error_ && earlier)) {
      max_error_ = value;
      max_row_ = row;
      max_col_ = col;
    }
  }

  static bool finite(float v) noexcept { return (std::bit_cast<std::uint32_t>(v) & 0x7f800000u) != 0x7f800000u; }

  void add_run(const float* r, const float* a, index_t n, index_t row, index_t col) noexcept {
    std::uint32_t top = 0;  // the carry of an all-ones exponent shows in the sign bit; no early exit, so it vectorizes
    for (index_t j = 0; j < n; ++j)
      top |= ((std::bit_cast<std::uint32_t>(r[j]) & 0x7f800000u) + 0x00800000u) |
             ((std::bit_cast<std::uint32_t>(a[j]) & 0x7f800000u) + 0x00800000u);
    if ((top & 0x80000000u) == 0) {
      add_finite(r, a, n, row, col);
      return;
    }
    for (index_t j = 0; j < n; ++j) {
      if (finite(r[j]) && finite(a[j])) {
        add_finite(r + j, a + j, 1, row, col + j);
        continue;
      }
      ++count_;
      if (r[j] == a[j] || (r[j] != r[j] && a[j] != a[j])) {
        ++matching_non_finite_;
      } else {
        ++broken_;
        offer_max(kInfinity, row, col + j);
      }
    }
  }

  void add_finite(const float* r, const float* a, index_t n, index_t row, index_t col) noexcept {
    Lanes signal{}, noise{}, approximation{}, dot{}, error{}, absolute{}, largest{};
    const auto one = [&](std::size_t lane, index_t j) {
      const double rj = r[j], aj = a[j], e = aj - rj;
      signal[lane] += rj * rj;
      noise[lane] += e * e;
      approximation[lane] += aj * aj;
      dot[lane] += rj * aj;
      error[lane] += e;
      absolute[lane] += std::fabs(e);
      largest[lane] = std::fabs(e) > largest[lane] ? std::fabs(e) : largest[lane];
    };
    index_t j = 0;
    for (; j + static_cast<index_t>(kLanes) <= n; j += static_cast<index_t>(kLanes))
      for (std::size_t lane = 0; lane < kLanes; ++lane) one(lane, j + static_cast<index_t>(lane));
    for (; j < n; ++j) one(0, j);
    const auto total = [](const Lanes& v) { return (v[0] + v[1]) + (v[2] + v[3]); };
    signal_ += total(signal);
    noise_ += total(noise);
    approximation_ += total(approximation);
    dot_ += total(dot);
    error_ += total(error);
    absolute_error_ += total(absolute);
    count_ += n;
    const double max = std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3]));
    if (max <= max_error_) return;
    for (j = 0; j < n; ++j)
      if (std::fabs(static_cast<double>(a[j]) - static_cast<double>(r[j])) == max) break;
    offer_max(max, row, col + j);
  }

  index_t count_ = 0;
  index_t matching_non_finite_ = 0;
  index_t broken_ = 0;
  CompensatedSum signal_, noise_, approximation_, dot_, error_, absolute_error_;
  double max_error_ = -1;
  index_t max_row_ = -1;
  index_t max_col_ = -1;
};

/// All of a matrix at once.
inline ErrorStats error_stats(MatrixView<const float> reference, MatrixView<const float> approximation,
                              const Execution& how = {}) {
  ErrorStats stats;
  stats.add(reference, approximation, 0, how);
  return stats;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
