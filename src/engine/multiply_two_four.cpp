// SPDX-License-Identifier: Apache-2.0
/// Packed 2:4 weights (layout: kernels/two_four/two_four_kernels.hpp) and the products with them that select
/// activations. Tasks are runs of panels; every panel is read once, and nothing but memory should matter.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "blockpack/core/scalar.hpp"
#include "engine/product.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kTwoFourRows;
using kernels::kTwoFourStep;

/// Four neighbours as two values and their places: what is not 0, filled up with others.
template <class Value>
void pack_group(const float* four, index_t g, index_t row, std::uint32_t& places, Value* group) {
  std::array<std::uint32_t, 2> place = {2, 3};
  std::size_t count = 0;
  for (std::uint32_t k = 0; k < 4 && count < 2; ++k)
    if (!(four[k] == 0.0f)) place[count++] = k;
  if (place[0] == 3) place[0] = 2;
  places |= place[0] << (2 * g) | place[1] << (16 + 2 * g);
  for (index_t i = 0; i < 2; ++i) {
    const float v = four[place[static_cast<std::size_t>(i)]];
    if constexpr (std::is_same_v<Value, float>) {
      group[i * kTwoFourRows + row] = v;
    } else {
      group[2 * row + i] = bf16(v).bits;
    }
  }
}

template <class Value>
void pack_panel(const RowSource& w, index_t first, std::byte* dst) {
  constexpr index_t kUnit = kernels::two_four_unit_bytes(sizeof(Value));
  alignas(64) float values[RowSource::kColumnStep];
  for (index_t r = 0; r < kernels::kPanelColumns; ++r)
    for (index_t k0 = 0; k0 < w.cols; k0 += RowSource::kColumnStep) {
      const index_t n = std::min(RowSource::kColumnStep, w.cols - k0), padded = round_up(n, kTwoFourStep);
      const bool real = first + r < w.rows;
      if (real) w.decode_f32(w.self, first + r, k0, n, values);
      std::fill(values + (real ? n : 0), values + padded, 0.0f);
      for (index_t k = 0; k < padded; k += kTwoFourStep) {
        const index_t row = r % kTwoFourRows;
        std::byte* unit = dst + ((k0 + k) / kTwoFourStep * 2 + r / kTwoFourRows) * kUnit;
        auto* group = reinterpret_cast<Value*>(unit + 4 * kTwoFourRows);
        std::uint32_t places = 0;
        for (index_t g = 0; g < kernels::kTwoFourGroups; ++g, group += 2 * kTwoFourRows)
          pack_group(values + k + 4 * g, g, row, places, group);
        std::memcpy(unit + 4 * row, &places, sizeof(places));
      }
    }
}

/// Tokens that share one pass over the weights: bounds the memory their copies take.
constexpr index_t kSelectedChunk = 256;

}  // namespace

index_t kernel_tokens(index_t tokens) {
  return static_cast<index_t>(std::bit_ceil(static_cast<std::size_t>(std::min(tokens, kernels::kTwoFourTokens))));
}

AlignedBuffer<std::byte> step_rows(const Product& p, index_t first, index_t count) {
  const bool bf16 = p.path == Path::bf16;
  const index_t bytes = bf16 ? 2 : 4, tokens = kernel_tokens(count);
  AlignedBuffer<std::byte> x(checked_mul(ceil_div(p.k, kTwoFourStep) * tokens, kTwoFourStep * bytes, "matmul"));
  for (index_t m = 0; m < count; ++m) {
    std::byte* row = x.data() + m * kTwoFourStep * bytes;
    if (bf16) {
      load_bf16(p, first + m, 0, p.k, reinterpret_cast<std::uint16_t*>(row), tokens * kTwoFourStep);
    } else {
      for (index_t k = 0; k < p.k; k += kTwoFourStep)
        load_f32(p, first + m, k, std::min(kTwoFourStep, p.k - k), reinterpret_cast<float*>(row) + k * tokens);
    }
  }
  return x;
}

index_t two_four_panel_bytes(WeightType type, index_t k) {
  const index_t unit = kernels::two_four_unit_bytes(type == WeightType::f32 ? 4 : 2);
  return checked_mul(ceil_div(k, kTwoFourStep), 2 * unit, "PackedWeights");
}

std::size_t two_four_bytes(MatrixShape shape, WeightType type) {
  const index_t panels = ceil_div(shape.rows, kernels::kPanelColumns);
  return static_cast<std::size_t>(checked_mul(panels, two_four_panel_bytes(type, shape.cols), "PackedWeights"));
}

void pack_two_four(const RowSource& w, WeightType type, const Execution& how, std::byte* dst) {
  const index_t panel_bytes = two_four_panel_bytes(type, w.cols);
  parallel_for(how, ceil_div(w.rows, kernels::kPanelColumns), [&](index_t panel) {
    (type == WeightType::f32 ? pack_panel<float> : pack_panel<std::uint16_t>)(w, panel * kernels::kPanelColumns,
                                                                              dst + panel * panel_bytes);
  });
}

void multiply_selected(const Product& p, const kernels::TwoFourKernels& kernels, const PackedWeights& w,
                       const Gate<PackedWeights>& gate) {
  using kernels::kPanelColumns;
  using kernels::kTwoFourTokens;
  const auto& slot = p.path == Path::bf16           ? kernels.few_f32_bf16_bf16
                     : w.type() == WeightType::bf16 ? kernels.few_f32_f32_bf16
                                                    : kernels.few_f32_f32_f32;
  const index_t panels = ceil_div(p.n, kPanelColumns);
  const index_t panel_bytes = two_four_panel_bytes(w.type(), p.k);
  constexpr index_t kPanelsPerTask = 8;
  for (index_t start = 0; start < p.x.rows(); start += kSelectedChunk) {
    const index_t tokens = std::min(kSelectedChunk, p.x.rows() - start), turns = ceil_div(tokens, kTwoFourTokens);
    const auto tokens_of = [&](index_t turn) { return std::min(kTwoFourTokens, tokens - turn * kTwoFourTokens); };
    std::vector<AlignedBuffer<std::byte>> x(static_cast<std::size_t>(turns));
    for_each_task(p.execution, static_cast<double>(p.k) * static_cast<double>(tokens), turns, [&](index_t turn) {
      x[static_cast<std::size_t>(turn)] = step_rows(p, start + turn * kTwoFourTokens, tokens_of(turn));
    });
    // Panels that tokens take turns with stay in L2.
    const index_t per_task = turns > 1 ? 2 : panels <= 64 ? 4 : kPanelsPerTask;
    const auto multiply = [&](const Product& q, const PackedWeights& weights, index_t task) {
      const index_t first = task * per_task, col = first * kPanelColumns;
      alignas(64) float sums[kTwoFourTokens * kPanelsPerTask * kPanelColumns];
      kernels::TwoFourProduct part{};
      part.w = reinterpret_cast<const unsigned char*>(weights.data()) + first * panel_bytes;
      part.panels = std::min(per_task, panels - first);
      part.steps = ceil_div(p.k, kTwoFourStep);
      part.sums = sums;
      part.sums_stride = part.panels * kPanelColumns;
      for (index_t turn = 0; turn < turns; ++turn) {
        part.x = x[static_cast<std::size_t>(turn)].data();
        part.tokens = static_cast<int>(kernel_tokens(tokens_of(turn)));
        slot.fn(part);
        finish(q, sums, part.sums_stride, kPanelColumns, start + turn * kTwoFourTokens, tokens_of(turn), col,
               std::min(p.n - col, part.sums_stride));
      }
    };
    for_each_task(p, ceil_div(panels, per_task), [&](index_t task) {
      if (gate.product != nullptr) multiply(*gate.product, *gate.weights, task);
      multiply(p, w, task);
    });
  }
}

}  // namespace engine
}  // namespace blockpack::inline BLOCKPACK_ABI
