// SPDX-License-Identifier: Apache-2.0
// prune/<pattern>+<method>/…: pruning a square layer.
// magnitude, wanda: GBps of weights read, limit_fraction of the read bandwidth at that footprint.
// sparsegpt: GOPS counts n³/3 for the Cholesky factorization, n³/3 for the triangular inverse and n³ for the updates of
// the weights; limit_fraction is the time of as many operations in our own float32 product of the same size, measured
// before, over the time taken. refit: 64 rows with masks of their own; (2/3) k³ for each, k = kept weights.
// search: 4 rows; window³ / 2 operations for the start of each window, exchanges come on top.
// armor-b<d>: one iteration (of 20,000); its six products of n² d multiply-adds. icbs-n<block>: one step by the output
// error of the layer, all of it but the scores being of the block.
#include <algorithm>
#include <exception>
#include <stdexcept>
#include <vector>

#include "blockpack/sparse.hpp"
#include "layer.hpp"
#include "limits.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::index_t;
using blockpack::MaskPattern;

enum class Method { magnitude, wanda, sparsegpt, refit, search, armor, icbs };

constexpr index_t kArmorBlock = 128, kIcbsBlock = 1024;

void prune_row(benchmark::State& state, const MaskPattern& pattern, Method method, index_t n, int threads,
               std::uint64_t seed) {
  try {
    const PinThreads pin(threads);
    const Layer& layer = Layer::shared(n, threads, seed);
    const auto size = static_cast<double>(n);
    blockpack::Execution how;
    how.threads = threads;
    if (method == Method::sparsegpt) {
      const double seconds = time_calls(state, threads, 1, [&] {
        blockpack::sparsegpt(layer.weights(), layer.gram(), pattern, layer.result(), {}, nullptr, how);
      });
      return layer.count(state, size * size * size * (2.0 / 3.0 + 1.0), seconds);
    }
    if (method == Method::armor) {
      const std::vector<double> h = layer.gram().diagonal();
      blockpack::ArmorFit<float> fit(layer.weights(), h, {.block = {kArmorBlock, kArmorBlock}}, how);
      const double start = fit.loss();
      const double seconds = time_calls(state, threads, 1, [&] {
        fit.continuous_step(how);
        fit.core_step(fit.choose_groups(how), how);
      });
      if (!(fit.loss() < start)) throw std::runtime_error("the loss has not fallen");
      return layer.count(state, 12.0 * size * size * static_cast<double>(kArmorBlock), seconds);
    }
    if (method == Method::icbs) {
      for (index_t i = 0; i < n; ++i) std::copy_n(layer.weights().row_data(i), n, layer.result().row_data(i));
      blockpack::IcbsOptions options;
      options.choice = blockpack::IcbsScore::magnitude;
      options.block = kIcbsBlock;
      options.pruned = kIcbsBlock / 2;
      options.annealing.restarts = 1;
      blockpack::Icbs icbs({{layer.result(), {}}}, blockpack::icbs_layer_model(layer.result(), layer.gram()), options,
                           how);
      time_calls(state, threads, 1, [&] { benchmark::DoNotOptimize(icbs.step(0, how)); });
      return;
    }
    const blockpack::Criterion criterion =
        method == Method::magnitude ? blockpack::magnitude() : blockpack::wanda(layer.gram());
    if (method == Method::refit) {
      constexpr index_t kRows = 64;
      const auto w = layer.weights().rows_from(0, kRows);
      const auto q = layer.result().rows_from(0, kRows);
      const blockpack::Mask mask = blockpack::prune_mask(w, criterion, pattern);
      const double seconds = time_calls(state, threads, 1, [&] {
        for (index_t i = 0; i < kRows; ++i) std::copy_n(w.row_data(i), n, q.row_data(i));
        blockpack::refit(w, layer.gram(), mask, q, {}, how);
      });
      const double kept = pattern.density * size;
      return layer.count(state, static_cast<double>(kRows) * (2.0 / 3.0) * kept * kept * kept, seconds);
    }
    if (method == Method::search) {
      constexpr index_t kRows = 4;
      const auto w = layer.weights().rows_from(0, kRows);
      const auto q = layer.result().rows_from(0, kRows);
      const blockpack::Mask mask = blockpack::prune_mask(w, criterion, pattern);
      const blockpack::MaskSearchOptions search;
      const double seconds = time_calls(state, threads, 1, [&] {
        for (index_t i = 0; i < kRows; ++i) std::copy_n(w.row_data(i), n, q.row_data(i));
        blockpack::mask_search(w, layer.gram(), mask, pattern.of, q, search, how);
      });
      const auto window = static_cast<double>(std::min(n, search.window));
      const double rounds = n > search.window ? search.rounds : 1;
      return layer.count(state, static_cast<double>(kRows) * rounds * size * window * window / 2, seconds);
    }
    const double bytes = 4.0 * size * size;
    const double seconds = time_calls(state, threads, 1, [&] {
      benchmark::DoNotOptimize(blockpack::prune_mask(layer.weights(), criterion, pattern, how));
    });
    state.counters["GBps"] = bytes / seconds * 1e-9;
    state.counters["limit_fraction"] = bytes / limits().read(bytes, threads).bytes_per_second / seconds;
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

void add_pruning_rows(Suite& suite, const Options& options) {
  struct Case {
    const char* name;
    MaskPattern pattern;
    Method method;
    index_t n;
  };
  const MaskPattern two_of_four = MaskPattern::nm(2, 4);
  for (const Case& c : {Case{"2:4+magnitude", two_of_four, Method::magnitude, 4096},
                        Case{"2:4+wanda", two_of_four, Method::wanda, 4096},
                        Case{"4:8+wanda", MaskPattern::nm(4, 8), Method::wanda, 4096},
                        Case{"row@50+wanda", MaskPattern::rows(0.5), Method::wanda, 4096},
                        Case{"layer@50+magnitude", MaskPattern::layer(0.5), Method::magnitude, 4096},
                        Case{"32x32@50+wanda", MaskPattern::blocks({32, 32}, 0.5), Method::wanda, 4096},
                        Case{"2:4+sparsegpt", two_of_four, Method::sparsegpt, 4096},
                        Case{"layer@50+sparsegpt", MaskPattern::layer(0.5), Method::sparsegpt, 4096},
                        Case{"4x1@50+sparsegpt", MaskPattern::blocks({4, 1}, 0.5), Method::sparsegpt, 4096},
                        Case{"2:4+armor-b128", two_of_four, Method::armor, 768},
                        Case{"layer@50+icbs-n1024", MaskPattern::layer(0.5), Method::icbs, 768},
                        Case{"2:4+wanda+search", two_of_four, Method::search, 512},
                        Case{"2:4+wanda+search", two_of_four, Method::search, 4096},
                        Case{"2:4+wanda+refit", two_of_four, Method::refit, 1024},
                        Case{"2:4+wanda+refit", two_of_four, Method::refit, 4096}})
    for (int threads = 1; threads <= options.max_threads; ++threads)
      suite.add(
          "prune/" + std::string(c.name) + "/blockpack/N:" + std::to_string(c.n) + "/K:" + std::to_string(c.n) +
              "/threads:" + std::to_string(threads),
          "prune/" + std::to_string(c.n) + "/" + std::to_string(threads),
          [=, seed = options.seed](benchmark::State& s) { prune_row(s, c.pattern, c.method, c.n, threads, seed); },
          c.method == Method::sparsegpt || (c.method == Method::refit && c.n > 2048) ? 1 : 0);
}

}  // namespace bench
