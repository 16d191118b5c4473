// SPDX-License-Identifier: Apache-2.0
// auto: targets: the exact choice of schemes within a budget, and recipes that hold a target.
#include "blockpack/recipe/auto_plan.hpp"

#include <algorithm>

#include "blockpack/core/random.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "recipe/model_support.hpp"
#include "support/catch.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

TEST_CASE("the choice of entries is the best of all choices", "[recipe]") {
  Random random(1);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<std::vector<PlanEntry>> tensors(5);
    for (auto& entries : tensors)
      for (int e = 0; e < 4; ++e)
        entries.push_back({static_cast<double>(1 + random.below(64)), static_cast<double>(random.uniform())});
    const double budget = 128;  // a grain divides every number of bits
    double best = 1e9, smallest = 1e9;
    for (int code = 0; code < 1024; ++code) {
      double bits = 0, loss = 0;
      for (std::size_t t = 0; t < 5; ++t) {
        const PlanEntry& e = tensors[t][static_cast<std::size_t>(code >> (2 * t) & 3)];
        bits += e.bits;
        loss += e.loss;
      }
      smallest = std::min(smallest, bits);
      if (bits <= budget) best = std::min(best, loss);
    }
    if (smallest > budget) {
      CHECK_THROWS_AS(choose_entries(tensors, budget), ValueError);
      continue;
    }
    const std::vector<std::size_t> choice = choose_entries(tensors, budget);
    double bits = 0, loss = 0;
    for (std::size_t t = 0; t < 5; ++t) {
      bits += tensors[t][choice[t]].bits;
      loss += tensors[t][choice[t]].loss;
    }
    CHECK(bits <= budget);
    CHECK(loss == Approx(best));
  }
  const std::vector<std::vector<PlanEntry>> bad = {{{1, -1}}}, none = {{}};
  CHECK_THROWS_AS(choose_entries(bad, 10), ValueError);
  CHECK_THROWS_AS(choose_entries(none, 10), ValueError);
  CHECK(choose_entries({}, 0).empty());
}

TEST_CASE("a target in a recipe becomes a scheme per tensor within its budget", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const Recipe recipe = Recipe::parse(R"({"keep": ["b.weight"], "default": "auto:4.70bpw"})");
  CHECK(recipe.default_scheme == "auto:4.7bpw");
  CHECK(has_auto(recipe));
  AutoPlanOptions options;
  options.menu = {"int2-g32", "int4-g32", "int8-g32"};
  // The loss says that one tensor alone matters.
  options.loss = [](std::string_view tensor, const AnyLinear& candidate) {
    return tensor == "layers.0.c.weight" ? 1.0 / static_cast<double>(candidate.storage_bytes()) : 0.0;
  };
  std::vector<double> told;
  options.execution.progress = [&](double fraction) { told.push_back(fraction); };
  const Recipe resolved = resolve_auto(folder / "in", recipe, options);
  CHECK(told.size() > 2);
  CHECK(told.back() == 1.0);
  CHECK(std::is_sorted(told.begin(), told.end()));
  CHECK_FALSE(has_auto(resolved));
  CHECK(Recipe::parse(resolved.to_json()).to_json() == resolved.to_json());
  const CompressReport report = compress_model(folder / "in", resolved, folder / "out");
  CHECK(report.bits_per_weight() <= 4.7);
  const CompressedModel model = CompressedModel::open(folder / "out");
  CHECK(model.find_compressed("layers.0.c.weight")->scheme == "int8-g32");
  CHECK(model.find_compressed("b.weight") == nullptr);

  // Without any loss given it is the squared error, and a compressed file names the plan.
  compress_model(folder / "in", Recipe::parse("auto:5bpw"), folder / "plain");
  const CompressedModel plain = CompressedModel::open(folder / "plain");
  CHECK(plain.recipe().find("auto:") == std::string::npos);
  CHECK(plain.find_compressed("a.weight") != nullptr);
  CHECK_THROWS_AS(resolve_auto(folder / "in", Recipe::parse("auto:1bpw")), ValueError);
  CHECK_THROWS_AS(Registry::standard().codec("auto:3bpw"), FormatError);
}

}  // namespace
}  // namespace blockpack
