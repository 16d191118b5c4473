// SPDX-License-Identifier: Apache-2.0
// gptq/…: rounding a square layer with GPTQ. GOPS counts n³/3 for the Cholesky factorization, n³/3 for the triangular
// inverse and n³ for the updates of the weights; limit_fraction is the time of as many operations in our own float32
// product of the same size, measured before, over the time taken.
#include <memory>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/quant/rounding.hpp"
#include "large_buffer.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::index_t;

/// A layer of n x n with calibration statistics, and the rate of our float32 product on it.
struct Layer {
  index_t n;
  LargeBuffer<float> w, q;
  blockpack::GramMatrix h;
  double product_rate = 0;  ///< operations a second

  Layer(index_t size, int threads, std::uint64_t seed) : n(size), w(n * n), q(n * n), h(n) {
    blockpack::fill_weights({w.data(), n, n}, seed);
    constexpr index_t kTokens = 512;
    LargeBuffer<float> x(kTokens * n);
    blockpack::fill_normal({x.data(), static_cast<std::size_t>(kTokens * n)}, seed);
    h.add({x.data(), kTokens, n});
    blockpack::ApplyOptions how;
    how.execution.threads = threads;
    how.activations = blockpack::Activations::f32;
    const auto dense = blockpack::Dense<float>::encode(blockpack::MatrixView<const float>(w.data(), n, n), {}, {},
                                                       blockpack::PackPolicy::ahead());
    const blockpack::MatrixView<const float> tokens(w.data(), n, n);
    const blockpack::MatrixView<float> y(q.data(), n, n);
    dense.apply(tokens, y, how);
    const Stopwatch watch(threads);
    dense.apply(tokens, y, how);
    const double seconds = watch.seconds();
    const auto size_of = static_cast<double>(n);
    product_rate = 2.0 * size_of * size_of * size_of / seconds;
  }
};

void gptq_row(benchmark::State& state, index_t n, int threads, std::uint64_t seed) {
  try {
    const PinThreads pin(threads);
    static std::unique_ptr<Layer> layer;
    static int layer_threads = 0;
    if (layer == nullptr || layer->n != n || layer_threads != threads) {
      layer.reset();
      layer = std::make_unique<Layer>(n, threads, seed);
      layer_threads = threads;
    }
    blockpack::Execution how;
    how.threads = threads;
    const blockpack::MatrixView<const float> w(layer->w.data(), n, n);
    const double seconds = time_calls(state, threads, 1, [&] {
      blockpack::FormatGrids<blockpack::GroupInt> grids({.bits = 4, .group_size = 32}, {n, n});
      blockpack::gptq(w, layer->h, grids, {layer->q.data(), n, n}, {}, how);
    });
    const auto size = static_cast<double>(n);
    const double operations = size * size * size * (2.0 / 3.0 + 1.0);
    state.counters["GOPS"] = operations / seconds * 1e-9;
    state.counters["limit_fraction"] = operations / layer->product_rate / seconds;
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
