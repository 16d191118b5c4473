// SPDX-License-Identifier: Apache-2.0
// What is fitted to a square layer with calibration: gptq/…, flexround/…, discquant/…, awq/…, ptq161/…, gram/…, and
// hsic/…, ksort/…. GOPS counts the large products: of GPTQ n³/3 for the Cholesky factorization, n³/3 for the triangular
// inverse and n³ for the updates of the weights; limit_fraction is the time of as many operations in our own float32
// product of the same size, measured before, over the time taken. peak_matrices is the memory taken on the way in
// float32 matrices [n, n], the layer and XᵀX aside.
#include <cmath>
#include <exception>
#include <string>
#include <vector>

#include "blockpack/quant/awq.hpp"
#include "blockpack/quant/hsic.hpp"
#include "blockpack/quant/ksort.hpp"
#include "blockpack/quant/ptq161.hpp"
#include "blockpack/quant/rounding.hpp"
#include "layer.hpp"
#include "peak_memory.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::index_t;

/// Something that is fitted to a layer, and how many operations its large products have.
struct FitRow {
  const char* name;
  void (*fit)(const Layer&, const blockpack::Execution&);
  double cubes;    ///< of n³
  double squares;  ///< of tokens * n²
  index_t sizes[2];
};

void fit_row(benchmark::State& state, const FitRow& row, index_t n, int threads, std::uint64_t seed) {
  try {
    const PinThreads pin(threads);
    const Layer& layer = Layer::shared(n, threads, seed);
    blockpack::Execution how;
    how.threads = threads;
    const double bytes = peak_bytes([&] { row.fit(layer, how); });
    const double seconds = time_calls(state, threads, 0, [&] { row.fit(layer, how); });
    const auto size = static_cast<double>(n);
    const double operations = size * size * (row.cubes * size + row.squares * static_cast<double>(Layer::kTokens));
    if (operations > 0) layer.count(state, operations, seconds);
    layer.count_memory(state, bytes);
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

using blockpack::GroupInt;

constexpr GroupInt kFormat{.bits = 4, .group_size = 32};
constexpr int kSteps = 20;  // of what takes hundreds

blockpack::FormatGrids<GroupInt> grids_of(const Layer& layer) { return {kFormat, {layer.size(), layer.size()}}; }

void fit_gptq(const Layer& layer, const blockpack::Execution& how) {
  auto grids = grids_of(layer);
  blockpack::gptq(layer.weights(), layer.gram(), grids, layer.result(), {}, how);
}
void fit_flexround(const Layer& layer, const blockpack::Execution& how) {
  auto grids = grids_of(layer);
  blockpack::flexround(layer.weights(), layer.gram(), grids, layer.result(), {.iterations = kSteps}, how);
}
void fit_discquant(const Layer& layer, const blockpack::Execution& how) {
  auto grids = grids_of(layer);
  blockpack::DiscQuantOptions options = blockpack::layer_form_options();
  options.steps = kSteps;
  blockpack::discquant(layer.weights(), layer.gram(), grids, layer.result(), options, how);
}
void fit_awq(const Layer& layer, const blockpack::Execution& how) {
  blockpack::EncodeOptions options;
  options.execution = how;
  blockpack::round_awq(kFormat, layer.weights(), layer.gram(), {.steps = kSteps}, {0}, options);
}
void fit_ptq161(const Layer& layer, const blockpack::Execution& how) {
  std::vector<float> statistic(static_cast<std::size_t>(layer.size()));
  for (index_t t = 0; t < Layer::kTokens; ++t)
    for (std::size_t c = 0; c < statistic.size(); ++c)
      statistic[c] = std::max(statistic[c], std::fabs(layer.inputs().row(t)[c]));
  blockpack::Ptq161Layer fitted = blockpack::ptq161_start(layer.weights(), statistic);
  blockpack::ptq161_optimise(layer.weights(), layer.inputs(), fitted, {.alternations = 2, .steps = kSteps}, how);
}
void add_gram(const Layer& layer, const blockpack::Execution& how) {
  blockpack::GramMatrix h(layer.size());
  h.add(layer.inputs(), how);
}
void order_keys(const Layer& layer, const blockpack::Execution&) {
  const auto order =
      blockpack::ksort_order(blockpack::ksort_statistic(layer.weights()), 128, blockpack::KSortMode::pairs);
  blockpack::ksort_rows(order, layer.weights(), layer.result());
}
void score_hsic(const Layer& layer, const blockpack::Execution& how) {
  blockpack::AlignedBuffer<double> x(Layer::kTokens * layer.size()), y(Layer::kTokens * 8);
  std::copy_n(layer.inputs().data(), x.size(), x.data());
  std::copy_n(layer.inputs().data(), y.size(), y.data());
  const blockpack::MatrixView<const double> view(x.data(), Layer::kTokens, layer.size());
  blockpack::hsic_score(view, view, {y.data(), Layer::kTokens, 8}, {}, how);
}

/// GPTQ: 2/3 and 1. A step of FlexRound or DiscQuant: the gradient; AWQ: the loss of each trial. PTQ1.61: three
/// products of the tokens a step. XᵀX: half of it, in double.
constexpr FitRow kFits[] = {{"gptq/int4-g32", fit_gptq, 5.0 / 3.0, 0, {1024, 4096}},
                            {"flexround/int4-g32-20-steps", fit_flexround, 2.0 * (kSteps + 1), 0, {1024, 0}},
                            {"discquant/int4-g32-20-steps", fit_discquant, 2.0 * kSteps, 0, {1024, 0}},
                            {"awq/int4-g32-20-steps", fit_awq, 2.0 * (kSteps + 1), 0, {1024, 0}},
                            {"ptq161/512-tokens-20-steps", fit_ptq161, 0, 6.0 * kSteps, {1024, 0}},
                            {"gram/512-tokens", add_gram, 0, 1, {2048, 4096}},
                            {"hsic/512-samples", score_hsic, 0, 0, {1024, 0}},
                            {"ksort/pairs-d128", order_keys, 0, 0, {4096, 0}}};

}  // namespace

void add_rounding_rows(Suite& suite, const Options& options) {
  for (const FitRow& row : kFits)
    for (const index_t n : row.sizes)
      for (int threads = 1; n > 0 && threads <= options.max_threads; ++threads)
        suite.add(
            std::string(row.name) + "/blockpack/N:" + std::to_string(n) + "/K:" + std::to_string(n) +
                "/threads:" + std::to_string(threads),
            std::string(row.name) + "/" + std::to_string(n) + "/" + std::to_string(threads),
            [&row, n, threads, seed = options.seed](benchmark::State& s) { fit_row(s, row, n, threads, seed); },
            n > 2048 ? 1 : 0);
}

}  // namespace bench
