// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Sums in double whose error does not grow with the number of terms.

#include <cmath>

#include "blockpack/core/config.hpp"
#include "blockpack/core/strict.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Neumaier's compensated sum: |error| <= 2u·|sum| + O(n·u²)·Σ|term|, u = 2^-53. Infinities and NaN come out as in a
/// plain sum. The value depends on the order of the calls, so callers fix that order from the shape alone.
///
/// Source: A. Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen", ZAMM 54 (1974).
class CompensatedSum {
 public:
  constexpr CompensatedSum() noexcept = default;

  void add(double term) noexcept {
    const double sum = sum_ + term;
    const double lost = std::fabs(sum_) >= std::fabs(term) ? (sum_ - sum) + term : (term - sum) + sum_;
    sum_ = sum;
    if (lost == lost) lost_ += lost;  // inf - inf: the sum itself already says so
  }
  CompensatedSum& operator+=(double term) noexcept {
    add(term);
    return *this;
  }
  void merge(const CompensatedSum& other) noexcept {
    add(other.sum_);
    lost_ += other.lost_;
  }
  double value() const noexcept { return sum_ + lost_; }

 private:
  double sum_ = 0;
  double lost_ = 0;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
