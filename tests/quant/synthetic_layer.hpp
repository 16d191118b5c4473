// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A layer for rounding algorithms: normal weights, inputs that are an AR(1) process over the features, with lognormal
/// feature scales.

#include <cmath>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/random.hpp"

namespace blockpack::test {

struct SyntheticLayer {
  MatrixShape shape;
  std::vector<float> weights;
  std::vector<float> inputs;  ///< [tokens, in]
  index_t tokens;
  GramMatrix h;

  /// Neighbouring features have correlation rho.
  SyntheticLayer(MatrixShape s, index_t token_count, float rho, std::uint64_t seed)
      : shape(s), tokens(token_count), h(s.cols) {
    weights.resize(static_cast<std::size_t>(s.rows * s.cols));
    fill_normal(weights, seed, 0.05f);
    Random random(seed, 1);
    std::vector<float> scales(static_cast<std::size_t>(s.cols));
    for (float& scale : scales) scale = std::exp(0.7f * random.normal());
    const float fresh = std::sqrt(1.0f - rho * rho);
    for (index_t t = 0; t < tokens; ++t) {
      float state = random.normal();
      for (const float scale : scales) {
        inputs.push_back(scale * state);
        state = rho * state + fresh * random.normal();
      }
    }
    h.add(x());
  }

  MatrixView<const float> w() const { return {weights.data(), shape.rows, shape.cols}; }
  MatrixView<const float> x() const { return {inputs.data(), tokens, shape.cols}; }
};

}  // namespace blockpack::test
