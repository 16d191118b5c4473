// SPDX-License-Identifier: Apache-2.0
/// The program of docs/entropy.md, and the check that the page shows what is compiled here.

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "blockpack/entropy.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

TEST_CASE("the program of the page on entropy runs", "[entropy]") {
  std::vector<bf16> narrow(64 * 64), wide(64 * 64);
  const std::vector<float> x = test::random_normal(64 * 64, 1);
  for (std::size_t i = 0; i < x.size(); ++i) {
    narrow[i] = bf16(0.5f + 0.01f * x[i]);
    wide[i] = bf16(x[i]);
  }
  const MatrixView<const bf16> query_0(narrow.data(), 64, 64), up_0(narrow.data(), 32, 128);
  const MatrixView<const bf16> query_1(wide.data(), 64, 64), up_1(wide.data(), 32, 128);
  // clang-format off
  const std::vector<WeightBlock> blocks = {{"layer 0", {query_0, up_0}}, {"layer 1", {query_1, up_1}}};
  std::vector<double> scores;
  for (const GardenerScore& s : gardener_scores(blocks)) {
    if (s.saturated) throw std::runtime_error("the grid is too fine for a ranking");
    scores.push_back(s.score());
  }
  const PruningPlan plan = prune_ratio(scores, 0.5);  // half of the blocks, the lowest entropy first
  // clang-format on
  CHECK(plan.removed == std::vector<index_t>{0});
}

TEST_CASE("the page on entropy shows the program that is compiled", "[entropy]") {
  const auto read = [](const std::string& name) {
    std::ifstream file(std::string(BLOCKPACK_SOURCE_DIR) + name, std::ios::binary);
    REQUIRE(file);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string page = read("/docs/entropy.md"), source = read("/tests/entropy/docs_test.cpp");
  const std::size_t begin = page.find("```cpp\n") + 7;
  REQUIRE(begin != std::string::npos + 7);
  const std::string shown = page.substr(begin, page.find("```", begin) - begin);
  CHECK(shown.size() > 100);
  CHECK(source.find(shown) != std::string::npos);
}
