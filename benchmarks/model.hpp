// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A whole decoder as the suite sees it: weights handed over matrix by matrix, then tokens appended. Ours and the
/// peers' stand behind this interface, and hold the same layers of the same shape.
///
///     h = rms(x);  x += attention(rope(h Wqᵀ), rope(h Wkᵀ), h Wvᵀ) Woᵀ;  h = rms(x);  x += (silu(h Wgᵀ) ⊙ h Wuᵀ) Wdᵀ
///     logits = rms(x) Eᵀ of the last token, with E the embedding; the weights of the norms are 1

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "product.hpp"

namespace bench {

/// 1.03 G parameters in the matrices: the layers of a known small LLaMA, the head tied to the embedding.
struct ModelShape {
  index_t vocab = 32000, hidden = 2048, layers = 22, heads = 32, kv_heads = 4, head_dim = 64, intermediate = 5632;
  index_t positions = 512;
  float norm_epsilon = 1e-5f, rope_theta = 10000.0f;

  struct Matrix {
    index_t n, k;
  };
  /// The embedding, then q, k, v, o, gate, up and down of each layer.
  std::vector<Matrix> matrices() const {
    std::vector<Matrix> all = {{vocab, hidden}};
    for (index_t i = 0; i < layers; ++i)
      for (const Matrix m : {Matrix{heads * head_dim, hidden},
                             {kv_heads * head_dim, hidden},
                             {kv_heads * head_dim, hidden},
                             {hidden, heads * head_dim},
                             {intermediate, hidden},
                             {intermediate, hidden},
                             {hidden, intermediate}})
        all.push_back(m);
    return all;
  }
};

class Model {
 public:
  virtual ~Model() = default;

  /// The next matrix, in the order of ModelShape::matrices(); w is the caller's and may go afterwards.
  virtual void add(const Weights& w) = 0;
  /// After the last matrix.
  virtual void finish() = 0;

  /// Forgets all tokens.
  virtual void clear() = 0;
  /// Appends tokens; logits [vocab] predict what follows the last. The time of this call is what the suite reports.
  virtual void extend(std::span<const index_t> tokens, float* logits, int threads) = 0;

  /// The same on all cores with float32 activations, the measure of what the others give; only our own model can.
  virtual void extend_exactly(std::span<const index_t>, float*) {}

  /// Bytes of weights that one token has to read.
  virtual double weight_bytes() const = 0;
  /// Arithmetic of the linear layers of an extend by so many tokens.
  virtual Arithmetic arithmetic(index_t tokens) const = 0;
  /// Seconds spent in linear layers since the last clear(); negative where that is not known.
  virtual double linear_seconds() const { return -1; }
  /// As Product::path.
  virtual std::string path(index_t) const { return {}; }
};

struct ModelMaker {
  std::string name;
  bool (*serves)(const std::string& scheme) = nullptr;
  std::unique_ptr<Model> (*make)(const std::string& scheme, const ModelShape& shape) = nullptr;
};

void add_own_model(std::vector<ModelMaker>& makers);  ///< the first of the makers
void add_ggml_model(std::vector<ModelMaker>& makers);

}  // namespace bench
