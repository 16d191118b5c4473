// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <vector>

#include "blockpack/core/engine.hpp"
#include "support/guard_page.hpp"

namespace blockpack::test {

/// x · Wᵀ of packed weights, `tokens` rows of x; x and y end at protected pages.
template <class Packed>
std::vector<float> multiply(const Packed& w, const std::vector<float>& x, index_t tokens, const ApplyOptions& how) {
  const index_t n = w.shape().rows, k = w.shape().cols;
  GuardedArray<float> y(static_cast<std::size_t>(tokens * n)), rows(static_cast<std::size_t>(tokens * k));
  std::copy_n(x.data(), tokens * k, rows.data());
  matmul(MatrixView<const float>(rows.data(), tokens, k), w, MatrixView<float>(y.data(), tokens, n), how.activations,
         how);
  return {y.begin(), y.end()};
}

}  // namespace blockpack::test
