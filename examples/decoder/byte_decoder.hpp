// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A byte-level language model with the layout of current decoders: token embedding, then per layer RMSNorm, causal
/// attention with rotary positions, RMSNorm, SwiGLU; the output head is the embedding again. Every matrix is an
/// AnyLinear, so the same code runs any scheme.
///
///     h = rms(x) ⊙ w_norm;  q, k, v = h Wqᵀ, h Wkᵀ, h Wvᵀ;  x += attention(rope(q), rope(k), v) Woᵀ
///     h = rms(x) ⊙ w_post;  x += (silu(h Wgᵀ) ⊙ h Wuᵀ) Wdᵀ;  logits = (rms(x) ⊙ w_final) Eᵀ

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/recipe/compressed_model.hpp"

namespace example {

using blockpack::AnyLinear;
using blockpack::ApplyOptions;
using blockpack::CompressedModel;
using blockpack::index_t;
using blockpack::MatrixShape;
using blockpack::MatrixView;

struct DecoderConfig {
  index_t vocab = 0, hidden = 0, layers = 0, heads = 0, head_dim = 0, intermediate = 0, max_positions = 0;
  float norm_epsilon = 0, rope_theta = 0;

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

class ByteDecoder {
 public:
  /// Takes the operators and norms out of a model, compressed or plain; the model's mapping stays alive with them.
  /// blockpack::Error that names the tensor when one is missing or has another shape.
  ByteDecoder(const CompressedModel& model, const DecoderConfig& config) : config_(config) {
    const index_t attention = config.heads * config.head_dim;
    embedding_ = matrix(model, "embed_tokens.weight", {config.vocab, config.hidden});
    for (index_t i = 0; i < config.layers; ++i) {
      const std::string prefix = "layers." + std::to_string(i) + ".";
      Layer layer;
      layer.q = matrix(model, prefix + "q_proj.weight", {attention, config.hidden});
      layer.k = matrix(model, prefix + "k_proj.weight", {attention, config.hidden});
      layer.v = matrix(model, prefix + "v_proj.weight", {attention, config.hidden});
      layer.o = matrix(model, prefix + "o_proj.weight", {config.hidden, attention});
      layer.gate = matrix(model, prefix + "gate_proj.weight", {config.intermediate, config.hidden});
      layer.up = matrix(model, prefix + "up_proj.weight", {config.intermediate, config.hidden});
      layer.down = matrix(model, prefix + "down_proj.weight", {config.hidden, config.intermediate});
      layer.input_norm = vector(model, prefix + "input_layernorm.weight", config.hidden);
      layer.post_norm = vector(model, prefix + "post_attention_layernorm.weight", config.hidden);
      layers_.push_back(std::move(layer));
    }
    final_norm_ = vector(model, "norm.weight", config.hidden);
    make_rotary_table();
  }

  const DecoderConfig& config() const noexcept { return config_; }

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
    embedding_.decode_rows(rows, x.view());
    ApplyOptions add_to_x = how, gated = how;
    add_to_x.epilogue.residual = x.view();
    gated.epilogue.function = blockpack::EpilogueFunction::silu;
    gated.epilogue.gate = up.view();
    for (const Layer& layer : layers_) {
      rms_norm(x.view(), layer.input_norm, h.view());
      layer.q.apply(h.view(), q.view(), how);
      layer.k.apply(h.view(), k.view(), how);
      layer.v.apply(h.view(), v.view(), how);
      attend(q.view(), k.view(), v.view(), window, mixed.view(), how.execution);
      layer.o.apply(mixed.view(), x.view(), add_to_x);
      rms_norm(x.view(), layer.post_norm, h.view());
      layer.up.apply(h.view(), up.view(), how);
      layer.gate.apply(h.view(), inner.view(), gated);
      layer.down.apply(inner.view(), x.view(), add_to_x);
    }
    rms_norm(x.view(), final_norm_, h.view());
    embedding_.apply(h.view(), logits, how);
  }

 private:
  struct Matrix {
    Matrix(index_t r, index_t c)
        : rows(r),
          cols(c),
          values(blockpack::AlignedBuffer<float>::uninitialized(blockpack::checked_mul(r, c, "ByteDecoder"))) {}
    MatrixView<float> view() { return {values.data(), rows, cols}; }
    index_t rows, cols;
    blockpack::AlignedBuffer<float> values;
  };
  struct Layer {
    AnyLinear q, k, v, o, gate, up, down;
    std::vector<float> input_norm, post_norm;
  };

  static AnyLinear matrix(const CompressedModel& model, const std::string& name, MatrixShape shape) {
    check(model, name, {shape.rows, shape.cols});
    return model.linear(name);
  }
  static std::vector<float> vector(const CompressedModel& model, const std::string& name, index_t size) {
    check(model, name, {size});
    std::vector<float> values(static_cast<std::size_t>(size));
    model.read_rows(name, 0, MatrixView<float>(values.data(), 1, size));
    return values;
  }
  static void check(const CompressedModel& model, const std::string& name, const std::vector<index_t>& shape) {
    const std::string hint = "; a byte-level decoder as in examples/data/bytelm is needed";
    if (!model.contains(name))
      throw blockpack::Error("'" + model.path().string() + "' is another architecture: no tensor " + name + hint);
    if (model.shape(name) != shape)
      throw blockpack::Error("'" + model.path().string() + "' is another architecture: tensor " + name +
                             " has another shape than config.json says" + hint);
  }

  void make_rotary_table() {
    const index_t half = config_.head_dim / 2;
    cosine_.resize(static_cast<std::size_t>(config_.max_positions * half));
    sine_.resize(cosine_.size());
    for (index_t p = 0; p < config_.max_positions; ++p) {
      for (index_t i = 0; i < half; ++i) {
        const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config_.head_dim);
        const double angle = static_cast<double>(p) * std::pow(static_cast<double>(config_.rope_theta), exponent);
        cosine_[static_cast<std::size_t>(p * half + i)] = static_cast<float>(std::cos(angle));
        sine_[static_cast<std::size_t>(p * half + i)] = static_cast<float>(std::sin(angle));
      }
    }
  }

  /// dst = x / sqrt(mean(x²) + epsilon) ⊙ weight, row by row.
  void rms_norm(MatrixView<const float> x, const std::vector<float>& weight, MatrixView<float> dst) const {
    for (index_t t = 0; t < x.rows(); ++t) {
      float sum = 0;
      for (const float value : x.row(t)) sum += value * value;
      const float scale = 1.0f / std::sqrt(sum / static_cast<float>(x.cols()) + config_.norm_epsilon);
      for (index_t i = 0; i < x.cols(); ++i) dst(t, i) = x(t, i) * scale * weight[static_cast<std::size_t>(i)];
    }
  }

  /// Turns the pair (i, i + half) of a head by position * theta^(-2i / head_dim).
  void rotate(float* head, index_t position) const {
    const index_t half = config_.head_dim / 2;
    const float* cosine = cosine_.data() + position * half;
    const float* sine = sine_.data() + position * half;
    for (index_t i = 0; i < half; ++i) {
      const float a = head[i], b = head[i + half];
      head[i] = a * cosine[i] - b * sine[i];
      head[i + half] = b * cosine[i] + a * sine[i];
    }
  }

  /// Causal attention inside each window, one task per window and head. Keys are transposed first, so that both
  /// products run along contiguous memory.
  void attend(MatrixView<float> q, MatrixView<float> k, MatrixView<float> v, index_t window, MatrixView<float> mixed,
              const blockpack::Execution& execution) const {
    const index_t dim = config_.head_dim;
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    blockpack::parallel_for(execution, q.rows() / window * config_.heads, [&](index_t task) {
      const index_t first = task / config_.heads * window, column = task % config_.heads * dim;
      Matrix keys(dim, window), weights(1, window);
      for (index_t t = 0; t < window; ++t) {
        float* key = k.row_data(first + t) + column;
        rotate(q.row_data(first + t) + column, t);
        rotate(key, t);
        for (index_t i = 0; i < dim; ++i) keys.view()(i, t) = key[i];
      }
      float* weight = weights.values.data();
      for (index_t t = 0; t < window; ++t) {
        const float* query = q.row_data(first + t) + column;
        std::fill(weight, weight + t + 1, 0.0f);
        for (index_t i = 0; i < dim; ++i) add_scaled(query[i] * scale, keys.view().row_data(i), weight, t + 1);
        const float top = *std::max_element(weight, weight + t + 1);
        float sum = 0;
        for (index_t s = 0; s <= t; ++s) sum += weight[s] = std::exp(weight[s] - top);
        float* out = mixed.row_data(first + t) + column;
        std::fill(out, out + dim, 0.0f);
        for (index_t s = 0; s <= t; ++s) add_scaled(weight[s] / sum, v.row_data(first + s) + column, out, dim);
      }
    });
  }

  /// y += a * x, in runs of a fixed length that compilers vectorize at -O2 too. x and y do not overlap.
  static void add_scaled(float a, const float* __restrict x, float* __restrict y, index_t n) {
    constexpr index_t kRun = 8;
    index_t i = 0;
    for (; i + kRun <= n; i += kRun)
      for (index_t j = 0; j < kRun; ++j) y[i + j] += a * x[i + j];
    for (; i < n; ++i) y[i] += a * x[i];
  }

  DecoderConfig config_;
  AnyLinear embedding_;
  std::vector<Layer> layers_;
  std::vector<float> final_norm_, cosine_, sine_;
};

}  // namespace example
