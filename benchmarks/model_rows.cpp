// SPDX-License-Identifier: Apache-2.0
// model/…: a decoder of 1 G parameters with random weights that look trained, a scheme in all its matrices. prompt:n
// appends n tokens to an empty cache in one call; generate:n appends n tokens to an empty cache one after another.
// Limits: a prompt, operations of the linear layers at the peak of their arithmetic; a token, the bytes of its weights.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>

#include "blockpack/core/execution.hpp"
#include "blockpack/core/random.hpp"
#include "large_buffer.hpp"
#include "limits.hpp"
#include "model.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

constexpr index_t kPrompt = 512, kGenerated = 128;

struct Contestant {
  std::unique_ptr<Model> model;
  std::map<index_t, double> error;  ///< of the logits after so many tokens, against exact activations
};

double deviation(const std::vector<float>& a, const std::vector<float>& wanted) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double w = static_cast<double>(wanted[i]), d = static_cast<double>(a[i]) - w;
    error += d * d;
    norm += w * w;
  }
  return std::sqrt(error / norm);
}

/// What rounding activations may do to the logits. One product of activations rounded in groups of g to absmax / 127 is
/// wrong by at most √g / (127 √12) of its norm, for absmax <= √g times the root mean square; roundings are independent,
/// norms keep errors from growing, so those of the products on the way add in squares. g is 256 at most.
double tolerance(const ModelShape& shape) {
  const auto products = static_cast<double>(7 * shape.layers + 1);
  return std::sqrt(256.0) / (127.0 * std::sqrt(12.0)) * std::sqrt(products);
}

/// All implementations of one scheme with the same weights.
class Models {
 public:
  Models(const std::string& scheme, const std::vector<ModelMaker>& makers, const Options& options)
      : threads_(options.max_threads) {
    const PinThreads pin(threads_);
    for (const ModelMaker& maker : makers)
      if (maker.serves(scheme)) contestants_[maker.name].model = maker.make(scheme, shape_);
    LargeBuffer<float> w(std::max(shape_.vocab, shape_.intermediate) * shape_.hidden);
    std::uint64_t stream = options.seed;
    for (const ModelShape::Matrix m : shape_.matrices()) {
      fill(w.data(), m, ++stream);
      for (auto& [name, contestant] : contestants_) contestant.model->add({w.data(), m.n, m.k});
    }
    for (auto& [name, contestant] : contestants_) contestant.model->finish();

    blockpack::Random random(options.seed);
    for (index_t i = 0; i < kPrompt; ++i) tokens_.push_back(random.below(static_cast<std::uint32_t>(shape_.vocab)));
    check();
  }

  Contestant& get(const std::string& name) { return contestants_.at(name); }
  const ModelShape& shape() const noexcept { return shape_; }
  std::span<const index_t> tokens() const noexcept { return tokens_; }

 private:
  static void fill(float* w, ModelShape::Matrix m, std::uint64_t seed) {
    constexpr index_t kRows = 64;
    blockpack::parallel_for({}, m.n / kRows, [&](index_t block) {
      blockpack::fill_weights(blockpack::MatrixView<float>(w + block * kRows * m.k, kRows, m.k), seed, block * kRows);
    });
  }

  /// Logits after the prompt, and after the first 24 tokens of it one after another, against those of exact
  /// activations. These calls warm both sides too.
  void check() {
    std::vector<float> exact(static_cast<std::size_t>(shape_.vocab)), logits(exact.size());
    for (const bool prompt : {true, false}) {
      const std::span<const index_t> some = prompt ? tokens() : tokens().first(24);
      Model& own = *contestants_.at("blockpack").model;
      own.clear();
      own.extend_exactly(some, exact.data());
      for (auto& [name, contestant] : contestants_) {
        contestant.model->clear();
        for (std::size_t t = 0; t < some.size(); t += prompt ? some.size() : 1)
          contestant.model->extend(some.subspan(t, prompt ? some.size() : 1), logits.data(), threads_);
        contestant.error[prompt ? kPrompt : kGenerated] = deviation(logits, exact);
      }
    }
  }

  int threads_;
  ModelShape shape_;
  std::map<std::string, Contestant> contestants_;
  std::vector<index_t> tokens_;
};

/// The models of that scheme; those of the scheme before are freed first.
Models& current_models(const std::string& scheme, const std::vector<ModelMaker>& makers, const Options& options) {
  static std::unique_ptr<Models> models;
  static std::string current;
  if (current != scheme || models == nullptr) {
    models.reset();
    models = std::make_unique<Models>(scheme, makers, options);
    current = scheme;
  }
  return *models;
}

void model_row(benchmark::State& state, Models& models, const std::string& name, bool prompt, int threads) {
  Contestant& contestant = models.get(name);
  Model& model = *contestant.model;
  const index_t count = prompt ? kPrompt : kGenerated, step = prompt ? count : 1;
  const double error = contestant.error.at(count);
  if (!(error <= tolerance(models.shape())))
    throw std::runtime_error("the logits are wrong: relative error " + std::to_string(error));

  std::vector<float> logits(static_cast<std::size_t>(models.shape().vocab));
  const PinThreads pin(threads);
  const double weights = model.weight_bytes();
  double parameters = 0;
  for (const ModelShape::Matrix m : models.shape().matrices()) parameters += static_cast<double>(m.n * m.k);
  // The head sees the last token of a call alone.
  const auto head = static_cast<double>(models.shape().vocab * models.shape().hidden);
  const double operations =
      2 * (parameters * static_cast<double>(count) - head * static_cast<double>(count - count / step));
  const double bytes = weights * static_cast<double>(count / step);
  const double limit = limits().seconds(operations, model.arithmetic(step), bytes, weights, threads);
  const double seconds = time_calls(state, threads, 0, [&] {
    model.clear();
    for (index_t first = 0; first < count; first += step)
      model.extend(models.tokens().subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(step)),
                   logits.data(), threads);
  });

  state.counters["tokens_per_s"] = static_cast<double>(count) / seconds;
  state.counters["GBps"] = bytes / seconds * 1e-9;
  state.counters["GOPS"] = operations / seconds * 1e-9;
  state.counters["limit_fraction"] = limit / seconds;
  state.counters["bits_per_weight"] = 8 * weights / parameters;
  state.counters["rel_error"] = error;
  if (const double linear = model.linear_seconds(); linear >= 0) state.counters["outside"] = 1 - linear / seconds;
  const std::string path = model.path(step);
  state.SetLabel(name_of(model.arithmetic(step)) + (path.empty() ? "" : " " + path));
}

}  // namespace

void add_model_rows(Suite& suite, const Options& options) {
  std::vector<ModelMaker> makers;
  add_own_model(makers);
#if defined(BENCH_WITH_GGML)
  add_ggml_model(makers);
#endif
  for (const std::string scheme : {"mxfp4", "q4_k", "q8_0", "int8-g128"})
    for (const bool prompt : {true, false})
      for (const ModelMaker& maker : makers) {
        if (!maker.serves(scheme)) continue;
        for (int threads = 1; threads <= options.max_threads; ++threads)
          suite.add(
              "model/" + scheme + "/" + maker.name + (prompt ? "/prompt:" : "/generate:") +
                  std::to_string(prompt ? kPrompt : kGenerated) + "/threads:" + std::to_string(threads),
              "model/" + scheme,
              [=](benchmark::State& state) {
                try {
                  model_row(state, current_models(scheme, makers, options), maker.name, prompt, threads);
                } catch (const std::exception& e) {
                  state.SkipWithError(e.what());
                }
              },
              1);
      }
}

}  // namespace bench
