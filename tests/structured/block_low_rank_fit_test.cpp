// SPDX-License-Identifier: Apache-2.0

#include "blockpack/structured/block_low_rank_fit.hpp"

#include <stop_token>

#include "structured/fit_cases.hpp"

namespace {

using namespace blockpack;
using test::read;
using test::relative_error;

BlockLowRankOptions options_of(index_t tile, double tau, TileMethod method,
                               TileThreshold threshold = TileThreshold::global) {
  BlockLowRankOptions options;
  options.tile_rows = options.tile_cols = tile;
  options.tau = tau;
  options.method = method;
  options.threshold = threshold;
  options.rank_multiple = 1;
  return options;
}

/// A smooth kernel: tiles off the diagonal have low rank.
RowMajorMatrix<double> kernel_matrix(index_t rows, index_t cols) {
  RowMajorMatrix<double> w(rows, cols);
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; ++j)
      w(i, j) = 1.0 / (1.0 + std::fabs(static_cast<double>(i) - 0.9 * static_cast<double>(j)));
  return w;
}

}  // namespace

TEST_CASE("Tiles hold the tolerance of the whole matrix", "[structured]") {
  for (const MatrixShape shape : {MatrixShape{96, 80}, {70, 101}})
    for (const TileMethod method : {TileMethod::svd, TileMethod::rrqr})
      for (const double tau : {0.0, 1e-6, 1e-3, 0.1, 0.5, 2.0}) {
        CAPTURE(shape.rows, shape.cols, static_cast<int>(method), tau);
        const auto w = kernel_matrix(shape.rows, shape.cols);
        const auto f = block_low_rank_fit<double>(read(w), options_of(32, tau, method));
        REQUIRE(f.grid() == MatrixShape{ceil_div(shape.rows, 32), ceil_div(shape.cols, 32)});
        const double error = relative_error(w, f.dense());
        REQUIRE(error <= tau + 1e-13);
        REQUIRE(error == Approx(f.rel_error_bound()).margin(1e-12));
        REQUIRE(f.parameters() <= shape.rows * shape.cols);
        for (const auto& tile : f.tiles)
          if (!tile.is_dense)
            REQUIRE(tile.rank() * (tile.left.rows() + tile.right.cols()) <= tile.left.rows() * tile.right.cols());
        if (method == TileMethod::rrqr) {
          const auto best = block_low_rank_fit<double>(read(w), options_of(32, tau, TileMethod::svd));
          REQUIRE(f.parameters() >= best.parameters());
          REQUIRE(static_cast<double>(f.parameters()) <= 1.6 * static_cast<double>(best.parameters()) + 200.0);
        }
      }
}

TEST_CASE("The local threshold cuts each tile at its own scale", "[structured]") {
  RowMajorMatrix<double> w = kernel_matrix(64, 64);
  w.block(0, 32, 32, 32) *= 1e-6;  // a tile the global threshold drops
  for (const TileMethod method : {TileMethod::svd, TileMethod::rrqr}) {
    CAPTURE(static_cast<int>(method));
    const auto global = block_low_rank_fit<double>(read(w), options_of(32, 1e-2, method));
    const auto local = block_low_rank_fit<double>(read(w), options_of(32, 1e-2, method, TileThreshold::local));
    REQUIRE(global.tile(0, 1).parameters() == 0);
    REQUIRE(local.tile(0, 1).rank() > 0);
    const RowMajorMatrix<double> block = w.block(0, 32, 32, 32);
    REQUIRE(relative_error(block, local.tile(0, 1).dense()) < 5e-2);
    auto options = options_of(32, 1e-2, method, TileThreshold::local);
    options.absolute = 1e-4;
    REQUIRE(block_low_rank_fit<double>(read(w), options).tile(0, 1).parameters() == 0);
  }
}

TEST_CASE("Ranks are rounded and capped, and tiles turn dense where that is cheaper", "[structured]") {
  const auto w = kernel_matrix(64, 64);
  auto options = options_of(32, 1e-3, TileMethod::svd);
  options.rank_multiple = 4;
  for (const auto& tile : block_low_rank_fit<double>(read(w), options).tiles) REQUIRE(tile.rank() % 4 == 0);
  options.max_rank = 3;
  const auto capped = block_low_rank_fit<double>(read(w), options);
  for (const auto& tile : capped.tiles) REQUIRE(tile.rank() <= 3);
  REQUIRE(capped.rel_error_bound() > 1e-3);
  REQUIRE(relative_error(w, capped.dense()) == Approx(capped.rel_error_bound()).margin(1e-12));
  const auto noise = test::normal<double>(64, 64, 1);
  const auto dense = block_low_rank_fit<double>(read(noise), options_of(32, 1e-3, TileMethod::rrqr));
  for (const auto& tile : dense.tiles) REQUIRE(tile.is_dense);
  REQUIRE(dense.dense() == noise);
  const RowMajorMatrix<float> zero = RowMajorMatrix<float>::Zero(40, 50);
  for (const auto threshold : {TileThreshold::global, TileThreshold::local})
    for (const auto method : {TileMethod::svd, TileMethod::rrqr}) {
      const auto none = block_low_rank_fit<float>(read(zero), options_of(32, 1e-3, method, threshold));
      REQUIRE(none.parameters() == 0);
      REQUIRE(none.dense() == zero);
      REQUIRE(none.rel_error_bound() == 0.0);
    }
}

TEST_CASE("A pooled budget beats uniform ranks at equal parameters", "[structured]") {
  const RowMajorMatrix<double> w = kernel_matrix(96, 96) + 0.002 * test::normal<double>(96, 96, 1);
  auto options = options_of(32, 0.0, TileMethod::svd);
  for (const index_t rank : {1, 3, 8, 12}) {
    CAPTURE(rank);
    options.max_rank = rank;
    options.tau = 0;
    const auto uniform = block_low_rank_fit<double>(read(w), options);
    REQUIRE(uniform.parameters() == 9 * rank * 64);
    options.max_rank = 0;
    const auto pooled = block_low_rank_fit_budget<double>(read(w), uniform.parameters(), options);
    REQUIRE(pooled.parameters() <= uniform.parameters());
    const double error = relative_error(w, pooled.dense());
    REQUIRE(error < relative_error(w, uniform.dense()));
    REQUIRE(error == Approx(pooled.rel_error_bound()).margin(1e-12));
    options.rank_multiple = 2;
    REQUIRE(block_low_rank_fit_budget<double>(read(w), uniform.parameters(), options).parameters() <=
            uniform.parameters());
    options.rank_multiple = 1;
  }
  REQUIRE(block_low_rank_fit_budget<double>(read(w), 0, options).parameters() == 0);
  const auto all = block_low_rank_fit_budget<double>(read(w), 96 * 96, options);
  REQUIRE(all.parameters() <= 96 * 96);
  REQUIRE(relative_error(w, all.dense()) < 1e-12);
}

TEST_CASE("Block low-rank fits refuse what they cannot fit and say why", "[structured]") {
  auto w = test::normal<float>(12, 8, 1);
  const auto good = options_of(4, 0.1, TileMethod::svd);
  auto options = good;
  options.tile_rows = 0;
  REQUIRE_THROWS_AS(block_low_rank_fit<float>(read(w), options), ValueError);
  options = good;
  options.tau = NAN;
  REQUIRE_THROWS_AS(block_low_rank_fit<float>(read(w), options), ValueError);
  options = good;
  options.rank_multiple = 0;
  REQUIRE_THROWS_AS(block_low_rank_fit<float>(read(w), options), ValueError);
  options = good;
  options.max_rank = -1;
  REQUIRE_THROWS_AS(block_low_rank_fit<float>(read(w), options), ValueError);
  REQUIRE_THROWS_AS(block_low_rank_fit_budget<float>(read(w), -1, good), ValueError);
  std::stop_source source;
  source.request_stop();
  options = good;
  options.execution.stop = source.get_token();
  REQUIRE_THROWS_AS(block_low_rank_fit<float>(read(w), options), CancelledError);
  for (const MatrixShape shape : {MatrixShape{0, 5}, {5, 0}, {0, 0}}) {
    const RowMajorMatrix<float> empty(shape.rows, shape.cols);
    REQUIRE(block_low_rank_fit<float>(read(empty), good).dense().size() == 0);
    REQUIRE(block_low_rank_fit_budget<float>(read(empty), 10, good).tiles.empty());
  }
  w(2, 5) = NAN;
  try {
    block_low_rank_fit<float>(read(w), good);
    FAIL("a NaN was taken");
  } catch (const ValueError& e) {
    REQUIRE(std::string(e.what()).find("row 2, column 5") != std::string::npos);
  }
}
