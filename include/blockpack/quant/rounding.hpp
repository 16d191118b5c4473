// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Rounding algorithms: which value of its grid each weight takes, given calibration data. All of them work on any
/// scalar format (quant/grid.hpp) and share one statistic, H = XᵀX of the layer's inputs (core/calibration.hpp).
///
///     GramMatrix h(in);  h.add(x);  …
///     const QuantizedMatrix<GroupInt> q = round_gptq(GroupInt{.bits = 4}, w, h);
///
/// The layer objective is L(Q) = tr((W - Q) H (W - Q)ᵀ); rows of W are independent given H.
///
/// The chosen codes do not depend on the number of threads. Sums run in float32 through the dense engine, so two SIMD
/// levels may choose another code where two are equally good to the last bits.
///
/// Every function takes `Execution` with progress and cancellation. Errors common to all: ShapeError for shapes that
/// disagree, ValueError for weights that are NaN or infinite (grids are fitted to the weights as they are).

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/quant/weight_grids.hpp"

#if !defined( \
    BLOCKPACK_HEADERS_ONLY)  // the algorithms are compiled: they are long, and their sums must not be contracted

namespace blockpack::inline BLOCKPACK_ABI {

/// tr((w - q) H (w - q)ᵀ), the squared error of the layer's outputs summed over the tokens H has seen.
/// Cost: out · in² multiply-adds through the engine; one float32 copy of H and of q.
BLOCKPACK_API double layer_loss(MatrixView<const float> w, MatrixView<const float> q, const GramMatrix& h,
                                const Execution& how = {});

/// Fits every group to w and takes the nearest values: plain rounding, the start and the baseline of the others.
BLOCKPACK_API void nearest(MatrixView<const float> w, WeightGrids& grids, MatrixView<float> q,
                           const Execution& how = {});

struct GptqOptions {
  index_t block = 128;    ///< columns whose errors are propagated at once
  double damping = 0.01;  ///< times mean(diag H), added to the diagonal
  /// How often the damping grows tenfold (from 1e-5 at least) when H is not positive definite in float32.
  int damping_retries = 4;
  bool act_order = true;  ///< columns by falling diagonal of H
  /// Groups are fitted to the weights as given. Otherwise each is fitted to the updated weights when its first column
  /// is reached; with act_order its columns are then runs of that order, which a row format cannot store.
  bool static_groups = true;
  std::string layer;  ///< named in errors
};

/// What a run did.
struct GptqReport {
  double loss = 0;             ///< sum of (w - q)² / U_jj² with the damped H: the layer objective in exact arithmetic
  double damping = 0;          ///< relative damping that was used
  std::vector<index_t> order;  ///< order[p] = column that was rounded p-th
};

/// GPTQ: rounds column after column and moves the error of each to the columns not yet rounded.
///
/// With H + damping = UᵀU's inverse, U upper triangular in the order of the columns: e = (w_j - q_j) / U_jj and
/// w_k -= e · U_jk for the columns k after j. U comes from one Cholesky factorization and one triangular inverse in
/// blocks of 128. Columns whose diagonal is 0 are rounded from 0.
///
/// Shapes:  w, q [out, in], the grids' shape; H [in, in]. q may be w.
/// Errors:  ValueError that names the layer when H stays singular under the last damping.
/// Cost:    (2/3) in³ + out · in² multiply-adds ·2; memory: two matrices [in, in] at first, then one and one
///          [out, in], all float32, and a panel of block + group_size columns.
/// Source:  "GPTQ", arXiv:2210.17323; stale group fits within a block as in the public code.
BLOCKPACK_API GptqReport gptq(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
                              const GptqOptions& options = {}, const Execution& how = {});

struct DescentOptions {
  int sweeps = 4;  ///< at most; fewer when nothing changes any more
};

/// Coordinate descent after any method: column after column, each weight moves to the grid value where its row's
/// objective is lowest, given the others, until nothing changes. Grids stay as they are; the objective never grows.
/// Returns the number of moves.
///
/// Cost: out · in² multiply-adds through the engine for the gradient, then in of them for each move; memory: two
/// float32 matrices [in, in] and 1024 rows.
BLOCKPACK_API index_t descend(MatrixView<const float> w, const GramMatrix& h, const WeightGrids& grids,
                              MatrixView<float> q, const DescentOptions& options = {}, const Execution& how = {});

namespace detail {

/// Scratch for the chosen values, then the stored matrix.
template <GridFormat F, class Choose>
QuantizedMatrix<F> round_with(const F& format, MatrixView<const float> w, const EncodeOptions& encode,
                              Choose&& choose) {
  FormatGrids<F> grids(format, w.shape(), encode);
  auto chosen = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "round"));
  const MatrixView<float> q(chosen.data(), w.rows(), w.cols());
  choose(grids, q);
  return grids.store(MatrixView<const float>(q), encode.execution);
}

}  // namespace detail

/// Plain rounding followed by coordinate descent: `descent.sweeps` = 0 gives what the format's encoder gives.
template <GridFormat F>
QuantizedMatrix<F> round_nearest(const F& format, MatrixView<const float> w, const GramMatrix& h,
                                 const DescentOptions& descent = {}, const EncodeOptions& encode = {}) {
  return detail::round_with(format, w, encode, [&](FormatGrids<F>& grids, MatrixView<float> q) {
    nearest(w, grids, q, encode.execution);
    descend(w, h, grids, q, descent, encode.execution);
  });
}

/// GPTQ, then coordinate descent if `descent.sweeps` > 0. act_order implies static_groups here.
template <GridFormat F>
QuantizedMatrix<F> round_gptq(const F& format, MatrixView<const float> w, const GramMatrix& h, GptqOptions options = {},
                              const DescentOptions& descent = {0}, const EncodeOptions& encode = {}) {
  options.static_groups = options.static_groups || options.act_order;
  return detail::round_with(format, w, encode, [&](FormatGrids<F>& grids, MatrixView<float> q) {
    gptq(w, h, grids, q, options, encode.execution);
    descend(w, h, grids, q, descent, encode.execution);
  });
}

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
