// SPDX-License-Identifier: Apache-2.0
#include "blockpack/quant/allocate.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/quant/hsic.hpp"
#include "quant/golden_cases.hpp"
#include "support/catch.hpp"

using namespace blockpack;

namespace {

std::vector<AllocationTensor> tensors_of(const test::GoldenCase& c) {
  const auto scores = c.array<double>("scores");
  const auto weights = c.array<std::int64_t>("n_params");
  const auto layers = c.array<std::int32_t>("layer");
  std::vector<AllocationTensor> tensors;
  for (std::size_t t = 0; t < scores.values.size(); ++t)
    tensors.push_back(
        {c.params.at("names").at(t), layers.values[t], static_cast<index_t>(weights.values[t]), scores.values[t]});
  return tensors;
}

}  // namespace

TEST_CASE("the allocator makes the choices of the reference, and the exact greedy finds better ones",
          "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : test::cases_of("greedy_l2_allocate")) {
    CAPTURE(c.id);
    const auto expected = c.array<std::int32_t>("menu_index");
    std::vector<MenuEntry> menu;
    for (const auto& entry : c.params.at("menu"))
      menu.push_back({entry.at(0), entry.at(1), noise_of_bits(entry.at(1))});
    REQUIRE(menu.front().name == c.params.at("base"));
    const std::vector<AllocationTensor> tensors = tensors_of(c);
    const double target = c.params.at("target_bpw");
    const Allocation a = allocate_bits(tensors, menu, target, {.lazy_stale = true});
    for (std::size_t t = 0; t < a.choice.size(); ++t) {
      CAPTURE(tensors[t].name);
      CHECK(static_cast<std::int32_t>(a.choice[t]) == expected.values[t]);
    }
    CHECK(a.bits_per_weight == Approx(c.params.at("achieved_bpw").get<double>()).epsilon(1e-12));
    CHECK(a.objective == Approx(c.params.at("objective").get<double>()).epsilon(1e-9));
    const Allocation exact = allocate_bits(tensors, menu, target);
    // No greedy choice is always the better one; on our inputs the exact one is.
    if (test::golden_is_ours()) CHECK(exact.objective < a.objective);
    CHECK(exact.bits_per_weight <= target);
    ++count;
  }
  REQUIRE(test::golden_complete(count, 3));
}

TEST_CASE("a budget for everything takes the best scheme, and no tensor goes without one", "[quant]") {
  const std::vector<MenuEntry> menu = {{"a", 2.0, 0.1}, {"b", 3.0, 0.03}, {"c", 4.5, 0.005}};
  const std::vector<AllocationTensor> tensors = {{"x", 0, 100, 1.0}, {"y", 0, 50, -3.0}, {"z", 7, 0, 1.0}};
  for (const bool lazy : {false, true}) {
    const Allocation all = allocate_bits(tensors, menu, 4.5, {.lazy_stale = lazy});
    CHECK(all.choice == std::vector<std::size_t>{2, 2, 0});
    CHECK(all.bits_per_weight == Approx(4.5));
    CHECK(allocate_bits(tensors, menu, 2.0, {.lazy_stale = lazy}).choice == std::vector<std::size_t>{0, 0, 0});
    const Allocation some = allocate_bits(tensors, menu, 2.7, {.lazy_stale = lazy});
    CHECK(some.choice == std::vector<std::size_t>{1, 0, 0});  // the score of y counts as 0
    CHECK(allocate_bits({}, menu, 3.0, {.lazy_stale = lazy}).choice.empty());
  }
}

TEST_CASE("the allocator refuses menus, budgets and scores that make no sense", "[quant]") {
  const std::vector<AllocationTensor> tensors = {{"x", 0, 100, 1.0}};
  CHECK_THROWS_AS(allocate_bits(tensors, {}, 3.0), ValueError);
  const std::vector<MenuEntry> falling = {{"a", 3.0, 0.1}, {"b", 3.0, 0.05}};
  CHECK_THROWS_WITH(allocate_bits(tensors, falling, 3.0), Catch::Contains("b has not more bits"));
  const std::vector<MenuEntry> one = {{"a", 3.0, 0.1}};
  CHECK_THROWS_WITH(allocate_bits(tensors, one, 2.9), Catch::Contains("below the smallest scheme"));
  const std::vector<AllocationTensor> bad = {{"x", 0, 100, std::numeric_limits<double>::quiet_NaN()}};
  CHECK_THROWS_AS(allocate_bits(bad, one, 3.0), ValueError);
  const std::vector<AllocationTensor> negative = {{"x", 0, -1, 1.0}};
  CHECK_THROWS_AS(allocate_bits(negative, one, 3.0), ShapeError);
}

TEST_CASE("HSIC scores are those of the reference", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : test::cases_of("hsic_score")) {
    CAPTURE(c.id);
    const auto x = c.array<double>("x"), y = c.array<double>("y"), z = c.array<double>("z");
    HsicOptions options;
    options.input_weight = c.params.at("lx");
    options.target_weight = c.params.at("ly");
    const HsicScore s = hsic_score(x.view(), z.view(), y.view(), options);
    const auto value = [&](const char* name) { return Approx(c.array<double>(name).values[0]).epsilon(1e-9); };
    CHECK(s.input == value("hsic_xz"));
    CHECK(s.target == value("hsic_zy"));
    CHECK(s.score == value("score"));
    CHECK(hsic_gaussian(x.view(), z.view()) == value("hsic_xz"));
    CHECK(hsic_linear(z.view(), y.view()) == value("hsic_lin_zy"));
    CHECK_THROWS_AS(hsic_score(x.view().rows_from(0, 5), z.view(), y.view()), ShapeError);
    ++count;
  }
  REQUIRE(test::golden_complete(count, 1));
}

TEST_CASE("standardized columns have mean 0 and deviation 1, constant ones are 0", "[quant]") {
  const std::vector<double> y = {1, 5, 3, 5, 8, 5};
  const auto s = standardize_columns({y.data(), 3, 2});
  CHECK(s[0] + s[2] + s[4] == Approx(0.0).margin(1e-12));
  CHECK(s[0] * s[0] + s[2] * s[2] + s[4] * s[4] == Approx(3.0));
  CHECK((s[1] == 0.0 && s[3] == 0.0 && s[5] == 0.0));
}
