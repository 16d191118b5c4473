// SPDX-License-Identifier: Apache-2.0
// gated/…: y = silu(x · Gᵀ) ∘ (x · Uᵀ), the first half of a feed-forward layer, in one call (`blockpack`) and as two
// products with a matrix between them (`apart`). Weights are packed ahead; both rows have the same ones.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/recipe/codec.hpp"
#include "blockpack/recipe/registry.hpp"
#include "large_buffer.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::AnyLinear;
using blockpack::MatrixView;

struct GatedLayer {
  std::string scheme;
  AnyLinear gate, up;
};

/// The layer of that scheme; the newest is kept.
const GatedLayer& layer_of(const std::string& scheme, index_t n, index_t k, std::uint64_t seed) {
  static std::unique_ptr<GatedLayer> kept;
  if (kept == nullptr || kept->scheme != scheme) {
    kept.reset();
    LargeBuffer<float> w(n * k);
    const auto make = [&](std::uint64_t s) {
      blockpack::fill_weights(MatrixView<float>(w.data(), n, k), s);
      return blockpack::encode_matrix(*blockpack::Registry::standard().codec(scheme),
                                      MatrixView<const float>(w.data(), n, k));
    };
    kept = std::make_unique<GatedLayer>(GatedLayer{scheme, make(seed), make(seed + 1)});
  }
  return *kept;
}

void gated_row(benchmark::State& state, const std::string& scheme, bool fused, index_t m, index_t n, index_t k,
               int threads, std::uint64_t seed) {
  try {
    const GatedLayer& layer = layer_of(scheme, n, k, seed);
    LargeBuffer<float> x(m * k), up(m * n), y(m * n), wanted(m * n);
    blockpack::fill_weights(MatrixView<float>(x.data(), m, k), seed + 2, 0, {1.0f});
    const MatrixView<const float> tokens(x.data(), m, k);
    blockpack::ApplyOptions how, silu;
    how.execution.threads = silu.execution.threads = threads;
    silu.epilogue.function = blockpack::EpilogueFunction::silu;
    blockpack::ApplyOptions gated = silu;
    gated.epilogue.gate = MatrixView<const float>(up.data(), m, n);
    const auto run_apart = [&](float* dst) {
      layer.up.apply(tokens, MatrixView<float>(up.data(), m, n), how);
      layer.gate.apply(tokens, MatrixView<float>(dst, m, n), gated);
    };
    const auto run_fused = [&](float* dst) {
      layer.gate.apply_gated(layer.up, tokens, MatrixView<float>(dst, m, n), silu);
    };
    run_apart(wanted.data());
    run_fused(y.data());
    if (std::memcmp(y.data(), wanted.data(), y.size_bytes()) != 0) throw std::runtime_error("the result is wrong");
    const PinThreads pin(threads);
    const double seconds = time_calls(state, threads, 2, [&] { fused ? run_fused(y.data()) : run_apart(y.data()); });
    const double bytes = static_cast<double>(layer.gate.storage_bytes() + layer.up.storage_bytes());
    state.counters["GBps"] = (bytes + static_cast<double>(m * (k + n) * 4)) / seconds * 1e-9;
    state.counters["GOPS"] = 4.0 * static_cast<double>(m * n * k) / seconds * 1e-9;
    state.SetLabel(std::string(blockpack::to_string(layer.gate.activation_mode(m))));
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

void add_gated_rows(Suite& suite, const Options& options) {
  constexpr index_t kN = 11008, kK = 4096;
  for (const char* scheme : {"mxfp4", "q4_k", "int8-g128", "bf16"})
    for (const index_t m : {1, 8, 128, 512})
      for (const bool fused : {true, false})
        for (int threads = 1; threads <= options.max_threads; ++threads) {
          const std::string head = std::string("gated/") + scheme;
          const std::string place = "/M:" + std::to_string(m) + "/N:" + std::to_string(kN) + "/K:" + std::to_string(kK);
          suite.add(head + (fused ? "/blockpack" : "/apart") + place + "/threads:" + std::to_string(threads),
                    head + place, [=, seed = options.seed](benchmark::State& state) {
                      gated_row(state, scheme, fused, m, kN, kK, threads, seed);
                    });
        }
}

}  // namespace bench
