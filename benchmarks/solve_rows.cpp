// SPDX-License-Identifier: Apache-2.0
// solve/least-squares-step/…: one step of a block of B columns of an M x N problem in float64, cyclic: its gradient, a
// step by 1/L_b and the residual. GBps counts the columns once, which the second pass finds in cache.
#include "blockpack/solve.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

constexpr index_t kRows = 1000, kCols = 10000;

void step_row(benchmark::State& state, index_t block_size, std::uint64_t seed) {
  try {
    const PinThreads pin(1);
    static const blockpack::DesignProblem problem = blockpack::design_problem(kRows, kCols, seed);
    blockpack::LeastSquares f(problem.a(), problem.targets);
    const double start = f.value();
    blockpack::FixedBlocks select(blockpack::make_partition(blockpack::Partition::order, f.lipschitz(), block_size),
                                  blockpack::BlockRule::cyclic);
    blockpack::BlockUpdater update(blockpack::BlockUpdate::lipschitz);
    const auto step = [&] { update(f, select(f)); };
    // The first pass finds the constants of all blocks.
    const double seconds = time_calls(state, 1, static_cast<std::size_t>(kCols / block_size), step);
    if (!(f.value() < start)) throw std::runtime_error("the objective has not fallen");
    state.counters["GBps"] = static_cast<double>(kRows * block_size) * sizeof(double) / seconds * 1e-9;
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

void add_solve_rows(Suite& suite, const Options& options) {
  for (const index_t block_size : {index_t{5}, index_t{50}})
    suite.add("solve/least-squares-step/blockpack/M:1000/N:10000/B:" + std::to_string(block_size) + "/threads:1",
              "solve/least-squares-step/" + std::to_string(block_size),
              [=, seed = options.seed](benchmark::State& s) { step_row(s, block_size, seed); });
}

}  // namespace bench
