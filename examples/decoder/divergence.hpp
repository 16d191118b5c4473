// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How far a changed decoder's predictions are from the original's: the mean KL divergence over calibration windows.

#include <algorithm>
#include <vector>

#include "calibration.hpp"

namespace example {

/// Holds the original's predictions for the first windows of a text.
class Divergence {
 public:
  Divergence(const ByteDecoder& original, const CalibrationText& text, index_t windows, const blockpack::Execution& how)
      : original_(original), window_(original.config().max_positions) {
    how_.execution = how.quiet();
    how_.activations = blockpack::Activations::f32;
    for (index_t w = 0; w < std::min(windows, text.windows()); ++w)
      bytes_.insert(bytes_.end(), text.input(w).begin(), text.input(w).end());
    reference_ = logits(original);
  }

  /// Nats per byte of `decoder` on the same windows.
  double operator()(const ByteDecoder& decoder) const {
    const Matrix changed = logits(decoder);
    constexpr index_t kRows = 128;  // a task
    std::vector<double> parts(static_cast<std::size_t>(blockpack::ceil_div(changed.rows, kRows)));
    blockpack::parallel_for(how_.execution, static_cast<index_t>(parts.size()), [&](index_t task) {
      const index_t first = task * kRows, count = std::min(kRows, changed.rows - first);
      Matrix slope(count, changed.cols);
      parts[static_cast<std::size_t>(task)] =
          static_cast<double>(count) * kl_divergence(reference_.view().rows_from(first, count),
                                                     changed.view().rows_from(first, count), slope.view());
    });
    double sum = 0;
    for (const double part : parts) sum += part;
    return sum / static_cast<double>(changed.rows);
  }

  /// Nats per byte when one matrix alone is stored as `candidate`.
  double of_matrix(std::size_t place, const AnyLinear& candidate) const {
    ByteDecoder changed = original_;
    changed.replace(place, candidate);
    return (*this)(changed);
  }

 private:
  Matrix logits(const ByteDecoder& decoder) const {
    Matrix result(static_cast<index_t>(bytes_.size()), decoder.config().vocab);
    decoder.logits(bytes_, window_, result.view(), how_);
    return result;
  }

  ByteDecoder original_;
  index_t window_;
  ApplyOptions how_;
  std::vector<std::uint8_t> bytes_;
  Matrix reference_;
};

}  // namespace example
