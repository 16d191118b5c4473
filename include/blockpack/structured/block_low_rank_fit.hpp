// SPDX-License-Identifier: Apache-2.0
#pragma once

/// W as a grid of tiles, each of the rank that a tolerance, or a common budget of parameters, gives it, or dense.
///
/// Sources: block low-rank matrices of sparse direct solvers, here STRUMPACK's (pghysels/STRUMPACK): the stop rule of
/// the pivoted QR and the dense tiles. The pooled budget is ours.

#include <algorithm>
#include <cmath>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/structured/factors.hpp"
#include "blockpack/structured/product.hpp"
#include "blockpack/structured/svd.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

/// What the tolerance tau is relative to.
enum class TileThreshold : std::uint8_t {
  global,  ///< to W: each tile may lose tau · ||W||_F / sqrt(tiles), so that the whole loses at most tau · ||W||_F
  local    ///< to the tile: a rank is cut where sigma_c <= tau · sigma_0, or |R_cc| <= tau · |R_00|
};

enum class TileMethod : std::uint8_t {
  svd,   ///< the least rank that holds the threshold
  rrqr,  ///< QR with column pivoting: several times faster, ranks a little higher
};

struct BlockLowRankOptions {
  index_t tile_rows = 256;
  index_t tile_cols = 256;
  double tau = 1e-2;
  double absolute = 0.0;  ///< `local`: also cut where sigma_c, or |R_cc|, is not above it
  TileThreshold threshold = TileThreshold::global;
  TileMethod method = TileMethod::svd;
  index_t max_rank = 0;        ///< 0 = none; a tile that needs more is cut there, and misses the threshold
  index_t rank_multiple = 16;  ///< ranks are rounded up to it where the tile is large enough
  Execution execution = {};
};

namespace fit_detail {

template <class T>
void check_tiles(const char* function, MatrixView<const T> w, const BlockLowRankOptions& o) {
  const std::string name(function);
  if (o.tile_rows < 1 || o.tile_cols < 1)
    throw ValueError(name + ": tiles of " + to_string(MatrixShape{o.tile_rows, o.tile_cols}) + ", at least 1x1 needed");
  if (!(o.tau >= 0.0) || !std::isfinite(o.tau) || !(o.absolute >= 0.0))
    throw ValueError(name + ": tau and absolute must be numbers that are not negative");
  if (o.max_rank < 0) throw ValueError(name + ": max_rank must not be negative");
  if (o.rank_multiple < 1) throw ValueError(name + ": rank_multiple must be at least 1");
  check_finite_weights<T>(function, w);
}

template <class T>
BlockLowRankFactors<T> tile_grid(MatrixShape shape, const BlockLowRankOptions& o) {
  BlockLowRankFactors<T> f;
  f.out_features = shape.rows;
  f.in_features = shape.cols;
  f.tile_rows = o.tile_rows;
  f.tile_cols = o.tile_cols;
  f.tiles.resize(static_cast<std::size_t>(checked_mul(f.grid().rows, f.grid().cols, "tiles")));
  return f;
}

/// Tile number t of w.
template <class T>
MatrixView<const T> tile_of(MatrixView<const T> w, const BlockLowRankFactors<T>& f, index_t t) {
  const index_t row = t / f.grid().cols * f.tile_rows, col = t % f.grid().cols * f.tile_cols;
  return w.block(row, col, std::min(f.tile_rows, w.rows() - row), std::min(f.tile_cols, w.cols() - col));
}

/// Keeps `rank` of the triples, or all of the tile where that takes no more parameters. Gives the error.
template <class T>
double store_tile(BlockLowRankTile<T>& tile, MatrixView<const T> w, const Svd<T>& svd, index_t rank) {
  if (rank * (w.rows() + w.cols()) > w.rows() * w.cols()) {
    tile.is_dense = true;
    tile.values = eigen_map(w);
    return 0.0;
  }
  LowRankFactors<T> f = sqrt_split(Svd<T>{svd.u.leftCols(rank), svd.sigma, svd.vh.topRows(rank)});
  tile.left = std::move(f.left);
  tile.right = std::move(f.right);
  return tail_norm(svd.sigma, rank);
}

/// The least rank c at which `stop(c)` holds, rounded and capped as the options say.
template <class Stop>
index_t tile_rank(index_t smaller, const BlockLowRankOptions& o, const Stop& stop) {
  index_t rank = 0;
  while (rank < smaller && !stop(rank)) ++rank;
  rank = std::min(smaller, round_up(rank, o.rank_multiple));
  return o.max_rank > 0 ? std::min(rank, o.max_rank) : rank;
}

template <class T>
double fit_tile_svd(BlockLowRankTile<T>& tile, MatrixView<const T> w, double budget, const BlockLowRankOptions& o) {
  const Svd<T> svd = exact_svd<T>(w, std::min(w.rows(), w.cols()));
  const std::vector<double>& sigma = svd.sigma;
  const index_t rank = tile_rank(static_cast<index_t>(sigma.size()), o, [&](index_t c) {
    if (o.threshold == TileThreshold::global) return tail_norm(sigma, c) <= budget;
    const double value = sigma[static_cast<std::size_t>(c)];
    return value <= o.tau * sigma[0] || value <= o.absolute;
  });
  return store_tile(tile, w, svd, rank);
}

template <class T>
double fit_tile_rrqr(BlockLowRankTile<T>& tile, MatrixView<const T> w, double budget, const BlockLowRankOptions& o) {
  using Wide = RowMajorMatrix<double>;
  const index_t smaller = std::min(w.rows(), w.cols());
  const Wide wide = eigen_map(w).template cast<double>();
  Wide q(w.rows(), smaller), r(smaller, w.cols());
  std::vector<index_t> order(static_cast<std::size_t>(w.cols()));
  decompositions::pivoted_qr<double>(view(wide), view(q), view(r), order);
  std::vector<double> rows(static_cast<std::size_t>(smaller));  // norms of the rows of R
  for (index_t c = 0; c < smaller; ++c) rows[static_cast<std::size_t>(c)] = r.row(c).norm();
  const index_t rank = tile_rank(smaller, o, [&](index_t c) {
    if (o.threshold == TileThreshold::global) return tail_norm(rows, c) <= budget;
    const double value = std::fabs(r(c, c));
    return value <= o.tau * std::fabs(r(0, 0)) || value <= o.absolute;
  });
  if (rank * (w.rows() + w.cols()) > w.rows() * w.cols()) {
    tile.is_dense = true;
    tile.values = eigen_map(w);
    return 0.0;
  }
  tile.left = q.leftCols(rank).template cast<T>();
  tile.right.resize(rank, w.cols());
  for (index_t j = 0; j < w.cols(); ++j)
    tile.right.col(order[static_cast<std::size_t>(j)]) = r.col(j).head(rank).template cast<T>();
  return tail_norm(rows, rank);
}

template <class T>
void set_error_bound(BlockLowRankFactors<T>& f, const std::vector<double>& errors, double norm) {
  double sum = 0.0;
  for (const double e : errors) sum += e * e;
  f.error_bound = norm > 0.0 ? std::sqrt(sum) / norm : 0.0;
}

}  // namespace fit_detail

/// Compresses W tile by tile to a tolerance.
///
/// `svd` splits the singular values by square roots; the left factors of `rrqr` are orthonormal, right = R Pᵀ. A tile
/// whose factors would take more parameters than it has is dense: rank · (rows + cols) > rows · cols.
///
/// Shapes:  w [out, in]; the last tiles are what is left over. With the global threshold and no max_rank
///          ||W - M||_F <= tau ||W||_F, up to rounding; rel_error_bound() says what was cut off in fact.
/// Errors:  ValueError for tiles below 1x1, a tau that is negative or no number, NaN or infinity in w (row and column);
///          CancelledError.
/// Cost:    about 20 · out · in · min(tile) operations with `svd`, 4 with `rrqr`, in double, tiles in parallel.
/// Source:  see the head of the file. Deterministic.
template <class T>
BlockLowRankFactors<T> block_low_rank_fit(MatrixView<const T> w, const BlockLowRankOptions& options = {}) {
  static_assert(std::is_floating_point_v<T>);
  fit_detail::check_tiles<T>("block_low_rank_fit", w, options);
  BlockLowRankFactors<T> f = fit_detail::tile_grid<T>(w.shape(), options);
  const auto count = static_cast<index_t>(f.tiles.size());
  const double norm = std::sqrt(fit_detail::squared_norm<T>(w));
  const double budget = count > 0 ? options.tau * norm / std::sqrt(static_cast<double>(count)) : 0.0;
  std::vector<double> errors(f.tiles.size());
  for (index_t row = 0; row < f.grid().rows; ++row) {
    parallel_for(options.execution.quiet(), f.grid().cols, [&](index_t col) {
      const index_t t = row * f.grid().cols + col;
      const auto fit = options.method == TileMethod::svd ? fit_detail::fit_tile_svd<T> : fit_detail::fit_tile_rrqr<T>;
      errors[static_cast<std::size_t>(t)] =
          fit(f.tiles[static_cast<std::size_t>(t)], fit_detail::tile_of<T>(w, f, t), budget, options);
    });
    options.execution.report(static_cast<double>(row + 1) / static_cast<double>(f.grid().rows));
  }
  fit_detail::set_error_bound(f, errors, norm);
  return f;
}

/// Compresses W tile by tile into a number of parameters, where they save most: all sigma² of all tiles over the
/// parameters they take, rows + cols of the tile, are one pool, of which the largest are kept. A tile that comes near
/// its own size turns dense. For tiles of one size no other choice of ranks has a smaller error.
///
/// Shapes:  as block_low_rank_fit; ranks are multiples of rank_multiple where the tile is large enough, at most
///          max_rank. tau, absolute, threshold and method are not used.
/// Errors:  those of block_low_rank_fit; ValueError for a negative budget.
/// Cost:    about 20 · out · in · min(tile) operations and the memory of all singular vectors, twice that of w.
template <class T>
BlockLowRankFactors<T> block_low_rank_fit_budget(MatrixView<const T> w, index_t parameters,
                                                 const BlockLowRankOptions& options = {}) {
  static_assert(std::is_floating_point_v<T>);
  const char* const function = "block_low_rank_fit_budget";
  fit_detail::check_tiles<T>(function, w, options);
  if (parameters < 0) throw ValueError("block_low_rank_fit_budget: parameters must not be negative");
  BlockLowRankFactors<T> f = fit_detail::tile_grid<T>(w.shape(), options);
  const auto count = static_cast<index_t>(f.tiles.size());
  std::vector<Svd<T>> svds(f.tiles.size());
  for (index_t row = 0; row < f.grid().rows; ++row) {
    parallel_for(options.execution.quiet(), f.grid().cols, [&](index_t col) {
      const index_t t = row * f.grid().cols + col;
      const MatrixView<const T> tile = fit_detail::tile_of<T>(w, f, t);
      svds[static_cast<std::size_t>(t)] = fit_detail::exact_svd<T>(tile, std::min(tile.rows(), tile.cols()));
    });
    options.execution.report(static_cast<double>(row + 1) / static_cast<double>(f.grid().rows));
  }

  struct Offer {  // the next ranks of a tile
    double worth;
    index_t tile, rank, cost;
    bool operator<(const Offer& other) const { return worth != other.worth ? worth < other.worth : tile > other.tile; }
  };
  std::priority_queue<Offer> offers;
  std::vector<index_t> ranks(f.tiles.size());
  const auto offer = [&](index_t t) {
    const MatrixView<const T> tile = fit_detail::tile_of<T>(w, f, t);
    const std::vector<double>& sigma = svds[static_cast<std::size_t>(t)].sigma;
    const auto all = static_cast<index_t>(sigma.size());
    const index_t have = ranks[static_cast<std::size_t>(t)], sides = tile.rows() + tile.cols();
    const index_t most = options.max_rank > 0 ? std::min(all, options.max_rank) : all;
    if (have >= most) return;
    index_t next = std::min(most, have + options.rank_multiple);
    index_t cost = (next - have) * sides;
    if (next * sides > tile.rows() * tile.cols()) {  // dense
      next = all;
      cost = tile.rows() * tile.cols() - have * sides;
    }
    double gain = 0.0;
    for (index_t c = have; c < next; ++c)
      gain += sigma[static_cast<std::size_t>(c)] * sigma[static_cast<std::size_t>(c)];
    if (gain > 0.0) offers.push({gain / static_cast<double>(std::max(cost, index_t{1})), t, next, cost});
  };
  for (index_t t = 0; t < count; ++t) offer(t);
  index_t left = parameters;
  while (!offers.empty()) {
    const Offer next = offers.top();
    offers.pop();
    if (next.cost > left) continue;  // smaller tiles may still fit
    left -= next.cost;
    ranks[static_cast<std::size_t>(next.tile)] = next.rank;
    offer(next.tile);
  }

  std::vector<double> errors(f.tiles.size());
  parallel_for(options.execution.quiet(), count, [&](index_t t) {
    const auto i = static_cast<std::size_t>(t);
    errors[i] = fit_detail::store_tile<T>(f.tiles[i], fit_detail::tile_of<T>(w, f, t), svds[i], ranks[i]);
  });
  fit_detail::set_error_bound(f, errors, std::sqrt(fit_detail::squared_norm<T>(w)));
  return f;
}

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
