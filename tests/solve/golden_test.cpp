// SPDX-License-Identifier: Apache-2.0
/// Every `bcd_*` case of the published code: the blocks it chose and where they led.

#include <algorithm>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "blockpack/solve.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace blockpack;

namespace {

template <class T>
test::GoldenArray<T> array(const nlohmann::json& one_case, const char* side, const char* name) {
  return test::read_npy<T>(test::golden_folder("sparsity") + one_case.at(side).at(name).at("file").get<std::string>());
}

/// Rows as sets, -1 pads.
Blocks rows_of(const test::GoldenArray<std::int64_t>& a) {
  Blocks blocks;
  for (index_t i = 0; i < a.rows; ++i) {
    blocks.emplace_back();
    for (const std::int64_t v : a.view().row(i))
      if (v >= 0) blocks.back().push_back(static_cast<index_t>(v));
    std::sort(blocks.back().begin(), blocks.back().end());
  }
  return blocks;
}

BlockRule rule_of(const std::string& name) {
  static const std::map<std::string, BlockRule> rules = {{"GS", BlockRule::gs},         {"GSL", BlockRule::gsl},
                                                         {"GSD", BlockRule::gsd},       {"GSDHb", BlockRule::gsd_rows},
                                                         {"GSQ", BlockRule::gsq},       {"IHT", BlockRule::gsq},
                                                         {"Cyclic", BlockRule::cyclic}, {"gsq-nn", BlockRule::proximal},
                                                         {"GSTree", BlockRule::gs},     {"GSLTree", BlockRule::gsd}};
  return rules.at(name);
}
BlockUpdate update_of(const std::string& name) {
  static const std::map<std::string, BlockUpdate> updates = {
      {"Lb", BlockUpdate::lipschitz},   {"Hb", BlockUpdate::matrix},       {"LA", BlockUpdate::backtracking},
      {"LS", BlockUpdate::newton},      {"Lb-NN", BlockUpdate::lipschitz}, {"TMP-NN", BlockUpdate::two_metric},
      {"bpExact", BlockUpdate::forest}, {"bpGabp", BlockUpdate::belief}};
  return updates.at(name);
}
Partition partition_of(const std::string& name) {
  static const std::map<std::string, Partition> kinds = {
      {"Order", Partition::order}, {"Sort", Partition::sort}, {"Avg", Partition::average}};
  return kinds.at(name);
}

/// Blocks of the unlabelled nodes of the 6 x 7 lattice.
Blocks lattice_blocks(const std::string& selection, const nlohmann::json& one_case) {
  const std::vector<double> y = array<double>(one_case, "inputs", "y").values;
  std::vector<index_t> unknown;
  for (std::size_t i = 0; i < y.size(); ++i)
    if (y[i] == 0.0) unknown.push_back(static_cast<index_t>(i));
  return restrict_blocks(selection == "RedBlackTree" ? red_black_lattice(6, 7) : tree_lattice(6, 7), unknown);
}

/// Blocks of as many coordinates, in which those that differ would not move.
template <class F>
void require_same_but_ties(const F& f, const std::vector<double>& g, const std::vector<index_t>& ours,
                           const std::vector<index_t>& expected) {
  REQUIRE(ours.size() == expected.size());
  std::vector<index_t> differ;
  std::set_symmetric_difference(ours.begin(), ours.end(), expected.begin(), expected.end(), std::back_inserter(differ));
  const double scale = *std::max_element(f.x().begin(), f.x().end());
  for (const index_t i : differ) {
    const auto c = static_cast<std::size_t>(i);
    REQUIRE(std::fabs(f.penalty().minimizer(f.x()[c], g[c], f.lipschitz()[c]) - f.x()[c]) <= 1e-12 * scale);
  }
}

/// The greedy forest. Gradients are 0 where b is, at the start, and 0 up to rounding in the block of the step before,
/// which was solved exactly: rounding, or the sort of the published code, orders these. All others come before them, so
/// blocks may differ in them alone, and the recorded one is the forest in which of them the expected ones come first.
template <class F>
void require_greedy_forest(const F& f, const std::vector<double>& g, bool scaled, const std::vector<index_t>& ours,
                           const std::vector<index_t>& expected) {
  if constexpr (std::is_same_v<F, Quadratic>) {
    const double largest = std::fabs(
        *std::max_element(g.begin(), g.end(), [](double a, double b) { return std::fabs(a) < std::fabs(b); }));
    std::vector<index_t> differ;
    std::set_symmetric_difference(ours.begin(), ours.end(), expected.begin(), expected.end(),
                                  std::back_inserter(differ));
    for (const index_t i : differ) REQUIRE(std::fabs(g[static_cast<std::size_t>(i)]) <= 1e-12 * largest);
    std::vector<double> falling(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      falling[i] = -std::fabs(g[i]) / (scaled ? std::sqrt(f.lipschitz()[i]) : 1.0);
      if (std::fabs(g[i]) <= 1e-12 * largest)
        falling[i] = std::binary_search(expected.begin(), expected.end(), static_cast<index_t>(i)) ? 0.0 : 1.0;
    }
    ForestBuilder forest(f.matrix());
    for (const index_t i : detail::rising_order(falling)) forest.add(i);
    std::vector<index_t> block = forest.block();
    std::sort(block.begin(), block.end());
    REQUIRE(block == expected);
  } else {
    FAIL("a forest of another objective");
  }
}

template <class F>
void check_run(F f, const nlohmann::json& one_case) {
  const nlohmann::json& params = one_case.at("params");
  const auto selection = params.at("selection").get<std::string>(),
             partition = params.at("partition").get<std::string>();
  const auto block_size = params.at("block_size").get<index_t>();
  const double f_rel = one_case.at("tolerance").at("f_rel"), x_abs = one_case.at("tolerance").at("x_abs");

  const std::vector<double> lipschitz = array<double>(one_case, "outputs", "lipschitz").values;
  REQUIRE(lipschitz.size() == f.lipschitz().size());
  for (std::size_t i = 0; i < lipschitz.size(); ++i) REQUIRE(f.lipschitz()[i] == Approx(lipschitz[i]).epsilon(1e-12));

  std::function<Coordinates(const F&)> select;
  if (selection == "RedBlackTree" || selection == "TreePartitions") {
    select = FixedBlocks(lattice_blocks(selection, one_case), BlockRule::cyclic);
  } else if (selection == "GSTree" || selection == "GSLTree") {
    if constexpr (std::is_same_v<F, Quadratic>) select = GreedyForest(rule_of(selection));
  } else if (partition == "VB") {
    select = VariableBlocks(block_size, rule_of(selection));
  } else {
    Blocks blocks = make_partition(partition_of(partition), f.lipschitz(), block_size);
    Blocks sorted = blocks;
    for (std::vector<index_t>& block : sorted) std::sort(block.begin(), block.end());
    REQUIRE(sorted == rows_of(array<std::int64_t>(one_case, "outputs", "partition")));
    select = FixedBlocks(std::move(blocks), rule_of(selection), ScoreNorm::l1);
  }

  const Blocks expected = rows_of(array<std::int64_t>(one_case, "outputs", "blocks"));
  REQUIRE(static_cast<index_t>(expected.size()) == params.at("n_iters"));
  std::size_t k = 0;
  // Follows the recorded blocks, which must be those our rule takes, but for scores that are equal up to rounding: the
  // published code leaves their order to its sort, we take the lowest index.
  const auto replay = [&](const F& at) -> Coordinates {
    CAPTURE(k);
    const Coordinates ours = select(at);
    std::vector<index_t> block(ours.begin(), ours.end());
    std::sort(block.begin(), block.end());
    std::vector<double> g(at.x().size());
    at.gradient(std::span<double>(g));
    if (selection == "gsq-nn")
      require_same_but_ties(at, g, block, expected[k]);
    else if (selection == "GSTree" || selection == "GSLTree")
      require_greedy_forest(at, g, selection == "GSLTree", block, expected[k]);
    else
      REQUIRE(block == expected[k]);
    return expected[k++];
  };
  const DescentTrace trace = block_descent(f, replay, BlockUpdater(update_of(params.at("update"))),
                                           {.iterations = params.at("n_iters").get<index_t>()});
  const std::vector<double> values = array<double>(one_case, "outputs", "f").values;
  REQUIRE(trace.values.size() == values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    CAPTURE(i);
    REQUIRE(std::fabs(trace.values[i] - values[i]) <= f_rel * std::fabs(values[i]));
  }
  const std::vector<double> x = array<double>(one_case, "outputs", "x").values;
  REQUIRE(x.size() == f.x().size());
  for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::fabs(f.x()[i] - x[i]) <= x_abs);
}

}  // namespace

TEST_CASE("block coordinate descent takes the blocks and the steps of the published code", "[solve][golden]") {
  std::size_t found = 0;
  for (const nlohmann::json& one_case : test::golden_cases("sparsity")) {
    const auto name = one_case.at("name").get<std::string>();
    if (name.rfind("bcd_", 0) != 0) continue;
    CAPTURE(name);
    const auto loss = one_case.at("params").at("loss").get<std::string>();
    const auto a = array<double>(one_case, "inputs", "A");
    const std::vector<double> b = array<double>(one_case, "inputs", "b").values;
    if (loss == "ls") {
      check_run(LeastSquares(a.view(), b), one_case);
    } else if (loss == "lsl1nn") {
      check_run(LeastSquares(a.view(), b, {.l1 = one_case.at("params").at("L1"), .nonnegative = true}), one_case);
    } else if (loss == "lg") {
      check_run(Logistic(a.view(), b), one_case);
    } else {
      REQUIRE(loss == "bp");
      check_run(Quadratic(SparseSymmetric(a.view()), b), one_case);
    }
    ++found;
  }
  REQUIRE(test::golden_complete(found, 23));
}
