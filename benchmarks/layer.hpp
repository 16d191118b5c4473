// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A square layer with calibration statistics, for algorithms whose time is measured by that of as many operations in
/// our own product.

#include <benchmark/benchmark.h>

#include <memory>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"
#include "large_buffer.hpp"
#include "stopwatch.hpp"

namespace bench {

/// Weights [n, n], 512 normal tokens, their XᵀX, and the rate of our float32 product on it.
class Layer {
 public:
  using index_t = blockpack::index_t;
  static constexpr index_t kTokens = 512;

  /// The newest one, kept for the rows that follow.
  static const Layer& shared(index_t n, int threads, std::uint64_t seed) {
    static std::unique_ptr<Layer> layer;
    if (layer == nullptr || layer->n_ != n || layer->threads_ != threads) {
      layer.reset();
      layer.reset(new Layer(n, threads, seed));
    }
    return *layer;
  }

  index_t size() const noexcept { return n_; }
  blockpack::MatrixView<const float> weights() const noexcept { return {w_.data(), n_, n_}; }
  /// [kTokens, n].
  blockpack::MatrixView<const float> inputs() const noexcept { return {x_.data(), kTokens, n_}; }
  /// Memory for what becomes of the weights.
  blockpack::MatrixView<float> result() const noexcept { return {q_.data(), n_, n_}; }
  const blockpack::GramMatrix& gram() const noexcept { return h_; }

  /// GOPS, and limit_fraction: the time of as many operations in the product over the time taken.
  void count(benchmark::State& state, double operations, double seconds) const {
    state.counters["GOPS"] = operations / seconds * 1e-9;
    state.counters["limit_fraction"] = operations / product_rate_ / seconds;
  }
  /// peak_matrices: bytes in float32 matrices [n, n].
  void count_memory(benchmark::State& state, double bytes) const {
    state.counters["peak_matrices"] = bytes / (4 * static_cast<double>(n_) * static_cast<double>(n_));
  }

 private:
  Layer(index_t n, int threads, std::uint64_t seed)
      : n_(n), threads_(threads), w_(n * n), x_(kTokens * n), q_(n * n), h_(n) {
    blockpack::fill_weights({w_.data(), n, n}, seed);
    blockpack::fill_normal({x_.data(), static_cast<std::size_t>(kTokens * n)}, seed);
    h_.add(inputs());
    blockpack::ApplyOptions how;
    how.execution.threads = threads;
    how.activations = blockpack::Activations::f32;
    const auto dense = blockpack::Dense<float>::encode(weights(), {}, {}, blockpack::PackPolicy::ahead());
    dense.apply(weights(), result(), how);
    const Stopwatch watch(threads);
    dense.apply(weights(), result(), how);
    const auto size = static_cast<double>(n);
    product_rate_ = 2.0 * size * size * size / watch.seconds();
  }

  index_t n_;
  int threads_;
  LargeBuffer<float> w_, x_;
  mutable LargeBuffer<float> q_;
  blockpack::GramMatrix h_;
  double product_rate_ = 0;  ///< operations a second
};

}  // namespace bench
