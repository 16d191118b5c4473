// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A decoder of bytes, out of a model file: each token is a byte, and logits come for whole windows of text.

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/recipe/compressed_model.hpp"
#include "decoder.hpp"

namespace example {

using blockpack::CompressedModel;

/// blockpack::Error that names the tensor when the model lacks it or has it in another shape.
inline void require_tensor(const CompressedModel& model, const std::string& name, const std::vector<index_t>& shape) {
  const std::string hint = "; a byte-level decoder as in examples/data/bytelm is needed";
  if (!model.contains(name))
    throw blockpack::Error("'" + model.path().string() + "' is another architecture: no tensor " + name + hint);
  if (model.shape(name) != shape)
    throw blockpack::Error("'" + model.path().string() + "' is another architecture: tensor " + name +
                           " has another shape than config.json says" + hint);
}

/// The norms of a decoder in a model file.
inline DecoderNorms read_norms(const CompressedModel& model, const DecoderConfig& config) {
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

class ByteDecoder : public Decoder {
 public:
  /// Takes the operators and norms out of a model, compressed or plain; the model's mapping stays alive with them.
  /// blockpack::Error that names the tensor when one is missing or has another shape.
  ByteDecoder(const CompressedModel& model, const DecoderConfig& config)
      : Decoder{config, read_matrices(model, config), read_norms(model, config)} {}  // in this order

  /// Next-byte logits of several windows at once: `bytes` holds windows of `window` bytes one after another, row t of
  /// `logits` [bytes.size(), vocab] predicts the byte after byte t of its window.
  void logits(std::span<const std::uint8_t> bytes, index_t window, MatrixView<float> logits,
              const ApplyOptions& how = {}) const {
    const auto tokens = static_cast<index_t>(bytes.size());
    if (window < 1 || window > config().max_positions || tokens % window != 0)
      throw blockpack::ShapeError("ByteDecoder: " + std::to_string(tokens) + " bytes in windows of " +
                                  std::to_string(window) + "; whole windows of at most " +
                                  std::to_string(config().max_positions) + " needed");
    Matrix x(tokens, config().hidden), h(tokens, config().hidden);
    const std::vector<index_t> rows(bytes.begin(), bytes.end());
    matrix(DecoderConfig::kEmbedding).decode_rows(rows, x.view());
    run_layers(
        x.view(),
        [&](std::size_t, MatrixView<float> q, MatrixView<float> k, MatrixView<float> v, MatrixView<float> mixed) {
          attend(q, k, v, window, mixed, how.execution);
        },
        how);
    norm(x.view(), norms().last, h.view(), how);
    matrix(DecoderConfig::kEmbedding).apply(h.view(), logits, how);
  }

 private:
  static std::vector<AnyLinear> read_matrices(const CompressedModel& model, const DecoderConfig& config) {
    std::vector<AnyLinear> all;
    for (const DecoderMatrix& m : config.matrices()) {
      require_tensor(model, m.name, {m.shape.rows, m.shape.cols});
      all.push_back(model.linear(m.name));
    }
    return all;
  }

  /// Causal attention inside each window, one task per window and head; q and k are rotated in place. As many heads of
  /// keys as of queries (DecoderConfig::load).
  void attend(MatrixView<float> q, MatrixView<float> k, MatrixView<float> v, index_t window, MatrixView<float> mixed,
              const blockpack::Execution& execution) const {
    const index_t dim = config().head_dim, heads = config().heads;
    blockpack::parallel_for(execution, q.rows() / window * heads, [&](index_t task) {
      const index_t first = task / heads * window, column = task % heads * dim;
      const auto head = [&](MatrixView<float> m) { return m.block(first, column, window, dim); };
      for (index_t t = 0; t < window; ++t) {
        rotary().rotate(q.row_data(first + t) + column, t);
        rotary().rotate(k.row_data(first + t) + column, t);
      }
      Matrix weights(1, window);
      example::attend(head(q), head(k), head(v), weights.view(), head(mixed));
    });
  }
};

}  // namespace example
