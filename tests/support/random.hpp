// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Random matrices for tests, from the library's own generator.

#include <vector>

#include "blockpack/core/random.hpp"

namespace blockpack::test {

/// rows * cols heavy-tailed values with outlier columns, row-major without padding.
inline std::vector<float> random_weights(index_t rows, index_t cols, std::uint64_t seed, const WeightLook& look = {}) {
  std::vector<float> w(static_cast<std::size_t>(rows * cols));
  fill_weights(MatrixView<float>(w.data(), rows, cols), seed, 0, look);
  return w;
}

/// `count` values of mean 0 and standard deviation sigma.
inline std::vector<float> random_normal(index_t count, std::uint64_t seed, float sigma = 1.0f) {
  std::vector<float> x(static_cast<std::size_t>(count));
  fill_normal(x, seed, sigma);
  return x;
}

}  // namespace blockpack::test
