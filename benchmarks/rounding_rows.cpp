// SPDX-License-Identifier: Apache-2.0
// gptq/…: rounding a square layer with GPTQ. GOPS counts n³/3 for the Cholesky factorization, n³/3 for the triangular
// inverse and n³ for the updates of the weights; limit_fraction is the time of as many operations in our own float32
// product of the same size, measured before, over the time taken.
#include <exception>

#include "blockpack/quant/rounding.hpp"
#include "layer.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::index_t;

void gptq_row(benchmark::State& state, index_t n, int threads, std::uint64_t seed) {
  try {
    const PinThreads pin(threads);
    const Layer& layer = Layer::shared(n, threads, seed);
    blockpack::Execution how;
    how.threads = threads;
    const double seconds = time_calls(state, threads, 1, [&] {
      blockpack::FormatGrids<blockpack::GroupInt> grids({.bits = 4, .group_size = 32}, {n, n});
      blockpack::gptq(layer.weights(), layer.gram(), grids, layer.result(), {}, how);
    });
    const auto size = static_cast<double>(n);
    layer.count(state, size * size * size * (2.0 / 3.0 + 1.0), seconds);
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

void add_rounding_rows(Suite& suite, const Options& options) {
  for (const index_t n : {index_t{1024}, index_t{4096}})
    for (int threads = 1; threads <= options.max_threads; ++threads)
      suite.add(
          "gptq/int4-g32/blockpack/N:" + std::to_string(n) + "/K:" + std::to_string(n) +
              "/threads:" + std::to_string(threads),
          "gptq/" + std::to_string(n) + "/" + std::to_string(threads),
          [=, seed = options.seed](benchmark::State& s) { gptq_row(s, n, threads, seed); }, n > 2048 ? 1 : 0);
}

}  // namespace bench
