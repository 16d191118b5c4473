// SPDX-License-Identifier: Apache-2.0
#pragma once

/// W ≈ a Monarch matrix: the optimal projection, which is a truncated SVD of every pair of an output block and an input
/// block, and least-squares updates of all factors against XᵀX.
///
/// Source: "Monarch: Expressive Structured Matrices for Efficient and Accurate Training", arXiv:2204.00595, theorem 1
/// and algorithm 1; the rectangular form of rank r as in HazyResearch/fly, blockdiag_butterfly_project_einsum_rank.

#include <algorithm>
#include <cmath>
#include <complex>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/structured/factors.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/product.hpp"
#include "blockpack/structured/svd.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

struct MonarchOptions {
  index_t in_blocks = 4;
  index_t out_blocks = 4;
  index_t rank = 1;  ///< of one pair of blocks
  OutputOrder order = OutputOrder::blocked;
  /// Weights the projection by the diagonal blocks of XᵀX: each input block is whitened by itself and the products of
  /// inputs of different blocks are left out. `monarch_refine` takes them in.
  const GramMatrix* gram = nullptr;
  SvdOptions svd = {};  ///< of one pair of blocks; with the execution of the call
};

/// The two factors of n that are closest to each other, larger first: 48 = 8 · 6; {n, 1} for a prime.
constexpr std::pair<index_t, index_t> square_factors(index_t n) noexcept {
  index_t small = 1;
  for (index_t f = 1; f <= n / f; ++f)
    if (n % f == 0) small = f;
  return {n / small, small};
}

/// Projects W to the nearest Monarch matrix.
///
/// The rows of output block k and the columns of input block l form a matrix of its own; the squared error is the sum
/// of theirs, so their truncated SVDs, split by square roots, are the optimum: the error is
/// sqrt(Σ_(k,l) Σ_{t > rank} sigma_t²). A Monarch matrix is recovered exactly.
///
/// Shapes:  w [out, in]; sizes that the blocks do not divide are padded (factors.hpp).
/// Errors:  ValueError for blocks or rank below 1, NaN or infinity in w (row and column); ShapeError for more blocks
/// than
///          columns or rows, a rank above min(ceil(out / out_blocks), ceil(in / in_blocks)), a gram of another size;
///          UnsupportedError for complex T with a gram; CancelledError. A matrix of no rows or columns has rank 0.
/// Cost:    in_blocks · out_blocks decompositions; exact about 20 · out · in · min(p, q) operations, in double, pairs
/// of
///          blocks in parallel. Deterministic.
template <class T>
MonarchFactors<T> monarch_project(MatrixView<const T> w, const MonarchOptions& options) {
  const char* const function = "monarch_project";
  MonarchFactors<T> f;
  f.out_features = w.rows();
  f.in_features = w.cols();
  f.in_blocks = options.in_blocks;
  f.out_blocks = options.out_blocks;
  f.rank = options.rank;
  f.order = options.order;
  fit_detail::check_blocks(function, "in_blocks", options.in_blocks, w.empty() ? options.in_blocks : w.cols());
  fit_detail::check_blocks(function, "out_blocks", options.out_blocks, w.empty() ? options.out_blocks : w.rows());
  if (options.rank < 1)
    throw ValueError("monarch_project: rank = " + std::to_string(options.rank) + ", at least 1 needed");
  const index_t p = f.block_cols(), q = f.block_rows();
  if (w.empty()) f.rank = 0;
  if (f.rank > std::min(p, q) && f.rank > 0)
    throw ShapeError("monarch_project: rank = " + std::to_string(f.rank) + ", at most " +
                     std::to_string(std::min(p, q)) + " possible for blocks of " + to_string(MatrixShape{q, p}));
  fit_detail::check_gram(function, options.gram, w.cols());
  if (!std::is_floating_point_v<T> && options.gram != nullptr)
    throw UnsupportedError("monarch_project: complex matrices have no gram");
  fit_detail::check_finite_weights<T>(function, w);
  const Execution& how = options.svd.execution;
  const index_t r = f.rank;
  f.first = RowMajorMatrix<T>::Zero(f.in_blocks * f.out_blocks * r, p);
  f.second = RowMajorMatrix<T>::Zero(f.out_blocks * q, f.in_blocks * r);
  if (w.empty()) return f;

  SvdOptions svd_options = options.svd;
  svd_options.execution = how.serial();
  const Execution tasks =
      fit_detail::for_work(how, 10.0 * static_cast<double>(w.rows() * p) * static_cast<double>(std::min(p, q)));
  for (index_t l = 0; l < f.in_blocks; ++l) {
    const index_t cols = std::clamp(w.cols() - l * p, index_t{0}, p);
    if (cols == 0) continue;
    [[maybe_unused]] const auto whitening = [&] {
      if constexpr (std::is_floating_point_v<T>)
        return options.gram != nullptr ? std::make_unique<Whitening>(*options.gram, l * p, cols, how) : nullptr;
      else
        return nullptr;
    }();
    parallel_for(tasks, f.out_blocks, [&](index_t k) {
      RowMajorMatrix<T> block = RowMajorMatrix<T>::Zero(q, cols);
      for (index_t s = 0; s < q; ++s)
        if (const index_t row = f.output(k, s); row < w.rows())
          block.row(s) = fit_detail::eigen_map(w.block(row, l * p, 1, cols)).row(0);
      const index_t kept = std::min(r, cols);  // the last block of columns may be narrower than the rank
      LowRankFactors<T> pair;
      if constexpr (std::is_floating_point_v<T>) {
        if (whitening) block = whitening->template multiply<T>(view(std::as_const(block)), svd_options.execution);
      }
      pair = sqrt_split(truncated_svd<T>(view(std::as_const(block)), kept, svd_options));
      if constexpr (std::is_floating_point_v<T>) {
        if (whitening) whitening->divide(pair.right, svd_options.execution);
      }
      f.first.block((l * f.out_blocks + k) * r, 0, kept, cols) = pair.right;
      f.second.block(k * q, l * r, q, kept) = pair.left;
    });
    how.report(static_cast<double>(l + 1) / static_cast<double>(f.in_blocks));
  }
  return f;
}

/// The projection of a square matrix to the Monarch matrices of rank 1 of the paper: outputs interleaved, `in_blocks`
/// input blocks and n / in_blocks output blocks.
///
/// Shapes:  w [n, n]; in_blocks divides n, 0 = the larger of square_factors(n).
/// Errors:  ShapeError for a w that is not square or in_blocks that does not divide n; those of monarch_project.
template <class T>
MonarchFactors<T> monarch_project_square(MatrixView<const T> w, index_t in_blocks = 0, const Execution& how = {}) {
  const index_t n = w.rows();
  if (n != w.cols()) throw ShapeError("monarch_project_square: w is " + to_string(w.shape()) + ", a square one needed");
  if (in_blocks == 0) in_blocks = std::max(square_factors(n).first, index_t{1});
  if (in_blocks < 1 || n % in_blocks != 0)
    throw ShapeError("monarch_project_square: in_blocks = " + std::to_string(in_blocks) + " does not divide " +
                     std::to_string(n));
  MonarchOptions options;
  options.in_blocks = in_blocks;
  options.out_blocks = std::max(n / in_blocks, index_t{1});
  options.order = OutputOrder::interleaved;
  options.svd.execution = how;
  return monarch_project<T>(w, options);
}

/// What a refinement against XᵀX reached.
template <class Factors>
struct RefineResult {
  Factors factors;
  double start_error = 0.0;  ///< ||(W - W_start) Xᵀ||_F / ||W Xᵀ||_F
  double rel_error = 0.0;    ///< the same of `factors`, never more
};

/// Minimizes ||(W - M) Xᵀ||_F over all factors of a Monarch matrix M, products of inputs of different blocks included,
/// by exact least squares of one factor after the other.
///
/// With E = M - W, G = XᵀX, S_kl = second_kl, F_lk = first_lk, one step is, for each k, with F_k the block diagonal of
/// the F_lk:  S_k -= E_k G F_kᵀ (F_k G F_kᵀ)⁻¹; then for each l in turn, for each k:
/// F_lk -= (S_klᵀ S_kl)⁻¹ S_klᵀ (E G)_kl (G_ll + 1e-4 mean(diag G) I)⁻¹. The loss falls in each of them.
///
/// Shapes:  w [out, in], factors of its shape, gram of `in` features.
/// Errors:  ShapeError when they disagree; ValueError for steps < 0, NaN or infinity in w; CancelledError.
/// Cost:    a step takes 4 · out · in² + 2 · out_blocks · rank · in² operations in products.
template <class T>
RefineResult<MonarchFactors<T>> monarch_refine(MatrixView<const T> w, MonarchFactors<T> f, const GramMatrix& gram,
                                               int steps = 10, const Execution& how = {}) {
  static_assert(std::is_floating_point_v<T>);
  const char* const function = "monarch_refine";
  fit_detail::check_factors(function, w.shape(), f.shape());
  fit_detail::check_gram(function, &gram, w.cols());
  if (steps < 0) throw ValueError("monarch_refine: steps must not be negative");
  fit_detail::check_finite_weights<T>(function, w);
  const Execution step = fit_detail::for_work(how, fit_detail::entries(w.shape()) * static_cast<double>(w.cols()));
  const Execution inner = how.serial();
  const index_t p = f.block_cols(), q = f.block_rows(), r = f.rank;
  const index_t rows = f.out_blocks * q, cols = f.in_blocks * p;
  if (w.empty() || r == 0) return {std::move(f), 0.0, 0.0};
  const RowMajorMatrix<T> g = fit_detail::normalized_gram<T>(gram, cols, step);
  // W in the order of the blocks, padded.
  RowMajorMatrix<T> target = RowMajorMatrix<T>::Zero(rows, cols);
  for (index_t k = 0; k < f.out_blocks; ++k)
    for (index_t s = 0; s < q; ++s)
      if (const index_t row = f.output(k, s); row < w.rows())
        target.row(k * q + s).head(w.cols()) = fit_detail::eigen_map(w.rows_from(row, 1)).row(0);
  std::vector<fit_detail::Cholesky<T>> input(static_cast<std::size_t>(f.in_blocks));
  for (index_t l = 0; l < f.in_blocks; ++l)
    input[static_cast<std::size_t>(l)].factorize_damped(g.block(l * p, l * p, p, p), 1e-4, step);

  RowMajorMatrix<T> error(rows, cols), weighted(rows, cols);
  const auto block_error = [&](index_t k, index_t l) {
    const RowMajorMatrix<T> second = f.second_block(k, l);
    const MatrixView<T> e = view(error).block(k * q, l * p, q, p);
    fit_detail::product<T>(view(second), view(std::as_const(f.first)).rows_from((l * f.out_blocks + k) * r, r), e,
                           inner);
    fit_detail::eigen_map(e) -= target.block(k * q, l * p, q, p);
  };
  const auto loss = [&] {
    parallel_for(step, f.out_blocks, [&](index_t k) {
      for (index_t l = 0; l < f.in_blocks; ++l) block_error(k, l);
    });
    fit_detail::product<T>(view(std::as_const(error)), view(g), view(weighted), step);
    return std::max(0.0, fit_detail::inner<T>(view(std::as_const(weighted)), view(std::as_const(error))));
  };
  double whole = 0.0;
  fit_detail::product<T>(view(std::as_const(target)), view(g), view(weighted), step);
  whole = fit_detail::inner<T>(view(std::as_const(weighted)), view(std::as_const(target)));
  const auto relative = [&](double e) { return whole > 0.0 ? std::sqrt(e / whole) : 0.0; };

  RefineResult<MonarchFactors<T>> best{f, 0.0, 0.0};
  double least = loss();
  best.start_error = relative(least);
  for (int t = 0; t < steps && least > 0.0; ++t) {
    how.throw_if_stopped();
    parallel_for(step, f.out_blocks, [&](index_t k) {
      // F_k G [in_blocks · r, cols], block rows at a time.
      RowMajorMatrix<T> fg(f.in_blocks * r, cols), h(f.in_blocks * r, f.in_blocks * r), d(q, f.in_blocks * r);
      const auto first = [&](index_t l) {
        return view(std::as_const(f.first)).rows_from((l * f.out_blocks + k) * r, r);
      };
      for (index_t l = 0; l < f.in_blocks; ++l)
        fit_detail::product<T>(first(l), view(g).rows_from(l * p, p), view(fg).rows_from(l * r, r), inner);
      for (index_t l = 0; l < f.in_blocks; ++l)
        fit_detail::product_transposed<T>(view(fg).block(0, l * p, f.in_blocks * r, p), first(l),
                                          view(h).block(0, l * r, f.in_blocks * r, r), inner);
      h = RowMajorMatrix<T>((h + h.transpose()) / T(2));
      fit_detail::product_transposed<T>(view(std::as_const(error)).rows_from(k * q, q), view(std::as_const(fg)),
                                        view(d), inner);
      fit_detail::Cholesky<T> cholesky;
      cholesky.factorize_damped(h, 0.0, inner);
      cholesky.solve_rows(view(d), inner);
      f.second.middleRows(k * q, q) -= d;
      for (index_t l = 0; l < f.in_blocks; ++l) block_error(k, l);
    });
    for (index_t l = 0; l < f.in_blocks; ++l) {
      how.throw_if_stopped();
      RowMajorMatrix<T> eg(rows, p);  // G is symmetric
      fit_detail::product_transposed<T>(view(std::as_const(error)), view(g).rows_from(l * p, p), view(eg), step);
      parallel_for(step, f.out_blocks, [&](index_t k) {
        const RowMajorMatrix<T> second = f.second_block(k, l);
        // In the transposed order, so that both solves divide rows.
        RowMajorMatrix<T> d =
            fit_detail::transposed_product<T>(view(std::as_const(eg)).rows_from(k * q, q), view(second),
                                              inner);  // [p, r]
        fit_detail::Cholesky<T> cholesky;
        cholesky.factorize_damped(fit_detail::gram_of_columns<T>(view(second), inner), 0.0, inner);
        cholesky.solve_rows(view(d), inner);
        RowMajorMatrix<T> dt = d.transpose();
        input[static_cast<std::size_t>(l)].solve_rows(view(dt), inner);
        f.first.middleRows((l * f.out_blocks + k) * r, r) -= dt;
        block_error(k, l);
      });
    }
    const double now = loss();
    how.report(static_cast<double>(t + 1) / steps);
    if (!(now < least)) break;  // what is left is rounding
    const bool done = least - now < 1e-9 * least;
    least = now;
    best.factors = f;
    if (done) break;
  }
  best.rel_error = relative(least);
  return best;
}

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
