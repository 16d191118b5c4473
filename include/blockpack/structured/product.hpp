// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Matrix products and Cholesky solves of the fits. float goes through the engine of the compiled backend, where most
/// of the time of a large fit is spent; other types, and blockpack::headers, use Eigen's product. What comes out does
/// not depend on the number of threads.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <complex>
#include <string>
#include <type_traits>
#include <utility>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/eigen.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/structured/factors.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {
namespace fit_detail {

inline bool is_finite(double v) noexcept { return std::isfinite(v); }
template <class T>
bool is_finite(const std::complex<T>& v) noexcept {
  return std::isfinite(v.real()) && std::isfinite(v.imag());
}

/// ValueError with the first entry that is NaN or infinite.
template <class T>
void check_finite_weights(const char* function, MatrixView<const T> w) {
  for (index_t i = 0; i < w.rows(); ++i)
    for (index_t j = 0; j < w.cols(); ++j)
      if (!is_finite(w(i, j)))
        throw ValueError(std::string(function) + ": w is not finite at row " + std::to_string(i) + ", column " +
                         std::to_string(j));
}

/// ValueError for fewer blocks than one, ShapeError for more than there are rows or columns.
inline void check_blocks(const char* function, const char* name, index_t blocks, index_t size) {
  const std::string text = std::string(function) + ": " + name + " = " + std::to_string(blocks);
  if (blocks < 1) throw ValueError(text + ", at least 1 needed");
  if (blocks > size && blocks > 1)
    throw ShapeError(text + ", at most " + std::to_string(size) + " possible: a block needs a row or column");
}

inline void check_gram(const char* function, const GramMatrix* gram, index_t in_features) {
  if (gram != nullptr && gram->in_features() != in_features)
    throw ShapeError(std::string(function) + ": gram has " + std::to_string(gram->in_features()) + " features, w has " +
                     std::to_string(in_features) + " columns");
}

/// `how` for tasks of that many multiplications in all: few are not worth waking other threads for.
inline Execution for_work(const Execution& how, double multiplications) {
  return multiplications < 1e6 ? how.serial() : how.quiet();
}

template <class T>
double squared_norm(MatrixView<const T> m) {
  double sum = 0.0;
  for (index_t i = 0; i < m.rows(); ++i) {
    double row = 0.0;
    for (index_t j = 0; j < m.cols(); ++j) {
      const double v = static_cast<double>(m(i, j));
      row += v * v;
    }
    sum += row;
  }
  return sum;
}

/// Rows of a product that Eigen computes as one task: the tasks follow from the shape alone.
inline constexpr index_t kProductRows = 128;

template <class T>
void eigen_product(decompositions::Product kind, MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c,
                   const Execution& how) {
  parallel_for(how, ceil_div(c.rows(), kProductRows), [&](index_t task) {
    const index_t row = task * kProductRows, rows = std::min(kProductRows, c.rows() - row);
    decompositions::multiply<T>(kind, a.rows_from(row, rows), b, c.rows_from(row, rows));
  });
}

/// c = a · b. c shares no elements with a or b.
template <class T>
void product(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c, const Execution& how) {
  if (c.empty()) return;
  if (a.cols() == 0) return eigen_map(c).setZero(), void();
#if !defined(BLOCKPACK_HEADERS_ONLY)
  if constexpr (std::is_same_v<T, float>) {
    ApplyOptions options;
    options.execution = how;
    return matmul_transpose(a, rows_of(b), c, options);
  }
#endif
  eigen_product<T>(decompositions::Product::plain, a, b, c, how);
}

/// c = a · bᵀ, or c += a · bᵀ. c shares no elements with a or b.
template <class T>
void product_transposed(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c, const Execution& how,
                        bool add = false) {
  if (c.empty() || (add && a.cols() == 0)) return;
  if (a.cols() == 0) return eigen_map(c).setZero(), void();
#if !defined(BLOCKPACK_HEADERS_ONLY)
  if constexpr (std::is_same_v<T, float>) {
    ApplyOptions options;
    options.execution = how;
    options.activations = Activations::f32;
    if (add) options.epilogue.residual = c;
    return matmul(a, rows_of(b), c, Activations::f32, options);
  }
#endif
  using decompositions::Product;
  eigen_product<T>(add ? Product::transposed_added : Product::transposed, a, b, c, how);
}

template <class T>
RowMajorMatrix<T> transposed(MatrixView<const T> m) {
  return eigen_map(m).transpose();
}

/// aᵀ · b.
template <class T>
RowMajorMatrix<T> transposed_product(MatrixView<const T> a, MatrixView<const T> b, const Execution& how) {
  const RowMajorMatrix<T> at = transposed(a);
  RowMajorMatrix<T> c(a.cols(), b.cols());
  product<T>(view(at), b, view(c), how);
  return c;
}

/// mᵀ · m.
template <class T>
RowMajorMatrix<T> gram_of_columns(MatrixView<const T> m, const Execution& how) {
  const RowMajorMatrix<T> t = transposed(m);
  RowMajorMatrix<T> g(m.cols(), m.cols());
  product_transposed<T>(view(t), view(t), view(g), how);
  return g;
}

/// L Lᵀ of a symmetric positive definite matrix, by halves: large products do most of the work.
template <class T>
class Cholesky {
 public:
  static constexpr index_t kBlock = 96;

  /// The lower triangle of `a` is read. False when `a` is not positive definite in T.
  bool factorize(RowMajorMatrix<T> a, const Execution& how) {
    l_ = std::move(a);
    return factorize(view(l_), how);
  }

  /// The same for a + shift · I, where a failure raises the shift (from 1e-7 or 1e-15 of the mean diagonal by tens) as
  /// often as it takes: a step with more damping is a shorter one.
  void factorize_damped(const RowMajorMatrix<T>& a, double shift, const Execution& how) {
    const index_t n = a.rows();
    const double mean = n == 0 ? 0.0 : std::fabs(static_cast<double>(a.trace())) / static_cast<double>(n);
    const double least = std::max(mean * (std::is_same_v<T, float> ? 1e-7 : 1e-15), 1e-30);
    for (;;) {
      RowMajorMatrix<T> damped = a;
      damped.diagonal().array() += static_cast<T>(shift);
      if (factorize(std::move(damped), how)) return;
      if (!(shift < 1e30) || !std::isfinite(mean)) throw ValueError("fit: the factors have left the range of numbers");
      shift = std::max(10.0 * shift, least);
    }
  }

  /// The lower triangle is L; what stands above is not zero.
  const RowMajorMatrix<T>& matrix() const noexcept { return l_; }

  /// x ← x · L⁻ᵀ, x ← x · L⁻¹, and both: x ← x · A⁻¹. x [rows, n].
  void divide_by_transposed(MatrixView<T> x, const Execution& how) const { divide_lt(x, view(l_), how); }
  void divide(MatrixView<T> x, const Execution& how) const { divide_l(x, view(l_), how); }
  void solve_rows(MatrixView<T> x, const Execution& how) const {
    divide_by_transposed(x, how);
    divide(x, how);
  }

 private:
  static index_t half(index_t n) noexcept { return round_up(n / 2, index_t{32}); }

  static bool factorize(MatrixView<T> a, const Execution& how) {
    const index_t n = a.rows();
    if (n == 0) return true;
    if (n <= kBlock) return decompositions::cholesky<T>(a);
    const index_t m = half(n), rest = n - m;
    const MatrixView<T> a21 = a.block(m, 0, rest, m), a22 = a.block(m, m, rest, rest);
    if (!factorize(a.block(0, 0, m, m), how)) return false;
    divide_lt(a21, a.block(0, 0, m, m), how);
    const RowMajorMatrix<T> negative = -eigen_map(a21);
    for (index_t col = 0; col < rest; col += 256) {
      const index_t cols = std::min(index_t{256}, rest - col);
      product_transposed<T>(view(negative).rows_from(col, rest - col), a21.rows_from(col, cols),
                            a22.block(col, col, rest - col, cols), how, true);
    }
    return factorize(a22, how);
  }

  static void divide_lt(MatrixView<T> x, MatrixView<const T> l, const Execution& how) {
    const index_t n = l.rows();
    if (n == 0 || x.rows() == 0) return;
    if (n <= kBlock) return decompositions::divide_by_transposed<T>(x, l);
    const index_t m = half(n);
    const MatrixView<T> x1 = x.block(0, 0, x.rows(), m), x2 = x.block(0, m, x.rows(), n - m);
    divide_lt(x1, l.block(0, 0, m, m), how);
    const RowMajorMatrix<T> negative = -eigen_map(x1);
    product_transposed<T>(view(negative), l.block(m, 0, n - m, m), x2, how, true);
    divide_lt(x2, l.block(m, m, n - m, n - m), how);
  }

  static void divide_l(MatrixView<T> x, MatrixView<const T> l, const Execution& how) {
    const index_t n = l.rows();
    if (n == 0 || x.rows() == 0) return;
    if (n <= kBlock) return decompositions::divide<T>(x, l);
    const index_t m = half(n);
    const MatrixView<T> x1 = x.block(0, 0, x.rows(), m), x2 = x.block(0, m, x.rows(), n - m);
    divide_l(x2, l.block(m, m, n - m, n - m), how);
    RowMajorMatrix<T> update(x.rows(), m);
    product<T>(x2, l.block(m, 0, n - m, m), view(update), how);
    eigen_map(x1) -= update;
    divide_l(x1, l.block(0, 0, m, m), how);
  }

  RowMajorMatrix<T> l_;
};

/// XᵀX over its mean diagonal (all zeros: itself), in T, with zero rows and columns up to `size`.
template <class T>
RowMajorMatrix<T> normalized_gram(const GramMatrix& gram, index_t size, const Execution& how) {
  RowMajorMatrix<T> g = RowMajorMatrix<T>::Zero(size, size);
  const double mean = gram.mean_diagonal();
  if (gram.in_features() > 0)
    gram.copy_to(view(g).block(0, 0, gram.in_features(), gram.in_features()), mean > 0.0 ? 1.0 / mean : 1.0, 0.0,
                 how.quiet());
  return g;
}

}  // namespace fit_detail
}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
