// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The decoder in float32 with the gradient of any loss of its logits with respect to every matrix, one window at a
/// time. Products go through the library's dense engine; the rest is written by hand (layers.hpp).
///
///     GradientDecoder decoder(byte_decoder);
///     GradientDecoder::Tape tape = decoder.forward(window);
///     const double nats = cross_entropy(tape.logits.view(), targets, dlogits.view());
///     decoder.backward(window, tape, dlogits.view(), gradients);
///
/// A window is the unit of work: callers run windows in parallel, and a window runs on the thread that asks.

#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "byte_decoder.hpp"

namespace example {

/// dst [cols, rows] = srcᵀ.
inline void transpose(MatrixView<const float> src, MatrixView<float> dst) {
  constexpr index_t kTile = 16;
  for (index_t row = 0; row < src.rows(); row += kTile)
    for (index_t col = 0; col < src.cols(); col += kTile)
      for (index_t i = row; i < std::min(row + kTile, src.rows()); ++i)
        for (index_t j = col; j < std::min(col + kTile, src.cols()); ++j) dst(j, i) = src(i, j);
}

/// One matrix of gradients per matrix of the decoder, in the order of DecoderConfig::matrices().
using Gradients = std::vector<Matrix>;

class GradientDecoder {
 public:
  /// What a forward pass leaves for the backward pass.
  struct Tape {
    struct Layer {
      Matrix x, h, q, k, v, mixed;           ///< input, its norm, rotated q and k, v, mix of the heads
      std::vector<Matrix> attention;         ///< weights of each head [window, window]
      Matrix x_mid, h_mid, gate, up, inner;  ///< after attention, its norm, the two branches, their product
    };
    std::vector<Layer> layers;
    Matrix x, h, logits;  ///< output of the last layer, its norm, logits [window, vocab]

    /// The input [window, in] of a matrix; of the embedding, the input of the head.
    MatrixView<const float> input(std::size_t place) const {
      if (place == DecoderConfig::kEmbedding) return h.view();
      const Layer& layer = layers[(place - 1) / kProjections.size()];
      switch (static_cast<Projection>((place - 1) % kProjections.size())) {
        case Projection::o:
          return layer.mixed.view();
        case Projection::gate:
        case Projection::up:
          return layer.h_mid.view();
        case Projection::down:
          return layer.inner.view();
        default:
          return layer.h.view();
      }
    }
  };

  /// Takes the decoded matrices of a decoder.
  explicit GradientDecoder(const ByteDecoder& decoder)
      : config_(decoder.config()), norms_(decoder.norms()), rotary_(decoder.rotary()) {
    how_.execution.threads = 1;
    how_.activations = blockpack::Activations::f32;
    for (std::size_t place = 0; place < config_.matrices().size(); ++place) {
      weights_.emplace_back();
      set(place, decoded(decoder.matrix(place)).view());
    }
  }

  const DecoderConfig& config() const noexcept { return config_; }

  /// Changes a matrix; not while other threads use the decoder.
  void set(std::size_t place, MatrixView<const float> w) {
    Matrix turned(w.cols(), w.rows());
    transpose(w, turned.view());
    weights_.at(place) = {blockpack::Dense<float>::encode(w), blockpack::Dense<float>::encode(turned.view())};
  }

  Matrix weights(std::size_t place) const { return decoded(weights_.at(place).forward); }

  Gradients make_gradients() const {
    Gradients gradients;
    for (const DecoderMatrix& m : config_.matrices()) gradients.emplace_back(m.shape.rows, m.shape.cols);
    return gradients;
  }

  /// One window of at most max_positions bytes.
  Tape forward(std::span<const std::uint8_t> window) const {
    const auto tokens = static_cast<index_t>(window.size());
    const index_t hidden = config_.hidden, attention = config_.heads * config_.head_dim;
    Tape tape;
    Matrix x(tokens, hidden);
    const std::vector<index_t> rows(window.begin(), window.end());
    weights_[DecoderConfig::kEmbedding].forward.decode_rows(rows, x.view());
    for (std::size_t i = 0; i < norms_.input.size(); ++i) {
      Tape::Layer layer;
      layer.x = std::move(x);
      layer.h = Matrix(tokens, hidden);
      rms_norm(layer.x.view(), norms_.input[i], config_.norm_epsilon, layer.h.view());
      layer.q = product(i, Projection::q, layer.h);
      layer.k = product(i, Projection::k, layer.h);
      layer.v = product(i, Projection::v, layer.h);
      layer.mixed = Matrix(tokens, attention);
      for (index_t head = 0; head < config_.heads; ++head) {
        for (index_t t = 0; t < tokens; ++t) {
          rotary_.rotate(layer.q.view().row_data(t) + head * config_.head_dim, t);
          rotary_.rotate(layer.k.view().row_data(t) + head * config_.head_dim, t);
        }
        layer.attention.emplace_back(tokens, tokens);
        attend(part(layer.q, head), part(layer.k, head), part(layer.v, head), layer.attention.back().view(),
               part(layer.mixed, head));
      }
      layer.x_mid = product(i, Projection::o, layer.mixed);
      add(layer.x, layer.x_mid);
      layer.h_mid = Matrix(tokens, hidden);
      rms_norm(layer.x_mid.view(), norms_.post[i], config_.norm_epsilon, layer.h_mid.view());
      layer.gate = product(i, Projection::gate, layer.h_mid);
      layer.up = product(i, Projection::up, layer.h_mid);
      layer.inner = Matrix(tokens, config_.intermediate);
      for (index_t k = 0; k < layer.inner.values.size(); ++k)
        layer.inner.values[k] = silu_with_slope(layer.gate.values[k]).first * layer.up.values[k];
      x = product(i, Projection::down, layer.inner);
      add(layer.x_mid, x);
      tape.layers.push_back(std::move(layer));
    }
    tape.x = std::move(x);
    tape.h = Matrix(tokens, hidden);
    rms_norm(tape.x.view(), norms_.last, config_.norm_epsilon, tape.h.view());
    tape.logits = Matrix(tokens, config_.vocab);
    weights_[DecoderConfig::kEmbedding].forward.apply(tape.h.view(), tape.logits.view(), how_);
    return tape;
  }

  /// Overwrites `gradients` with those of a loss whose derivative by the logits is `dlogits` [window, vocab]. The
  /// embedding gets the sum of what comes through the head and through the look-up.
  void backward(std::span<const std::uint8_t> window, const Tape& tape, const Matrix& dlogits,
                Gradients& gradients) const {
    const auto tokens = static_cast<index_t>(window.size());
    const index_t hidden = config_.hidden, attention = config_.heads * config_.head_dim;
    Matrix dx(tokens, hidden), dh(tokens, hidden), dq(tokens, attention), dk(tokens, attention), dv(tokens, attention);
    const auto zero = [](Matrix& m) { std::fill(m.values.begin(), m.values.end(), 0.0f); };
    outer(dlogits, tape.h, gradients[DecoderConfig::kEmbedding]);
    pull(weights_[DecoderConfig::kEmbedding], dlogits, dh, false);
    zero(dx);
    rms_norm_backward(tape.x.view(), norms_.last, config_.norm_epsilon, dh.view(), dx.view());
    for (std::size_t i = norms_.input.size(); i-- > 0;) {
      const Tape::Layer& layer = tape.layers[i];
      const auto at = [&](Projection p) { return DecoderConfig::place(i, p); };
      const auto gradient = [&](Projection p, const Matrix& dy, const Matrix& x) { outer(dy, x, gradients[at(p)]); };

      Matrix dinner(tokens, config_.intermediate), dgate(tokens, config_.intermediate);
      gradient(Projection::down, dx, layer.inner);
      pull(weights_[at(Projection::down)], dx, dinner, false);
      for (index_t k = 0; k < dinner.values.size(); ++k) {
        const auto [value, slope] = silu_with_slope(layer.gate.values[k]);
        dgate.values[k] = dinner.values[k] * layer.up.values[k] * slope;
        dinner.values[k] *= value;  // from here on the gradient of `up`
      }
      gradient(Projection::gate, dgate, layer.h_mid);
      gradient(Projection::up, dinner, layer.h_mid);
      pull(weights_[at(Projection::gate)], dgate, dh, false);
      pull(weights_[at(Projection::up)], dinner, dh, true);
      rms_norm_backward(layer.x_mid.view(), norms_.post[i], config_.norm_epsilon, dh.view(), dx.view());

      Matrix dmixed(tokens, attention);
      gradient(Projection::o, dx, layer.mixed);
      pull(weights_[at(Projection::o)], dx, dmixed, false);
      for (index_t head = 0; head < config_.heads; ++head) {
        attend_backward(part(layer.q, head), part(layer.k, head), part(layer.v, head),
                        layer.attention[static_cast<std::size_t>(head)].view(), part(dmixed, head), part(dq, head),
                        part(dk, head), part(dv, head));
        for (index_t t = 0; t < tokens; ++t) {
          rotary_.rotate(dq.view().row_data(t) + head * config_.head_dim, t, -1.0f);
          rotary_.rotate(dk.view().row_data(t) + head * config_.head_dim, t, -1.0f);
        }
      }
      gradient(Projection::q, dq, layer.h);
      gradient(Projection::k, dk, layer.h);
      gradient(Projection::v, dv, layer.h);
      pull(weights_[at(Projection::q)], dq, dh, false);
      pull(weights_[at(Projection::k)], dk, dh, true);
      pull(weights_[at(Projection::v)], dv, dh, true);
      rms_norm_backward(layer.x.view(), norms_.input[i], config_.norm_epsilon, dh.view(), dx.view());
    }
    Matrix& embedding = gradients[DecoderConfig::kEmbedding];
    for (index_t t = 0; t < tokens; ++t)
      add_scaled(1.0f, dx.view().row_data(t), embedding.view().row_data(window[static_cast<std::size_t>(t)]), hidden);
  }

 private:
  struct Weight {
    blockpack::Dense<float> forward, backward;  ///< W and Wᵀ
  };

  Matrix product(std::size_t layer, Projection p, const Matrix& x) const {
    const Weight& w = weights_[DecoderConfig::place(layer, p)];
    Matrix y(x.rows, w.forward.out_features());
    w.forward.apply(x.view(), y.view(), how_);
    return y;
  }
  /// dx = dy · W, or dx += dy · W.
  void pull(const Weight& w, const Matrix& dy, Matrix& dx, bool accumulate) const {
    ApplyOptions how = how_;
    if (accumulate) how.epilogue.residual = dx.view();
    w.backward.apply(dy.view(), dx.view(), how);
  }
  /// dw = dyᵀ · x.
  void outer(const Matrix& dy, const Matrix& x, Matrix& dw) const {
    Matrix dy_turned(dy.cols, dy.rows), x_turned(x.cols, x.rows);
    transpose(dy.view(), dy_turned.view());
    transpose(x.view(), x_turned.view());
    blockpack::dense_view(std::as_const(x_turned).view(), blockpack::PackPolicy::none())
        .apply(dy_turned.view(), dw.view(), how_);
  }
  /// The columns of one head.
  MatrixView<float> part(Matrix& m, index_t head) const {
    return m.view().block(0, head * config_.head_dim, m.rows, config_.head_dim);
  }
  MatrixView<const float> part(const Matrix& m, index_t head) const {
    return m.view().block(0, head * config_.head_dim, m.rows, config_.head_dim);
  }
  static void add(const Matrix& x, Matrix& y) { add_scaled(1.0f, x.values.data(), y.values.data(), x.values.size()); }

  DecoderConfig config_;
  std::vector<Weight> weights_;  // as DecoderConfig::matrices()
  DecoderNorms norms_;
  RotaryTable rotary_;
  ApplyOptions how_;
};

/// dst = softmax of the row.
inline void softmax(std::span<const float> logits, std::span<float> dst) {
  const float top = *std::max_element(logits.begin(), logits.end());
  float sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) sum += dst[i] = std::exp(logits[i] - top);
  for (float& p : dst) p /= sum;
}

/// Mean over the rows of -ln p(target), and its derivative by the logits.
inline double cross_entropy(MatrixView<const float> logits, std::span<const std::uint8_t> targets,
                            MatrixView<float> dlogits) {
  double nats = 0;
  const float weight = 1.0f / static_cast<float>(logits.rows());
  for (index_t t = 0; t < logits.rows(); ++t) {
    const std::span<float> d = dlogits.row(t);
    const std::uint8_t target = targets[static_cast<std::size_t>(t)];
    softmax(logits.row(t), d);
    nats -= std::log(std::max(static_cast<double>(d[target]), 1e-30));
    d[target] -= 1.0f;
    for (float& v : d) v *= weight;
  }
  return nats / static_cast<double>(logits.rows());
}

/// Mean over the rows of KL(softmax(reference) ‖ softmax(logits)) in nats, and its derivative by the logits.
inline double kl_divergence(MatrixView<const float> reference, MatrixView<const float> logits,
                            MatrixView<float> dlogits) {
  double nats = 0;
  const float weight = 1.0f / static_cast<float>(logits.rows());
  std::vector<float> p(static_cast<std::size_t>(logits.cols()));
  for (index_t t = 0; t < logits.rows(); ++t) {
    const std::span<float> d = dlogits.row(t);
    softmax(reference.row(t), p);
    softmax(logits.row(t), d);
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (p[i] > 0) nats += static_cast<double>(p[i]) * std::log(static_cast<double>(p[i] / std::max(d[i], 1e-30f)));
      d[i] = weight * (d[i] - p[i]);
    }
  }
  return nats / static_cast<double>(logits.rows());
}

}  // namespace example
