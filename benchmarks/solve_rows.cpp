// SPDX-License-Identifier: Apache-2.0
// solve/least-squares-step/…: one step of a block of B columns of an M x N problem in float64, cyclic: its gradient, a
// step by 1/L_b and the residual. GBps counts the columns once, which the second pass finds in cache.
// solve/qcbo-anneal/…: one restart of annealing of N variables, half of them ones, and the descent after it.
#include <algorithm>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

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

void qcbo_row(benchmark::State& state, index_t n, std::uint64_t seed) {
  try {
    const PinThreads pin(1);
    std::vector<double> values(static_cast<std::size_t>(n * n));
    blockpack::Random random(seed);
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j <= i; ++j)
        values[static_cast<std::size_t>(i * n + j)] = values[static_cast<std::size_t>(j * n + i)] =
            static_cast<double>(random.normal());
    const blockpack::MatrixView<const double> q(values.data(), n, n);
    std::vector<std::uint8_t> x(static_cast<std::size_t>(n));
    std::fill_n(x.begin(), n / 2, std::uint8_t{1});
    const double start = blockpack::qcbo_descend(q, x).value;
    blockpack::QcboSolution found;
    time_calls(state, 1, 0, [&] { found = blockpack::qcbo_anneal(q, x, {.restarts = 1, .seed = seed}); });
    if (!(found.value < start)) throw std::runtime_error("annealing ends above plain descent");
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
  for (const index_t n : {index_t{256}, index_t{1024}})
    suite.add("solve/qcbo-anneal/blockpack/N:" + std::to_string(n) + "/threads:1",
              "solve/qcbo-anneal/" + std::to_string(n),
              [=, seed = options.seed](benchmark::State& s) { qcbo_row(s, n, seed); });
}

}  // namespace bench
