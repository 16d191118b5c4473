// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Block coordinate descent: choose a block, move it, again.
///
///     LeastSquares f(a, b);
///     const DescentTrace trace = block_descent(f, VariableBlocks(20, BlockRule::gsd),
///     BlockUpdater(BlockUpdate::matrix)); use(f.x(), trace.values.back());
///
/// Selector, updater and observer are anything callable: select(f) gives a block, update(f, block) moves it, observe(f,
/// block) returns true to end. A recorded run is repeated by FixedBlocks(trace.blocks, BlockRule::cyclic).

#include <algorithm>
#include <cmath>
#include <concepts>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/solve/objective.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct BlockDescentOptions {
  index_t iterations = 500;
  bool record_blocks = true;
  Execution execution = {};  ///< progress and stop; steps run on the calling thread
};

struct DescentTrace {
  std::vector<double> values;  ///< at the start and after every iteration
  Blocks blocks;               ///< of every iteration, as the selector gave them
};

/// Goes on while the selector gives a block that is not empty, the observer returns false and iterations are left.
///
/// Errors:  ValueError for negative iterations; CancelledError between two iterations; those of selector and updater.
/// Cost:    that of selector and updater, and a value() an iteration.
template <class F, class Select, class Update, class Observe>
requires std::invocable<Select&, const F&> && std::invocable<Update&, F&, Coordinates> &&
    std::predicate<Observe&, const F&, Coordinates>
        DescentTrace block_descent(F& f, Select&& select, Update&& update, const BlockDescentOptions& options,
                                   Observe&& observe) {
  if (options.iterations < 0) throw ValueError("block_descent: iterations must not be negative");
  DescentTrace trace;
  trace.values.push_back(f.value());
  for (index_t k = 0; k < options.iterations; ++k) {
    options.execution.throw_if_stopped();
    const Coordinates block = select(std::as_const(f));
    if (block.empty()) break;
    update(f, block);
    trace.values.push_back(f.value());
    if (options.record_blocks) trace.blocks.emplace_back(block.begin(), block.end());
    options.execution.report(static_cast<double>(k + 1) / static_cast<double>(options.iterations));
    if (observe(std::as_const(f), block)) break;
  }
  return trace;
}
template <class F, class Select, class Update>
DescentTrace block_descent(F& f, Select&& select, Update&& update, const BlockDescentOptions& options = {}) {
  return block_descent(f, select, update, options, [](const F&, Coordinates) { return false; });
}

/// How far x is from a minimum: max_i L_i |x_i - u_i|, u_i the minimizer of the model of one coordinate; without a
/// penalty max |g_i|. 0 at a minimum of a convex function. Cost: a gradient.
template <CurvedObjective F>
double optimality(const F& f) {
  std::vector<double> g(static_cast<std::size_t>(f.size()));
  f.gradient(std::span<double>(g));
  const Penalty penalty = f.penalty();
  double worst = 0.0;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double x = f.x()[i], l = f.lipschitz()[i];
    const double away = penalty.none() ? g[i] : l * (x - penalty.minimizer(x, g[i], l));
    worst = std::max(worst, std::fabs(away));
  }
  return worst;
}

/// The coordinates that a penalty holds at zero.
struct ActiveSet {
  std::vector<index_t> coordinates;  ///< x_i = 0
  /// How firmly: the least distance of -g_i to the border of the subdifferential of h at 0, [-l1, l1], or (-inf, l1]
  /// where x >= 0. Above 0 at a minimum: prox steps find the set after finitely many iterations, O(log(1 / delta)) for
  /// a strongly convex function. Negative: x is not a minimum. Infinite: the set is empty.
  double delta = HUGE_VAL;
};
template <Objective F>
ActiveSet active_set(const F& f) {
  std::vector<double> g(static_cast<std::size_t>(f.size()));
  f.gradient(std::span<double>(g));
  const Penalty penalty = f.penalty();
  ActiveSet set;
  for (std::size_t i = 0; i < g.size(); ++i) {
    if (f.x()[i] != 0.0) continue;
    set.coordinates.push_back(static_cast<index_t>(i));
    const double slack = penalty.l1 + (penalty.nonnegative ? g[i] : -std::fabs(g[i]));
    set.delta = std::min(set.delta, slack);
  }
  return set;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
