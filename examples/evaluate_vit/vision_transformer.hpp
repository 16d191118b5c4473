// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A small vision transformer (105,418 parameters, 3 blocks, trained on Fashion-MNIST) and the gradients of its blocks'
/// matrices. Every matrix is an AnyLinear, so the same code runs any scheme.
///
///     x = patch W_pᵀ + b + position, of 7x7 patches of 4x4 pixels
///     block: q, k, v = split(LN(x) W_qkvᵀ + b);  x += attention(q, k, v) W_projᵀ + b;
///            x += gelu(LN(x) W_1ᵀ + b) W_2ᵀ + b
///     logits = mean of LN(x) over the patches · W_headᵀ + b

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../decoder/layers.hpp"
#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/recipe/compressed_model.hpp"

namespace example {

using blockpack::AnyLinear;
using blockpack::ApplyOptions;
using blockpack::CompressedModel;

struct VitConfig {
  index_t image = 0, patch = 0;  ///< pixels a side
  index_t hidden = 0, layers = 0, heads = 0, classes = 0;
  float norm_epsilon = 0;

  index_t pixels() const noexcept { return image * image; }
  index_t patches() const noexcept { return (image / patch) * (image / patch); }

  /// Reads `config.json`. blockpack::Error when it is missing or another architecture's.
  static VitConfig load(const std::filesystem::path& path) {
    std::ifstream file(path);
    if (!file) throw blockpack::Error("no config.json at '" + path.string() + "'");
    try {
      const auto json = nlohmann::json::parse(file);
      if (json.at("arch") != "vit" || json.at("channels") != 1 || json.at("activation") != "gelu-erf")
        throw blockpack::Error("'" + path.string() + "' describes another architecture than a grey vision transformer");
      const auto size = [&](const char* key) {
        const auto value = json.at(key).get<index_t>();
        if (value < 1 || value > 4096) throw blockpack::Error(std::string(key) + " in config.json is out of range");
        return value;
      };
      VitConfig c{size("image_size"),
                  size("patch_size"),
                  size("hidden_size"),
                  size("num_layers"),
                  size("num_heads"),
                  size("num_classes"),
                  json.at("layer_norm_eps").get<float>()};
      if (c.image % c.patch != 0 || c.hidden % c.heads != 0)
        throw blockpack::Error("config.json: image_size is no multiple of patch_size, or hidden_size of num_heads");
      return c;
    } catch (const nlohmann::json::exception& error) {
      throw blockpack::Error("'" + path.string() + "' is not a vision transformer's config.json: " + error.what());
    }
  }
};

/// Immutable but for `replace` and `remove_block`; const members may be called from any number of threads at once.
class VisionTransformer {
 public:
  /// Matrices by the name of their tensor.
  using Matrices = std::map<std::string, AnyLinear>;
  static constexpr std::array<const char*, 4> kBlockMatrices = {"qkv", "proj", "fc1", "fc2"};

  /// What a forward pass leaves: inputs and outputs of every step, one row a patch.
  struct Tape {
    struct Block {
      Matrix x, h, qkv, mixed;         ///< input, its norm, queries | keys | values, mix of the heads
      Matrix x_mid, h_mid, up, inner;  ///< after attention, its norm, W_1's output, its GELU
    };
    std::vector<Block> blocks;  ///< of those that are left
    Matrix x, logits;           ///< output of the last block; [images, classes]

    /// The input of a matrix of block_matrices().
    MatrixView<const float> input(std::size_t place) const {
      const Block& b = blocks[place / kBlockMatrices.size()];
      const std::array<const Matrix*, kBlockMatrices.size()> inputs = {&b.h, &b.mixed, &b.h_mid, &b.inner};
      return inputs[place % inputs.size()]->view();
    }
  };
  /// Inputs of the matrices of a block, and the derivative of the loss by their outputs, by name.
  struct Sensitivity {
    MatrixView<const float> x;  ///< into the tape
    Matrix dy;
  };

  /// Takes operators and vectors out of a model, compressed or plain; the model's mapping stays alive with them.
  /// blockpack::Error that names the tensor when one is missing or has another shape.
  VisionTransformer(const CompressedModel& model, const VitConfig& config) : config_(config) {
    const index_t hidden = config.hidden;
    add_linear(model, "patch", hidden, config.patch * config.patch);
    add_values(model, "pos", {config.patches(), hidden});
    for (index_t i = 0; i < config.layers; ++i) {
      const std::string block = block_name(i);
      blocks_.push_back(block);
      for (const char* norm : {"ln1", "ln2"}) add_norm(model, block + norm);
      add_linear(model, block + "qkv", 3 * hidden, hidden);
      add_linear(model, block + "proj", hidden, hidden);
      const index_t inner = shape_of(model, block + "fc1.weight").front();
      add_linear(model, block + "fc1", inner, hidden);
      add_linear(model, block + "fc2", hidden, inner);
    }
    add_norm(model, "norm");
    add_linear(model, "head", config.classes, hidden);
  }

  const VitConfig& config() const noexcept { return config_; }
  const Matrices& matrices() const noexcept { return matrices_; }
  static std::string block_name(index_t i) { return "layers." + std::to_string(i) + "."; }
  /// The matrices of the blocks that are left, block after block.
  std::vector<std::string> block_matrices() const {
    std::vector<std::string> names;
    for (const std::string& block : blocks_)
      for (const char* matrix : kBlockMatrices) names.push_back(block + matrix + ".weight");
    return names;
  }

  /// The same model with another form of one matrix. Copies of a model share all others. blockpack::ShapeError for
  /// another shape.
  void replace(const std::string& name, AnyLinear by) {
    AnyLinear& matrix = matrices_.at(name);
    if (by.shape() != matrix.shape())
      throw blockpack::ShapeError("VisionTransformer::replace: " + to_string(by.shape()) + ", " +
                                  to_string(matrix.shape()) + " needed");
    matrix = std::move(by);
  }
  /// The residual stream passes it by.
  void remove_block(index_t i) { std::erase(blocks_, block_name(i)); }

  /// `images`: image after image, pixels 0 to 255. ShapeError for a part of an image.
  Tape forward(std::span<const std::uint8_t> images, const ApplyOptions& how = {}) const {
    if (images.size() % static_cast<std::size_t>(config_.pixels()) != 0)
      throw blockpack::ShapeError("VisionTransformer: " + std::to_string(images.size()) + " pixels, whole images of " +
                                  std::to_string(config_.pixels()) + " needed");
    Tape tape;
    Matrix x = linear("patch", patches(images), how);
    const std::vector<float>& positions = values_.at("pos");
    for (index_t i = 0; i < x.values.size(); ++i)
      x.values[i] += positions[static_cast<std::size_t>(i % static_cast<index_t>(positions.size()))];
    for (const std::string& block : blocks_) {
      Tape::Block b;
      b.h = norm(block + "ln1", x);
      b.qkv = linear(block + "qkv", b.h, how);
      b.mixed = Matrix(x.rows, x.cols);
      for_each_head(x.rows, how.execution, [&](index_t first, index_t column) {
        Matrix weights(1, config_.patches());
        attend(part(b.qkv, 0, first, column), part(b.qkv, 1, first, column), part(b.qkv, 2, first, column),
               weights.view(), part(b.mixed, 0, first, column), false);
      });
      b.x_mid = linear(block + "proj", b.mixed, how, x.view());
      b.h_mid = norm(block + "ln2", b.x_mid);
      b.up = linear(block + "fc1", b.h_mid, how);
      b.inner = Matrix(b.up.rows, b.up.cols);
      for (index_t i = 0; i < b.up.values.size(); ++i) b.inner.values[i] = gelu_with_slope(b.up.values[i]).first;
      b.x = std::exchange(x, linear(block + "fc2", b.inner, how, b.x_mid.view()));
      tape.blocks.push_back(std::move(b));
    }
    const Matrix h = norm("norm", x);
    tape.x = std::move(x);
    tape.logits = linear("head", means(h), how);
    return tape;
  }

  /// Of a loss whose derivative by the logits is `dlogits` [images, classes]; the operators must have transposed
  /// products.
  std::map<std::string, Sensitivity> backward(const Tape& tape, MatrixView<const float> dlogits,
                                              const ApplyOptions& how = {}) const {
    const index_t patches = config_.patches();
    std::map<std::string, Sensitivity> all;
    /// dx of `name`, whose dy is kept.
    const auto pull = [&](const std::string& name, const Matrix& x, Matrix dy) {
      const AnyLinear& w = matrices_.at(name + ".weight");
      Matrix dx(dy.rows, w.in_features());
      w.apply_transpose(dy.view(), dx.view(), how);
      all.insert_or_assign(name + ".weight", Sensitivity{x.view(), std::move(dy)});
      return dx;
    };
    Matrix dmeans(dlogits.rows(), config_.hidden), dh(tape.x.rows, tape.x.cols), dx(tape.x.rows, tape.x.cols);
    matrices_.at("head.weight").apply_transpose(dlogits, dmeans.view(), how);
    for (index_t t = 0; t < dh.rows; ++t)
      for (index_t i = 0; i < dh.cols; ++i)
        dh.view()(t, i) = dmeans.view()(t / patches, i) / static_cast<float>(patches);
    std::fill(dx.values.begin(), dx.values.end(), 0.0f);
    norm_backward("norm", tape.x, dh, dx);
    for (std::size_t i = blocks_.size(); i-- > 0;) {
      const std::string& block = blocks_[i];
      const Tape::Block& b = tape.blocks[i];
      Matrix dup = pull(block + "fc2", b.inner, copy_of(dx));
      for (index_t k = 0; k < dup.values.size(); ++k) dup.values[k] *= gelu_with_slope(b.up.values[k]).second;
      norm_backward(block + "ln2", b.x_mid, pull(block + "fc1", b.h_mid, std::move(dup)), dx);
      const Matrix dmixed = pull(block + "proj", b.mixed, copy_of(dx));
      Matrix dqkv(b.qkv.rows, b.qkv.cols);
      for_each_head(b.x.rows, how.execution, [&](index_t first, index_t column) {
        const auto of = [&](const Matrix& m, index_t which) { return part(m, which, first, column); };
        const auto to = [&](index_t which) { return part(dqkv, which, first, column); };
        Matrix weights(patches, patches), mixed(patches, config_.hidden / config_.heads);
        attend(of(b.qkv, 0), of(b.qkv, 1), of(b.qkv, 2), weights.view(), mixed.view(), false);
        attend_backward(of(b.qkv, 0), of(b.qkv, 1), of(b.qkv, 2), weights.view(), of(dmixed, 0), to(0), to(1), to(2),
                        false);
      });
      norm_backward(block + "ln1", b.x, pull(block + "qkv", b.h, std::move(dqkv)), dx);
    }
    return all;
  }

 private:
  /// Patches of all images, one a row: patches row by row, pixels inside a patch row by row.
  Matrix patches(std::span<const std::uint8_t> images) const {
    constexpr float kMean = 0.2860f, kDeviation = 0.3530f;  // of the training images
    const index_t side = config_.image, patch = config_.patch, across = side / patch;
    const index_t count = static_cast<index_t>(images.size()) / config_.pixels();
    Matrix dst(count * config_.patches(), patch * patch);
    for (index_t n = 0; n < count; ++n)
      for (index_t y = 0; y < side; ++y)
        for (index_t x = 0; x < side; ++x) {
          const auto pixel = static_cast<float>(images[static_cast<std::size_t>((n * side + y) * side + x)]);
          dst.view()((n * across + y / patch) * across + x / patch, y % patch * patch + x % patch) =
              (pixel / 255.0f - kMean) / kDeviation;
        }
    return dst;
  }
  Matrix means(const Matrix& x) const {
    const index_t patches = config_.patches();
    Matrix means(x.rows / patches, x.cols);
    std::fill(means.values.begin(), means.values.end(), 0.0f);
    for (index_t t = 0; t < x.rows; ++t)
      add_scaled(1.0f / static_cast<float>(patches), x.view().row_data(t), means.view().row_data(t / patches), x.cols);
    return means;
  }
  Matrix linear(const std::string& name, const Matrix& x, const ApplyOptions& how,
                MatrixView<const float> residual = {}) const {
    const AnyLinear& w = matrices_.at(name + ".weight");
    Matrix y(x.rows, w.out_features());
    ApplyOptions options = how;
    options.epilogue = {values_.at(name + ".bias"), blockpack::EpilogueFunction::none, {}, residual};
    w.apply(x.view(), y.view(), options);
    return y;
  }
  Matrix norm(const std::string& name, const Matrix& x) const {
    Matrix y(x.rows, x.cols);
    layer_norm(x.view(), values_.at(name + ".weight"), values_.at(name + ".bias"), config_.norm_epsilon, y.view());
    return y;
  }
  void norm_backward(const std::string& name, const Matrix& x, const Matrix& dy, Matrix& dx) const {
    layer_norm_backward(x.view(), values_.at(name + ".weight"), config_.norm_epsilon, dy.view(), dx.view());
  }
  /// f(first row, first column) of every image and head.
  template <class F>
  void for_each_head(index_t rows, const blockpack::Execution& how, const F& f) const {
    blockpack::parallel_for(how, rows / config_.patches() * config_.heads, [&](index_t task) {
      f(task / config_.heads * config_.patches(), task % config_.heads * (config_.hidden / config_.heads));
    });
  }
  /// One head of one image in the queries (0), keys (1) or values (2).
  MatrixView<float> part(Matrix& m, index_t which, index_t first, index_t column) const {
    return m.view().block(first, which * config_.hidden + column, config_.patches(), config_.hidden / config_.heads);
  }
  MatrixView<const float> part(const Matrix& m, index_t which, index_t first, index_t column) const {
    return m.view().block(first, which * config_.hidden + column, config_.patches(), config_.hidden / config_.heads);
  }
  static Matrix copy_of(const Matrix& m) {
    Matrix copy(m.rows, m.cols);
    std::copy(m.values.begin(), m.values.end(), copy.values.begin());
    return copy;
  }

  static std::vector<index_t> shape_of(const CompressedModel& model, const std::string& name) {
    if (!model.contains(name))
      throw blockpack::Error("'" + model.path().string() + "' is another architecture: no tensor " + name);
    const std::vector<index_t> shape = model.shape(name);
    if (shape.empty()) throw blockpack::Error("'" + model.path().string() + "': tensor " + name + " is a scalar");
    return shape;
  }
  static void require_shape(const CompressedModel& model, const std::string& name, const std::vector<index_t>& shape) {
    if (shape_of(model, name) != shape)
      throw blockpack::Error("'" + model.path().string() + "' is another architecture: tensor " + name +
                             " has another shape than config.json says");
  }
  void add_values(const CompressedModel& model, const std::string& name, const std::vector<index_t>& shape) {
    require_shape(model, name, shape);
    const index_t cols = shape.back(), rows = shape.size() == 2 ? shape.front() : 1;
    std::vector<float>& values = values_[name];
    values.resize(static_cast<std::size_t>(rows * cols));
    model.read_rows(name, 0, MatrixView<float>(values.data(), rows, cols));
  }
  void add_norm(const CompressedModel& model, const std::string& name) {
    for (const char* part : {".weight", ".bias"}) add_values(model, name + part, {config_.hidden});
  }
  void add_linear(const CompressedModel& model, const std::string& name, index_t out, index_t in) {
    require_shape(model, name + ".weight", {out, in});
    matrices_[name + ".weight"] = model.linear(name + ".weight");
    add_values(model, name + ".bias", {out});
  }

  VitConfig config_;
  Matrices matrices_;
  std::map<std::string, std::vector<float>> values_;  // biases, norms, positions
  std::vector<std::string> blocks_;                   // those left
};

}  // namespace example
