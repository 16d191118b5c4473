// SPDX-License-Identifier: Apache-2.0
/// Forests: elimination and belief propagation against dense solves, partitions, the greedy choice.

#include <algorithm>
#include <cmath>
#include <vector>

#include "blockpack/solve.hpp"
#include "support/catch.hpp"

using namespace blockpack;

namespace {

/// H_bb⁻¹ r by a dense factorization.
std::vector<double> dense_solve(const Quadratic& f, Coordinates block, const std::vector<double>& r) {
  return detail::bound_of(f, block).pseudoinverse().times(r);
}

void check_solves(const Quadratic& f, Coordinates block) {
  Random random(5);
  std::vector<double> r(block.size()), exact(block.size()), belief(block.size());
  for (double& v : r) v = static_cast<double>(random.normal());
  const std::vector<double> dense = dense_solve(f, block, r);
  MessagePassing messages;
  messages.solve_forest(f.matrix(), block, r, exact);
  messages.solve_belief(f.matrix(), block, r, belief, 1e-24);
  double largest = 0.0;
  for (const double v : dense) largest = std::max(largest, std::fabs(v));
  for (std::size_t k = 0; k < r.size(); ++k) {
    CHECK(std::fabs(exact[k] - dense[k]) <= 1e-9 * largest);
    CHECK(std::fabs(belief[k] - dense[k]) <= 1e-9 * largest);
  }
}

/// Whether coordinate i closes a cycle with the block, by counting edges and trees anew.
bool is_forest(const SparseSymmetric& a, const std::vector<index_t>& block) {
  ForestBuilder forest(a);
  return std::all_of(block.begin(), block.end(), [&](index_t i) { return forest.add(i); });
}

}  // namespace

TEST_CASE("a forest is solved as a dense factorization solves it", "[solve]") {
  const LatticeProblem p = lattice_problem(7, 9, 5, 3);
  const Quadratic f(p.matrix, p.right);
  for (const Blocks& blocks : {tree_lattice(7, 9), red_black_lattice(7, 9)})
    for (const std::vector<index_t>& block : restrict_blocks(blocks, p.unknown)) check_solves(f, block);
  for (const Blocks& blocks : {forest_partition(p.matrix), color_partition(p.matrix)}) {
    std::size_t covered = 0;
    for (const std::vector<index_t>& block : blocks) {
      covered += block.size();
      check_solves(f, block);
    }
    CHECK(covered == p.unknown.size());
  }
  for (const std::vector<index_t>& block : color_partition(p.matrix))  // no edge within
    for (const index_t i : block)
      for (const auto& e : p.matrix.row(i))
        CHECK((e.col == i || std::find(block.begin(), block.end(), e.col) == block.end()));
}

TEST_CASE("the greedy forest takes by score whatever closes no cycle", "[solve]") {
  const LatticeProblem p = lattice_problem(6, 6, 4, 1);
  Quadratic f(p.matrix, p.right);
  for (const BlockRule rule : {BlockRule::gs, BlockRule::gsd, BlockRule::gsd_rows, BlockRule::random}) {
    GreedyForest select(rule);
    const Coordinates chosen = select(f);
    const std::vector<index_t> block(chosen.begin(), chosen.end());
    CHECK(is_forest(p.matrix, block));
    for (index_t i = 0; i < f.size(); ++i) {  // maximal
      if (std::binary_search(block.begin(), block.end(), i)) continue;
      std::vector<index_t> larger = block;
      larger.push_back(i);
      CHECK_FALSE(is_forest(p.matrix, larger));
    }
    check_solves(f, chosen);
  }
  CHECK_THROWS_AS(GreedyForest(BlockRule::gsq), ValueError);
}

TEST_CASE("messages refuse cycles and matrices that are not positive definite", "[solve]") {
  const std::vector<double> ring = {3, -1, -1, -1, 3, -1, -1, -1, 3}, weak = {1, -2, -2, 1};
  const std::vector<double> r = {1, 1, 1};
  std::vector<double> d(3);
  MessagePassing messages;
  const std::vector<index_t> all = {0, 1, 2};
  const SparseSymmetric a(MatrixView<const double>(ring.data(), 3, 3));
  CHECK_THROWS_WITH(messages.solve_forest(a, all, r, d), Catch::Contains("cycle"));
  messages.solve_belief(a, all, r, d, 1e-24);  // diagonally dominant
  for (const double v : d) CHECK(v == Approx(1.0));
  messages.solve_forest(a, std::span(all).first(2), std::span(r).first(2), std::span(d).first(2));
  CHECK(d[0] == Approx(0.5));
  const SparseSymmetric w(MatrixView<const double>(weak.data(), 2, 2));
  CHECK_THROWS_WITH(messages.solve_forest(w, std::span(all).first(2), std::span(r).first(2), std::span(d).first(2)),
                    Catch::Contains("positive definite"));
  const std::vector<double> b = {1, 2, 3}, design = {1, 0, 0, 1};
  Quadratic penalized(a, b, {.l1 = 1.0});
  BlockUpdater forest(BlockUpdate::forest);
  CHECK_THROWS_WITH(forest(penalized, std::span(all).first(2)), Catch::Contains("no penalty"));
  LeastSquares other(MatrixView<const double>(design.data(), 2, 2), std::span(b).first(2));
  CHECK_THROWS_WITH(forest(other, std::span(all).first(2)), Catch::Contains("Quadratic"));
}

TEST_CASE("a lattice is solved fastest by forests chosen greedily", "[solve]") {
  const LatticeProblem p = lattice_problem(20, 20, 25, 1);
  const auto run = [&](auto select, BlockUpdate update) {
    Quadratic f(p.matrix, p.right);
    const DescentTrace trace = block_descent(f, select, BlockUpdater(update), {.iterations = 40});
    for (std::size_t k = 1; k < trace.values.size(); ++k)
      REQUIRE(trace.values[k] <= trace.values[k - 1] + 1e-12 * std::fabs(trace.values[k]));
    return trace.values.back();
  };
  const double greedy = run(GreedyForest(BlockRule::gs), BlockUpdate::forest);
  const double trees =
      run(FixedBlocks(restrict_blocks(tree_lattice(20, 20), p.unknown), BlockRule::cyclic), BlockUpdate::forest);
  const double red_black =
      run(FixedBlocks(restrict_blocks(red_black_lattice(20, 20), p.unknown), BlockRule::cyclic), BlockUpdate::forest);
  const double variable = run(VariableBlocks(7, BlockRule::gs), BlockUpdate::matrix);
  CHECK(greedy < trees);
  CHECK(trees < red_black);
  CHECK(red_black < variable);
}
