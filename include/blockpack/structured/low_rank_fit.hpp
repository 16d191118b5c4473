// SPDX-License-Identifier: Apache-2.0
#pragma once

/// W ≈ left · right, by the truncated singular value decomposition of W or of W scaled by what is known about the
/// inputs, and least-squares updates of one factor for the other.
///
/// Sources: "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
/// arXiv:2403.07378 (cholesky); "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language
/// Models", arXiv:2312.05821 (diagonal).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/solve/symmetric.hpp"
#include "blockpack/structured/factors.hpp"
#include "blockpack/structured/product.hpp"
#include "blockpack/structured/svd.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

/// What W is multiplied by before its decomposition, and the right factor divided by after it.
enum class ScaleMode : std::uint8_t {
  none,
  diagonal,  ///< d_c = mean|x_c|^alpha + 1e-6
  cholesky   ///< S, S · Sᵀ = XᵀX: the result has the least output error ||(W - W_r) Xᵀ||_F of its rank
};

struct LowRankOptions {
  ScaleMode scale = ScaleMode::none;
  const GramMatrix* gram = nullptr;      ///< for `cholesky`
  const ColumnStats* columns = nullptr;  ///< for `diagonal`
  double alpha = 0.5;                    ///< for `diagonal`
  SvdOptions svd = {};                   ///< with the execution of the call
};

/// S of S · Sᵀ = XᵀX, lower triangular. A matrix that is not positive definite gets (1e-6 - lambda_min) · I added, and
/// ten times that until the factorization goes through.
///
/// Cost: in³ / 3 operations, in double; 10 in³ more when it is not positive definite.
class Whitening {
 public:
  explicit Whitening(const GramMatrix& gram, const Execution& how = {}) : Whitening(gram, 0, gram.in_features(), how) {}

  /// The same for features [first, first + count), whose products with the others are left out.
  Whitening(const GramMatrix& gram, index_t first, index_t count, const Execution& how = {}) {
    if (first < 0 || count < 0 || count > gram.in_features() - first)
      throw ShapeError("Whitening: features " + std::to_string(first) + " and " + std::to_string(count) +
                       " more do not lie among " + std::to_string(gram.in_features()));
    RowMajorMatrix<double> g(count, count);
    parallel_for(how.quiet(), count, [&](index_t i) {
      for (index_t j = 0; j < count; ++j) g(i, j) = gram(first + i, first + j);
    });
    if (cholesky_.factorize(g, how)) return;
    const RowMajorMatrix<double> negative = -g;
    for (double shift = 1e-6 + detail::largest_eigenvalue(view(negative));; shift = 10.0 * std::max(shift, 1e-6)) {
      RowMajorMatrix<double> shifted = g;
      shifted.diagonal().array() += shift;
      if (cholesky_.factorize(std::move(shifted), how)) return;
      if (!std::isfinite(shift)) throw ValueError("Whitening: the matrix has no Cholesky factor");
    }
  }

  index_t size() const noexcept { return cholesky_.matrix().rows(); }

  /// w · S.
  template <class T>
  RowMajorMatrix<T> multiply(MatrixView<const T> w, const Execution& how = {}) const {
    RowMajorMatrix<T> s = RowMajorMatrix<T>::Zero(size(), size());
    s.template triangularView<Eigen::Lower>() = cholesky_.matrix().template cast<T>();
    RowMajorMatrix<T> scaled(w.rows(), size());
    fit_detail::product<T>(w, view(std::as_const(s)), view(scaled), how);
    return scaled;
  }

  /// w ← w · S⁻¹, by a triangular solve in double.
  template <class T>
  void divide(RowMajorMatrix<T>& w, const Execution& how = {}) const {
    RowMajorMatrix<double> wide = w.template cast<double>();
    cholesky_.divide(view(wide), how);
    w = wide.template cast<T>();
  }

 private:
  fit_detail::Cholesky<double> cholesky_;
};

/// Fits W ≈ left · right of a given rank.
///
/// W · S = U Σ Vᵀ, left = U_r sqrt(Σ_r), right = sqrt(Σ_r) V_rᵀ S⁻¹, S as `scale` says. With `cholesky`
/// ||(W - left · right) Xᵀ||_F² = Σ_{t > rank} Σ_t².
///
/// Shapes:  w [out, in]; gram and columns of in features.
/// Errors:  ValueError for rank < 1, a NaN or infinity in w (row and column), a scale without its statistics;
///          ShapeError for rank > min(out, in), for statistics of another size; CancelledError. A matrix of no rows or
///          columns has factors of rank 0 whatever the rank.
/// Cost:    that of truncated_svd; `cholesky` in³ / 3 and 2 · out · in² operations more.
/// Source:  see the head of the file.
template <class T>
LowRankFactors<T> low_rank_fit(MatrixView<const T> w, index_t rank, const LowRankOptions& options = {}) {
  static_assert(std::is_floating_point_v<T>);
  if (rank < 1) throw ValueError("low_rank_fit: rank = " + std::to_string(rank) + ", at least 1 needed");
  const index_t smaller = std::min(w.rows(), w.cols());
  if (smaller > 0 && rank > smaller)
    throw ShapeError("low_rank_fit: rank = " + std::to_string(rank) + ", at most " + std::to_string(smaller) +
                     " possible for " + to_string(w.shape()));
  fit_detail::check_finite_weights<T>("low_rank_fit", w);
  const Execution how = options.svd.execution.quiet();
  const index_t kept = std::min(rank, smaller);
  if (options.scale == ScaleMode::none) return sqrt_split(truncated_svd<T>(w, kept, options.svd));
  if (options.scale == ScaleMode::cholesky) {
    if (options.gram == nullptr) throw ValueError("low_rank_fit: scale cholesky needs gram");
    fit_detail::check_gram("low_rank_fit", options.gram, w.cols());
    const Whitening whitening(*options.gram, how);
    const RowMajorMatrix<T> scaled = whitening.multiply<T>(w, how);
    LowRankFactors<T> f = sqrt_split(truncated_svd<T>(view(scaled), kept, options.svd));
    whitening.divide(f.right, how);
    return f;
  }
  if (options.columns == nullptr) throw ValueError("low_rank_fit: scale diagonal needs columns");
  if (options.columns->in_features() != w.cols())
    throw ShapeError("low_rank_fit: columns has " + std::to_string(options.columns->in_features()) +
                     " features, w has " + std::to_string(w.cols()) + " columns");
  Eigen::Matrix<T, Eigen::Dynamic, 1> d(w.cols());
  for (index_t c = 0; c < w.cols(); ++c)
    d[c] = static_cast<T>(std::pow(options.columns->mean_abs(c), options.alpha) + 1e-6);
  const RowMajorMatrix<T> scaled = fit_detail::eigen_map(w) * d.asDiagonal();
  LowRankFactors<T> f = sqrt_split(truncated_svd<T>(view(scaled), kept, options.svd));
  f.right = f.right * d.cwiseInverse().asDiagonal();
  return f;
}

namespace fit_detail {

inline void check_factors(const char* function, MatrixShape w, MatrixShape factors) {
  if (w != factors)
    throw ShapeError(std::string(function) + ": the factors are of " + to_string(factors) + ", w is " + to_string(w));
}

/// tr(E G Eᵀ) for the output error, ||E||² without G. `product` is E · G, or E.
template <class T>
double inner(MatrixView<const T> a, MatrixView<const T> b) {
  double sum = 0.0;
  for (index_t i = 0; i < a.rows(); ++i) {
    double row = 0.0;
    for (index_t j = 0; j < a.cols(); ++j) row += static_cast<double>(a(i, j)) * static_cast<double>(b(i, j));
    sum += row;
  }
  return sum;
}

}  // namespace fit_detail

/// ||(W - approximation) Xᵀ||_F / ||W Xᵀ||_F, from XᵀX; without a Gram matrix ||W - approximation||_F / ||W||_F. 0 for
/// 0 / 0.
///
/// Errors: ShapeError when the sizes disagree. Cost: 4 · out · in² operations with a Gram matrix.
template <class T>
double relative_output_error(MatrixView<const T> w, const RowMajorMatrix<T>& approximation,
                             const GramMatrix* gram = nullptr, const Execution& how = {}) {
  fit_detail::check_factors("relative_output_error", w.shape(), {approximation.rows(), approximation.cols()});
  fit_detail::check_gram("relative_output_error", gram, w.cols());
  const RowMajorMatrix<T> error = fit_detail::eigen_map(w) - approximation;
  double e = 0.0, all = 0.0;
  if (gram == nullptr) {
    e = fit_detail::squared_norm<T>(view(error));
    all = fit_detail::squared_norm<T>(w);
  } else {
    const RowMajorMatrix<T> g = fit_detail::normalized_gram<T>(*gram, w.cols(), how);
    RowMajorMatrix<T> product(w.rows(), w.cols());
    fit_detail::product<T>(view(error), view(g), view(product), how);
    e = fit_detail::inner<T>(view(std::as_const(product)), view(error));
    fit_detail::product<T>(w, view(g), view(product), how);
    all = fit_detail::inner<T>(view(std::as_const(product)), w);
  }
  return all > 0.0 ? std::sqrt(std::max(e, 0.0) / all) : (e > 0.0 ? INFINITY : 0.0);
}

/// The best left factor for the right one it has: left = W G rightᵀ (right G rightᵀ)⁻¹, G = XᵀX, or the identity
/// without a Gram matrix. Where the right factor has dependent rows, a multiple of the identity that is as small as the
/// factorization allows is added.
///
/// Errors: ShapeError when sizes disagree. Cost: 2 · rank · in² + 2 · rank · out · in operations.
template <class T>
void refine_left(MatrixView<const T> w, LowRankFactors<T>& f, const GramMatrix* gram = nullptr,
                 const Execution& how = {}) {
  fit_detail::check_factors("refine_left", w.shape(), f.shape());
  fit_detail::check_gram("refine_left", gram, w.cols());
  const index_t r = f.rank();
  if (r == 0 || w.empty()) return;
  RowMajorMatrix<T> weighted = f.right;  // right · G
  if (gram != nullptr) {
    const RowMajorMatrix<T> g = fit_detail::normalized_gram<T>(*gram, w.cols(), how);
    fit_detail::product<T>(view(std::as_const(f.right)), view(g), view(weighted), how);
  }
  RowMajorMatrix<T> h(r, r);
  fit_detail::product_transposed<T>(view(weighted), view(std::as_const(f.right)), view(h), how);
  h = RowMajorMatrix<T>((h + h.transpose()) / T(2));
  fit_detail::product_transposed<T>(w, view(std::as_const(weighted)), view(f.left), how);
  fit_detail::Cholesky<T> cholesky;
  cholesky.factorize_damped(h, 0.0, how);
  cholesky.solve_rows(view(f.left), how);
}

/// The best right factor for the left one it has: right = (leftᵀ left)⁻¹ leftᵀ W, for whatever XᵀX.
///
/// Errors: ShapeError when sizes disagree. Cost: 2 · rank · out · (in + rank) operations.
template <class T>
void refine_right(MatrixView<const T> w, LowRankFactors<T>& f, const Execution& how = {}) {
  fit_detail::check_factors("refine_right", w.shape(), f.shape());
  if (f.rank() == 0 || w.empty()) return;
  RowMajorMatrix<T> rt = fit_detail::transposed_product<T>(w, view(std::as_const(f.left)), how);
  fit_detail::Cholesky<T> cholesky;
  cholesky.factorize_damped(fit_detail::gram_of_columns<T>(view(std::as_const(f.left)), how), 0.0, how);
  cholesky.solve_rows(view(rt), how);
  f.right = rt.transpose();
}

/// Alternates refine_left and refine_right, `steps` times, and balances the factors: the SVD of the weights ends, where
/// it converges, in the whitened one. Factors whose output error did not fall are not kept.
///
/// Errors: as refine_left; CancelledError.
template <class T>
LowRankFactors<T> low_rank_refine(MatrixView<const T> w, LowRankFactors<T> f, const GramMatrix* gram, int steps = 10,
                                  const Execution& how = {}) {
  fit_detail::check_factors("low_rank_refine", w.shape(), f.shape());
  const Execution step = how.quiet();
  LowRankFactors<T> best = f;
  const auto output_error = [&] {
    RowMajorMatrix<T> dense(w.rows(), w.cols());
    fit_detail::product<T>(view(std::as_const(f.left)), view(std::as_const(f.right)), view(dense), step);
    return relative_output_error<T>(w, dense, gram, step);
  };
  double least = output_error();
  for (int i = 0; i < steps; ++i) {
    how.throw_if_stopped();
    refine_left(w, f, gram, step);
    const double error = output_error();
    if (!(error < least)) break;
    least = error;
    best = f;
    refine_right(w, f, step);
    how.report(static_cast<double>(i + 1) / steps);
  }
  for (index_t k = 0; k < best.rank(); ++k) {
    const T l = best.left.col(k).norm(), r = best.right.row(k).norm();
    if (!(l > T(0)) || !(r > T(0))) continue;
    const T balance = std::sqrt(r / l);
    best.left.col(k) *= balance;
    best.right.row(k) /= balance;
  }
  return best;
}

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
