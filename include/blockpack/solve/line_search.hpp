// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Line search by interpolation.

#include <cmath>
#include <limits>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The first alpha of 1, the minimizer of a parabola, and those of cubics through the last two trials, at which
/// f(alpha) <= value + 1e-10 · alpha · slope, up to four roundings of value. A trial that is no number, or no
/// reduction, is half the last one.
///
/// f(alpha) is the function along the step, value = f(0), slope its derivative there (negative). 0 after 60 trials:
/// rounding leaves no descent.
template <class F>
double interpolating_line_search(double value, double slope, const F& f) {
  constexpr double kAcceptance = 1e-10;
  constexpr int kTrials = 60;
  const double rounding = 4.0 * std::numeric_limits<double>::epsilon() * std::fabs(value);
  double alpha = 1.0, last_alpha = 0.0, last_excess = 0.0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const double there = f(alpha);
    if (there <= value + kAcceptance * alpha * slope + rounding) return alpha;
    const double excess = there - value - alpha * slope;
    double next;
    if (trial == 0) {
      next = -slope * alpha * alpha / (2.0 * excess);
    } else {
      const double a = last_alpha, c = 1.0 / ((alpha - a) * a * a * alpha * alpha);
      const double p = c * (a * a * excess - alpha * alpha * last_excess);
      const double q = c * (alpha * alpha * alpha * last_excess - a * a * a * excess);
      next = (-q + std::sqrt(q * q - 3.0 * p * slope)) / (3.0 * p);
    }
    last_alpha = alpha;
    last_excess = excess;
    alpha = next > 0.0 && next < alpha ? next : 0.5 * alpha;
  }
  return 0.0;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
