// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Attention of new tokens over all tokens before them: keys and values are kept in bf16, and both products of
/// attention are products of the library, scores = q Kᵀ and mixed = p V, with K [positions, dim] and Vᵀ [dim,
/// positions] as their W. Heads of queries that share keys are rows of one product.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "blockpack/core/engine.hpp"
#include "layers.hpp"

namespace example {

using blockpack::bf16;

/// What every layer keeps of the tokens seen.
struct AttentionCache {
  struct Layer {
    index_t width, positions;
    blockpack::AlignedBuffer<bf16> keys;    ///< [positions, width], rotated; width = heads of keys * dim
    blockpack::AlignedBuffer<bf16> values;  ///< [width, positions]
  };
  AttentionCache(index_t layer_count, index_t width, index_t positions) {
    const index_t size = blockpack::checked_mul(width, positions, "AttentionCache");
    for (index_t i = 0; i < layer_count; ++i)
      layers.push_back({width, positions, blockpack::AlignedBuffer<bf16>(size), blockpack::AlignedBuffer<bf16>(size)});
  }
  std::vector<Layer> layers;
  index_t used = 0;  ///< tokens held; 0 forgets them
};

/// e^v for v <= 0, relative error below 4e-7; what is below e^-87 comes out as about that. Straight-line arithmetic
/// that compilers vectorize: 2^n from the exponent bits, and the Taylor polynomial of the rest, |r| <= ln 2 / 2.
inline float exponential(float v) {
  const float x = std::max(v, -87.0f);
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the nearest integer is in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float p =
      1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + (std::bit_cast<std::uint32_t>(shifted) << 23));
}

/// row[s] = e^(row[s] - max), s < n; returns their sum.
inline float softmax_numerators(float* row, index_t n) {
  constexpr index_t kRun = 8;
  std::array<float, kRun> top, sum{};
  top.fill(row[0]);
  index_t s = 0;
  for (; s + kRun <= n; s += kRun)
    for (index_t j = 0; j < kRun; ++j) {
      float& lane = top[static_cast<std::size_t>(j)];
      lane = std::max(lane, row[s + j]);
    }
  for (; s < n; ++s) top[0] = std::max(top[0], row[s]);
  const float highest = *std::max_element(top.begin(), top.end());
  for (s = 0; s + kRun <= n; s += kRun)
    for (index_t j = 0; j < kRun; ++j)
      sum[static_cast<std::size_t>(j)] += row[s + j] = exponential(row[s + j] - highest);
  for (; s < n; ++s) sum[0] += row[s] = exponential(row[s] - highest);
  float total = 0;
  for (const float part : sum) total += part;
  return total;
}

/// A matrix of bf16 in memory, as the library's products read it.
struct Bf16Matrix {
  const bf16* data;
  index_t rows, cols, stride;

  blockpack::RowSource source() const {
    blockpack::RowSource w;
    w.rows = rows;
    w.cols = cols;
    w.self = this;
    w.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
      const bf16* src = static_cast<const Bf16Matrix*>(self)->at(row, col);
      std::transform(src, src + count, dst, [](bf16 v) { return static_cast<float>(v); });
    };
    w.decode_bf16 = [](const void* self, index_t row, index_t col, index_t count, bf16* dst) {
      std::copy_n(static_cast<const Bf16Matrix*>(self)->at(row, col), count, dst);
    };
    w.dense = data;
    w.dense_type = blockpack::WeightType::bf16;
    w.dense_row_stride = stride;
    return w;
  }
  const bf16* at(index_t row, index_t col) const { return data + row * stride + col; }
};

/// Causal attention of q [tokens, heads * dim] at positions first, first + 1, … ; k and v [tokens, kv_heads * dim] are
/// appended to the cache of the layer first (k is rotated in place). Heads h of queries use keys h / (heads /
/// kv_heads). One task per head of keys and 32 tokens: scores of their queries stay in L2 up to some 1000 positions.
inline void attend_cached(const RotaryTable& rotary, index_t dim, MatrixView<const float> q, MatrixView<float> k,
                          MatrixView<const float> v, index_t first, AttentionCache::Layer& cache,
                          MatrixView<float> mixed, const blockpack::ApplyOptions& how) {
  constexpr index_t kBlock = 32;
  const index_t tokens = q.rows(), kv_heads = cache.width / dim, group = q.cols() / cache.width;
  const index_t blocks = blockpack::ceil_div(tokens, kBlock);
  blockpack::parallel_for(how.execution, blocks, [&](index_t block) {
    for (index_t t = block * kBlock; t < std::min(tokens, (block + 1) * kBlock); ++t) {
      for (index_t head = 0; head < kv_heads; ++head) rotary.rotate(k.row_data(t) + head * dim, first + t);
      bf16* key = cache.keys.data() + (first + t) * cache.width;
      for (index_t i = 0; i < cache.width; ++i) {
        key[i] = bf16(k(t, i));
        cache.values[i * cache.positions + first + t] = bf16(v(t, i));
      }
    }
  });

  blockpack::ApplyOptions inside;
  inside.execution.threads = 1;
  inside.execution.isa = how.execution.isa;
  const auto mode =
      how.activations == blockpack::Activations::f32 ? how.activations : blockpack::Activations::automatic;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  blockpack::parallel_for(how.execution, blocks * kv_heads, [&](index_t task) {
    const index_t begin = task / kv_heads * kBlock, end = std::min(tokens, begin + kBlock), head = task % kv_heads;
    const index_t seen = first + end, rows = (end - begin) * group;  // row (t - begin) * group + g
    Matrix queries(rows, dim), weights(rows, seen), sums(rows, dim);
    for (index_t t = begin; t < end; ++t)
      for (index_t g = 0; g < group; ++g) {
        float* query = queries.view().row_data((t - begin) * group + g);
        std::copy_n(q.row_data(t) + (head * group + g) * dim, dim, query);
        rotary.rotate(query, first + t);
        for (index_t i = 0; i < dim; ++i) query[i] *= scale;
      }
    const Bf16Matrix keys{cache.keys.data() + head * dim, seen, dim, cache.width};
    const Bf16Matrix values{cache.values.data() + head * dim * cache.positions, dim, seen, cache.positions};
    matmul(queries.view(), keys.source(), weights.view(), mode, inside);
    std::vector<float> total(static_cast<std::size_t>(rows));
    for (index_t row = 0; row < rows; ++row) {
      float* weight = weights.view().row_data(row);
      const index_t visible = first + begin + row / group + 1;
      total[static_cast<std::size_t>(row)] = softmax_numerators(weight, visible);
      std::fill(weight + visible, weight + seen, 0.0f);
    }
    matmul(weights.view(), values.source(), sums.view(), mode, inside);
    for (index_t row = 0; row < rows; ++row) {
      float* out = mixed.row_data(begin + row / group) + (head * group + row % group) * dim;
      const float share = 1.0f / total[static_cast<std::size_t>(row)];
      for (index_t i = 0; i < dim; ++i) out[i] = sums.view()(row, i) * share;
    }
  });
}

}  // namespace example
