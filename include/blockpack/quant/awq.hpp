// SPDX-License-Identifier: Apache-2.0
#pragma once

/// AWQ: a scale for every input feature, found with calibration data, that makes the weights of loud features finer.
/// The scales are folded into the weights and undone on the input: y = Q(W diag(s)) (x / s).
///
/// Source: "AWQ", arXiv:2306.00978: s = loudness^a with one exponent a for the layer, chosen by trying.

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/quant/input_transforms.hpp"
#include "blockpack/quant/rounding.hpp"

#if !defined(BLOCKPACK_HEADERS_ONLY)

namespace blockpack::inline BLOCKPACK_ABI {

template <class F>
using ScaledMatrix = Compose<QuantizedMatrix<F>, ChannelScale>;

struct AwqOptions {
  int steps = 20;  ///< exponents 0, 1/steps, …, 1
};

/// A layer with its feature scales.
template <class F>
struct AwqResult {
  ScaledMatrix<F> matrix;
  double exponent = 0;  ///< chosen; 0: no scales
  double loss = 0;      ///< layer_loss of the chosen one, before the descent
};

/// Tries the exponents with plain rounding and keeps the least layer loss, so the result is never worse than plain
/// rounding. The loudness of feature j is √(H_jj / tokens); scales are divided by √(largest · smallest); a feature that
/// was never active has scale 1. Then coordinate descent on the scaled problem if `descent.sweeps` > 0.
///
/// Shapes:  w [out, in], h of the unscaled inputs. Errors: those of rounding; ValueError for steps < 1.
/// Cost:    steps + 1 encodings and layer losses; memory: three matrices like w and two [in, in], float32.
template <GridFormat F>
AwqResult<F> round_awq(const F& format, MatrixView<const float> w, const GramMatrix& h, const AwqOptions& options = {},
                       const DescentOptions& descent = {0}, const EncodeOptions& encode = {}) {
  if (options.steps < 1)
    throw ValueError("round_awq: steps = " + std::to_string(options.steps) + ", at least 1 needed");
  if (h.in_features() != w.cols())
    throw ShapeError("round_awq: h has " + std::to_string(h.in_features()) + " features, w has " +
                     std::to_string(w.cols()) + " columns");
  const index_t n = w.cols();
  auto memory = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), 2 * n, "round_awq"));
  const MatrixView<float> scaled(memory.data(), w.rows(), n), chosen(memory.data() + w.rows() * n, w.rows(), n);
  EncodeOptions quiet = encode;
  quiet.execution = encode.execution.quiet();

  const auto scales_of = [&](double exponent) {
    double largest = 0.0, smallest = std::numeric_limits<double>::infinity();
    for (index_t j = 0; j < n; ++j)
      if (h(j, j) > 0.0) {
        largest = std::max(largest, h(j, j));
        smallest = std::min(smallest, h(j, j));
      }
    std::vector<float> s(static_cast<std::size_t>(n), 1.0f);
    const double middle = std::sqrt(largest) * std::sqrt(smallest);  // H_jj is a square: its root is the loudness
    for (index_t j = 0; j < n; ++j)
      if (h(j, j) > 0.0)
        s[static_cast<std::size_t>(j)] = static_cast<float>(std::pow(h(j, j) / middle, 0.5 * exponent));
    return s;
  };
  const auto scale_weights = [&](const std::vector<float>& s) {
    for (index_t r = 0; r < w.rows(); ++r)
      for (index_t j = 0; j < n; ++j) scaled(r, j) = w(r, j) * s[static_cast<std::size_t>(j)];
  };

  double best = 0.0, least = std::numeric_limits<double>::infinity();
  for (int step = 0; step <= options.steps; ++step) {
    const double exponent = step / static_cast<double>(options.steps);
    const std::vector<float> s = scales_of(exponent);
    scale_weights(s);
    FormatGrids<F> grids(fitted(format, MatrixView<const float>(scaled), quiet), w.shape(), quiet);
    nearest(scaled, grids, chosen, quiet.execution);
    for (index_t r = 0; r < w.rows(); ++r)
      for (index_t j = 0; j < n; ++j) chosen(r, j) /= s[static_cast<std::size_t>(j)];
    const double loss = layer_loss(w, chosen, h, quiet.execution);
    if (loss < least) {
      least = loss;
      best = exponent;
    }
    encode.execution.report((step + 1) / static_cast<double>(options.steps + 2));
  }

  const std::vector<float> s = scales_of(best);
  scale_weights(s);
  FormatGrids<F> grids(fitted(format, MatrixView<const float>(scaled), quiet), w.shape(), quiet);
  nearest(scaled, grids, chosen, quiet.execution);
  if (descent.sweeps > 0) {
    AlignedBuffer<double> gram(checked_mul(n, n, "round_awq"));
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j)
        gram[i * n + j] = h(i, j) / (static_cast<double>(s[static_cast<std::size_t>(i)]) *
                                     static_cast<double>(s[static_cast<std::size_t>(j)]));
    descend(scaled, GramMatrix::from_values(MatrixView<const double>(gram.data(), n, n), h.rows()), grids, chosen,
            descent, quiet.execution);
  }
  std::vector<float> inverse(s.size());
  for (std::size_t j = 0; j < s.size(); ++j) inverse[j] = 1.0f / s[j];
  encode.execution.report(1.0);
  return {{grids.store(MatrixView<const float>(chosen), quiet.execution), ChannelScale(inverse)}, best, least};
}

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
