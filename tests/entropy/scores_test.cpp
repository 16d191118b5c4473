// SPDX-License-Identifier: Apache-2.0
#include "blockpack/entropy/scores.hpp"

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <set>
#include <thread>
#include <vector>

#include "blockpack/entropy/tile_map.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

MatrixView<const float> view(const std::vector<float>& v, index_t rows, index_t cols) { return {v.data(), rows, cols}; }

}  // namespace

TEST_CASE("every scorer has a name of its own, and only kurtosis and the pooled gap remove high first", "[entropy]") {
  std::set<std::string_view> names;
  for (int s = 0; s <= static_cast<int>(Scorer::nepenthe); ++s) {
    const auto scorer = static_cast<Scorer>(s);
    names.insert(scorer_info(scorer).name);
    const bool high = scorer == Scorer::kurtosis || scorer == Scorer::pooled_entropy_gap;
    CHECK((scorer_info(scorer).remove_first == RemoveFirst::high) == high);
    CHECK(scorer_info(scorer).needs_activations == (scorer >= Scorer::block_influence));
  }
  CHECK(names.size() == 15);
  CHECK(scorer_info(Scorer::nepenthe).name == "nepenthe");
  CHECK(scorer_info(Scorer::histogram_entropy).name == "histogram_entropy");
  CHECK(scorer_info(Scorer::abs_std).name == "abs_std");
}

TEST_CASE("block scores are the figures of each block", "[entropy]") {
  const std::vector<float> a = test::random_weights(40, 50, 1), b = test::random_weights(70, 30, 2);
  const std::vector<WeightBlock> blocks{std::span<const float>(a), std::span<const float>(b)};
  const WeightStatistics s = weight_statistics(blocks[1]);
  CHECK(block_scores(blocks, Scorer::weight_entropy)[1] == gardener_score(blocks[1]).score());
  CHECK(block_scores(blocks, Scorer::value_entropy)[1] == s.value_entropy);
  CHECK(block_scores(blocks, Scorer::l1)[1] == s.l1);
  CHECK(block_scores(blocks, Scorer::l2)[1] == s.l2);
  CHECK(block_scores(blocks, Scorer::abs_mean)[1] == s.abs_mean);
  CHECK(block_scores(blocks, Scorer::abs_variance)[1] == s.abs_variance);
  CHECK(block_scores(blocks, Scorer::abs_std)[1] == s.abs_std());
  CHECK(block_scores(blocks, Scorer::kurtosis)[1] == s.kurtosis_excess);
  CHECK(block_scores(blocks, Scorer::gaussian_entropy)[1] == gaussian_entropy(s.std_dev()));
  HistogramOptions bins;
  bins.bins = 256;
  CHECK(block_scores(blocks, Scorer::histogram_entropy)[1] == histogram(blocks[1], bins).entropy().plug_in);
  CHECK(block_scores(blocks, Scorer::pooled_entropy_gap)[1] == pooled_entropy_gap(blocks)(0, 1));
  CHECK_THROWS_WITH(block_scores(blocks, Scorer::block_influence),
                    "block_scores: block_influence needs activations; call the function of that name");
  CHECK(block_scores({}, Scorer::l2).empty());
}

TEST_CASE("scoring many blocks side by side gives the scores of each alone, on one kind of grid", "[entropy]") {
  const std::vector<float> w = test::random_weights(6, 1000, 4);
  std::vector<bf16> narrow(1000, bf16(1.001f));
  std::vector<WeightBlock> blocks;
  for (index_t i = 0; i < 6; ++i) blocks.emplace_back(view(w, 6, 1000).rows_from(i, 1));
  blocks.emplace_back(std::span<const bf16>(narrow));
  for (int threads = 1; threads <= 4; ++threads) {
    Execution how;
    how.threads = threads;
    double told = 0;
    how.progress = [&](double fraction) { told = fraction; };
    const std::vector<GardenerScore> scores = gardener_scores(blocks, {}, how);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      CHECK(scores[i].score() == gardener_score(blocks[i], ValueGrid::fp16()).score());
      CHECK(scores[i].grid.kind == ValueGrid::Kind::fp16);  // one block holds float32, so all are counted in fp16
    }
    CHECK(told == 1.0);
  }
}

TEST_CASE("every scorer gives the same through the caller's own threads", "[entropy]") {
  const index_t rows = test::budget(512, 96);
  const std::vector<float> w = test::random_weights(rows, 600, 5);
  std::vector<bf16> narrow;
  for (const float v : w) narrow.emplace_back(v);
  std::vector<WeightBlock> blocks{view(w, rows, 600), std::span<const bf16>(narrow)};
  Execution how;
  how.executor = [](index_t n, const std::function<void(index_t)>& f) {
    std::atomic<index_t> next{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t)
      threads.emplace_back([&] {
        for (index_t i = next++; i < n; i = next++) f(i);
      });
    for (std::thread& t : threads) t.join();
  };
  for (int s = 0; s < static_cast<int>(Scorer::block_influence); ++s) {
    const auto scorer = static_cast<Scorer>(s);
    CAPTURE(scorer_info(scorer).name);
    CHECK(block_scores(blocks, scorer, {}, how) == block_scores(blocks, scorer));
    if (scorer == Scorer::pooled_entropy_gap) continue;  // 0 for a single block
    CHECK(block_scores(std::span(blocks).first(1), scorer, {}, how)[0] == block_scores(blocks, scorer)[0]);
  }
  CHECK(gardener_score(blocks[0], ValueGrid::as_stored(), how).score() ==
        gardener_score(blocks[0], ValueGrid::as_stored()).score());
  CHECK(tile_map(blocks[1].matrices[0], TileScore::entropy, 1, 4096, {}, how).values ==
        tile_map(blocks[1].matrices[0], TileScore::entropy, 1, 4096).values);
  CHECK(knn_entropy(view(w, 64, 600), 5, how) == knn_entropy(view(w, 64, 600), 5));
}

TEST_CASE("the pooled entropy gap by hand", "[entropy]") {
  const std::vector<float> a{1, 1, 2, 2}, b{2, 2, 3, 3}, c{9, 9, 9, 9};
  const std::vector<WeightBlock> blocks{std::span<const float>(a), std::span<const float>(b),
                                        std::span<const float>(c)};
  const double ln2 = std::numbers::ln2;
  for (const ValueGrid& grid : {ValueGrid::fp16(), ValueGrid::as_stored(), ValueGrid::integer(8, 127.0)}) {
    const PooledEntropyGap gap = pooled_entropy_gap(blocks, grid);
    CHECK(gap(0, 1) == Approx(0.5 * ln2).epsilon(1e-12));  // pooled: 1/4, 1/2, 1/4
    CHECK(gap(1, 0) == gap(0, 1));
    CHECK(gap(0, 2) == Approx(-0.5 * ln2).epsilon(1e-12));
    CHECK(std::isnan(gap(2, 2)));
    CHECK(gap.mean_of_others[0] == Approx(0.0).margin(1e-15));
    CHECK(gap.mean_of_others[2] == Approx(-0.5 * ln2).epsilon(1e-12));
  }
  // Without absmax the scale is that of all blocks together, 9 / 15, so that equal values stay equal.
  CHECK(pooled_entropy_gap(blocks, ValueGrid::integer(5))(0, 1) == Approx(0.5 * ln2).epsilon(1e-12));
  CHECK(pooled_entropy_gap(std::span(blocks).first(1)).mean_of_others[0] == 0.0);
  // Blocks of different types share values.
  const std::vector<bf16> narrow{bf16(1.0f), bf16(1.0f), bf16(2.0f), bf16(2.0f)};
  const std::vector<fp16> half{fp16(2.0f), fp16(2.0f), fp16(3.0f), fp16(3.0f)};
  const std::vector<WeightBlock> mixed{std::span<const bf16>(narrow), std::span<const fp16>(half)};
  CHECK(pooled_entropy_gap(mixed)(0, 1) == Approx(0.5 * ln2).epsilon(1e-12));
}

TEST_CASE("block influence and angular distance by hand", "[entropy][smoke]") {
  const std::vector<float> x{1, 0, 0, 2, 3, 4}, y{2, 0, 5, 0, -3, -4};  // cosines 1, 0, -1
  CHECK(block_influence(view(x, 3, 2), view(y, 3, 2)).value == Approx(1.0).epsilon(1e-15));
  CHECK(block_influence(view(x, 1, 2), view(y, 1, 2)).value == Approx(0.0).margin(1e-15));
  CHECK(angular_distance(view(x, 3, 2), view(y, 3, 2)).value == Approx(1.0).epsilon(1e-15));
  CHECK(angular_distance(view(x, 3, 2), view(y, 3, 2), AngularTokens::mean).value == Approx(0.5).epsilon(1e-15));
  const std::vector<float> zero{0, 0, 1, 0};
  const CosineScore s = block_influence(view(zero, 2, 2), view(x, 2, 2));
  CHECK(s.zero_vectors == 1);
  CHECK(s.value == 1.0);
  const std::vector<float> big{3e38f, 3e38f}, small{1e-44f, 1e-44f};
  CHECK(block_influence(view(big, 1, 2), view(small, 1, 2)).value == Approx(0.0).margin(1e-12));
}

TEST_CASE("activation scores refuse states that do not match, are empty or not finite", "[entropy]") {
  std::vector<float> x{1, 2, 3, 4};
  CHECK_THROWS_WITH(block_influence(view(x, 2, 2), view(x, 1, 4)), "block_influence: after is 1x4, before is 2x2");
  CHECK_THROWS_AS(angular_distance(view(x, 0, 2), view(x, 0, 2)), ValueError);
  x[1] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(angular_distance(view(x, 2, 2), view(x, 2, 2)),
                    "angular_distance: hidden states are not finite at row 0, column 1");
}

TEST_CASE("activation scores do not depend on the threads", "[entropy]") {
  const std::vector<float> x = test::random_normal(120 * 9, 1), y = test::random_normal(120 * 9, 2);
  Execution how;
  how.threads = 1;
  const double influence = block_influence(view(x, 120, 9), view(y, 120, 9), how).value;
  const double increase = entropy_increase(view(x, 120, 9), view(y, 120, 9), {}, how);
  CHECK(increase == marginal_bin_entropy(view(y, 120, 9)).total - marginal_bin_entropy(view(x, 120, 9)).total);
  for (how.threads = 2; how.threads <= 4; ++how.threads) {
    CHECK(block_influence(view(x, 120, 9), view(y, 120, 9), how).value == influence);
    CHECK(entropy_increase(view(x, 120, 9), view(y, 120, 9), {}, how) == increase);
  }
}

TEST_CASE("EntroDrop cuts the smallest increases behind the depth of the lowest entropy", "[entropy]") {
  // H of the states: falls to index 2, then rises by 3, 1, 2 and 1.
  const std::vector<double> h{10, 7, 5, 8, 9, 11, 12};
  CHECK(entrodrop_plan(h, 2).removed == std::vector<index_t>{3, 5});
  CHECK(entrodrop_plan(h, 4).kept == std::vector<index_t>{0, 1});
  CHECK(entrodrop_plan(h, 0).kept.size() == 6);
  CHECK_THROWS_WITH(entrodrop_plan(h, 5),
                    "entrodrop_plan: count = 5, but only 4 blocks lie behind the depth of the lowest entropy, 2");
  CHECK_THROWS_AS(entrodrop_plan(std::vector<double>{1}, 0), ValueError);
  CHECK_THROWS_AS(entrodrop_plan(h, -1), ValueError);
}

TEST_CASE("NEPENTHE's score is the mean binary entropy of the rectifiers", "[entropy]") {
  NepentheScore s(4);
  CHECK(s.score() == 0.0);
  // Units: always on, always off (0 is off), half, a quarter.
  const std::vector<float> z{1, -1, 1, 1, 2, 0, -1, -1, 3, -2, 1, -1, 4, -3, -1, -1};
  s.add(view(z, 2, 4));
  s.add(MatrixView<const float>(z.data() + 8, 2, 4));
  const double quarter = 2.0 - 0.75 * std::log2(3.0);
  CHECK(s.samples() == 4);
  CHECK(s.unit_entropy(0) == 0.0);
  CHECK(s.unit_entropy(1) == 0.0);
  CHECK(s.unit_entropy(2) == 1.0);
  CHECK(s.unit_entropy(3) == Approx(quarter).epsilon(1e-14));
  CHECK(s.score() == Approx((1.0 + quarter) / 4).epsilon(1e-14));
  CHECK_THROWS_WITH(s.add(view(z, 4, 3)), "NepentheScore::add: z has 3 columns, 4 needed");
  CHECK(s.samples() == 4);
}
