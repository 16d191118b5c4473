// SPDX-License-Identifier: Apache-2.0
#include "quant/hessian.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "engine/large_memory.hpp"

namespace blockpack::inline BLOCKPACK_ABI::quant {
namespace {

constexpr index_t kBlock = 128;
/// Rows or columns of a triangle that are multiplied as if they were rectangles.
constexpr index_t kChunk = 512;
/// Rows of x one product takes: what the engine packs of them is kept from call to call.
constexpr index_t kRowChunk = 1024;

/// Calls body(first, count, options) for the chunks of `rows`, side by side when there are several, and then on one
/// thread each.
template <class F>
void for_chunks(index_t rows, index_t chunk, const Execution& how, const F& body) {
  ApplyOptions inner;
  inner.execution = rows > chunk ? how.serial() : how;
  parallel_for(how, ceil_div(rows, chunk),
               [&](index_t task) { body(task * chunk, std::min(chunk, rows - task * chunk), inner); });
}

/// A block on the diagonal in double: its Cholesky factor and the inverse of that.
struct DiagonalBlock {
  std::array<double, kBlock * kBlock> factor;
  std::array<double, kBlock * kBlock> inverse;
  index_t n = 0;

  double& l(index_t i, index_t j) { return factor[static_cast<std::size_t>(i * kBlock + j)]; }
  double& x(index_t i, index_t j) { return inverse[static_cast<std::size_t>(i * kBlock + j)]; }

  /// L with L Lᵀ = a, X = L⁻¹. `diagonal` has the entries before anything was subtracted. False when a pivot is lost.
  template <class T>
  bool factorize(MatrixView<const T> a, std::span<const double> diagonal) {
    constexpr double kLost = std::is_same_v<T, float> ? 0x1p-20 : 0x1p-44;
    n = a.rows();
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j <= i; ++j) {
        double sum = static_cast<double>(a(i, j));
        for (index_t k = 0; k < j; ++k) sum -= l(i, k) * l(j, k);
        if (i != j) {
          l(i, j) = sum / l(j, j);
        } else if (sum > kLost * diagonal[static_cast<std::size_t>(i)]) {
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

template <class T>
LargeMatrix<T>::LargeMatrix(MatrixShape shape) {
  const index_t bytes = checked_mul(checked_mul(shape.rows, shape.cols, "LargeMatrix"), sizeof(T), "LargeMatrix");
  if (bytes > 0) memory_ = engine::allocate_large(static_cast<std::size_t>(bytes));
  view_ = MatrixView<T>(reinterpret_cast<T*>(memory_.get()), shape.rows, shape.cols);
}
template class LargeMatrix<float>;
template class LargeMatrix<double>;

void multiply(MatrixView<const float> x, MatrixView<const float> w, MatrixView<const float> residual,
              MatrixView<float> y, const Execution& how) {
  if (y.empty()) return;
  for_chunks(x.rows(), kRowChunk, how, [&](index_t row, index_t rows, ApplyOptions inner) {
    if (residual.data() != nullptr) inner.epilogue.residual = residual.rows_from(row, rows);
    matmul(x.rows_from(row, rows), rows_of(w), y.rows_from(row, rows), Activations::f32, inner);
  });
}

void multiply(MatrixView<const double> x, MatrixView<const double> w, MatrixView<const double> residual,
              MatrixView<double> y, const Execution& how) {
  parallel_for(how, y.rows(), [&](index_t i) {
    for (index_t j = 0; j < y.cols(); ++j) {
      double sums[4] = {};
      for (index_t k = 0; k < x.cols(); ++k) sums[k % 4] += x(i, k) * w(j, k);
      const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      y(i, j) = residual.data() != nullptr ? residual(i, j) + sum : sum;
    }
  });
}

namespace {

/// y = x · u for an upper triangular u with zeros below.
void multiply_upper(MatrixView<const float> x, MatrixView<const float> u, MatrixView<float> y, const Execution& how) {
  for_chunks(x.rows(), kRowChunk, how, [&](index_t row, index_t rows, const ApplyOptions& inner) {
    for (index_t col = 0; col < u.cols(); col += kChunk) {
      const index_t cols = std::min(kChunk, u.cols() - col), depth = col + cols;
      const MatrixView<const float> part = u.block(0, col, depth, cols);
      matmul_transpose(x.block(row, 0, rows, depth), rows_of(part), y.block(row, col, rows, cols), inner);
    }
  });
}

void multiply_upper(MatrixView<const double> x, MatrixView<const double> u, MatrixView<double> y,
                    const Execution& how) {
  parallel_for(how, y.rows(), [&](index_t i) {
    std::fill_n(y.row_data(i), y.cols(), 0.0);
    for (index_t k = 0; k < u.rows(); ++k)
      for (index_t j = k; j < u.cols(); ++j) y(i, j) += x(i, k) * u(k, j);
  });
}

/// See inverse_transposed_factor. `diagonal` has the entries before anything was subtracted.
template <class T>
bool factorize(MatrixView<T> a, MatrixView<T> y, std::span<const double> diagonal, DiagonalBlock& block,
               const Execution& how) {
  const index_t n = a.rows();
  if (n <= kBlock) {
    if (!block.factorize(MatrixView<const T>(a), diagonal)) return false;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j) y(i, j) = static_cast<T>(block.x(j, i));
    return true;
  }
  how.throw_if_stopped();
  const index_t m = round_up(ceil_div(n, index_t{2}), kBlock), rest = n - m;
  const MatrixView<T> a21 = a.block(m, 0, rest, m), a22 = a.block(m, m, rest, rest);
  const MatrixView<T> y11 = y.block(0, 0, m, m), y12 = y.block(0, m, m, rest), y22 = y.block(m, m, rest, rest);
  if (!factorize(a.block(0, 0, m, m), y11, diagonal.first(static_cast<std::size_t>(m)), block, how)) return false;

  // L21 = A21 Y11, in the place of the zeros of y, and -L21, in that of A21.
  const MatrixView<T> l21 = y.block(m, 0, rest, m);
  multiply_upper(a21, y11, l21, how);
  for (index_t i = 0; i < rest; ++i)
    for (index_t j = 0; j < m; ++j) a21(i, j) = -l21(i, j);

  // A22 -= L21 L21ᵀ, chunks of columns from the diagonal down.
  for (index_t col = 0; col < rest; col += kChunk) {
    const index_t cols = std::min(kChunk, rest - col);
    const MatrixView<T> below = a22.block(col, col, rest - col, cols);
    multiply(l21.rows_from(col, rest - col), a21.rows_from(col, cols), below, below, how);
  }
  if (!factorize(a22, y22, diagonal.subspan(static_cast<std::size_t>(m)), block, how)) return false;

  // Y12 = -Y11 L21ᵀ Y22, the first product in the unused part of a. Rows of Y11 start at the diagonal.
  const MatrixView<T> product = a.block(0, m, m, rest);
  for (index_t row = 0; row < m; row += kChunk) {
    const index_t rows = std::min(kChunk, m - row);
    multiply(y11.block(row, row, rows, m - row), a21.block(0, row, rest, m - row), MatrixView<const T>(),
             product.rows_from(row, rows), how);
  }
  multiply_upper(product, y22, y12, how);
  for (index_t i = 0; i < rest; ++i) std::fill_n(l21.row_data(i), m, T{0});
  return true;
}

}  // namespace

namespace {

MatrixShape find_non_finite(MatrixView<const double> w) noexcept {
  for (index_t i = 0; i < w.rows(); ++i)
    for (index_t j = 0; j < w.cols(); ++j)
      if (!std::isfinite(w(i, j))) return {i, j};
  return {-1, -1};
}
using blockpack::find_non_finite;

}  // namespace

template <class T>
void check_finite(const char* function, MatrixView<const T> w) {
  const MatrixShape bad = find_non_finite(w);
  if (bad.rows >= 0)
    throw ValueError(std::string(function) + ": w is not finite at row " + std::to_string(bad.rows) + ", column " +
                     std::to_string(bad.cols));
}
template void check_finite(const char*, MatrixView<const float>);
template void check_finite(const char*, MatrixView<const double>);

template <class T>
void check_layer(const char* function, MatrixView<const T> w, MatrixShape q, const GramMatrix& h) {
  const std::string name(function);
  if (q != w.shape()) throw ShapeError(name + ": q is " + to_string(q) + ", " + to_string(w.shape()) + " needed");
  if (h.in_features() != w.cols())
    throw ShapeError(name + ": h has " + std::to_string(h.in_features()) + " features, w has " +
                     std::to_string(w.cols()) + " columns");
  check_finite(function, w);
}
template void check_layer(const char*, MatrixView<const float>, MatrixShape, const GramMatrix&);
template void check_layer(const char*, MatrixView<const double>, MatrixShape, const GramMatrix&);

HessianProduct::HessianProduct(const GramMatrix& h, const Execution& how)
    : h_(AlignedBuffer<float>::uninitialized(checked_mul(h.in_features(), h.in_features(), "HessianProduct"))),
      size_(h.in_features()) {
  const double mean = h.mean_diagonal();
  unit_ = mean > 0.0 ? mean : 1.0;
  h.copy_to(MatrixView<float>(h_.data(), size_, size_), 1.0 / unit_, 0.0, how.quiet());
  const MatrixView<const float> rows = matrix();
  packed_ = PackedWeights::pack(rows_of(rows), WeightType::f32, how.quiet());
}

void HessianProduct::apply(MatrixView<const float> d, MatrixView<float> g, const Execution& how) const {
  if (g.empty()) return;
  ApplyOptions options;
  options.execution = how;
  matmul(d, packed_, g, Activations::f32, options);
}

template <class T>
bool inverse_transposed_factor(MatrixView<T> a, MatrixView<T> y, const Execution& how) {
  std::vector<double> diagonal(static_cast<std::size_t>(a.rows()));
  for (index_t i = 0; i < a.rows(); ++i) diagonal[static_cast<std::size_t>(i)] = static_cast<double>(a(i, i));
  const auto block = std::make_unique<DiagonalBlock>();
  return factorize(a, y, diagonal, *block, how);
}
template bool inverse_transposed_factor(MatrixView<float> a, MatrixView<float> y, const Execution& how);
template bool inverse_transposed_factor(MatrixView<double> a, MatrixView<double> y, const Execution& how);

namespace {

/// The damped Hessian over its mean diagonal, positions as inverse_factor has them, zeros above the diagonal.
/// `natural` [n, n] is scratch: rows of H in the order of the columns, which the cache can follow.
template <class T>
void fill_hessian(const GramMatrix& h, std::span<const index_t> order, double damping, MatrixView<T> natural,
                  MatrixView<T> a, const Execution& how) {
  const index_t n = a.rows();
  const double mean = h.mean_diagonal();
  const double scale = mean > 0.0 ? 1.0 / mean : 1.0;
  h.copy_to(natural, scale, 0.0, how);
  parallel_for(how, ceil_div(n, index_t{64}), [&](index_t task) {
    for (index_t i = task * 64; i < std::min(n, (task + 1) * 64); ++i) {
      const index_t column = order[static_cast<std::size_t>(n - 1 - i)];
      const T* row = natural.row_data(column);
      for (index_t j = 0; j < i; ++j) a(i, j) = row[order[static_cast<std::size_t>(n - 1 - j)]];
      const double diagonal = h(column, column);
      a(i, i) = static_cast<T>((diagonal > 0.0 ? scale * diagonal : 1.0) + damping);
      std::fill(a.row_data(i) + i + 1, a.row_data(i) + n, T{0});
    }
  });
}

}  // namespace

template <class T>
LargeMatrix<T> inverse_factor(const GramMatrix& h, std::span<const index_t> order, const Damping& damping, double& used,
                              const Execution& how) {
  const index_t n = h.in_features();
  const LargeMatrix<T> a({n, n});
  LargeMatrix<T> y({n, n});
  used = damping.relative;
  for (int attempt = 0;; ++attempt) {
    fill_hessian(h, order, used, y.view(), a.view(), how);
    if (inverse_transposed_factor(a.view(), y.view(), how)) return y;
    if (attempt >= damping.retries)
      throw ValueError(std::string(damping.function) + ": the Hessian" +
                       (damping.layer.empty() ? "" : " of layer '" + damping.layer + "'") +
                       " is singular with damping " + std::to_string(used) +
                       " of its mean diagonal; add calibration rows or raise the damping");
    used = std::max(10.0 * used, 1e-5);
  }
}
template LargeMatrix<float> inverse_factor(const GramMatrix&, std::span<const index_t>, const Damping&, double&,
                                           const Execution&);
template LargeMatrix<double> inverse_factor(const GramMatrix&, std::span<const index_t>, const Damping&, double&,
                                            const Execution&);

}  // namespace blockpack::inline BLOCKPACK_ABI::quant
