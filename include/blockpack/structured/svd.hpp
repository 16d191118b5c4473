// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Truncated singular value decompositions: exact, and two that only multiply by W and Wᵀ.
///
/// Sources: N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
/// algorithms 4.4 and 5.1; C. Musco, C. Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate
/// Singular Value Decomposition", NIPS 2015. Bases are made orthonormal by shifted Cholesky QR (T. Fukaya et al., SIAM
/// J. Sci. Comput. 42, 2020), which is products alone, and by Householder reflections where that fails.

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/structured/decompositions.hpp"
#include "blockpack/structured/factors.hpp"
#include "blockpack/structured/product.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

/// W ≈ u · diag(sigma) · vh.
template <class T>
struct Svd {
  RowMajorMatrix<T> u;        ///< [rows, rank], orthonormal columns
  std::vector<double> sigma;  ///< falling; all that the method found, at least rank
  RowMajorMatrix<T> vh;       ///< [rank, cols], orthonormal rows
};

enum class SvdMethod : std::uint8_t {
  exact,       ///< Eigen's divide and conquer in double, complex by Jacobi rotations; every singular value
  randomized,  ///< range of (W Wᵀ)^power_iterations W Ω, Ω normal with rank + oversampling columns
  krylov       ///< range of [W Ω, (W Wᵀ) W Ω, …] for a narrower Ω: more accurate for the same products
};

struct SvdOptions {
  SvdMethod method = SvdMethod::exact;
  index_t oversampling = 16;
  int power_iterations = 2;  ///< of `randomized`
  index_t krylov_block = 0;  ///< columns of Ω in `krylov`; 0 = a sixth of rank + oversampling
  std::uint64_t seed = 0;    ///< of Ω
  Execution execution = {};
};

namespace fit_detail {

template <class T>
struct WideType {
  using type = double;
};
template <class T>
struct WideType<std::complex<T>> {
  using type = std::complex<double>;
};
template <class T>
using Wide = typename WideType<T>::type;

/// sqrt(Σ_{t >= rank} values_t²), smallest first.
inline double tail_norm(const std::vector<double>& values, index_t rank) {
  double sum = 0.0;
  for (std::size_t t = values.size(); t > static_cast<std::size_t>(rank); --t) sum += values[t - 1] * values[t - 1];
  return std::sqrt(sum);
}

/// All singular triples in double.
template <class Value>
struct WideSvd {
  RowMajorMatrix<Value> u, v;
  std::vector<double> sigma;

  explicit WideSvd(const RowMajorMatrix<Value>& w) {
    const index_t smaller = std::min(w.rows(), w.cols());
    u.resize(w.rows(), smaller);
    v.resize(w.cols(), smaller);
    sigma.resize(static_cast<std::size_t>(smaller));
    if (smaller > 0) decompositions::thin_svd<Value>(view(w), view(u), sigma, view(v));
  }
};

template <class T>
Svd<T> exact_svd(MatrixView<const T> w, index_t rank) {
  const WideSvd<Wide<T>> all(eigen_map(w).template cast<Wide<T>>());
  return {all.u.leftCols(rank).template cast<T>(), all.sigma, all.v.leftCols(rank).adjoint().template cast<T>()};
}

/// The columns of y, at most as many as rows, become an orthonormal basis of a space that holds them.
template <class T>
void orthonormalize(RowMajorMatrix<T>& y, const Execution& how) {
  constexpr bool kFloat = std::is_same_v<T, float>;
  constexpr int kPasses = 6;
  const index_t k = y.cols();
  if (k == 0) return;
  for (int pass = 0; pass < kPasses; ++pass) {
    RowMajorMatrix<T> gram = gram_of_columns<T>(view(std::as_const(y)), how);
    const T away = (gram - RowMajorMatrix<T>::Identity(k, k)).cwiseAbs().maxCoeff();
    if (away < T(kFloat ? 1e-5 : 1e-13)) return;
    gram.diagonal().array() += gram.diagonal().maxCoeff() * T(kFloat ? 1e-6 : 1e-15);
    Cholesky<T> cholesky;
    if (!cholesky.factorize(std::move(gram), how)) break;
    cholesky.divide_by_transposed(view(y), how);
    if (!y.allFinite()) break;
  }
  if (!y.allFinite()) y = y.unaryExpr([](T v) { return std::isfinite(v) ? v : T(0); });
  decompositions::householder_basis<T>(view(y));
}

template <class T>
RowMajorMatrix<T> normal_matrix(index_t rows, index_t cols, std::uint64_t seed, std::uint64_t stream = 0) {
  RowMajorMatrix<T> m(rows, cols);
  Random random(seed, stream);
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; ++j) m(i, j) = static_cast<T>(random.normal());
  return m;
}

/// The best approximation of w whose columns lie in the space of the orthonormal columns of q.
template <class T>
Svd<T> svd_within(MatrixView<const T> w, const RowMajorMatrix<T>& q, index_t rank, const Execution& how) {
  // (Qᵀ W)ᵀ = Q2 R, R = X Σ Yᵀ: W ≈ (Q Y) Σ (Q2 X)ᵀ.
  const RowMajorMatrix<T> projected = transposed_product<T>(w, view(q), how);
  RowMajorMatrix<T> q2 = projected;
  orthonormalize(q2, how);
  const RowMajorMatrix<T> r = transposed_product<T>(view(std::as_const(q2)), view(projected), how);
  const WideSvd<double> small(r.template cast<double>());
  const RowMajorMatrix<T> y = small.v.leftCols(rank).template cast<T>();
  const RowMajorMatrix<T> xt = small.u.leftCols(rank).transpose().template cast<T>();
  Svd<T> svd;
  svd.u.resize(w.rows(), rank);
  product<T>(view(q), view(y), view(svd.u), how);
  svd.vh.resize(rank, w.cols());
  product_transposed<T>(view(xt), view(std::as_const(q2)), view(svd.vh), how);
  svd.sigma = small.sigma;
  return svd;
}

template <class T>
RowMajorMatrix<T> randomized_range(MatrixView<const T> w, index_t columns, const SvdOptions& options,
                                   const Execution& how) {
  const RowMajorMatrix<T> omega = normal_matrix<T>(w.cols(), columns, options.seed);
  RowMajorMatrix<T> y(w.rows(), columns);
  product<T>(w, view(omega), view(y), how);
  orthonormalize(y, how);
  for (int i = 0; i < options.power_iterations; ++i) {
    how.throw_if_stopped();
    RowMajorMatrix<T> z = transposed_product<T>(w, view(std::as_const(y)), how);
    orthonormalize(z, how);
    product<T>(w, view(std::as_const(z)), view(y), how);
    orthonormalize(y, how);
  }
  return y;
}

template <class T>
RowMajorMatrix<T> krylov_range(MatrixView<const T> w, index_t columns, index_t block, const SvdOptions& options,
                               const Execution& how) {
  RowMajorMatrix<T> q(w.rows(), columns);
  RowMajorMatrix<T> z(w.rows(), block);
  {
    const RowMajorMatrix<T> omega = normal_matrix<T>(w.cols(), block, options.seed);
    product<T>(w, view(omega), view(z), how);
  }
  index_t have = 0;
  for (std::uint64_t stream = 1;; ++stream) {
    how.throw_if_stopped();
    // Away from what is there, twice; a space that W maps into itself goes on with a random block.
    for (int pass = 0; pass < 2; ++pass) {
      if (have > 0) {
        const MatrixView<const T> basis = MatrixView<const T>(view(q)).block(0, 0, q.rows(), have);
        const double before = std::sqrt(squared_norm<T>(view(z)));
        const RowMajorMatrix<T> inside = transposed_product<T>(basis, view(std::as_const(z)), how);
        RowMajorMatrix<T> part(z.rows(), z.cols());
        product<T>(basis, view(inside), view(part), how);
        z -= part;
        if (pass == 0 && !(std::sqrt(squared_norm<T>(view(z))) > 1e-5 * before)) {
          z = normal_matrix<T>(z.rows(), z.cols(), options.seed, stream);
          --pass;
          continue;
        }
      }
      orthonormalize(z, how);
    }
    const index_t take = std::min(block, columns - have);
    q.middleCols(have, take) = z.leftCols(take);
    have += take;
    if (have == columns) return q;
    const RowMajorMatrix<T> mapped = transposed_product<T>(w, view(std::as_const(z)), how);
    product<T>(w, view(mapped), view(z), how);
  }
}

}  // namespace fit_detail

/// The `rank` largest singular triples.
///
/// Shapes:  w [rows, cols], any row_stride; rank in [0, min(rows, cols)].
/// Errors:  ShapeError for another rank; ValueError for a NaN or infinity, with its row and column, for negative
///          options, or where an exact decomposition does not converge; UnsupportedError for complex T
///          and another method than exact; CancelledError.
/// Cost:    exact about 20 · rows · cols · min(rows, cols) operations on one thread; randomized
///          4 · rows · cols · k · (power_iterations + 1), k = rank + oversampling, in products; krylov
///          4 · rows · cols · 1.5 k; both 20 k³ for the small decomposition. They do not pay for ranks above a third of
///          min(rows, cols) in matrices below 1000. Memory: a copy of w (two in double for exact) and a few matrices of
///          k columns.
/// Source:  see the head of the file. The same seed gives the same bits on one SIMD level for any number of threads.
template <class T>
Svd<T> truncated_svd(MatrixView<const T> w, index_t rank, const SvdOptions& options = {}) {
  const index_t smaller = std::min(w.rows(), w.cols());
  if (rank < 0 || rank > smaller)
    throw ShapeError("truncated_svd: rank = " + std::to_string(rank) + ", at most " + std::to_string(smaller) +
                     " possible for " + to_string(w.shape()));
  if (options.oversampling < 0 || options.power_iterations < 0 || options.krylov_block < 0)
    throw ValueError("truncated_svd: oversampling, power_iterations and krylov_block must not be negative");
  fit_detail::check_finite_weights<T>("truncated_svd", w);
  const Execution how = options.execution.quiet();
  if (options.method == SvdMethod::exact || smaller == 0) return fit_detail::exact_svd<T>(w, rank);
  if constexpr (std::is_floating_point_v<T>) {
    // Squares of the scaled values neither overflow nor vanish.
    const T largest = fit_detail::eigen_map(w).cwiseAbs().maxCoeff();
    const T unit = largest > T(0) ? largest : T(1);
    const RowMajorMatrix<T> scaled = fit_detail::eigen_map(w) / unit;
    const MatrixView<const T> a = view(scaled);
    const index_t columns = std::min(smaller, rank + options.oversampling);
    RowMajorMatrix<T> range;
    if (options.method == SvdMethod::randomized) {
      range = fit_detail::randomized_range<T>(a, columns, options, how);
    } else {
      const index_t block = options.krylov_block > 0 ? options.krylov_block : ceil_div(columns, 6);
      const index_t all = std::min(smaller, columns + rank / 2);
      range = fit_detail::krylov_range<T>(a, all, std::clamp(block, index_t{1}, std::max(columns, index_t{1})), options,
                                          how);
    }
    Svd<T> svd = fit_detail::svd_within<T>(a, range, rank, how);
    for (double& sigma : svd.sigma) sigma *= static_cast<double>(unit);
    return svd;
  } else {
    throw UnsupportedError("truncated_svd: complex matrices have the exact method alone");
  }
}

/// u · sqrt(sigma) and sqrt(sigma) · vh: both factors in the same range, which matters when they are stored in few
/// bits.
template <class T>
LowRankFactors<T> sqrt_split(const Svd<T>& svd) {
  LowRankFactors<T> f{svd.u, svd.vh};
  for (index_t i = 0; i < f.rank(); ++i) {
    const T root = static_cast<T>(std::sqrt(svd.sigma[static_cast<std::size_t>(i)]));
    f.left.col(i) *= root;
    f.right.row(i) *= root;
  }
  return f;
}

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
