// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A byte-level language model with the layout of current decoders: token embedding, then per layer RMSNorm, causal
/// attention with rotary positions, RMSNorm, SwiGLU; the output head is the embedding again. Every matrix is an
/// AnyLinear, so the same code runs any scheme.
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

#include "blockpack/core/buffer.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "layers.hpp"

namespace example {

using blockpack::AnyLinear;
using blockpack::ApplyOptions;
using blockpack::CompressedModel;
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
  float norm_epsilon = 0, rope_theta = 0;

  /// Every matrix: the embedding, which is the head too, then the projections layer after layer.
  std::vector<DecoderMatrix> matrices() const {
    const index_t attention = heads * head_dim;
    const std::array<MatrixShape, 7> shapes = {{{attention, hidden},
                                                {attention, hidden},
                                                {attention, hidden},
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

/// blockpack::Error that names the tensor when the model lacks it or has it in another shape.
inline void require_tensor(const CompressedModel& model, const std::string& name, const std::vector<index_t>& shape) {
  const std::string hint = "; a byte-level decoder as in examples/data/bytelm is needed";
  if (!model.contains(name))
    throw blockpack::Error("'" + model.path().string() + "' is another architecture: no tensor " + name + hint);
  if (model.shape(name) != shape)
    throw blockpack::Error("'" + model.path().string() + "' is another architecture: tensor " + name +
                           " has another shape than config.json says" + hint);
}

/// The weights of the norms.
struct DecoderNorms {
  std::vector<std::vector<float>> input, post;  ///< of each layer
  std::vector<float> last;

  static DecoderNorms read(const CompressedModel& model, const DecoderConfig& config) {
    const auto vector = [&](const std::string& name) {
      require_tensor(model, name, {config.hidden});
      std::vector<float> values(static_cast<std::size_t>(config.hidden));
      model.read_rows(name, 0, MatrixView<float>(values.data(), 1, config.hidden));
      return values;
    };
    DecoderNorms norms;
    for (index_t i = 0; i < config.layers; ++i) {
      const std::string prefix = "layers." + std::to_string(i) + ".";
      norms.input.push_back(vector(prefix + "input_layernorm.weight"));
      norms.post.push_back(vector(prefix + "post_attention_layernorm.weight"));
    }
    norms.last = vector("norm.weight");
    return norms;
  }
};

class ByteDecoder {
 public:
  /// Takes the operators and norms out of a model, compressed or plain; the model's mapping stays alive with them.
  /// blockpack::Error that names the tensor when one is missing or has another shape.
  ByteDecoder(const CompressedModel& model, const DecoderConfig& config) : config_(config) {
    for (const DecoderMatrix& m : config.matrices()) {
      require_tensor(model, m.name, {m.shape.rows, m.shape.cols});
      matrices_.push_back(model.linear(m.name));
    }
    norms_ = DecoderNorms::read(model, config);
    rotary_ = RotaryTable(config.max_positions, config.head_dim, config.rope_theta);
  }

  /// The same model with another form of one matrix. Copies of a decoder share all others. blockpack::ShapeError for
  /// another shape.
  void replace(std::size_t place, AnyLinear by) {
    if (by.shape() != matrices_.at(place).shape())
      throw blockpack::ShapeError("ByteDecoder::replace: " + to_string(by.shape()) + ", " +
                                  to_string(matrices_[place].shape()) + " needed");
    matrices_[place] = std::move(by);
  }
  const AnyLinear& matrix(std::size_t place) const { return matrices_.at(place); }

  const DecoderConfig& config() const noexcept { return config_; }
  const DecoderNorms& norms() const noexcept { return norms_; }
  const RotaryTable& rotary() const noexcept { return rotary_; }

  /// Next-byte logits of several windows at once: `bytes` holds windows of `window` bytes one after another, row t of
  /// `logits` [bytes.size(), vocab] predicts the byte after byte t of its window.
  void logits(std::span<const std::uint8_t> bytes, index_t window, MatrixView<float> logits,
              const ApplyOptions& how = {}) const {
    const auto tokens = static_cast<index_t>(bytes.size());
    if (window < 1 || window > config_.max_positions || tokens % window != 0)
      throw blockpack::ShapeError("ByteDecoder: " + std::to_string(tokens) + " bytes in windows of " +
                                  std::to_string(window) + "; whole windows of at most " +
                                  std::to_string(config_.max_positions) + " needed");
    const index_t attention = config_.heads * config_.head_dim;
    Matrix x(tokens, config_.hidden), h(tokens, config_.hidden), q(tokens, attention), k(tokens, attention),
        v(tokens, attention), mixed(tokens, attention), up(tokens, config_.intermediate),
        inner(tokens, config_.intermediate);
    const std::vector<index_t> rows(bytes.begin(), bytes.end());
    matrices_[DecoderConfig::kEmbedding].decode_rows(rows, x.view());
    ApplyOptions add_to_x = how, gated = how;
    add_to_x.epilogue.residual = x.view();
    gated.epilogue.function = blockpack::EpilogueFunction::silu;
    gated.epilogue.gate = up.view();
    for (std::size_t layer = 0; layer < norms_.input.size(); ++layer) {
      const auto linear = [&](Projection p) -> const AnyLinear& { return matrices_[DecoderConfig::place(layer, p)]; };
      rms_norm(x.view(), norms_.input[layer], config_.norm_epsilon, h.view());
      linear(Projection::q).apply(h.view(), q.view(), how);
      linear(Projection::k).apply(h.view(), k.view(), how);
      linear(Projection::v).apply(h.view(), v.view(), how);
      attend(q.view(), k.view(), v.view(), window, mixed.view(), how.execution);
      linear(Projection::o).apply(mixed.view(), x.view(), add_to_x);
      rms_norm(x.view(), norms_.post[layer], config_.norm_epsilon, h.view());
      linear(Projection::up).apply(h.view(), up.view(), how);
      linear(Projection::gate).apply(h.view(), inner.view(), gated);
      linear(Projection::down).apply(inner.view(), x.view(), add_to_x);
    }
    rms_norm(x.view(), norms_.last, config_.norm_epsilon, h.view());
    matrices_[DecoderConfig::kEmbedding].apply(h.view(), logits, how);
  }

 private:
  /// Causal attention inside each window, one task per window and head; q and k are rotated in place.
  void attend(MatrixView<float> q, MatrixView<float> k, MatrixView<float> v, index_t window, MatrixView<float> mixed,
              const blockpack::Execution& execution) const {
    const index_t dim = config_.head_dim;
    blockpack::parallel_for(execution, q.rows() / window * config_.heads, [&](index_t task) {
      const index_t first = task / config_.heads * window, column = task % config_.heads * dim;
      const auto head = [&](MatrixView<float> m) { return m.block(first, column, window, dim); };
      for (index_t t = 0; t < window; ++t) {
        rotary_.rotate(q.row_data(first + t) + column, t);
        rotary_.rotate(k.row_data(first + t) + column, t);
      }
      Matrix weights(1, window);
      example::attend(head(q), head(k), head(v), weights.view(), head(mixed));
    });
  }

  DecoderConfig config_;
  std::vector<AnyLinear> matrices_;  // as DecoderConfig::matrices()
  DecoderNorms norms_;
  RotaryTable rotary_;
};

}  // namespace example
