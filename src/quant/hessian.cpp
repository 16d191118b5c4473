// SPDX-License-Identifier: Apache-2.0
#include "quant/hessian.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

namespace blockpack::inline BLOCKPACK_ABI::quant {
namespace {

constexpr index_t kBlock = 128;

/// `w` must outlive the source.
RowSource dense_rows(const MatrixView<const float>& w) {
  RowSource source;
  source.rows = w.rows();
  source.cols = w.cols();
  source.dense = w.data();
  source.dense_type = WeightType::f32;
  source.dense_row_stride = w.row_stride();
  source.self = &w;
  source.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
    const float* src = static_cast<const MatrixView<const float>*>(self)->row_data(row) + col;
    std::copy(src, src + count, dst);
  };
  return source;
}

/// A block on the diagonal in double: its Cholesky factor and the inverse of that.
struct DiagonalBlock {
  std::array<double, kBlock * kBlock> factor;
  std::array<double, kBlock * kBlock> inverse;
  index_t n = 0;

  double& l(index_t i, index_t j) { return factor[static_cast<std::size_t>(i * kBlock + j)]; }
  double& x(index_t i, index_t j) { return inverse[static_cast<std::size_t>(i * kBlock + j)]; }

  /// L with L Lᵀ = a, X = L⁻¹. `diagonal` has the entries before anything was subtracted. False when a pivot is lost.
  bool factorize(MatrixView<const float> a, std::span<const double> diagonal) {
    n = a.rows();
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j <= i; ++j) {
        double sum = static_cast<double>(a(i, j));
        for (index_t k = 0; k < j; ++k) sum -= l(i, k) * l(j, k);
        if (i != j) {
          l(i, j) = sum / l(j, j);
        } else if (sum > 0x1p-20 * diagonal[static_cast<std::size_t>(i)]) {
          l(i, i) = std::sqrt(sum);
        } else {
          return false;
        }
      }
    inverse.fill(0.0);
    for (index_t i = 0; i < n; ++i) {
      x(i, i) = 1.0 / l(i, i);
      for (index_t k = 0; k < i; ++k)
        for (index_t j = 0; j <= k; ++j) x(i, j) -= l(i, k) * x(k, j);
      for (index_t j = 0; j < i; ++j) x(i, j) *= x(i, i);
    }
    return true;
  }
};

}  // namespace

void multiply(MatrixView<const float> x, MatrixView<const float> w, MatrixView<const float> residual,
              MatrixView<float> y, const Execution& how) {
  if (y.empty()) return;
  ApplyOptions options;
  options.execution = how;
  options.epilogue.residual = residual;
  matmul(x, dense_rows(w), y, Activations::f32, options);
}

void check_layer(const char* function, MatrixView<const float> w, MatrixShape q, const GramMatrix& h) {
  const std::string name(function);
  if (q != w.shape()) throw ShapeError(name + ": q is " + to_string(q) + ", " + to_string(w.shape()) + " needed");
  if (h.in_features() != w.cols())
    throw ShapeError(name + ": h has " + std::to_string(h.in_features()) + " features, w has " +
                     std::to_string(w.cols()) + " columns");
  const MatrixShape bad = find_non_finite(w);
  if (bad.rows >= 0)
    throw ValueError(name + ": w is not finite at row " + std::to_string(bad.rows) + ", column " +
                     std::to_string(bad.cols));
}

Execution step_execution(const Execution& how) {
  Execution step = how;
  step.progress = nullptr;
  return step;
}

HessianProduct::HessianProduct(const GramMatrix& h, const Execution& how)
    : h_(AlignedBuffer<float>::uninitialized(checked_mul(h.in_features(), h.in_features(), "HessianProduct"))),
      size_(h.in_features()) {
  const double mean = h.mean_diagonal();
  unit_ = mean > 0.0 ? mean : 1.0;
  h.copy_to(MatrixView<float>(h_.data(), size_, size_), 1.0 / unit_);
  const MatrixView<const float> rows = matrix();
  packed_ = PackedWeights::pack(dense_rows(rows), WeightType::f32, step_execution(how));
}

void HessianProduct::apply(MatrixView<const float> d, MatrixView<float> g, const Execution& how) const {
  if (g.empty()) return;
  ApplyOptions options;
  options.execution = how;
  matmul(d, packed_, g, Activations::f32, options);
}

AlignedBuffer<float> inverse_transposed_factor(MatrixView<float> a, const Execution& how) {
  const index_t n = a.rows();
  const MatrixView<const float> read = a;
  std::vector<double> diagonal(static_cast<std::size_t>(n));
  for (index_t i = 0; i < n; ++i) diagonal[static_cast<std::size_t>(i)] = static_cast<double>(a(i, i));
  AlignedBuffer<float> result(checked_mul(n, n, "inverse_transposed_factor"));
  const MatrixView<float> y(result.data(), n, n);
  auto panel = AlignedBuffer<float>::uninitialized(n * kBlock);
  auto operand = AlignedBuffer<float>::uninitialized(n * kBlock);
  const auto block = std::make_unique<DiagonalBlock>();

  // L, block column by block column: L[j:, j] = (A[j:, j] - L[j:, :j] L[j, :j]ᵀ) L_jj⁻ᵀ.
  for (index_t j = 0; j < n; j += kBlock) {
    const index_t width = std::min(kBlock, n - j), below = n - j - width;
    const MatrixView<float> column(panel.data(), n - j, width);
    if (j > 0) {
      const MatrixView<float> negated(operand.data(), width, j);
      for (index_t i = 0; i < width; ++i)
        for (index_t k = 0; k < j; ++k) negated(i, k) = -a(j + i, k);
      multiply(read.block(j, 0, n - j, j), negated, read.block(j, j, n - j, width), column, how);
    } else {
      for (index_t i = 0; i < n; ++i) std::copy_n(a.row_data(i), width, column.row_data(i));
    }
    if (!block->factorize(MatrixView<const float>(column).rows_from(0, width),
                          std::span(diagonal).subspan(static_cast<std::size_t>(j))))
      return {};
    const MatrixView<float> inverse(operand.data(), width, width);
    for (index_t i = 0; i < width; ++i)
      for (index_t k = 0; k < width; ++k) {
        inverse(i, k) = static_cast<float>(block->x(i, k));
        y(j + k, j + i) = inverse(i, k);
      }
    if (below > 0)
      multiply(MatrixView<const float>(column).rows_from(width, below), inverse, {},
               a.block(j + width, j, below, width), how);
    how.throw_if_stopped();
  }

  // Y[:i, i] = -(Y[:i, :i] L[i, :i]ᵀ) X_iiᵀ, where X_ii = Y_iiᵀ. Rows of Y start at the diagonal: chunks of them skip
  // the zeros to the left.
  constexpr index_t kChunk = 4 * kBlock;
  for (index_t i = kBlock; i < n; i += kBlock) {
    const index_t width = std::min(kBlock, n - i);
    const MatrixView<float> negated(operand.data(), width, width);
    for (index_t r = 0; r < width; ++r)
      for (index_t c = 0; c < width; ++c) negated(r, c) = -y(i + c, i + r);
    for (index_t r = 0; r < i; r += kChunk) {
      const index_t rows = std::min(kChunk, i - r);
      const MatrixView<float> product(panel.data(), rows, width);
      multiply(MatrixView<const float>(y).block(r, r, rows, i - r), read.block(i, r, width, i - r), {}, product, how);
      multiply(product, negated, {}, y.block(r, i, rows, width), how);
    }
    how.throw_if_stopped();
  }
  return result;
}

}  // namespace blockpack::inline BLOCKPACK_ABI::quant
