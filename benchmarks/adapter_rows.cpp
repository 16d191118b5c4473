// SPDX-License-Identifier: Apache-2.0
// adapters/…: what adapters add to a layer, without it. y += update(x) of 64 tokens: all of one adapter (`one`), of 16
// adapters that take turns (`spread`) or come at random (`random`), every adapter of the same form and rank. Factors
// are packed by the first call.
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/structured/adapter_bank.hpp"
#include "blockpack/structured/bone.hpp"
#include "large_buffer.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::AdapterBank;
using blockpack::AnyLinear;
using blockpack::MatrixView;
using ConstView = MatrixView<const float>;

constexpr index_t kTokens = 64, kAdapters = 16, kShards = 8;

struct Adapter {
  std::string form;  ///< lora, bdlora (column-parallel, kShards shards), bone
  index_t rank;
  bool bf16;
  index_t d;  ///< in and out
};

LargeBuffer<float> factor(index_t rows, index_t cols, std::uint64_t seed) {
  LargeBuffer<float> values(rows * cols);
  blockpack::fill_weights(MatrixView<float>(values.data(), rows, cols), seed);
  return values;
}

AnyLinear update_of(const Adapter& a, std::uint64_t seed) {
  using blockpack::bf16;
  using blockpack::Dense;
  const LargeBuffer<float> down = factor(a.rank, a.d, seed);
  const ConstView first(down.data(), a.rank, a.d);
  if (a.form == "bone") return blockpack::bone_update(first, a.d);
  const index_t up_cols = a.form == "bdlora" ? a.rank / kShards : a.rank;
  const LargeBuffer<float> up = factor(a.d, up_cols, seed + 1);
  const ConstView second(up.data(), a.d, up_cols);
  if (a.form == "bdlora") return blockpack::column_parallel_update(first, second, kShards, 0.5f);
  if (!a.bf16) return blockpack::lora_update(first, second, 0.5f);
  return blockpack::AdapterUpdate<Dense<bf16>, Dense<bf16>>(Dense<bf16>::encode(first), Dense<bf16>::encode(second),
                                                            0.5f);
}

/// The newest bank is kept for the rows of its group.
const AdapterBank& bank_of(const std::string& name, const Adapter& a, std::uint64_t seed) {
  static std::unique_ptr<AdapterBank> kept;
  static std::string kept_name;
  if (kept_name != name) {
    kept.reset();
    kept = std::make_unique<AdapterBank>(blockpack::MatrixShape{a.d, a.d});
    for (index_t i = 0; i < kAdapters; ++i) kept->add(update_of(a, seed + 2 * static_cast<std::uint64_t>(i)));
    kept_name = name;
  }
  return *kept;
}

std::vector<index_t> ids_of(const std::string& order, std::uint64_t seed) {
  std::vector<index_t> ids(kTokens);
  blockpack::Random random(seed);
  for (index_t t = 0; t < kTokens; ++t)
    ids[static_cast<std::size_t>(t)] = order == "one"      ? 0
                                       : order == "spread" ? t % kAdapters
                                                           : static_cast<index_t>(random() % kAdapters);
  return ids;
}

/// Throws unless each token got what its adapter gives it alone.
void check(const AdapterBank& bank, ConstView x, std::span<const index_t> ids, ConstView y) {
  double error = 0, norm = 0;
  std::vector<float> alone(static_cast<std::size_t>(y.cols()));
  for (index_t t = 0; t < kTokens; t += 7) {
    bank.update(ids[static_cast<std::size_t>(t)])
        .apply(x.rows_from(t, 1), MatrixView<float>(alone.data(), 1, y.cols()));
    for (index_t i = 0; i < y.cols(); ++i) {
      const double wanted = static_cast<double>(alone[static_cast<std::size_t>(i)]);
      error += (static_cast<double>(y(t, i)) - wanted) * (static_cast<double>(y(t, i)) - wanted);
      norm += wanted * wanted;
    }
  }
  if (!(std::sqrt(error / norm) < 1e-2)) throw std::runtime_error("the result is wrong");
}

void adapter_row(benchmark::State& state, const std::string& group, const Adapter& a, const std::string& order,
                 int threads, std::uint64_t seed) {
  try {
    const AdapterBank& bank = bank_of(group, a, seed);
    const std::vector<index_t> ids = ids_of(order, seed);
    LargeBuffer<float> x(kTokens * a.d), y(kTokens * a.d);
    blockpack::fill_weights(MatrixView<float>(x.data(), kTokens, a.d), seed + 99, 0, {1.0f});
    const ConstView tokens(x.data(), kTokens, a.d);
    const MatrixView<float> sums(y.data(), kTokens, a.d);
    blockpack::ApplyOptions how;
    how.execution.threads = threads;
    std::fill(y.begin(), y.end(), 0.0f);
    bank.add_to(tokens, ids, sums, how);
    check(bank, tokens, ids, sums);
    const PinThreads pin(threads);
    const double seconds = time_calls(state, threads, 3, [&] { bank.add_to(tokens, ids, sums, how); });
    state.counters["GOPS"] = 2.0 * static_cast<double>(kTokens * a.rank * a.d) *
                             (a.form == "lora"   ? 2.0
                              : a.form == "bone" ? 1.0
                                                 : 1.0 + 1.0 / kShards) /
                             seconds * 1e-9;
    const AnyLinear& update = bank.update(0);
    state.counters["GBps"] = static_cast<double>(update.storage_bytes()) *
                             static_cast<double>(order == "one" ? 1 : kAdapters) / seconds * 1e-9;
    state.SetLabel(std::string(blockpack::to_string(update.activation_mode(kTokens))));
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

void add_adapter_rows(Suite& suite, const Options& options) {
  const std::vector<Adapter> adapters = {{"lora", 16, false, 1024},   {"lora", 64, true, 1024},
                                         {"lora", 16, true, 4096},    {"lora", 64, true, 4096},
                                         {"bdlora", 64, false, 4096}, {"bone", 64, false, 4096}};
  for (const Adapter& a : adapters)
    for (const char* order : {"one", "spread", "random"})
      for (int threads = 1; threads <= options.max_threads; ++threads) {
        const std::string head = "adapters/" + a.form + "-r" + std::to_string(a.rank) + (a.bf16 ? "-bf16" : "-f32");
        const std::string place =
            "/M:" + std::to_string(kTokens) + "/N:" + std::to_string(a.d) + "/K:" + std::to_string(a.d);
        suite.add(head + "/" + order + place + "/threads:" + std::to_string(threads), head + place,
                  [=, seed = options.seed](benchmark::State& state) {
                    adapter_row(state, head + place, a, order, threads, seed);
                  });
      }
}

}  // namespace bench
