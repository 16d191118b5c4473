// SPDX-License-Identifier: Apache-2.0
#pragma once

/// One output of a matrix product in double precision, and how far a kernel may be from it in each activation mode:
/// the derived bounds of docs/numerics.md, never a guessed epsilon.

#include <algorithm>
#include <cmath>
#include <span>

#include "blockpack/core/linear_operator.hpp"

namespace blockpack::test {

struct ProductCheck {
  double value = 0;  ///< Σ x_i w_i in double, of the unrounded operands
  double bound = 0;  ///< largest allowed |result - value|
};

/// r roundings of unit u = 2^-24: r u / (1 - r u).
inline double gamma_bound(double roundings) {
  const double ru = roundings * 0x1p-24;
  return ru / (1.0 - ru);
}

/// `w_exact_in_bf16`: only x is rounded in bf16 mode. Longest path: one product and k additions, one more for the
/// group scale of int8.
inline ProductCheck check_product(std::span<const float> x, std::span<const float> w, Activations mode,
                                  bool w_exact_in_bf16) {
  ProductCheck c;
  double s = 0;
  const std::size_t k = x.size();
  for (std::size_t i = 0; i < k; ++i) {
    const double p = static_cast<double>(x[i]) * static_cast<double>(w[i]);
    c.value += p;
    s += std::abs(p);
  }
  const double g = gamma_bound(static_cast<double>(k) + 2);
  const double tiny = static_cast<double>(k) * 0x1p-149;  // products may underflow to a float subnormal
  if (mode == Activations::bf16) {
    const double rounded = w_exact_in_bf16 ? 1.0 : 2.0;
    c.bound = (rounded * 0x1p-8 + 0x1p-16 + g) * s + static_cast<double>(k) * 0x1p-126;
    // Flushed subnormal operands: each loses at most 2^-126 times the other operand.
    for (std::size_t i = 0; i < k; ++i) {
      if (std::abs(x[i]) < 0x1p-126f) c.bound += std::abs(static_cast<double>(x[i]) * w[i]);
      if (std::abs(w[i]) < 0x1p-126f) c.bound += std::abs(static_cast<double>(x[i]) * w[i]);
    }
  } else if (mode == Activations::int8 || mode == Activations::int8_token) {
    c.bound = g * s + tiny;
    const std::size_t group = mode == Activations::int8 ? 32 : k;
    for (std::size_t first = 0; first < k; first += group) {
      double absmax = 0, sum_w = 0;
      for (std::size_t i = first; i < std::min(k, first + group); ++i) {
        absmax = std::max(absmax, std::abs(static_cast<double>(x[i])));
        sum_w += std::abs(static_cast<double>(w[i]));
      }
      // Half a step for each x, and gamma on what the rounded x adds to S.
      c.bound += absmax / 254.0 * sum_w * (1.0 + 2.0 * g) + gamma_bound(4) * absmax * sum_w;
    }
  } else {
    c.bound = g * s + tiny;
  }
  return c;
}

}  // namespace blockpack::test
