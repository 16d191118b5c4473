// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The steps of a transformer between its linear layers: RMSNorm, LayerNorm, rotary positions, attention of one head
/// over one window, SiLU, GELU, each with its derivative.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/buffer.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace example {

using blockpack::index_t;
using blockpack::MatrixView;

/// A float matrix that owns its values.
struct Matrix {
  Matrix() = default;
  Matrix(index_t r, index_t c)
      : rows(r),
        cols(c),
        values(blockpack::AlignedBuffer<float>::uninitialized(blockpack::checked_mul(r, c, "example::Matrix"))) {}
  MatrixView<float> view() { return {values.data(), rows, cols}; }
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
  index_t rows = 0, cols = 0;
  blockpack::AlignedBuffer<float> values;
};

/// The matrix an operator stands for.
inline Matrix decoded(const blockpack::AnyLinear& op) {
  Matrix w(op.out_features(), op.in_features());
  std::vector<index_t> rows(static_cast<std::size_t>(w.rows));
  std::iota(rows.begin(), rows.end(), index_t{0});
  op.decode_rows(rows, w.view());
  return w;
}

/// y += a * x, in runs of a fixed length that compilers vectorize at -O2 too. x and y do not overlap.
inline void add_scaled(float a, const float* __restrict x, float* __restrict y, index_t n) {
  constexpr index_t kRun = 8;
  index_t i = 0;
  for (; i + kRun <= n; i += kRun)
    for (index_t j = 0; j < kRun; ++j) y[i + j] += a * x[i + j];
  for (; i < n; ++i) y[i] += a * x[i];
}

/// Σ x², in lanes as add_scaled runs.
inline float sum_of_squares(std::span<const float> x) {
  constexpr std::size_t kRun = 8;
  float lanes[kRun] = {};
  std::size_t i = 0;
  for (; i + kRun <= x.size(); i += kRun)
    for (std::size_t j = 0; j < kRun; ++j) lanes[j] += x[i + j] * x[i + j];
  for (; i < x.size(); ++i) lanes[0] += x[i] * x[i];
  return std::accumulate(lanes, lanes + kRun, 0.0f);
}

/// dst = x / sqrt(mean(x²) + epsilon) ⊙ weight, row by row.
inline void rms_norm(MatrixView<const float> x, std::span<const float> weight, float epsilon, MatrixView<float> dst) {
  for (index_t t = 0; t < x.rows(); ++t) {
    const float scale = 1.0f / std::sqrt(sum_of_squares(x.row(t)) / static_cast<float>(x.cols()) + epsilon);
    const float* src = x.row_data(t);
    float* out = dst.row_data(t);
    for (index_t i = 0; i < x.cols(); ++i) out[i] = src[i] * scale * weight[static_cast<std::size_t>(i)];
  }
}

/// dx += the gradient of rms_norm's x for the gradient dy of its result. With r = 1 / sqrt(mean(x²) + epsilon):
///     dx_i += r w_i dy_i - x_i r³ / n Σ_j w_j dy_j x_j
inline void rms_norm_backward(MatrixView<const float> x, std::span<const float> weight, float epsilon,
                              MatrixView<const float> dy, MatrixView<float> dx) {
  const auto n = static_cast<float>(x.cols());
  for (index_t t = 0; t < x.rows(); ++t) {
    float sum = 0, projected = 0;
    for (index_t i = 0; i < x.cols(); ++i) {
      sum += x(t, i) * x(t, i);
      projected += weight[static_cast<std::size_t>(i)] * dy(t, i) * x(t, i);
    }
    const float r = 1.0f / std::sqrt(sum / n + epsilon);
    const float along = projected * r * r * r / n;
    for (index_t i = 0; i < x.cols(); ++i)
      dx(t, i) += r * weight[static_cast<std::size_t>(i)] * dy(t, i) - along * x(t, i);
  }
}

/// dst = (x - mean(x)) / sqrt(mean((x - mean(x))²) + epsilon) ⊙ weight + bias, row by row; sums in double.
inline void layer_norm(MatrixView<const float> x, std::span<const float> weight, std::span<const float> bias,
                       float epsilon, MatrixView<float> dst) {
  const auto n = static_cast<double>(x.cols());
  for (index_t t = 0; t < x.rows(); ++t) {
    double sum = 0, squares = 0;
    for (const float value : x.row(t)) sum += static_cast<double>(value);
    const auto mean = static_cast<float>(sum / n);
    for (const float value : x.row(t)) squares += static_cast<double>(value - mean) * static_cast<double>(value - mean);
    const auto scale = static_cast<float>(1.0 / std::sqrt(squares / n + static_cast<double>(epsilon)));
    for (index_t i = 0; i < x.cols(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      dst(t, i) = (x(t, i) - mean) * scale * weight[at] + bias[at];
    }
  }
}

/// dx += the gradient of layer_norm's x for the gradient dy of its result. With z = (x - mean(x)) r, r = 1 /
/// sqrt(mean((x
/// - mean(x))²) + epsilon) and g = weight ⊙ dy:
///     dx_i += r (g_i - mean(g) - z_i mean(g ⊙ z))
inline void layer_norm_backward(MatrixView<const float> x, std::span<const float> weight, float epsilon,
                                MatrixView<const float> dy, MatrixView<float> dx) {
  const auto n = static_cast<double>(x.cols());
  std::vector<double> z(static_cast<std::size_t>(x.cols())), g(z.size());
  for (index_t t = 0; t < x.rows(); ++t) {
    double sum = 0, squares = 0, mean_g = 0, mean_gz = 0;
    for (const float value : x.row(t)) sum += static_cast<double>(value);
    for (std::size_t i = 0; i < z.size(); ++i) {
      z[i] = static_cast<double>(x.row(t)[i]) - sum / n;
      squares += z[i] * z[i];
    }
    const double r = 1.0 / std::sqrt(squares / n + static_cast<double>(epsilon));
    for (std::size_t i = 0; i < z.size(); ++i) {
      z[i] *= r;
      g[i] = static_cast<double>(weight[i]) * static_cast<double>(dy.row(t)[i]);
      mean_g += g[i] / n;
      mean_gz += g[i] * z[i] / n;
    }
    for (std::size_t i = 0; i < z.size(); ++i) dx.row(t)[i] += static_cast<float>(r * (g[i] - mean_g - z[i] * mean_gz));
  }
}

/// Angles of the rotary positions: position * theta^(-2i / head_dim) for the pair (i, i + head_dim / 2).
class RotaryTable {
 public:
  RotaryTable() = default;
  RotaryTable(index_t positions, index_t head_dim, float theta) : half_(head_dim / 2) {
    cosine_.resize(static_cast<std::size_t>(positions * half_));
    sine_.resize(cosine_.size());
    for (index_t p = 0; p < positions; ++p) {
      for (index_t i = 0; i < half_; ++i) {
        const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
        const double angle = static_cast<double>(p) * std::pow(static_cast<double>(theta), exponent);
        cosine_[static_cast<std::size_t>(p * half_ + i)] = static_cast<float>(std::cos(angle));
        sine_[static_cast<std::size_t>(p * half_ + i)] = static_cast<float>(std::sin(angle));
      }
    }
  }

  /// Turns the pairs of one head in place; `direction` -1 turns back, which is also the derivative.
  void rotate(float* head, index_t position, float direction = 1.0f) const {
    const float* cosine = cosine_.data() + position * half_;
    const float* sine = sine_.data() + position * half_;
    for (index_t i = 0; i < half_; ++i) {
      const float a = head[i], b = head[i + half_], s = direction * sine[i];
      head[i] = a * cosine[i] - b * s;
      head[i + half_] = b * cosine[i] + a * s;
    }
  }

 private:
  index_t half_ = 0;
  std::vector<float> cosine_, sine_;
};

/// Attention of one head over one window: q and k (rotated already), v and out are [window, head_dim] views into the
/// whole layer's matrices. Causal: position t sees positions 0 to t; otherwise all. Row t of `weights` [window, window]
/// gets the attention weights of position t; who does not want them passes one row, [1, window]. Keys are transposed
/// first, so that both products run along contiguous memory.
inline void attend(MatrixView<const float> q, MatrixView<const float> k, MatrixView<const float> v,
                   MatrixView<float> weights, MatrixView<float> out, bool causal = true) {
  const index_t window = q.rows(), dim = q.cols();
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  Matrix keys(dim, window);
  for (index_t t = 0; t < window; ++t)
    for (index_t i = 0; i < dim; ++i) keys.view()(i, t) = k(t, i);
  for (index_t t = 0; t < window; ++t) {
    const index_t seen = causal ? t + 1 : window;
    float* weight = weights.row_data(weights.rows() == 1 ? 0 : t);
    std::fill(weight, weight + seen, 0.0f);
    for (index_t i = 0; i < dim; ++i) add_scaled(q(t, i) * scale, keys.view().row_data(i), weight, seen);
    const float top = *std::max_element(weight, weight + seen);
    float sum = 0;
    for (index_t s = 0; s < seen; ++s) sum += weight[s] = std::exp(weight[s] - top);
    float* mixed = out.row_data(t);
    std::fill(mixed, mixed + dim, 0.0f);
    for (index_t s = 0; s < seen; ++s) add_scaled(weight[s] /= sum, v.row_data(s), mixed, dim);
  }
}

/// Gradients of attend for the gradient `dout` of its result: dq, dk and dv [window, head_dim] are overwritten.
///     dv_s = Σ_t p_ts dout_t;  ds_ts = p_ts (dout_t·v_s - Σ_u p_tu dout_t·v_u);  dq_t = Σ_s ds_ts k_s / √dim; dk alike
inline void attend_backward(MatrixView<const float> q, MatrixView<const float> k, MatrixView<const float> v,
                            MatrixView<const float> weights, MatrixView<const float> dout, MatrixView<float> dq,
                            MatrixView<float> dk, MatrixView<float> dv, bool causal = true) {
  const index_t window = q.rows(), dim = q.cols();
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  Matrix values(dim, window), scores(1, window);
  for (index_t t = 0; t < window; ++t) {
    for (index_t i = 0; i < dim; ++i) values.view()(i, t) = v(t, i);
    std::fill_n(dq.row_data(t), dim, 0.0f);
    std::fill_n(dk.row_data(t), dim, 0.0f);
    std::fill_n(dv.row_data(t), dim, 0.0f);
  }
  float* score = scores.values.data();
  for (index_t t = 0; t < window; ++t) {
    const float* p = weights.row_data(t);
    const index_t seen = causal ? t + 1 : window;
    std::fill(score, score + seen, 0.0f);
    for (index_t i = 0; i < dim; ++i) add_scaled(dout(t, i), values.view().row_data(i), score, seen);
    float mean = 0;
    for (index_t s = 0; s < seen; ++s) mean += p[s] * score[s];
    for (index_t s = 0; s < seen; ++s) {
      const float ds = p[s] * (score[s] - mean) * scale;
      add_scaled(ds, k.row_data(s), dq.row_data(t), dim);
      add_scaled(ds, q.row_data(t), dk.row_data(s), dim);
      add_scaled(p[s], dout.row_data(t), dv.row_data(s), dim);
    }
  }
}

/// v / 2 · (1 + erf(v / √2)) and its derivative.
inline std::pair<float, float> gelu_with_slope(float v) {
  constexpr float kRootHalf = 0.70710678f, kDensity = 0.39894228f;  // √(1/2), 1 / √(2π)
  const float below = 0.5f * (1.0f + std::erf(v * kRootHalf));
  return {v * below, below + v * kDensity * std::exp(-0.5f * v * v)};
}

/// v / (1 + e^-v) and its derivative.
inline std::pair<float, float> silu_with_slope(float v) {
  const float sigmoid = 1.0f / (1.0f + std::exp(-v));
  return {v * sigmoid, sigmoid * (1.0f + v * (1.0f - sigmoid))};
}

}  // namespace example
