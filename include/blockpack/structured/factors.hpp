// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The factors of structured layers, as plain row-major matrices in one fixed layout each: what the fits return and
/// what operators take views of. W is [out, in]; `dense()` multiplies the factors out.
///
///   LowRankFactors       W = left · right
///   MonarchFactors       every pair of an output block and an input block has a product of its own, of one rank
///   BlastFactors         block (i, j) of W = U_i · diag(s_ij) · V_jᵀ: U shared along rows, V along columns
///   BlockLowRankFactors  a grid of tiles, each dense or a product of its own rank
///
/// A dimension that the blocks do not divide is padded: blocks have ceil(n / blocks) rows or columns, the factors carry
/// the padding as zeros, and `dense()` cuts it.
///
/// T is float, double or a complex number of them.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/eigen.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"
#include "blockpack/structured/decompositions.hpp"
#include "blockpack/structured/eigen_map.hpp"
#include "blockpack/structured/output_order.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

namespace fit_detail {

/// a · b of matrices, or of blocks of row-major ones.
template <class A, class B>
RowMajorMatrix<typename A::Scalar> multiplied(const A& a, const B& b) {
  using T = typename A::Scalar;
  RowMajorMatrix<T> c(a.rows(), b.cols());
  if (a.cols() == 0) return c.setZero();
  const auto rows_of = [](const auto& m) {
    return MatrixView<const T>(m.data(), m.rows(), m.cols(), m.rows() > 1 ? m.outerStride() : m.cols());
  };
  if (c.size() > 0) decompositions::multiply<T>(decompositions::Product::plain, rows_of(a), rows_of(b), view(c));
  return c;
}

}  // namespace fit_detail

/// W ≈ left [out, rank] · right [rank, in].
template <class T>
struct LowRankFactors {
  RowMajorMatrix<T> left;
  RowMajorMatrix<T> right;

  MatrixShape shape() const noexcept { return {left.rows(), right.cols()}; }
  index_t rank() const noexcept { return left.cols(); }
  index_t parameters() const noexcept { return left.size() + right.size(); }
  RowMajorMatrix<T> dense() const { return fit_detail::multiplied(left, right); }
};

/// W ≈ a Monarch matrix: x is cut into in_blocks runs x_l of p = ceil(in / in_blocks), output block k of
/// q = ceil(out / out_blocks) is y_k = Σ_l second_kl · (first_lk · x_l).
///
/// Shapes: first [in_blocks · out_blocks · rank, p], row (l · out_blocks + k) · rank + rho;
///         second [out_blocks · q, in_blocks · rank], row k · q + s, column l · rank + rho.
template <class T>
struct MonarchFactors {
  index_t out_features = 0;
  index_t in_features = 0;
  index_t in_blocks = 1;
  index_t out_blocks = 1;
  index_t rank = 0;  ///< of one pair of blocks
  OutputOrder order = OutputOrder::blocked;
  RowMajorMatrix<T> first;
  RowMajorMatrix<T> second;

  MatrixShape shape() const noexcept { return {out_features, in_features}; }
  index_t block_cols() const noexcept { return ceil_div(in_features, in_blocks); }    ///< p
  index_t block_rows() const noexcept { return ceil_div(out_features, out_blocks); }  ///< q
  index_t parameters() const noexcept { return first.size() + second.size(); }        ///< padding included

  /// The output of row s of block k; from out_features on it is padding.
  index_t output(index_t k, index_t s) const noexcept {
    return order == OutputOrder::blocked ? k * block_rows() + s : s * out_blocks + k;
  }

  /// first_lk [rank, p] and second_kl [q, rank].
  auto first_block(index_t l, index_t k) const {
    return first.block((l * out_blocks + k) * rank, 0, rank, first.cols());
  }
  auto second_block(index_t k, index_t l) const { return second.block(k * block_rows(), l * rank, block_rows(), rank); }

  RowMajorMatrix<T> dense() const {
    RowMajorMatrix<T> w = RowMajorMatrix<T>::Zero(out_features, in_features);
    const index_t p = block_cols(), q = block_rows();
    for (index_t k = 0; k < out_blocks; ++k)
      for (index_t l = 0; l < in_blocks; ++l) {
        const index_t cols = std::min(p, in_features - l * p);
        if (cols <= 0) continue;
        const RowMajorMatrix<T> block = fit_detail::multiplied(second_block(k, l), first_block(l, k));
        for (index_t s = 0; s < q; ++s)
          if (const index_t row = output(k, s); row < out_features)
            w.row(row).segment(l * p, cols) = block.row(s).head(cols);
      }
    return w;
  }
};

/// The factors of a Monarch matrix in the layout of the fly library (HazyResearch/fly), which has interleaved outputs:
/// w1 (in_blocks, rank · out_blocks, p) with w1[l, rho · out_blocks + k, :], w2 (out_blocks, q, in_blocks · rank) with
/// w2[k, s, l · rank + rho]; the first two dimensions are the rows here.
template <class T>
struct FlyMonarch {
  RowMajorMatrix<T> w1;
  RowMajorMatrix<T> w2;
};

/// Errors: ValueError unless the outputs are interleaved.
template <class T>
FlyMonarch<T> to_fly_layout(const MonarchFactors<T>& f) {
  if (f.order != OutputOrder::interleaved)
    throw ValueError("to_fly_layout: the factors have blocked outputs, interleaved needed");
  FlyMonarch<T> fly{RowMajorMatrix<T>(f.first.rows(), f.first.cols()), f.second};
  for (index_t l = 0; l < f.in_blocks; ++l)
    for (index_t k = 0; k < f.out_blocks; ++k)
      for (index_t rho = 0; rho < f.rank; ++rho)
        fly.w1.row((l * f.rank + rho) * f.out_blocks + k) = f.first.row((l * f.out_blocks + k) * f.rank + rho);
  return fly;
}

/// Shapes: see FlyMonarch; every pair of blocks has the same rank, w1.rows() / (in_blocks · out_blocks).
/// Errors: ShapeError when w1 and w2 do not have the rows and columns of such a matrix of `shape`.
template <class T>
MonarchFactors<T> from_fly_layout(const FlyMonarch<T>& fly, MatrixShape shape, index_t in_blocks, index_t out_blocks) {
  if (in_blocks < 1 || out_blocks < 1) throw ValueError("from_fly_layout: in_blocks and out_blocks must be at least 1");
  MonarchFactors<T> f;
  f.out_features = shape.rows;
  f.in_features = shape.cols;
  f.in_blocks = in_blocks;
  f.out_blocks = out_blocks;
  f.rank = fly.w1.rows() / (in_blocks * out_blocks);
  f.order = OutputOrder::interleaved;
  if (fly.w1.rows() != in_blocks * out_blocks * f.rank || fly.w1.cols() != f.block_cols())
    throw ShapeError("from_fly_layout: w1 is " + to_string(MatrixShape{fly.w1.rows(), fly.w1.cols()}) + ", " +
                     std::to_string(f.block_cols()) + " columns and a multiple of " +
                     std::to_string(in_blocks * out_blocks) + " rows needed");
  if (fly.w2.rows() != out_blocks * f.block_rows() || fly.w2.cols() != in_blocks * f.rank)
    throw ShapeError("from_fly_layout: w2 is " + to_string(MatrixShape{fly.w2.rows(), fly.w2.cols()}) + ", " +
                     to_string(MatrixShape{out_blocks * f.block_rows(), in_blocks * f.rank}) + " needed");
  f.first.resize(fly.w1.rows(), fly.w1.cols());
  for (index_t l = 0; l < in_blocks; ++l)
    for (index_t k = 0; k < out_blocks; ++k)
      for (index_t rho = 0; rho < f.rank; ++rho)
        f.first.row((l * out_blocks + k) * f.rank + rho) = fly.w1.row((l * f.rank + rho) * out_blocks + k);
  f.second = fly.w2;
  return f;
}

/// W ≈ a BLAST matrix of blocks · blocks blocks: block (i, j) = U_i · diag(s_ij) · V_jᵀ.
///
/// Shapes: left [blocks · p, rank], rows i · p … are U_i, p = ceil(out / blocks); right [blocks · rank, q], rows
///         j · rank … are V_jᵀ, q = ceil(in / blocks); coupling [blocks · blocks, rank], row i · blocks + j is s_ij.
template <class T>
struct BlastFactors {
  index_t out_features = 0;
  index_t in_features = 0;
  index_t blocks = 1;
  index_t rank = 0;
  RowMajorMatrix<T> left;
  RowMajorMatrix<T> right;
  RowMajorMatrix<T> coupling;

  MatrixShape shape() const noexcept { return {out_features, in_features}; }
  index_t block_rows() const noexcept { return ceil_div(out_features, blocks); }                ///< p
  index_t block_cols() const noexcept { return ceil_div(in_features, blocks); }                 ///< q
  index_t parameters() const noexcept { return left.size() + right.size() + coupling.size(); }  ///< with the padding

  RowMajorMatrix<T> dense() const {
    RowMajorMatrix<T> w = RowMajorMatrix<T>::Zero(out_features, in_features);
    const index_t p = block_rows(), q = block_cols();
    for (index_t i = 0; i < blocks; ++i)
      for (index_t j = 0; j < blocks; ++j) {
        const index_t rows = std::min(p, out_features - i * p), cols = std::min(q, in_features - j * q);
        if (rows <= 0 || cols <= 0) continue;
        const RowMajorMatrix<T> scaled =
            left.block(i * p, 0, rows, rank) * coupling.row(i * blocks + j).transpose().asDiagonal();
        w.block(i * p, j * q, rows, cols) = fit_detail::multiplied(scaled, right.block(j * rank, 0, rank, cols));
      }
    return w;
  }
};

/// One tile of a BlockLowRankFactors: left · right, or dense.
template <class T>
struct BlockLowRankTile {
  bool is_dense = false;
  RowMajorMatrix<T> left;    ///< [tile rows, rank]; empty when the tile is dense
  RowMajorMatrix<T> right;   ///< [rank, tile cols]; empty when the tile is dense
  RowMajorMatrix<T> values;  ///< [tile rows, tile cols]; empty when the tile is not dense

  index_t rank() const noexcept { return left.cols(); }  ///< 0 for a dense tile as for a zero one
  index_t parameters() const noexcept { return left.size() + right.size() + values.size(); }
  RowMajorMatrix<T> dense() const { return is_dense ? values : fit_detail::multiplied(left, right); }
};

/// W as a grid of tiles of tile_rows x tile_cols; the last ones of a row or column of tiles are what is left over.
template <class T>
struct BlockLowRankFactors {
  index_t out_features = 0;
  index_t in_features = 0;
  index_t tile_rows = 1;
  index_t tile_cols = 1;
  std::vector<BlockLowRankTile<T>> tiles;  ///< row after row of tiles
  double error_bound = 0.0;                ///< what rel_error_bound() gives

  MatrixShape shape() const noexcept { return {out_features, in_features}; }
  MatrixShape grid() const noexcept { return {ceil_div(out_features, tile_rows), ceil_div(in_features, tile_cols)}; }
  const BlockLowRankTile<T>& tile(index_t i, index_t j) const {
    return tiles[static_cast<std::size_t>(i * grid().cols + j)];
  }
  index_t parameters() const noexcept {
    index_t sum = 0;
    for (const BlockLowRankTile<T>& t : tiles) sum += t.parameters();
    return sum;
  }

  /// A bound of ||W - dense()||_F / ||W||_F from what the fit cut off, but for the rounding of the factors.
  double rel_error_bound() const noexcept { return error_bound; }

  RowMajorMatrix<T> dense() const {
    RowMajorMatrix<T> w(out_features, in_features);
    for (index_t i = 0; i < grid().rows; ++i)
      for (index_t j = 0; j < grid().cols; ++j) {
        const RowMajorMatrix<T> block = tile(i, j).dense();
        w.block(i * tile_rows, j * tile_cols, block.rows(), block.cols()) = block;
      }
    return w;
  }
};

namespace fit_detail {
inline index_t rank_within(const char* function, double ratio, double dense, double per_rank) {
  if (!(ratio >= 0.0 && ratio <= 1.0))
    throw ValueError(std::string(function) + ": ratio = " + std::to_string(ratio) + ", a number in [0, 1] needed");
  return per_rank > 0.0 ? static_cast<index_t>(ratio * dense / per_rank) : 0;
}
inline double entries(MatrixShape shape) { return static_cast<double>(shape.rows) * static_cast<double>(shape.cols); }
}  // namespace fit_detail

/// The rank at which a form keeps at most that share of the parameters of a dense matrix, padding included; 0 when even
/// rank 1 needs more.
///
/// Errors: ValueError for a ratio outside [0, 1] or blocks below 1.
inline index_t low_rank_for_ratio(MatrixShape shape, double ratio) {
  return fit_detail::rank_within("low_rank_for_ratio", ratio, fit_detail::entries(shape),
                                 static_cast<double>(shape.rows + shape.cols));
}
inline index_t monarch_rank_for_ratio(MatrixShape shape, index_t in_blocks, index_t out_blocks, double ratio) {
  if (in_blocks < 1 || out_blocks < 1) throw ValueError("monarch_rank_for_ratio: blocks must be at least 1");
  const index_t block = ceil_div(shape.rows, out_blocks) + ceil_div(shape.cols, in_blocks);
  return fit_detail::rank_within("monarch_rank_for_ratio", ratio, fit_detail::entries(shape),
                                 static_cast<double>(in_blocks) * static_cast<double>(out_blocks * block));
}
inline index_t blast_rank_for_ratio(MatrixShape shape, index_t blocks, double ratio) {
  if (blocks < 1) throw ValueError("blast_rank_for_ratio: blocks must be at least 1");
  const index_t sides = blocks * (ceil_div(shape.rows, blocks) + ceil_div(shape.cols, blocks));
  return fit_detail::rank_within(
      "blast_rank_for_ratio", ratio, fit_detail::entries(shape),
      static_cast<double>(sides) + static_cast<double>(blocks) * static_cast<double>(blocks));
}

/// The largest rank at which left and right do not have more parameters than the matrix, out · in / (out + in).
inline index_t break_even_rank(MatrixShape shape) { return low_rank_for_ratio(shape, 1.0); }

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
