// SPDX-License-Identifier: Apache-2.0
/// Rules and updates: descent, guaranteed progress, the published orderings, identification of the active set.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>
#include <stop_token>
#include <string>
#include <tuple>
#include <vector>

#include "blockpack/solve.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace blockpack;

namespace {

constexpr BlockRule kRules[] = {BlockRule::gs,       BlockRule::gsl,    BlockRule::gsd,
                                BlockRule::gsd_rows, BlockRule::gsq,    BlockRule::proximal,
                                BlockRule::cyclic,   BlockRule::random, BlockRule::lipschitz};

using Select = std::function<Coordinates(const LeastSquares&)>;

template <class F>
void require_descent(const F& start, const std::vector<BlockUpdate>& updates) {
  for (const BlockRule rule : kRules)
    for (const BlockUpdate update : updates)
      for (const bool fixed : {true, false}) {
        if (!fixed && rule == BlockRule::gsl) continue;
        CAPTURE(static_cast<int>(rule), static_cast<int>(update), fixed, start.size());
        F f = start;
        FixedBlocks of_partition(make_partition(Partition::sort, f.lipschitz(), 4), rule);
        VariableBlocks any(4, fixed ? BlockRule::gs : rule);
        const auto select = [&](const F& at) { return fixed ? of_partition(at) : any(at); };
        const DescentTrace trace = block_descent(f, select, BlockUpdater(update), {.iterations = 15});
        REQUIRE(trace.values.size() == 16);
        for (std::size_t k = 1; k < trace.values.size(); ++k)
          REQUIRE(trace.values[k] <= trace.values[k - 1] + 1e-13 * trace.values[0]);
        REQUIRE(trace.values.back() < trace.values[0]);
      }
}

/// f_k - f_{k+1} >= score / 2.
template <class F, class Selector>
void require_progress(F f, Selector select, BlockUpdate update) {
  BlockUpdater move(update);
  double value = f.value();
  for (int k = 0; k < 25; ++k) {
    const Coordinates block = select(std::as_const(f));
    move(f, block);
    const double next = f.value();
    CAPTURE(k, value, next, select.score());
    REQUIRE(select.score() >= 0.0);
    REQUIRE(value - next >= 0.5 * select.score() * (1.0 - 1e-9) - 1e-12 * value);
    value = next;
  }
}

}  // namespace

TEST_CASE("no rule and no update ever ascends", "[solve]") {
  using enum BlockUpdate;
  const DesignProblem a = design_problem(40, 33, 1);
  require_descent(LeastSquares(a.a(), a.targets), {lipschitz, matrix, backtracking, newton});
  require_descent(LeastSquares(a.a(), a.targets, {.l1 = 500.0}), {lipschitz, matrix, backtracking, newton});
  require_descent(LeastSquares(a.a(), a.targets, {.l1 = 500.0, .nonnegative = true}),
                  {lipschitz, matrix, backtracking, newton, two_metric});
  require_descent(Logistic(a.a(), a.signs), {lipschitz, matrix, backtracking, newton});
  require_descent(Logistic(a.a(), a.signs, {.l1 = 5.0}), {lipschitz, matrix, newton});
  const DesignProblem c = softmax_problem(30, 7, 4, 2);
  require_descent(Softmax(c.a(), c.labels, c.classes), {lipschitz, matrix, newton});
}

TEST_CASE("a step makes half the progress of its score at least", "[solve]") {
  const DesignProblem a = design_problem(40, 33, 3);
  const auto check = [](const auto& f) {
    const Blocks blocks = make_partition(Partition::sort, f.lipschitz(), 5);
    require_progress(f, FixedBlocks(blocks, BlockRule::gsl), BlockUpdate::lipschitz);
    require_progress(f, FixedBlocks(blocks, BlockRule::gsq), BlockUpdate::matrix);
    require_progress(f, FixedBlocks(blocks, BlockRule::gsd_rows), BlockUpdate::matrix);
    require_progress(f, VariableBlocks(5, BlockRule::gsd_rows), BlockUpdate::matrix);
    require_progress(f, VariableBlocks(1, BlockRule::proximal), BlockUpdate::lipschitz);
  };
  check(LeastSquares(a.a(), a.targets));
  check(Logistic(a.a(), a.signs));
  for (const bool nonnegative : {false, true})
    require_progress(LeastSquares(a.a(), a.targets, {.l1 = 500.0, .nonnegative = nonnegative}),
                     VariableBlocks(1, BlockRule::proximal), BlockUpdate::lipschitz);
}

TEST_CASE("rules, partitions and updates rank as published", "[solve]") {
  // Problem A, smaller; log f after 100 iterations, mean of three seeds.
  const auto run = [](const std::function<Select(const LeastSquares&, std::uint64_t)>& select, BlockUpdate update) {
    double sum = 0.0;
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      const DesignProblem p = design_problem(100, 200, seed);
      LeastSquares f(p.a(), p.targets);
      sum += std::log(block_descent(f, select(f, seed), BlockUpdater(update), {.iterations = 100}).values.back());
    }
    return sum / 3.0;
  };
  const auto fixed = [](Partition kind, BlockRule rule) {
    return [=](const LeastSquares& f, std::uint64_t seed) -> Select {
      return FixedBlocks(make_partition(kind, f.lipschitz(), 5), rule, ScoreNorm::l2, Random(seed));
    };
  };
  const auto variable = [](BlockRule rule) {
    return [=](const LeastSquares&, std::uint64_t seed) -> Select { return VariableBlocks(5, rule, Random(seed)); };
  };
  const auto lb = [&](Partition kind, BlockRule rule) { return run(fixed(kind, rule), BlockUpdate::lipschitz); };
  const double gs = lb(Partition::sort, BlockRule::gs), gsl = lb(Partition::sort, BlockRule::gsl);
  const double any_gs = run(variable(BlockRule::gs), BlockUpdate::lipschitz);
  const double any_gsd = run(variable(BlockRule::gsd), BlockUpdate::lipschitz);
  CHECK(gsl < gs);
  CHECK(gs < lb(Partition::sort, BlockRule::random));
  CHECK(gs < lb(Partition::sort, BlockRule::cyclic));
  CHECK(gsl < lb(Partition::order, BlockRule::gsl));
  CHECK(gsl < lb(Partition::average, BlockRule::gsl));
  CHECK(any_gsd < any_gs);
  CHECK(any_gsd < gsl);
  CHECK(any_gs < gs);
  CHECK(any_gs < run(variable(BlockRule::random), BlockUpdate::lipschitz));
  const double hb = run(variable(BlockRule::gsd), BlockUpdate::matrix);
  CHECK(hb < any_gsd);
  CHECK(run(variable(BlockRule::gsq), BlockUpdate::matrix) < any_gsd);
  CHECK(run(fixed(Partition::sort, BlockRule::gsq), BlockUpdate::matrix) < gsl);
}

TEST_CASE("the table of docs/solve.md", "[.][solve_table]") {
  if (std::getenv("BLOCKPACK_TABLE") == nullptr) return;  // a measurement, not a test
  const DesignProblem p = design_problem(1000, 10000, 1);
  const auto run = [&](const char* name, const Select& select, BlockUpdate update) {
    LeastSquares f(p.a(), p.targets);
    const std::vector<double> values =
        block_descent(f, select, BlockUpdater(update), {.iterations = 500, .record_blocks = false}).values;
    std::printf("| %s | %.3g | %.3g | %.3g |\n", name, values[0], values[100], values[500]);
  };
  const LeastSquares f(p.a(), p.targets);
  const auto fixed = [&](Partition kind, BlockRule rule) -> Select {
    return FixedBlocks(make_partition(kind, f.lipschitz(), 20), rule);
  };
  using enum BlockUpdate;
  run("fixed, sort, `random`, `lipschitz`", fixed(Partition::sort, BlockRule::random), lipschitz);
  run("fixed, sort, `cyclic`, `lipschitz`", fixed(Partition::sort, BlockRule::cyclic), lipschitz);
  run("fixed, sort, `gs`, `lipschitz`", fixed(Partition::sort, BlockRule::gs), lipschitz);
  run("fixed, order, `gsl`, `lipschitz`", fixed(Partition::order, BlockRule::gsl), lipschitz);
  run("fixed, average, `gsl`, `lipschitz`", fixed(Partition::average, BlockRule::gsl), lipschitz);
  run("fixed, sort, `gsl`, `lipschitz`", fixed(Partition::sort, BlockRule::gsl), lipschitz);
  run("fixed, sort, `gsl`, `backtracking`", fixed(Partition::sort, BlockRule::gsl), backtracking);
  run("variable, `gs`, `lipschitz`", VariableBlocks(20, BlockRule::gs), lipschitz);
  run("variable, `gsd`, `lipschitz`", VariableBlocks(20, BlockRule::gsd), lipschitz);
  run("fixed, sort, `gsq`, `matrix`", fixed(Partition::sort, BlockRule::gsq), matrix);
  run("variable, `gsd`, `matrix`", VariableBlocks(20, BlockRule::gsd), matrix);
  run("variable, `gsq`, `matrix`", VariableBlocks(20, BlockRule::gsq), matrix);
}

TEST_CASE("an L1 problem is identified in finitely many steps and then finished by Newton blocks", "[solve]") {
  const DesignProblem p = design_problem(60, 120, 3);
  for (const bool nonnegative : {false, true}) {
    const Penalty penalty{.l1 = 2000.0, .nonnegative = nonnegative};
    const auto run = [&](BlockUpdate update, index_t iterations) {
      LeastSquares f(p.a(), p.targets, penalty);
      const double start = optimality(f);
      index_t changed = 0, iteration = 0;
      std::vector<index_t> last;
      block_descent(f, VariableBlocks(20, BlockRule::proximal), BlockUpdater(update), {.iterations = iterations},
                    [&](const LeastSquares& at, Coordinates) {
                      ++iteration;
                      const ActiveSet set = active_set(at);
                      if (set.coordinates != last) changed = iteration;
                      last = set.coordinates;
                      return optimality(at) <= 1e-10 * start;
                    });
      const ActiveSet set = active_set(f);
      CHECK(set.delta > 0.0);
      CHECK(set.coordinates.size() >= 110);
      CHECK(set.coordinates.size() < 120);
      return std::tuple(set.coordinates, changed, iteration);
    };
    const auto [exact, exact_changed, exact_last] = run(BlockUpdate::matrix, 300);
    CHECK(exact_changed <= 10);
    CHECK(exact_last <= 30);
    const auto [found, changed, last] = run(BlockUpdate::lipschitz, 300);
    CHECK(found == exact);
    CHECK(changed < 300);
    CHECK(last == 300);
    if (nonnegative) {
      const auto [two, two_changed, two_last] = run(BlockUpdate::two_metric, 300);
      CHECK(two == exact);
      CHECK(two_last <= 30);
    }
  }
}

TEST_CASE("a quadratic with a penalty is minimized exactly", "[solve]") {
  Random random(1);
  for (int trial = 0; trial < 20; ++trial) {
    constexpr index_t n = 6;
    std::vector<double> values(8 * n), g(n), x(n);
    for (double& v : values) v = static_cast<double>(random.normal());
    for (double& v : g) v = 3.0 * static_cast<double>(random.normal());
    for (double& v : x) v = std::fabs(static_cast<double>(random.normal()));
    const LeastSquares design(MatrixView<const double>(values.data(), 8, n), std::vector<double>(8));
    std::vector<index_t> all = {0, 1, 2, 3, 4, 5};
    const detail::SquareMatrix h = detail::bound_of(design, all);
    for (const bool nonnegative : {false, true}) {
      const Penalty penalty{.l1 = 2.0, .nonnegative = nonnegative};
      const std::vector<double> u = detail::penalized_minimizer(h, g, x, penalty);
      std::vector<double> moved = u;
      for (std::size_t i = 0; i < x.size(); ++i) moved[i] -= x[i];
      const std::vector<double> image = h.times(moved);
      for (std::size_t i = 0; i < x.size(); ++i) {  // 0 in the subdifferential
        const double s = g[i] + image[i];
        if (u[i] != 0.0) {
          CHECK(std::fabs(s + std::copysign(2.0, u[i])) < 1e-9);
          CHECK((u[i] > 0.0 || !nonnegative));
        } else {
          CHECK(s >= -2.0 - 1e-9);
          CHECK((nonnegative || s <= 2.0 + 1e-9));
        }
      }
    }
  }
}

TEST_CASE("partitions cover every coordinate once", "[solve]") {
  const std::vector<double> lipschitz = {5, 1, 4, 2, 3, 2, 9};
  CHECK(make_partition(Partition::order, lipschitz, 3) == Blocks{{0, 1, 2}, {3, 4, 5}, {6}});
  CHECK(make_partition(Partition::sort, lipschitz, 3) == Blocks{{1, 3, 5}, {4, 2, 0}, {6}});
  CHECK(make_partition(Partition::average, lipschitz, 2) == Blocks{{1, 6}, {3, 0}, {5, 2}, {4}});
  CHECK(make_partition(Partition::sort, lipschitz, 100).size() == 1);
  CHECK(make_partition(Partition::sort, {}, 3).empty());
  Random random(1);
  std::set<index_t> met;
  for (const std::vector<index_t>& block : make_random_partition(10, 4, random)) met.insert(block.begin(), block.end());
  CHECK(met.size() == 10);
  CHECK_THROWS_WITH(make_partition(Partition::order, lipschitz, 0), Catch::Contains("block_size = 0"));
}

TEST_CASE("selections are deterministic, take the lowest index of ties and can be replayed", "[solve]") {
  const std::vector<double> identity = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, ones = {1, 1, 1, 1};
  const LeastSquares tied(MatrixView<const double>(identity.data(), 4, 4), ones);
  for (const BlockRule rule :
       {BlockRule::gs, BlockRule::gsd, BlockRule::gsd_rows, BlockRule::gsq, BlockRule::proximal}) {
    VariableBlocks any(2, rule);
    const Coordinates chosen = any(tied);
    CHECK(std::vector<index_t>(chosen.begin(), chosen.end()) == std::vector<index_t>{0, 1});
    FixedBlocks blocks({{2, 3}, {0, 1}}, rule);
    CHECK(blocks(tied)[0] == 2);
  }

  const DesignProblem p = design_problem(30, 20, 1);
  for (const BlockRule rule : {BlockRule::random, BlockRule::lipschitz, BlockRule::cyclic}) {
    const auto run = [&](std::uint64_t seed) {
      LeastSquares f(p.a(), p.targets);
      return block_descent(f, VariableBlocks(6, rule, Random(seed)), BlockUpdater(BlockUpdate::matrix),
                           {.iterations = 12});
    };
    const DescentTrace trace = run(1);
    CHECK(trace.values == run(1).values);
    CHECK(trace.blocks != run(2).blocks);
    LeastSquares again(p.a(), p.targets);
    const DescentTrace replayed = block_descent(again, FixedBlocks(trace.blocks, BlockRule::cyclic),
                                                BlockUpdater(BlockUpdate::matrix), {.iterations = 12});
    CHECK(replayed.values == trace.values);
    CHECK(replayed.blocks == trace.blocks);
    for (const std::vector<index_t>& block : trace.blocks) {
      CHECK(std::set<index_t>(block.begin(), block.end()).size() == block.size());
      CHECK((block.size() == 6 || rule == BlockRule::cyclic));
    }
    if (rule == BlockRule::cyclic) {  // 6 + 6 + 6 + 2: a pass
      std::set<index_t> pass;
      for (std::size_t k = 0; k < 4; ++k) pass.insert(trace.blocks[k].begin(), trace.blocks[k].end());
      CHECK(pass.size() == 20);
    }
  }

  // Lipschitz sampling: 9 : 1.
  const std::vector<double> diagonal = {3, 0, 0, 1};
  const LeastSquares f(MatrixView<const double>(diagonal.data(), 2, 2), std::span(ones).first(2));
  VariableBlocks any(1, BlockRule::lipschitz);
  FixedBlocks blocks({{0}, {1}}, BlockRule::lipschitz);
  int first_any = 0, first_fixed = 0;
  for (int k = 0; k < 2000; ++k) {
    first_any += any(f)[0] == 0;
    first_fixed += blocks(f)[0] == 0;
  }
  CHECK(first_any == Approx(1800).margin(60));
  CHECK(first_fixed == Approx(1800).margin(60));
}

TEST_CASE("columns of zeros and singular blocks stay where they are", "[solve]") {
  const std::vector<double> a = {1, 0, 1, 2, 0, 2, 3, 0, 3}, b = {1, 2, 4};
  for (const BlockUpdate update : {BlockUpdate::lipschitz, BlockUpdate::matrix, BlockUpdate::newton})
    for (const double l1 : {0.0, 0.5}) {
      LeastSquares f(MatrixView<const double>(a.data(), 3, 3), b, {.l1 = l1});
      block_descent(f, VariableBlocks(3, BlockRule::gsd), BlockUpdater(update), {.iterations = 60});
      CAPTURE(static_cast<int>(update), l1);
      CHECK(optimality(f) < 1e-6);
      CHECK(f.x()[1] == 0.0);
    }
}

TEST_CASE("a descent ends when its observer or its stop token says so", "[solve]") {
  const DesignProblem p = design_problem(20, 10, 1);
  LeastSquares f(p.a(), p.targets);
  int seen = 0;
  DescentTrace trace =
      block_descent(f, VariableBlocks(2, BlockRule::gs), BlockUpdater(BlockUpdate::matrix), {.record_blocks = false},
                    [&](const LeastSquares&, Coordinates) { return ++seen == 3; });
  CHECK(trace.values.size() == 4);
  CHECK(trace.blocks.empty());
  // A caller's own rule and step; an empty block ends the run.
  int left = 2;
  const std::vector<index_t> one = {4};
  trace = block_descent(
      f, [&](const LeastSquares&) { return --left < 0 ? Coordinates() : Coordinates(one); },
      [](LeastSquares& at, Coordinates block) { at.apply(block, std::vector<double>{0.0}); });
  CHECK(trace.values.size() == 3);
  std::stop_source source;
  source.request_stop();
  BlockDescentOptions options;
  options.execution.stop = source.get_token();
  const auto all = [&] {
    block_descent(f, VariableBlocks(2, BlockRule::gs), BlockUpdater(BlockUpdate::matrix), options);
  };
  CHECK_THROWS_AS(all(), CancelledError);
  options.iterations = -1;
  CHECK_THROWS_WITH(all(), Catch::Contains("iterations"));
}

TEST_CASE("selectors and updates name what they cannot take", "[solve]") {
  using Catch::Matchers::Contains;
  const DesignProblem p = design_problem(20, 10, 1);
  LeastSquares f(p.a(), p.targets);
  const auto fixed = [&](Blocks blocks) { FixedBlocks(std::move(blocks), BlockRule::gs)(f); };
  CHECK_THROWS_WITH(fixed({}), Contains("blocks is empty"));
  CHECK_THROWS_WITH(fixed({{0}, {}}), Contains("block 1 is empty"));
  CHECK_THROWS_WITH(fixed({{0, 10}}), Contains("block 0 holds 10, below 10 needed"));
  CHECK_THROWS_WITH(fixed({{-1}}), Contains("holds -1"));
  CHECK_THROWS_WITH(fixed({{1, 2}, {3, 3}}), Contains("block 1 holds 3 twice"));
  CHECK_THROWS_WITH(VariableBlocks(0, BlockRule::gs), Contains("block_size = 0"));
  CHECK_THROWS_WITH(VariableBlocks(2, BlockRule::gsl), Contains("gsl needs fixed blocks"));
  CHECK_THROWS_WITH(VariableBlocks(11, BlockRule::gs)(f), Contains("block_size = 11, at most 10"));
  const std::vector<index_t> block = {0};
  CHECK_THROWS_WITH(BlockUpdater(BlockUpdate::two_metric)(f, block), Contains("nonnegative"));
}

TEST_CASE("Adam's first step is its learning rate and it reaches a minimum", "[solve]") {
  double x = 3.0, m = 0.0, v = 0.0;
  Adam<double>({.learning_rate = 0.1}, 1).update(2.0 * x, x, m, v);
  CHECK(x == Approx(2.9).epsilon(1e-8));
  for (int k = 2; k <= 1000; ++k) Adam<double>({.learning_rate = 0.1}, k).update(2.0 * x, x, m, v);
  CHECK(std::fabs(x) < 1e-3);
}

TEST_CASE("a line search interpolates, halves what is no number and ends without descent", "[solve]") {
  CHECK(interpolating_line_search(1.0, -1.0, [](double t) { return (1.0 - t) * (1.0 - t); }) == 1.0);
  // 1 - t + 4 t² is exact for the parabola.
  CHECK(interpolating_line_search(1.0, -1.0, [](double t) { return 1.0 - t + 4.0 * t * t; }) == Approx(0.125));
  CHECK(interpolating_line_search(1.0, -1.0, [](double t) { return t > 0.3 ? std::nan("") : 1.0 - t; }) == 0.25);
  CHECK(interpolating_line_search(1.0, -1.0, [](double) { return 2.0; }) == 0.0);
  // Not met by the parabola: the cubics follow.
  const auto steep = [](double t) { return 1.0 - t + 40.0 * t * t * t * t; };
  const double t = interpolating_line_search(1.0, -1.0, steep);
  CHECK(t > 0.0);
  CHECK(steep(t) < 1.0);
}

TEST_CASE("the program of docs/solve.md is this one", "[solve]") {
  const DesignProblem p = design_problem(30, 40, 1);
  const MatrixView<const double> a = p.a();
  const std::vector<double>& b = p.targets;
  // clang-format off
LeastSquares f(a, b, {.l1 = 2.0, .nonnegative = true});  // 1/2 ||A x - b||² + 2 Σ x, x >= 0
const DescentTrace trace = block_descent(f, VariableBlocks(20, BlockRule::proximal), BlockUpdater(BlockUpdate::matrix),
                                         {.iterations = 100},
                                         [](const LeastSquares& at, Coordinates) { return optimality(at) < 1e-6; });
const ActiveSet zeros = active_set(f);  // what the penalty holds at 0, and how firmly
  // clang-format on
  CHECK(trace.values.size() < 101);
  CHECK(zeros.delta > 0.0);
  const std::string source = test::read_file(std::string(BLOCKPACK_SOURCE_DIR) + "/tests/solve/descent_test.cpp");
  const std::string page = test::read_file(std::string(BLOCKPACK_SOURCE_DIR) + "/docs/solve.md"), fence = "```cpp\n";
  const std::size_t at = page.find(fence) + fence.size();
  CHECK(source.find(page.substr(at, page.find("```", at) - at)) != std::string::npos);
}
