// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A transformer that turns a sentence into one vector of length 1 (Universal Sentence Encoder Lite: 7.0 M parameters,
/// two layers, 256 then 512 wide). Every matrix is an AnyLinear, so the same code runs any scheme.
///
///     x = 2 E[token] + (sin(p τ), cos(p τ)) at position p
///     q, k, v = split(LN(x) W_qkvᵀ + b);  x = r + attention(q, k, v) W_outᵀ + b, where r is x, or x W_rᵀ + b where a
///     layer changes the width;  x += relu(LN(x) W_1ᵀ + b) W_2ᵀ + b
///     result: y / |y| for y = tanh(mean of x over the positions · W_poolᵀ + b)

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../decoder/layers.hpp"
#include "blockpack/core/any_linear.hpp"
#include "blockpack/recipe/compressed_model.hpp"

namespace example {

using blockpack::AnyLinear;
using blockpack::ApplyOptions;
using blockpack::CompressedModel;

struct EncoderConfig {
  index_t layers = 0, heads = 0;
  index_t max_positions = 0;  ///< later tokens of a sentence are ignored
  float norm_epsilon = 0;

  /// Reads `config.json`. blockpack::Error when it is missing or another architecture's.
  static EncoderConfig load(const std::filesystem::path& path) {
    std::ifstream file(path);
    if (!file) throw blockpack::Error("no config.json at '" + path.string() + "'");
    try {
      const auto json = nlohmann::json::parse(file);
      if (json.at("kind") != "transformer sentence encoder")
        throw blockpack::Error("'" + path.string() + "' describes another architecture than a sentence encoder");
      const auto size = [&](const char* key) {
        const auto value = json.at(key).get<index_t>();
        if (value < 1 || value > 4096) throw blockpack::Error(std::string(key) + " in config.json is out of range");
        return value;
      };
      return {size("num_layers"), size("num_heads"), size("max_positions"), json.at("layer_norm_eps").get<float>()};
    } catch (const nlohmann::json::exception& error) {
      throw blockpack::Error("'" + path.string() + "' is not a sentence encoder's config.json: " + error.what());
    }
  }
};

/// Immutable but for `replace`; const members may be called from any number of threads at once.
class SentenceEncoder {
 public:
  /// Matrices by the name of their tensor.
  using Matrices = std::map<std::string, AnyLinear>;
  /// Sees the input of every linear layer, with the name of its matrix.
  using Tap = std::function<void(const std::string& matrix, MatrixView<const float> x)>;

  static constexpr const char* kEmbedding = "embeddings.weight";

  /// Takes operators and vectors out of a model, compressed or plain; the model's mapping stays alive with them.
  /// blockpack::Error that names the tensor when one is missing or has another shape.
  SentenceEncoder(const CompressedModel& model, const EncoderConfig& config) : config_(config) {
    index_t width = add_matrix(model, kEmbedding, -1).cols;
    if (width % 2 != 0) throw blockpack::Error("the embedding has an odd width");
    const std::vector<float>& timescales = add_vector(model, "timing.inv_timescales", width / 2);
    for (index_t p = 0; p < config.max_positions; ++p) {
      const auto angle = [&](float timescale) { return static_cast<float>(p) * timescale; };
      for (const float timescale : timescales) timing_.push_back(std::sin(angle(timescale)));
      for (const float timescale : timescales) timing_.push_back(std::cos(angle(timescale)));
    }
    for (index_t i = 0; i < config.layers; ++i) {
      const std::string layer = layer_name(i);
      add_norm(model, layer + "ln_attn", width);
      const index_t qkv = add_linear(model, layer + "attn.qkv", width);
      if (qkv % (3 * config.heads) != 0)
        throw blockpack::Error(layer + "attn.qkv.weight does not hold queries, keys and values of " +
                               std::to_string(config.heads) + " heads");
      const index_t out = add_linear(model, layer + "attn.out", qkv / 3);
      if (out != width || model.contains(layer + "residual.weight"))
        require_width(layer + "residual", add_linear(model, layer + "residual", width), out);
      add_norm(model, layer + "ln_ffn", out);
      require_width(layer + "ffn.fc2", add_linear(model, layer + "ffn.fc2", add_linear(model, layer + "ffn.fc1", out)),
                    out);
      width = out;
    }
    width_ = add_linear(model, "pool", width);
  }

  index_t width() const noexcept { return width_; }  ///< of an embedding
  const Matrices& matrices() const noexcept { return matrices_; }
  /// Bytes of the vectors, which no scheme compresses.
  std::size_t vector_bytes() const {
    std::size_t bytes = 0;
    for (const auto& [name, values] : vectors_) bytes += values.size() * sizeof(float);
    return bytes;
  }

  /// The same model with another form of one matrix. Copies of an encoder share all others. blockpack::ShapeError for
  /// another shape.
  void replace(const std::string& name, AnyLinear by) {
    AnyLinear& matrix = matrices_.at(name);
    if (by.shape() != matrix.shape())
      throw blockpack::ShapeError("SentenceEncoder::replace: " + to_string(by.shape()) + ", " +
                                  to_string(matrix.shape()) + " needed");
    matrix = std::move(by);
  }

  /// Row i of `dst` [sentences.size(), width()] is the vector of length 1 of sentence i. Sentences do not see each
  /// other; all of them are in flight at once. ShapeError for another dst; ValueError for a sentence without a token.
  void embed(std::span<const std::vector<index_t>> sentences, MatrixView<float> dst, const ApplyOptions& how = {},
             const Tap& tap = {}) const {
    const blockpack::MatrixShape shape{static_cast<index_t>(sentences.size()), width_};
    if (dst.shape() != shape)
      throw blockpack::ShapeError("SentenceEncoder::embed: dst is " + to_string(dst.shape()) + ", " + to_string(shape) +
                                  " needed");
    std::vector<index_t> tokens, first = {0};  // first[i]: where sentence i starts
    for (const std::vector<index_t>& sentence : sentences) {
      if (sentence.empty()) throw blockpack::ValueError("SentenceEncoder::embed: a sentence without a token");
      const auto seen = std::min(static_cast<std::ptrdiff_t>(sentence.size()), config_.max_positions);
      tokens.insert(tokens.end(), sentence.begin(), sentence.begin() + seen);
      first.push_back(static_cast<index_t>(tokens.size()));
    }
    const Pass pass{*this, how, tap, first};
    const AnyLinear& embedding = matrices_.at(kEmbedding);
    Matrix x(static_cast<index_t>(tokens.size()), embedding.in_features());
    embedding.decode_rows(tokens, x.view());
    pass.for_each_sentence([&](index_t begin, index_t count) {
      float* value = x.view().row_data(begin);
      for (index_t i = 0; i < count * x.cols; ++i) value[i] = 2 * value[i] + timing_[static_cast<std::size_t>(i)];
    });
    for (index_t i = 0; i < config_.layers; ++i) x = pass.layer(layer_name(i), std::move(x));
    pass.pool(x, dst);
  }

 private:
  /// One call of embed.
  struct Pass {
    const SentenceEncoder& model;
    const ApplyOptions& how;
    const Tap& tap;
    const std::vector<index_t>& first;

    /// f(first token, tokens) of every sentence.
    template <class F>
    void for_each_sentence(const F& f) const {
      for (std::size_t i = 0; i + 1 < first.size(); ++i) f(first[i], first[i + 1] - first[i]);
    }

    /// x Wᵀ + bias of a linear layer, through `function`, plus `residual` where it is not empty.
    Matrix linear(const std::string& name, const Matrix& x, MatrixView<const float> residual = {},
                  blockpack::EpilogueFunction function = blockpack::EpilogueFunction::none) const {
      const AnyLinear& weight = model.matrices_.at(name + ".weight");
      if (tap) tap(name + ".weight", x.view());
      Matrix y(x.rows, weight.out_features());
      ApplyOptions options = how;
      options.epilogue = {model.vectors_.at(name + ".bias"), function, {}, residual};
      weight.apply(x.view(), y.view(), options);
      return y;
    }

    Matrix norm(const std::string& name, const Matrix& x) const {
      Matrix y(x.rows, x.cols);
      layer_norm(x.view(), model.vectors_.at(name + ".weight"), model.vectors_.at(name + ".bias"),
                 model.config_.norm_epsilon, y.view());
      return y;
    }

    Matrix layer(const std::string& name, Matrix x) const {
      const Matrix mixed = attention(linear(name + "attn.qkv", norm(name + "ln_attn", x)));
      if (model.matrices_.contains(name + "residual.weight")) x = linear(name + "residual", x);
      x = linear(name + "attn.out", mixed, std::as_const(x).view());
      const Matrix inner = linear(name + "ffn.fc1", norm(name + "ln_ffn", x), {}, blockpack::EpilogueFunction::relu);
      return linear(name + "ffn.fc2", inner, std::as_const(x).view());
    }

    /// Of q, k and v side by side, one task per sentence and head.
    Matrix attention(const Matrix& qkv) const {
      const index_t heads = model.config_.heads, width = qkv.cols / 3, dim = width / heads;
      Matrix mixed(qkv.rows, width);
      blockpack::parallel_for(how.execution, static_cast<index_t>(first.size() - 1) * heads, [&](index_t task) {
        const auto sentence = static_cast<std::size_t>(task / heads);
        const index_t begin = first[sentence], count = first[sentence + 1] - begin, column = task % heads * dim;
        const auto part = [&](index_t which) { return qkv.view().block(begin, which * width + column, count, dim); };
        Matrix weights(1, count);
        attend(part(0), part(1), part(2), weights.view(), mixed.view().block(begin, column, count, dim), false);
      });
      return mixed;
    }

    void pool(const Matrix& x, MatrixView<float> dst) const {
      Matrix means(static_cast<index_t>(first.size()) - 1, x.cols);
      index_t row = 0;
      for_each_sentence([&](index_t begin, index_t count) {
        float* mean = means.view().row_data(row++);
        std::fill(mean, mean + x.cols, 0.0f);
        for (index_t p = 0; p < count; ++p) add_scaled(1.0f, x.view().row_data(begin + p), mean, x.cols);
        for (index_t i = 0; i < x.cols; ++i) mean[i] /= static_cast<float>(count);
      });
      const Matrix y = linear("pool", means);
      for (index_t i = 0; i < y.rows; ++i) {
        double squares = 0;
        for (index_t j = 0; j < y.cols; ++j) {
          dst(i, j) = std::tanh(y.view()(i, j));
          squares += static_cast<double>(dst(i, j)) * static_cast<double>(dst(i, j));
        }
        const auto scale = static_cast<float>(1.0 / std::sqrt(std::max(squares, 1e-12)));
        for (index_t j = 0; j < y.cols; ++j) dst(i, j) *= scale;
      }
    }
  };

  static std::string layer_name(index_t i) { return "layers." + std::to_string(i) + "."; }

  static void require_width(const std::string& name, index_t width, index_t needed) {
    if (width != needed)
      throw blockpack::Error(name + ".weight has " + std::to_string(width) + " rows, " + std::to_string(needed) +
                             " needed");
  }
  static std::vector<index_t> shape_of(const CompressedModel& model, const std::string& name) {
    if (!model.contains(name))
      throw blockpack::Error("'" + model.path().string() + "' is another architecture: no tensor " + name);
    return model.shape(name);
  }
  /// A matrix with `in` columns; -1: any number.
  blockpack::MatrixShape add_matrix(const CompressedModel& model, const std::string& name, index_t in) {
    const std::vector<index_t> shape = shape_of(model, name);
    if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || (in >= 0 && shape[1] != in))
      throw blockpack::Error("'" + model.path().string() + "' is another architecture: tensor " + name +
                             (in < 0 ? " is no matrix" : " is no matrix of " + std::to_string(in) + " columns"));
    matrices_[name] = model.linear(name);
    return {shape[0], shape[1]};
  }
  const std::vector<float>& add_vector(const CompressedModel& model, const std::string& name, index_t size) {
    if (shape_of(model, name) != std::vector<index_t>{size})
      throw blockpack::Error("'" + model.path().string() + "' is another architecture: tensor " + name +
                             " is no vector of " + std::to_string(size) + " values");
    std::vector<float>& values = vectors_[name];
    values.resize(static_cast<std::size_t>(size));
    model.read_rows(name, 0, MatrixView<float>(values.data(), 1, size));
    return values;
  }
  void add_norm(const CompressedModel& model, const std::string& name, index_t width) {
    add_vector(model, name + ".weight", width);
    add_vector(model, name + ".bias", width);
  }
  /// Returns the rows of the matrix.
  index_t add_linear(const CompressedModel& model, const std::string& name, index_t in) {
    const index_t out = add_matrix(model, name + ".weight", in).rows;
    add_vector(model, name + ".bias", out);
    return out;
  }

  EncoderConfig config_;
  Matrices matrices_;
  std::map<std::string, std::vector<float>> vectors_;  // biases, norms
  std::vector<float> timing_;                          // [max_positions, width of the embedding]
  index_t width_ = 0;
};

}  // namespace example
