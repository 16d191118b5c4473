// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The error of an encoded matrix, of its weights or, given XᵀX, of the outputs of the layer.

#include <cmath>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/calibration.hpp"
#include "blockpack/core/dense.hpp"

namespace blockpack::recipe_detail {

class MeasuredError {
 public:
  /// w must outlive it. Without `gram` XᵀX counts as the identity.
  MeasuredError(MatrixView<const float> w, const GramMatrix* gram, const Execution& how) : w_(w), how_(how.quiet()) {
    if (gram != nullptr) {
      if (gram->in_features() != w.cols())
        throw ShapeError("gram has " + std::to_string(gram->in_features()) + " features, w has " +
                         std::to_string(w.cols()) + " columns");
      g_ = AlignedBuffer<float>(checked_mul(w.cols(), w.cols(), "MeasuredError"));
      const double scale = gram->mean_diagonal() > 0 ? 1.0 / gram->mean_diagonal() : 1.0;
      for (index_t i = 0; i < w.cols(); ++i)
        for (index_t j = 0; j < w.cols(); ++j) g_[i * w.cols() + j] = static_cast<float>(scale * (*gram)(i, j));
    }
    auto copy = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "MeasuredError"));
    for (index_t r = 0; r < w.rows(); ++r) std::copy_n(w.row_data(r), w.cols(), copy.data() + r * w.cols());
    norm_ = weighted(copy);
  }

  /// ||(W - Ŵ) Xᵀ||²; with XᵀX up to its mean diagonal, by which XᵀX is divided.
  double squared(const AnyLinear& op) const {
    auto error = AlignedBuffer<float>::uninitialized(w_.rows() * w_.cols());
    parallel_for(how_, w_.rows(), [&](index_t r) {
      const MatrixView<float> row(error.data() + r * w_.cols(), 1, w_.cols());
      op.decode_rows(std::span(&r, 1), row);
      for (index_t c = 0; c < w_.cols(); ++c) row(0, c) = w_(r, c) - row(0, c);
    });
    return weighted(error);
  }

  /// ||(W - Ŵ) Xᵀ|| / ||W Xᵀ||; 0 for 0 / 0.
  double relative(const AnyLinear& op) const {
    const double error = squared(op);
    return error > 0 ? std::sqrt(error / norm_) : 0.0;
  }

 private:
  /// tr(E G Eᵀ).
  double weighted(const AlignedBuffer<float>& e) const {
    AlignedBuffer<float> product;
    const float* other = e.data();
    if (!g_.empty()) {
      product = AlignedBuffer<float>::uninitialized(e.size());
      ApplyOptions how;
      how.execution = how_;
      how.activations = Activations::f32;
      dense_view(MatrixView<const float>(g_.data(), w_.cols(), w_.cols()))
          .apply(MatrixView<const float>(e.data(), w_.rows(), w_.cols()),
                 MatrixView<float>(product.data(), w_.rows(), w_.cols()), how);
      other = product.data();
    }
    double sum = 0;
    for (index_t r = 0; r < w_.rows(); ++r) {
      double row = 0;
      for (index_t c = 0; c < w_.cols(); ++c)
        row += static_cast<double>(e[r * w_.cols() + c]) * static_cast<double>(other[r * w_.cols() + c]);
      sum += row;
    }
    return std::max(sum, 0.0);
  }

  MatrixView<const float> w_;
  Execution how_;
  AlignedBuffer<float> g_;
  double norm_ = 0;
};

}  // namespace blockpack::recipe_detail
