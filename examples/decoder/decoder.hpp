// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A language model with the layout of current decoders: token embedding, then per layer RMSNorm, causal attention with
/// rotary positions, RMSNorm, SwiGLU; the output head is the embedding again. Every matrix is an AnyLinear, so the same
/// code runs any scheme.
///
///     h = rms(x) ⊙ w_norm;  q, k, v = h Wqᵀ, h Wkᵀ, h Wvᵀ;  x += attention(rope(q), rope(k), v) Woᵀ
///     h = rms(x) ⊙ w_post;  x += (silu(h Wgᵀ) ⊙ h Wuᵀ) Wdᵀ;  logits = (rms(x) ⊙ w_final) Eᵀ

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_cache.hpp"
#include "blockpack/core/error.hpp"
#include "layers.hpp"

namespace example {

using blockpack::AnyLinear;
using blockpack::ApplyOptions;
using blockpack::MatrixShape;

/// The linear layers of a block, in the order of DecoderConfig::matrices().
enum class Projection { q, k, v, o, gate, up, down };
inline constexpr std::array<const char*, 7> kProjections = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                            "gate_proj", "up_proj", "down_proj"};

/// A matrix of the decoder by its name in the model.
struct DecoderMatrix {
  std::string name;
  MatrixShape shape;
};

struct DecoderConfig {
  index_t vocab = 0, hidden = 0, layers = 0, heads = 0, head_dim = 0, intermediate = 0, max_positions = 0;
  index_t kv_heads = 0;  ///< heads of keys and values; each serves heads / kv_heads heads of queries
  float norm_epsilon = 0, rope_theta = 0;

  /// Every matrix: the embedding, which is the head too, then the projections layer after layer.
  std::vector<DecoderMatrix> matrices() const {
    const index_t attention = heads * head_dim, shared = kv_heads * head_dim;
    const std::array<MatrixShape, 7> shapes = {{{attention, hidden},
                                                {shared, hidden},
                                                {shared, hidden},
                                                {hidden, attention},
                                                {intermediate, hidden},
                                                {intermediate, hidden},
                                                {hidden, intermediate}}};
    std::vector<DecoderMatrix> all = {{"embed_tokens.weight", {vocab, hidden}}};
    for (index_t i = 0; i < layers; ++i)
      for (std::size_t p = 0; p < kProjections.size(); ++p)
        all.push_back({"layers." + std::to_string(i) + "." + kProjections[p] + ".weight", shapes[p]});
    return all;
  }
  static constexpr std::size_t kEmbedding = 0;
  /// Places in matrices().
  static std::size_t place(std::size_t layer, Projection p) {
    return 1 + layer * kProjections.size() + static_cast<std::size_t>(p);
  }

  /// Reads `config.json`. blockpack::Error when it is missing or another architecture's.
  static DecoderConfig load(const std::filesystem::path& path) {
    std::ifstream file(path);
    if (!file) throw blockpack::Error("no config.json at '" + path.string() + "'; name its folder with --data");
    try {
      const auto json = nlohmann::json::parse(file);
      DecoderConfig c;
      if (json.at("arch") != "llama-like" || json.at("rope_layout") != "half-split" ||
          json.at("tied_embeddings") != true)
        throw blockpack::Error("'" + path.string() + "' describes another architecture than a byte-level decoder");
      const auto size = [&](const char* key) {
        const auto value = json.at(key).get<index_t>();
        if (value < 1 || value > (1 << 20))
          throw blockpack::Error(std::string(key) + " in config.json is out of range");
        return value;
      };
      c.vocab = size("vocab_size");
      c.hidden = size("hidden_size");
      c.layers = size("num_layers");
      c.heads = size("num_heads");
      c.kv_heads = c.heads;
      c.head_dim = size("head_dim");
      c.intermediate = size("intermediate_size");
      c.max_positions = size("max_positions");
      c.norm_epsilon = json.at("rms_norm_eps").get<float>();
      c.rope_theta = json.at("rope_theta").get<float>();
      if (c.head_dim % 2 != 0) throw blockpack::Error("head_dim in config.json must be even");
      return c;
    } catch (const nlohmann::json::exception& error) {
      throw blockpack::Error("'" + path.string() + "' is not a decoder's config.json: " + error.what());
    }
  }
};

/// The weights of the norms.
struct DecoderNorms {
  std::vector<std::vector<float>> input, post;  ///< of each layer
  std::vector<float> last;
};

class Decoder {
 public:
  /// `matrices` as DecoderConfig::matrices() lists them.
  Decoder(const DecoderConfig& config, std::vector<AnyLinear> matrices, DecoderNorms norms)
      : config_(config),
        matrices_(std::move(matrices)),
        norms_(std::move(norms)),
        rotary_(config.max_positions, config.head_dim, config.rope_theta) {}

  /// The same model with another form of one matrix. Copies of a decoder share all others. blockpack::ShapeError for
  /// another shape.
  void replace(std::size_t place, AnyLinear by) {
    if (by.shape() != matrices_.at(place).shape())
      throw blockpack::ShapeError("Decoder::replace: " + to_string(by.shape()) + ", " +
                                  to_string(matrices_[place].shape()) + " needed");
    matrices_[place] = std::move(by);
  }
  const AnyLinear& matrix(std::size_t place) const { return matrices_.at(place); }

  const DecoderConfig& config() const noexcept { return config_; }
  const DecoderNorms& norms() const noexcept { return norms_; }
  const RotaryTable& rotary() const noexcept { return rotary_; }

  AttentionCache make_cache() const {
    return {config_.layers, config_.kv_heads * config_.head_dim, config_.max_positions};
  }

  /// Appends tokens to those the cache holds; `logits` [1, vocab] predict what follows the last. The cost is that of
  /// the new tokens alone. blockpack::ShapeError when there are none, or more in all than max_positions.
  void extend(std::span<const index_t> tokens, AttentionCache& cache, MatrixView<float> logits,
              const ApplyOptions& how = {}) const {
    const auto count = static_cast<index_t>(tokens.size());
    if (count < 1 || count > config_.max_positions - cache.used)
      throw blockpack::ShapeError("Decoder::extend: " + std::to_string(count) + " tokens after " +
                                  std::to_string(cache.used) + ", 1 to " +
                                  std::to_string(config_.max_positions - cache.used) + " needed");
    Matrix x(count, config_.hidden), h(1, config_.hidden);
    matrices_[DecoderConfig::kEmbedding].decode_rows(tokens, x.view());
    run_layers(
        x.view(),
        [&](std::size_t layer, MatrixView<float> q, MatrixView<float> k, MatrixView<float> v, MatrixView<float> mixed) {
          attend_cached(rotary_, config_.head_dim, q, k, v, cache.used, cache.layers[layer], mixed, how);
        },
        how);
    cache.used += count;
    norm(x.view().rows_from(count - 1, 1), norms_.last, h.view(), how);
    matrices_[DecoderConfig::kEmbedding].apply(h.view(), logits, how);
  }

 protected:
  /// x [tokens, hidden] through all layers, in place; `attend(layer, q, k, v, mixed)` is theirs to give.
  template <class Attend>
  void run_layers(MatrixView<float> x, const Attend& attend, const ApplyOptions& how) const {
    const index_t tokens = x.rows(), attention = config_.heads * config_.head_dim,
                  shared = config_.kv_heads * config_.head_dim;
    Matrix h(tokens, config_.hidden), q(tokens, attention), k(tokens, shared), v(tokens, shared),
        mixed(tokens, attention), inner(tokens, config_.intermediate);
    ApplyOptions add_to_x = how, silu = how;
    add_to_x.epilogue.residual = x;
    silu.epilogue.function = blockpack::EpilogueFunction::silu;
    for (std::size_t layer = 0; layer < norms_.input.size(); ++layer) {
      const auto linear = [&](Projection p) -> const AnyLinear& { return matrices_[DecoderConfig::place(layer, p)]; };
      norm(x, norms_.input[layer], h.view(), how);
      linear(Projection::q).apply(h.view(), q.view(), how);
      linear(Projection::k).apply(h.view(), k.view(), how);
      linear(Projection::v).apply(h.view(), v.view(), how);
      attend(layer, q.view(), k.view(), v.view(), mixed.view());
      linear(Projection::o).apply(mixed.view(), x, add_to_x);
      norm(x, norms_.post[layer], h.view(), how);
      linear(Projection::gate).apply_gated(linear(Projection::up), h.view(), inner.view(), silu);
      linear(Projection::down).apply(inner.view(), x, add_to_x);
    }
  }

  void norm(MatrixView<const float> x, std::span<const float> weight, MatrixView<float> dst,
            const ApplyOptions& how) const {
    constexpr index_t kRows = 32;
    blockpack::parallel_for(how.execution, blockpack::ceil_div(x.rows(), kRows), [&](index_t block) {
      const index_t first = block * kRows, rows = std::min(kRows, x.rows() - first);
      rms_norm(x.rows_from(first, rows), weight, config_.norm_epsilon, dst.rows_from(first, rows));
    });
  }

 private:
  DecoderConfig config_;
  std::vector<AnyLinear> matrices_;  // as DecoderConfig::matrices()
  DecoderNorms norms_;
  RotaryTable rotary_;
};

}  // namespace example
