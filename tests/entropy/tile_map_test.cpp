// SPDX-License-Identifier: Apache-2.0
#include "blockpack/entropy/tile_map.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/entropy/gardener.hpp"
#include "blockpack/entropy/statistics.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

void check_against_blocks(const WeightView& w, const ValueGrid& grid) {
  const ValueGrid whole = detail::resolve("test", grid, std::vector<WeightBlock>{w});
  for (const auto [rows, cols] : {MatrixShape{64, 64}, {16, 15}, {1, 67}, {1000, 13}}) {
    const TileMap entropy = tile_map(w, TileScore::entropy, rows, cols, grid);
    const TileMap corrected = tile_map(w, TileScore::miller_madow, rows, cols, grid);
    const TileMap efficiency = tile_map(w, TileScore::efficiency, rows, cols, grid);
    REQUIRE(entropy.rows == ceil_div(w.rows(), rows));
    REQUIRE(entropy.cols == ceil_div(w.cols(), cols));
    for (index_t i = 0; i < entropy.rows; ++i)
      for (index_t j = 0; j < entropy.cols; ++j) {
        const WeightView tile =
            w.block(i * rows, j * cols, std::min(rows, w.rows() - i * rows), std::min(cols, w.cols() - j * cols));
        const GardenerScore s = gardener_score(tile, whole);
        REQUIRE(entropy(i, j) == Approx(s.score()).epsilon(1e-13).margin(1e-14));
        REQUIRE(corrected(i, j) == Approx(s.entropy.miller_madow).epsilon(1e-13).margin(1e-14));
        REQUIRE(efficiency(i, j) == Approx(s.efficiency).epsilon(1e-13).margin(1e-14));
      }
  }
}

}  // namespace

TEST_CASE("a tile map of a small matrix by hand", "[entropy][smoke]") {
  const std::vector<float> w{1, 1, 5, 1, 2, 0};  // tiles 2x2: (1 1 1 2) and (5 0)
  const MatrixView<const float> view(w.data(), 2, 3);
  const TileMap entropy = tile_map(view, TileScore::entropy, 2, 2);
  CHECK(entropy.rows == 1);
  CHECK(entropy.cols == 2);
  CHECK(entropy(0, 0) == Approx(std::log(4.0) - 0.75 * std::log(3.0)).epsilon(1e-14));
  CHECK(entropy(0, 1) == Approx(std::log(2.0)).epsilon(1e-14));
  CHECK(entropy.grid.kind == ValueGrid::Kind::fp16);
  CHECK(tile_map(view, TileScore::abs_mean, 2, 2).values == std::vector<double>{1.25, 2.5});
  CHECK(tile_map(view, TileScore::abs_max, 2, 2).values == std::vector<double>{2, 5});
  CHECK(tile_map(view, TileScore::l2, 2, 2)(0, 0) == Approx(std::sqrt(7.0)).epsilon(1e-15));
}

TEST_CASE("tiles have the entropy Gardener gives them alone, for every type and grid", "[entropy]") {
  const index_t rows = 71, cols = 67;
  std::vector<float> w = test::random_weights(rows, cols + 2, 6);
  for (std::size_t i = 0; i < 300; ++i) w[i * 11] = i % 3 == 0 ? 0.0f : -0.0f;
  w[5] = std::numeric_limits<float>::quiet_NaN();
  w[6] = -std::numeric_limits<float>::quiet_NaN();
  w[7] = std::numeric_limits<float>::infinity();
  w[8] = -std::numeric_limits<float>::infinity();
  std::vector<bf16> b;
  std::vector<fp16> h;
  for (const float v : w) {
    b.emplace_back(v);
    h.emplace_back(v);
  }
  for (const ValueGrid& grid : {ValueGrid::automatic(), ValueGrid::as_stored(), ValueGrid::bf16(), ValueGrid::e4m3(),
                                ValueGrid::integer(4), ValueGrid::integer(16)}) {
    CAPTURE(to_string(grid));
    check_against_blocks(MatrixView<const float>(w.data(), rows, cols, cols + 2), grid);
    check_against_blocks(MatrixView<const bf16>(b.data(), rows, cols, cols + 2), grid);
    check_against_blocks(MatrixView<const fp16>(h.data(), rows, cols, cols + 2), grid);
  }
}

TEST_CASE("a value that fills a tile, and large tiles, are counted right", "[entropy]") {
  std::vector<bf16> w(300 * 300, bf16(1.0f));
  w[12345] = bf16(2.0f);
  check_against_blocks(MatrixView<const bf16>(w.data(), 300, 300), ValueGrid::as_stored());
  CHECK(tile_map(MatrixView<const bf16>(w.data(), 300, 300), TileScore::entropy, 300, 300).values.size() == 1);
}

TEST_CASE("magnitude maps agree with the statistics of each tile and carry NaN", "[entropy]") {
  std::vector<float> w = test::random_weights(50, 70, 7);
  const MatrixView<const float> view(w.data(), 50, 70);
  const TileMap mean = tile_map(view, TileScore::abs_mean, 32, 32), l2 = tile_map(view, TileScore::l2, 32, 32);
  const WeightStatistics s = weight_statistics(WeightView(view.block(32, 64, 18, 6)));
  CHECK(mean(1, 2) == Approx(s.abs_mean).epsilon(1e-14));
  CHECK(l2(1, 2) == Approx(s.l2).epsilon(1e-14));
  w[0] = std::numeric_limits<float>::quiet_NaN();
  for (const TileScore score : {TileScore::abs_mean, TileScore::abs_max, TileScore::l2}) {
    CHECK(std::isnan(tile_map(view, score, 32, 32)(0, 0)));
    CHECK(std::isfinite(tile_map(view, score, 32, 32)(0, 1)));
  }
}

TEST_CASE("maps do not depend on the threads; empty matrices have empty maps; bad tiles are refused", "[entropy]") {
  const std::vector<float> w = test::random_weights(130, 90, 9);
  const MatrixView<const float> view(w.data(), 130, 90);
  const TileMap one = tile_map(view, TileScore::entropy, 16, 16);
  for (int threads = 1; threads <= 4; ++threads) {
    Execution how;
    how.threads = threads;
    CHECK(tile_map(view, TileScore::entropy, 16, 16, {}, how).values == one.values);
  }
  CHECK(tile_map(MatrixView<const float>(nullptr, 0, 5), TileScore::l2).values.empty());
  CHECK(tile_map(MatrixView<const float>(nullptr, 5, 0), TileScore::l2).values.empty());
  CHECK_THROWS_WITH(tile_map(view, TileScore::l2, 0, 4), "tile_map: tiles are 0x4, at least 1x1 needed");
  CHECK_THROWS_AS(tile_map(view, TileScore::entropy, 4, 4, ValueGrid::integer(0)), ValueError);
}
