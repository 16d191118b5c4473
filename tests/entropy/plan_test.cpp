// SPDX-License-Identifier: Apache-2.0
#include "blockpack/entropy/plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace blockpack;

namespace {

using Order = std::vector<index_t>;
const double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

TEST_CASE("removal order is stable, keeps NaN for last and follows the direction", "[entropy][smoke]") {
  const std::vector<double> s{2, kNaN, 1, 2, 1};
  CHECK(removal_order(s) == Order{2, 4, 0, 3, 1});
  CHECK(removal_order(s, RemoveFirst::high) == Order{0, 3, 2, 4, 1});
  CHECK(removal_ranks(s) == Order{2, 4, 0, 3, 1});
  CHECK(removal_order({}).empty());
}

TEST_CASE("normalised scores lie in [0, 1] and are zero when all are equal", "[entropy]") {
  CHECK(normalised_scores(std::vector<double>{3, 1, 2}) == std::vector<double>{1, 0, 0.5});
  CHECK(normalised_scores(std::vector<double>{7, 7}) == std::vector<double>{0, 0});
  CHECK(normalised_scores({}).empty());
  const std::vector<double> with_nan = normalised_scores(std::vector<double>{kNaN, 4, 2});
  CHECK(std::isnan(with_nan[0]));
  CHECK(with_nan[1] == 1.0);
  const double inf = std::numeric_limits<double>::infinity();
  CHECK(normalised_scores(std::vector<double>{-inf, 1, 3, inf}) == std::vector<double>{0, 0, 1, 1});
}

TEST_CASE("the published block entropies give the published removed sets", "[entropy]") {
  // Table of the Gardener paper, blocks 1 to 12, nats; the sets count from 1 too.
  const std::vector<double> h{9.54843, 9.41702, 9.38557, 9.39459, 9.38296, 9.38941,
                              9.37754, 9.37866, 9.36123, 9.35138, 9.35394, 9.34871};
  const std::vector<std::pair<double, Order>> sets{{0.083, {12}},
                                                   {0.25, {10, 11, 12}},
                                                   {0.417, {7, 9, 10, 11, 12}},
                                                   {0.583, {5, 7, 8, 9, 10, 11, 12}},
                                                   {0.75, {3, 5, 6, 7, 8, 9, 10, 11, 12}},
                                                   {0.917, {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}};
  for (const auto& [ratio, expected] : sets) {
    PruningPlan plan = prune_ratio(h, ratio);
    CHECK(plan.removed.size() + plan.kept.size() == h.size());
    CHECK(std::is_sorted(plan.kept.begin(), plan.kept.end()));
    std::sort(plan.removed.begin(), plan.removed.end());
    for (index_t& i : plan.removed) ++i;
    CAPTURE(ratio);
    CHECK(plan.removed == expected);
  }
}

TEST_CASE("plans at the ends of the ratio, and with protected first blocks", "[entropy]") {
  const std::vector<double> s{1, 2, 3, 0};
  CHECK(prune_ratio(s, 0).removed.empty());
  CHECK(prune_ratio(s, 1).kept.empty());
  CHECK(prune_ratio(s, 0.125).removed == Order{3});  // half a block rounds up
  CHECK(prune_ratio(s, 0.12).removed.empty());
  CHECK(prune_count(s, 2, RemoveFirst::low, 1).removed == Order{3, 1});
  CHECK(prune_count(s, 2, RemoveFirst::low, 1).kept == Order{0, 2});
  CHECK(prune_ratio({}, 0.5).removed.empty());
}

TEST_CASE("mixed ranks weigh two orders, each with its direction", "[entropy]") {
  const std::vector<double> a{1, 2, 3}, b{1, 2, 3};
  CHECK(mixed_ranks(a, RemoveFirst::low, b, RemoveFirst::high, 0.25) == std::vector<double>{1.5, 1.0, 0.5});
  CHECK(mixed_ranks(a, RemoveFirst::low, b, RemoveFirst::high, 1.0) == std::vector<double>{0, 1, 2});
}

TEST_CASE("plans refuse impossible counts, ratios and mixes", "[entropy]") {
  const std::vector<double> s{1, 2, 3};
  CHECK_THROWS_WITH(prune_count(s, 4), "prune_count: count = 4, 0 to 3 needed");
  CHECK_THROWS_AS(prune_count(s, -1), ValueError);
  CHECK_THROWS_AS(prune_count(s, 3, RemoveFirst::low, 1), ValueError);
  CHECK_THROWS_AS(prune_count(s, 0, RemoveFirst::low, 4), ValueError);
  CHECK_THROWS_AS(prune_ratio(s, 1.01), ValueError);
  CHECK_THROWS_AS(prune_ratio(s, kNaN), ValueError);
  CHECK_THROWS_WITH(mixed_ranks(s, RemoveFirst::low, {}, RemoveFirst::low, 0.5),
                    "mixed_ranks: b has 0 scores, a has 3");
  CHECK_THROWS_AS(mixed_ranks(s, RemoveFirst::low, s, RemoveFirst::low, -0.1), ValueError);
}
